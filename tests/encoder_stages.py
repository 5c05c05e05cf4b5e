"""The stages that the methods for encoders train, tiny: for the shared contract and the methods' own tests."""

from __future__ import annotations

from typing import Any

import tiny_classifiers as classifiers
import torch
from contract import stages_of
from transformers import BertForMaskedLM

from limbeck.core.batch import IGNORE, Batch
from limbeck.core.stage import Stage
from limbeck.methods.encoders import (
    classification,
    distiller,
    ernie_tiny,
    exit_retrieval,
    modular_encoder,
    well_read_students,
)
from limbeck.students.exit_vectors import ExitVectors
from limbeck.students.exits import MultiExit


def distiller_stage(seed: int, **settings: Any) -> Stage:
    student = classifiers.bert(width=8, layers=2, seed=seed + 1)
    teacher, cfg = classifiers.bert(seed=seed), distiller.Config(steps=8, seed=seed, warmup=0.0, **settings)
    stream = classifiers.labelled(seed)
    (stage,) = stages_of(distiller, lambda: distiller.distiller(student, teacher, stream, cfg))
    return stage


def pretrain_stage(seed: int) -> Stage:
    student, cfg = classifiers.bert(width=8, layers=2, seed=seed), well_read_students.Config(seed=seed, warmup=0.0)
    (stage,) = stages_of(well_read_students, lambda: well_read_students.pretrain(student, masked_words(seed), cfg))
    return stage


def distil_stage(seed: int) -> Stage:
    student, teacher = classifiers.bert(width=8, layers=2, seed=seed + 1), classifiers.bert(seed=seed)
    cfg, stream = well_read_students.Config(seed=seed, warmup=0.0), classifiers.labelled(seed)
    (stage,) = stages_of(well_read_students, lambda: well_read_students.distil(student, teacher, stream, cfg))
    return stage


def fine_tune_stage(seed: int) -> Stage:
    student, cfg = classifiers.bert(seed=seed), well_read_students.Config(seed=seed, warmup=0.0)
    stream = classifiers.labelled(seed)
    (stage,) = stages_of(classification, lambda: classification.fine_tune("tune", student, stream, 8, cfg))
    return stage


def ernie_stages(seed: int, **settings: Any) -> list[Stage]:
    """All four; frozen ``teacher`` and ``stream`` are the same objects where the stages share them."""
    torch.manual_seed(seed)
    student = classifiers.bert(width=8, layers=2, seed=seed + 2)
    teachers = {"pre-trained": classifiers.bert(seed=seed), "fine-tuned": classifiers.bert(seed=seed + 1)}
    rows = classifiers.labelled(seed)
    data = {"task": rows, "general": [{name: batch[name] for name in ("ids", "mask")} for batch in rows]}
    few = {f"{name}_steps": 8 for name in ("general", "enhanced", "adaptive")} | {"steps": 8}
    cfg = ernie_tiny.Config(seed=seed, warmup=0.0, **few, **settings)
    return stages_of(ernie_tiny, lambda: ernie_tiny.ernie_tiny(student, teachers, data, cfg))


def exits_stage(seed: int) -> Stage:
    cfg, stream = modular_encoder.Config(steps=8, seed=seed), masked_words(seed)
    whole = MultiExit(classifiers.bert(BertForMaskedLM, seed=seed, layers=2), (1, 2))
    (stage,) = stages_of(modular_encoder, lambda: modular_encoder.modular_encoder(whole, stream, cfg))
    return stage


def retrieve_stage(seed: int) -> Stage:
    vectors = ExitVectors(classifiers.bert(BertForMaskedLM, seed=seed).bert, (2, 4))
    cfg = modular_encoder.Config(seed=seed, warmup=0.0)
    (stage,) = stages_of(exit_retrieval, lambda: exit_retrieval.retrieve(vectors, matches(seed), cfg))
    return stage


def masked_words(seed: int) -> list[Batch]:
    """Ten batches of 8 rows with a third of the words masked, and whether a row's texts belong together."""
    made = []
    for batch in classifiers.labelled(seed):
        answer = batch["mask"] & (torch.arange(7) % 3 == 1)
        words = {"answer": answer, "targets": batch["ids"].where(answer, torch.tensor(IGNORE))}
        made.append({"ids": batch["ids"], "mask": batch["mask"], **words, "same": batch["labels"] > 0})
    return made


def matches(seed: int) -> list[Batch]:
    """Ten batches of 8 pairs of texts."""
    sides = zip(classifiers.labelled(seed), classifiers.labelled(seed + 1), strict=True)
    names = ("ids", "mask")
    return [{name: a[name] for name in names} | {f"match_{name}": b[name] for name in names} for a, b in sides]
