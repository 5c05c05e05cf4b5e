"""``limbeck vocab_trim`` from files to files."""

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from limbeck.analyses.measure import measure
from limbeck.cli import main as limbeck
from limbeck.core.check import LimbeckError
from limbeck.core.stage import distill_step
from limbeck.methods.multilingual.vocab_trim import Config, heal, healing, main, vocab_trim
from limbeck.models.load import load_model
from limbeck.objectives.tokens import soft
from limbeck.sources.model import model_source
from limbeck.sources.vocabulary import elsewhere, kept
from limbeck.students.vocabulary import kept_rows, trim_vocabulary

SYLLABLES = ["ka", "lo", "mi", "neu", "ru", "sti", "tur", "bar", "den", "fol", "gri", "hum"]
DRAW = np.random.default_rng(0)
WORDS = ["".join(DRAW.choice(SYLLABLES, DRAW.integers(1, 4))) for _ in range(120)]  # the first half at home
HOME, AWAY = (
    [" ".join(DRAW.choice(half, DRAW.integers(4, 9))) for _ in range(80)] for half in (WORDS[:60], WORDS[60:])
)
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}


def read_like_bert():
    """Greedy pieces: letters, syllables and words."""
    letters, special = sorted(set("".join(SYLLABLES))), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys(letters + SYLLABLES + [f"##{piece}" for piece in letters + SYLLABLES] + WORDS)
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate([*special, *pieces])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def read_like_llama():
    """Byte-level merges that build syllables from letters, then words from syllables."""
    merges = []
    for parts in [[*syllable] for syllable in SYLLABLES] + [word_parts(word) for word in WORDS]:
        for i in range(1, len(parts)):
            merges.append(("".join(parts[:i]), parts[i]))
    merges = list(dict.fromkeys(merges))
    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end = {f"{name}_token": "<|end|>" for name in ("bos", "eos", "pad")}
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, **end)


def word_parts(word):
    """The syllables of a word."""
    parts = []
    while word:
        parts.append(next(syllable for syllable in SYLLABLES if word.startswith(syllable)))
        word = word.removeprefix(parts[-1])
    return parts


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two models, a classifier, and two corpora."""
    folder = tmp_path_factory.mktemp("trim")
    torch.manual_seed(0)
    bert, llama = read_like_bert(), read_like_llama()
    config = hf.BertConfig(vocab_size=len(bert), max_position_embeddings=64, pad_token_id=0, **CALM, **TINY)
    sizes = {"vocab_size": len(llama), "num_key_value_heads": 2, "max_position_embeddings": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    made = {
        "bert": (hf.BertForMaskedLM(config), bert),
        "classifier": (hf.BertForSequenceClassification(config), bert),
        "llama": (hf.LlamaForCausalLM(hf.LlamaConfig(**TINY, **sizes, **ends, initializer_range=0.3)), llama),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "home.txt").write_text("\n".join(HOME), encoding="utf-8")
    lines = (json.dumps({"text": text}) for text in AWAY[:3])
    (folder / "away.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["bert", "classifier", "llama"])
def test_command_writes_a_model_that_loads_and_says_the_same(place, tmp_path, name, capsys):
    out = tmp_path / "small"
    words = ["vocab_trim", "--model", str(place / name), "--data", str(place / "home.txt"), "--out", str(out)]
    assert limbeck(words) == 0
    model, tokenizer = load_model(str(place / name), "saved", "auto")
    small, small_tokenizer = load_model(str(out), "saved", "auto")
    assert type(small) is type(model)
    rows = kept_rows(model, tokenizer, small_tokenizer)
    ids = torch.tensor([small_tokenizer(HOME[7])["input_ids"]])
    assert torch.tensor(rows)[ids].tolist() == [tokenizer(HOME[7])["input_ids"]]
    with torch.no_grad():
        wide, narrow = model(torch.tensor(rows)[ids]).logits, small(ids).logits
    torch.testing.assert_close(narrow, wide if name == "classifier" else wide[..., rows], atol=2e-6, rtol=1e-5)

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["coverage"] == {str(place / "home.txt"): 1.0}
    assert metrics["texts_checked"] == 8
    assert metrics["tokens"]["after"] == len(small_tokenizer) == small.config.vocab_size < metrics["tokens"]["before"]
    assert metrics["after"]["parameters"] == sum(p.numel() for p in small.parameters())
    saved = metrics["before"]["bytes"] - metrics["after"]["bytes"]
    assert saved == 4 * sum(p.numel() for p in model.parameters()) - 4 * sum(p.numel() for p in small.parameters())
    assert {"run.json", "README.md", "report.html"} <= {path.name for path in out.iterdir()}


def test_equal_weights_keep_more_of_the_small_corpus(place, tmp_path):
    base = Config(model=str(place / "bert"), data=(str(place / "home.txt"), str(place / "away.jsonl")), size=40)
    covered = []
    for equal in (False, True):
        out = main(replace(base, equal=equal, out=tmp_path / str(equal)))
        covered.append(json.loads((out / "metrics.json").read_text())["coverage"])
    home, away = (str(place / name) for name in ("home.txt", "away.jsonl"))
    assert covered[1][away] > covered[0][away]
    assert covered[1][home] < covered[0][home]


def test_tokens_that_are_named_stay(place, tmp_path):
    away = read_like_bert().tokenize(AWAY[-1])[1]
    cfg = Config(model=str(place / "bert"), data=(str(place / "home.txt"),), always=(away,), out=tmp_path / "named")
    assert away in load_model(str(main(cfg)), "saved", "auto")[1].get_vocab()


@pytest.mark.parametrize(("name", "size"), [("bert", 30), ("llama", 30)])
def test_healing_brings_texts_that_are_cut_anew_nearer_to_the_original(place, name, size):
    model, tokenizer = load_model(str(place / name), "saved", "auto")
    cfg = Config(size=size, heal=40, batch=8, lr=2e-3)
    small, small_tokenizer, metrics, _ = vocab_trim(model, tokenizer, {"home": HOME}, cfg)
    assert metrics["coverage"]["home"] < 1
    stream = healing(model, tokenizer, small_tokenizer, HOME, cfg)
    keep = kept_rows(model, tokenizer, small_tokenizer)
    student = copy.deepcopy(small)
    compare = distill_step(model_source(student), elsewhere(kept(model_source(model), keep)), soft(on="aligned"))
    batches = [stream.at(i) for i in range(10)]
    before = measure(compare, batches)["soft"]
    assert before > 1e-3
    heal(student, model, keep, stream, cfg)
    assert measure(compare, batches)["soft"] < 0.9 * before


def test_healing_through_the_command(place, tmp_path):
    data = str(place / "home.txt")
    cfg = Config(
        model=str(place / "llama"), data=(data,), size=30, heal=3, batch=4, out=tmp_path / "healed", device="cpu"
    )
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["heal"]["steps"] == 3
    plain = main(replace(cfg, heal=0, out=tmp_path / "plain"))
    ours, theirs = (load_model(str(folder), "saved", "auto")[0].state_dict() for folder in (out, plain))
    assert any(not torch.equal(ours[key], theirs[key]) for key in ours)
    assert main(cfg) == out  # again in the same folder: the stage is done


def test_one_sentence_and_nothing_written_for_every_mistake(place, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    broken = tmp_path / "broken"
    shutil.copytree(place / "bert", broken)
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    model, data, out = str(place / "bert"), str(place / "home.txt"), str(tmp_path / "none")
    mistakes = {
        "size 5: the tokenizer has 5 special tokens": ["--size", "5"],
        "size 5000: only ": ["--size", "5000"],
        "expected at least one line of text": ["--data", str(tmp_path / "empty.txt")],
        "nowhere.txt: no such file": ["--data", str(tmp_path / "nowhere.txt")],
        "--always 'zzz': the tokenizer has no such token": ["--always", "zzz"],
        "--heal -1: expected a number of steps": ["--heal", "-1"],
        "--min-count 0: expected": ["--min-count", "0"],
        "nothing to trim": ["--always", *sorted(set(read_like_bert().get_vocab()) - {"[PAD]"})],
        "every text is cut as before": ["--min-count", "1", "--heal", "2"],
        f"cannot load '{tmp_path}' as a saved model": ["--model", str(tmp_path)],
        f"cannot load '{broken}' as a saved model": ["--model", str(broken)],
        "--heal needs a masked or causal language model": ["--model", str(place / "classifier"), "--heal", "2"],
    }
    for sentence, words in mistakes.items():
        assert limbeck(["vocab_trim", "--model", model, "--data", data, "--out", out, *words]) == 2, sentence
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence in said
        assert said.startswith("limbeck: ")
        assert not (tmp_path / "none").exists()


def test_a_slow_tokenizer_is_refused(place):
    model, _ = load_model(str(place / "bert"), "saved", "auto")
    slow = hf.ByT5Tokenizer()
    with pytest.raises(LimbeckError, match=r"needs a fast tokenizer, .* but got ByT5Tokenizer"):
        trim_vocabulary(model, slow, [1, 2, 3])
