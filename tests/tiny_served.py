"""A tiny model behind ``serving.Serving``, which names its tokens in one of the ways that servers have."""

from __future__ import annotations

import json

import tiny_llms
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from limbeck.data.spelling import BYTE, spelling

TEXTS = ["good film, Ünïcode & ends", "a good book — великий 好", "poor plays\nfive"]
END = "</s>"


def byte_level() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=[END], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END)


def sentencepiece() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", END], show_progress=False)
    core.train_from_iterator(["good film", "a book poor plays five"] * 3, trainer)
    made = json.loads(core.to_str())["model"]
    single = {f"<0x{byte:02X}>": len(made["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in made["merges"]]
    core.model = models.BPE(made["vocab"] | single, merges, byte_fallback=True, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, unk_token="<unk>")


class Teacher:
    """A tiny model that answers in OpenAI's protocol and names its tokens in a way of several."""

    name = "tiny"

    def __init__(self, tokenizer: PreTrainedTokenizerFast, way: str) -> None:
        self.tokenizer, self.way = tokenizer, way
        self.special = spelling(tokenizer).special
        stored = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        letters = {raw(tokenizer, token) for token in range(len(tokenizer)) if not BYTE.match(stored[token])}
        self.never = [i for i, name in enumerate(stored) if BYTE.match(name) and raw(tokenizer, i) in letters]
        self.model = tiny_llms.build("llama", positions=128, vocabulary=len(tokenizer))

    def log_probs(self, ids: list[int]) -> Tensor:
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        logits[:, self.never] -= 30  # trained models do not write letters as bytes
        return logits.log_softmax(-1)

    def named(self, token: int) -> dict:
        stored = self.tokenizer.convert_ids_to_tokens(token)
        if token in self.special and self.way != "ids":
            return {"token": stored, "bytes": None}
        alone = self.tokenizer.decode([token])
        spelled = raw(self.tokenizer, token)
        names = {
            "ids": f"token_id:{token}",
            "stored": stored,
            "decoded": alone,
            "plain": spelled.decode(errors="replace"),
        }
        escaped = "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)
        names["escaped"] = escaped if "�" in names["plain"] else names["plain"]
        if self.way == "bytes":
            return {"token": names["plain"], "bytes": list(spelled)}
        return {"token": names[self.way], "bytes": None}

    def write(self, prompt, body: dict) -> list[dict]:
        if body.get("echo"):
            return [{"text": "", "finish_reason": "length", "logprobs": self.echoed(prompt, body["logprobs"])}]
        ids, new, content = list(self.tokenizer(prompt[-1]["content"])["input_ids"]), [], []
        for _ in range(body["max_tokens"]):
            said = self.log_probs(ids + new)[-1]
            new.append(int(said.argmax()))
            best = said.topk(body["top_logprobs"])
            top = [{**self.named(int(t)), "logprob": float(v)} for v, t in zip(*best, strict=True)]
            content.append({**self.named(new[-1]), "logprob": float(said.max()), "top_logprobs": top})
        text = b"".join(raw(self.tokenizer, token) for token in new).decode(errors="replace")
        return [{"text": text, "finish_reason": "length", "logprobs": {"content": content}}]

    def echoed(self, ids: list[int], top: int) -> dict:
        said = self.log_probs(ids)[:-1]
        best = said.topk(top)
        tops = [
            {self.named(int(t))["token"]: float(v) for v, t in zip(values, tokens, strict=True)}
            for values, tokens in zip(*best, strict=True)
        ]
        values = said[range(len(ids) - 1), ids[1:]].tolist()
        names = [self.named(token)["token"] for token in ids]
        return {"tokens": names, "token_logprobs": [None, *values], "top_logprobs": [None, *tops]}


def raw(tokenizer: PreTrainedTokenizerFast, token: int) -> bytes:
    return spelling(tokenizer).pieces[token] or b""
