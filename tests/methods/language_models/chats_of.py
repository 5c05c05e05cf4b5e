"""Tiny models of several families that share a tokenizer, and one set of conversations in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WORDS = [f"w{i}" for i in range(20)]


def sizes(width: int, layers: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 2}


def llama(vocabulary: int, width: int = 16, layers: int = 2) -> Any:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=128, **sizes(width, layers))
    )


def gpt2(vocabulary: int, width: int = 16, layers: int = 2) -> Any:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=2, n_positions=128)
    )


def t5(vocabulary: int, width: int = 16, layers: int = 2) -> Any:
    size = {"d_model": width, "d_kv": width // 2, "d_ff": 2 * width, "num_layers": layers, "num_heads": 2}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **size))


FAMILIES = {"llama": llama, "gpt2": gpt2, "t5": t5}


def tokenizer() -> Any:
    """Words, single letters and line breaks; texts come back as they were."""
    signs = [*"abcdefghijklmnopqrstuvwxyzASU:", "\n", " "]
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "[END]", *WORDS, *signs])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(__import__("tokenizers").Regex(r"w\d+|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return hf.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")


def make_files(folder: Path) -> Path:
    """``llama``, ``gpt2``, ``t5`` (teachers with opinions), ``small`` (a Llama), and the data."""
    words = tokenizer()
    torch.manual_seed(0)
    for name, make in {**FAMILIES, "small": lambda size: llama(size, width=8, layers=1)}.items():
        model = make(len(words))
        with torch.no_grad():
            for parameter in model.parameters() if name != "small" else ():
                if parameter.dim() == 2:
                    parameter.mul_(4)
        model.save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    rng = np.random.default_rng(0)
    said = [[" ".join(rng.choice(WORDS, rng.choice([1, 1, 1, 8]))) for _ in range(4)] for _ in range(48)]
    roles = ("user", "assistant") * 2
    chats = [{"messages": [{"role": r, "content": text} for r, text in zip(roles, one, strict=True)]} for one in said]
    _lines(folder / "chats.jsonl", chats)
    names = ("human", "gpt") * 2
    share = [{"conversations": [{"from": n, "value": t} for n, t in zip(names, one, strict=True)]} for one in said]
    (folder / "sharegpt.json").write_text(json.dumps(share))
    _lines(folder / "pairs.jsonl", [{"prompt": one[0], "completion": one[1]} for one in said])
    (folder / "text.txt").write_text("\n".join(" ".join(one) for one in said))
    return folder


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows))
