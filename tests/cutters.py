"""Real tokenizers of every family, trained on a few lines in several scripts."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Ana are mere și pere, iar Ștefan țese în fața casei.",
    "北京是中华人民共和国的首都。",
    "I love 🍎🍏 apples!  Two  spaces\nand\n\nlines.\t tab",
    "Les élèves étaient déçus; ﬁne ① ½",
    "  leading and trailing  ",
    "naïve café — coöperate … “quotes” (and brackets)",
]
HARD = [
    "Ana are  🍎 mere\n\nși 𝒳.",
    "  lead e\u0301t ",
    "中华x 人民",
    "½ ﬁne cafe\u0301",
    "",
    " ",
    "\n\n",
    "Un măr  ROȘU\tși\u00a0două 🍏🍏.\n",
    "THE end (the END) ...",
    "\u200bzero\u200b width",
]
Fast = PreTrainedTokenizerFast


def byte_level(size: int = 400, normalizer: str | None = None, prefix: bool = False) -> Fast:
    """As GPT-2 (NFC: as Qwen; prefix: with a space of its own in front of a text)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder, core.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=True)
    if normalizer:
        core.normalizer = getattr(normalizers, normalizer)()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    core.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=size, **special))
    return Fast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def unigram(size: int = 160, by_word: bool = False) -> Fast:
    """SentencePiece as in T5 (NFKC, spaces run together); by_word: as in XLM-R, white space parts words."""
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    space = pre_tokenizers.Metaspace()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space]) if by_word else space
    core.decoder = decoders.Metaspace()
    settings = {"special_tokens": ["<s>", "</s>", "<unk>"], "unk_token": "<unk>", "show_progress": False}
    core.train_from_iterator(TEXTS * 3, trainers.UnigramTrainer(vocab_size=size, **settings))
    return Fast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def byte_fallback(size: int = 220) -> Fast:
    """SentencePiece BPE as in Llama 2: what has no piece is spelled in bytes."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    latin = [text for text in TEXTS if all(ord(letter) < 0x300 for letter in text)]
    trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=pieces, show_progress=False)
    core.train_from_iterator(latin * 3, trainer)
    state = json.loads(core.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the byte pieces belong to the model
    core = Tokenizer.from_str(json.dumps(state))
    return Fast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>")


def word_piece(size: int = 150) -> Fast:
    """As BERT's uncased models: lower case, no accents, no spaces."""
    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    core.train_from_iterator(TEXTS * 3, trainer)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {f"{name.strip('[]').lower()}_token": name for name in special}
    return Fast(tokenizer_object=core, **named)


KINDS = {
    "byte level": byte_level,
    "byte level, NFC": lambda: byte_level(350, "NFC"),
    "byte level, own space": lambda: byte_level(prefix=True),
    "unigram": unigram,
    "unigram by word": lambda: unigram(by_word=True),
    "byte fallback": byte_fallback,
    "word piece": word_piece,
}


@cache
def cutter(kind: str) -> Fast:
    """The tokenizer of ``kind``, one per process."""
    return KINDS[kind]()
