"""A teacher by name, whatever it is: a model, or a store of what one said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.core.check import require
from limbeck.core.signals import Source
from limbeck.core.stage import freeze
from limbeck.data.store.folder import TEACHER, is_store
from limbeck.models.load import Kind, load_model, load_tokenizer
from limbeck.models.placement import placed, settled
from limbeck.sources.model import model_source
from limbeck.sources.stored import stored
from limbeck.sources.wire import is_url

Teacher = Any
"""A model, which ``heard`` turns into a source, or a source already."""


def load_teacher(name: str | Path, kind: Kind, **how: Any) -> tuple[Teacher, Any]:
    """The teacher that ``name`` stands for, and the tokenizer that its texts are to be cut by.

    A folder that ``limbeck teach`` wrote gives a source (``sources.stored``), everything else a model of ``kind``, held
    as ``how`` says (see ``models.load.load_model``). Methods take either: ``ready`` before use, then ``heard`` and
    ``frozen``.
    """
    require(
        not is_url(name),
        f"--teacher {name}: a teacher behind an API is not asked while a student learns; keep its probabilities in a "
        "store first (limbeck teach --teacher ... --tokenizer STUDENT), or learn its text (limbeck seqkd)",
    )
    if is_store(name):
        return stored(name), load_tokenizer(Path(name) / TEACHER)
    return load_model(name, kind, **how)


def ready(teacher: Teacher, device: torch.device) -> Teacher:
    """``teacher`` frozen and on ``device``; a source speaks wherever the batch is."""
    return placed(teacher, device) if isinstance(teacher, nn.Module) else teacher


def heard(teacher: Teacher, **asked: Any) -> Source:
    """``teacher`` as a source; ``asked`` are the signals to record of a model (see ``model_source``)."""
    return model_source(teacher, **asked) if isinstance(teacher, nn.Module) else teacher


def frozen(teacher: Teacher) -> dict[str, nn.Module]:
    """``Stage.frozen`` for ``teacher``: a model, unless it has its place and may not be moved. It is frozen here."""
    if not isinstance(teacher, nn.Module):
        return {}
    return {} if settled(freeze(teacher)) else {"teacher": teacher}
