"""Tiny encoders with a tokenizer, in folders, and rows with classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedTokenizerFast

from limbeck.core.batch import IGNORE, Batch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *(f"w{i}" for i in range(25))]


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{word[1:-1].lower()}_token": word for word in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def config(width: int = 16, layers: int = 4, **settings: Any) -> BertConfig:
    silent = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 2, "max_position_embeddings": 24, "vocab_size": len(WORDS)}
    return BertConfig(**size, **heads, **silent, **settings)


def bert(kind: Any = BertForSequenceClassification, seed: int = 0, **settings: Any) -> Any:
    """An encoder with opinions: the usual initialisation says the same everywhere."""
    torch.manual_seed(seed)
    if kind is BertForSequenceClassification:
        settings.setdefault("num_labels", 3)
    model = kind(config(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    return model.eval()


def write_encoder(folder: Path, kind: Any = BertForMaskedLM, **settings: Any) -> str:
    bert(kind, **settings).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def write_rows(path: Path, number: int = 60) -> str:
    """Rows whose class follows from their first word; every sixth lacks it."""
    rows = [{"text": f"w{i % 3} w{3 + i % 22} w{3 + i % 7}", "label": f"c{i % 3}"} for i in range(number)]
    kept = [row if i % 6 else {"text": row["text"]} for i, row in enumerate(rows)]
    path.write_text("\n".join(map(json.dumps, kept)))
    return str(path)


def labelled(seed: int, classes: int = 3) -> list[Batch]:
    """Ten batches of 8 rows."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(10):
        ids = torch.randint(5, len(WORDS), (8, 7), generator=generator)
        mask = torch.arange(7) < torch.randint(3, 8, (8, 1), generator=generator)
        labels = torch.randint(classes, (8,), generator=generator)
        known = torch.arange(8) % 4 < 3
        batches.append({"ids": ids, "mask": mask, "labels": labels.where(known, IGNORE), "labelled": known})
    return batches
