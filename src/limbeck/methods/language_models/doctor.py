"""``limbeck doctor``: what would spoil a distillation run, in one table, before it costs anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck.analyses.doctor import Findings, doctor
from limbeck.atlas import corpora
from limbeck.core.batch import Batch, to_device
from limbeck.core.check import require
from limbeck.core.device import Device, pick
from limbeck.core.save import write_json
from limbeck.core.signals import Source
from limbeck.core.stage import freeze
from limbeck.crossing import across
from limbeck.data.chats import as_chat, is_chat
from limbeck.data.pairs import has_pairs
from limbeck.data.read import read_rows, read_text
from limbeck.data.stream import lm_batches, mlm_batches
from limbeck.data.survey import survey
from limbeck.evaluation.model import head_width
from limbeck.models.load import Dtype, load_model
from limbeck.report.sections import Table
from limbeck.report.terminal import print_table
from limbeck.sources.model import ModelSource, model_source
from limbeck.students.load import load_own

TEXTS = 200  # documents that are read for an examination


@dataclass(frozen=True)
class Doctor:
    """Settings of ``limbeck doctor``."""

    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a causal or masked language model; by default the causal one that ships with limbeck."""
    student: str = "every-other"
    """Folder or Hub id, of any tokenizer; 6x384 or half: the teacher's architecture anew; every-other: half of it."""
    data: str | None = None
    """Conversations, prompts with completions, or text (jsonl, txt, parquet, folder, Hub id); by default the atlas."""
    teacher_dtype: Dtype = "float32"
    """Number format in which the teacher is held."""
    rows: int = 8
    """Rows that both are asked about."""
    length: int = 128
    """Tokens per row."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one."""
    out: Path | None = None
    """JSON file to write besides the printed table."""


def examine(cfg: Doctor) -> Findings:
    """Check tokenizers, ends, templates, output layers, number formats, rows and perplexities of both sides."""
    require(cfg.rows >= 1, f"--rows {cfg.rows}: expected a whole number of at least 1")
    require(cfg.length >= 2, f"--length {cfg.length}: expected at least 2 tokens")
    device = pick(cfg.device)
    teacher, theirs = load_model(cfg.teacher, "saved", cfg.teacher_dtype)
    student, ours = load_own(cfg.student, teacher, theirs, "saved")
    said = [model_source(freeze(model).to(device)) for model in (student, teacher)]
    teaching, batches = _rows(cfg, said, ours, theirs)
    batch = [to_device(batch, device) for batch in batches]
    findings = doctor(said[0], teaching, ours, theirs, batch, rows=cfg.rows, strict=True)
    print_table(Table(f"{cfg.teacher} teaches {cfg.student}", ("check", "", "found"), findings.rows()))
    if any(name.startswith("teacher_") for name in batches[0]):
        _print_survey(cfg, ours, theirs)
    if cfg.out is not None:
        write_json(cfg.out, [vars(finding) for finding in findings.found])
    findings.heed()
    return findings


def _rows(cfg: Doctor, said: Sequence[ModelSource], ours: Any, theirs: Any) -> tuple[Source, list[Batch]]:
    """The teacher as it is heard, and a batch, in one cut or both."""
    student, teacher = said
    kind = type(teacher.model).__name__
    if kind.endswith("ForMaskedLM"):
        return teacher, mlm_batches(_texts(cfg), ours, cfg.length, cfg.rows).take(1)
    require(
        kind.endswith(("ForCausalLM", "LMHeadModel")),
        f"{cfg.teacher} is a {kind}; the doctor examines causal and masked language models",
    )
    if any(_narrow(*side) for side in ((student, ours), (teacher, theirs))):  # the table says so
        return teacher, lm_batches(_texts(cfg), ours, cfg.length, cfg.rows).take(1)
    pair = across(student, teacher, ours, theirs)
    if cfg.data is not None and has_pairs(cfg.data):
        return pair.teacher, pair.batches(cfg.data, cfg.length, cfg.rows).take(1)
    return pair.teacher, pair.text_batches(_texts(cfg), cfg.length, cfg.rows).take(1)


def _narrow(side: ModelSource, tokenizer: Any) -> bool:
    width = head_width(side.model)
    return width is not None and width <= max(tokenizer.get_vocab().values())


def _texts(cfg: Doctor) -> list[str]:
    """Documents, or what is learned of pairs and conversations."""
    if cfg.data is None:
        return corpora.documents("en", TEXTS, 0)
    if has_pairs(cfg.data):
        return [text for where, one in islice(read_rows(cfg.data), TEXTS) for text in _answers(one, where)]
    return list(islice(read_text(cfg.data), TEXTS))


def _answers(one: dict[str, Any], where: str) -> list[str]:
    if not is_chat(one):
        return [str(one.get("completion", ""))]
    chat = as_chat(one, where)
    said = [str(m.get("content") or "") for m, taught in zip(chat.messages, chat.taught, strict=True) if taught]
    return [text for text in said if text.strip()]


def _print_survey(cfg: Doctor, ours: Any, theirs: Any) -> None:
    found = survey(_texts(cfg), ours, theirs)
    print_table(Table("The two cuts of the text", ("", ""), found.rows()))
    examples = [tuple(map(repr, example)) for example in found.examples]
    if examples:
        print_table(Table("Where they differ most often", ("text", "student", "teacher"), examples))


COMMANDS: dict[str, Callable[[Any], Any]] = {"doctor": examine}
