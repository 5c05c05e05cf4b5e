"""Tiny random language models, the tokenizer that they share, and tasks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from limbeck.data.tasks import Task
from limbeck.data.templates import Example

WORDS = "good bad fine poor film book song plays great awful red blue green one two three four five".split()
KINDS = ("gpt2", "llama", "t5")
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word, newline or other character; the space in front of a word belongs to it."""
    pieces = [*words, *(f" {word}" for word in words), "\n", " "]
    letters = [chr(c) for c in range(33, 127)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(["<pad>", "</s>", "<unk>", *pieces, *letters]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(_pattern(), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _pattern() -> Any:
    from tokenizers import Regex

    return Regex(r" ?[a-z]+|\n| |.")


def build(kind: str, width: int = 16, layers: int = 2, positions: int = 96, seed: int = 0, vocabulary: int = 0) -> Any:
    """A random language model of ``kind`` for ``tokenizer()``."""
    torch.manual_seed(seed)
    size, ends = vocabulary or len(tokenizer()), {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    if kind == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size, n_positions=positions, n_embd=width, n_layer=layers, n_head=2, **ends, **NO_DROPOUT
            )
        )
    elif kind == "llama":
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            **ends,
        )
        model = LlamaForCausalLM(config)
    else:
        config = T5Config(
            vocab_size=size,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=layers,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            **ends,
        )
        model = T5ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():  # default scales make random models say almost nothing
        if parameter.dim() > 1 and "relative" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save(kind: str, folder: Path, **settings: Any) -> Path:
    """The model and its tokenizer in ``folder``."""
    build(kind, **settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def task(name: str = "taste", rows: int = 12, options: bool = True) -> Task:
    """A task whose answer follows from the last word."""
    answers = ("good", "bad")
    made = [
        Example(name, f"{WORDS[4 + i % 4]} {WORDS[8 + i % 9]}", answers[i % 2], answers if options else ())
        for i in range(3 * rows)
    ]
    return Task(name, made[:rows], made[rows : 2 * rows], made[2 * rows :])


def write_tasks(folder: Path, names: tuple[str, ...] = ("taste", "tone"), options: bool = True) -> Path:
    """Tasks as MetaICL's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        made = task(name, options=options)
        for split in ("train", "test"):
            write_rows(folder / f"{name}_{split}.jsonl", getattr(made, split))
    return folder


def write_rows(path: Path, rows: list[Example]) -> Path:
    """One file of examples."""
    lines = [
        json.dumps({"task": r.task, "input": r.input, "output": r.output, "options": list(r.options)}) for r in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
