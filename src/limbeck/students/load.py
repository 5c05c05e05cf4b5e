"""A student by name: loaded, or made from its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.core.check import require
from limbeck.models.load import Kind, load_model, new_network
from limbeck.models.placement import settled
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.students.layers import every_other, keep_layers, parse_size, resized, shape, smaller

EVERY_OTHER, HALF = "every-other", "half"


def load_student(name: str | Path, teacher: Any, tokenizer: Any, kind: Kind) -> Any:
    """The student that ``name`` describes (``load_own``), which has to read the teacher's ``tokenizer``."""
    student, own = load_own(name, teacher, tokenizer, kind)
    if own is not tokenizer:
        check_same_tokenizer(own, tokenizer)
    return student


def load_own(name: str | Path, teacher: Any, tokenizer: Any, kind: Kind) -> tuple[Any, Any]:
    """The student that ``name`` describes, and the tokenizer that it reads by.

    ``"6x384"``: the teacher's architecture, 6 layers of width 384, randomly initialised; ``"half"``: half of its
    layers and width; ``"every-other"``: a copy of the teacher with half of its layers; all three read the teacher's
    ``tokenizer``. Anything else: a folder or Hub id. It is held in float32 whatever the teacher is held in.

    Of a teacher that is not in memory (a source with a ``config``) nothing can be copied, but its shape is known.
    """
    if size := parse_size(str(name)):
        return _anew(name, teacher, kind, *size), tokenizer
    if name in (EVERY_OTHER, HALF):
        layers, width, _ = _shape(name, teacher)
        require(layers > 1, f"--student {name}: the teacher has a single layer; give a model or a size like 6x384")
        if name == HALF:
            return _anew(name, teacher, kind, layers // 2, width // 2), tokenizer
        require(
            isinstance(teacher, nn.Module) and not settled(teacher),
            f"--student {name}: copies layers of the teacher, whose weights are not here, quantised or spread over "
            "devices; give a folder, a Hub id, half or a size like 6x384",
        )
        return keep_layers(teacher, every_other(layers, layers // 2)).float(), tokenizer
    return load_model(name, kind)


def _anew(name: str | Path, teacher: Any, kind: Kind, layers: int, width: int) -> Any:
    """The teacher's architecture at another size, randomly initialised."""
    if isinstance(teacher, nn.Module):
        return smaller(teacher, layers, width).float()
    _shape(name, teacher)
    return new_network(resized(teacher.config, layers, width), kind).float()


def _shape(name: str | Path, teacher: Any) -> tuple[int, int, int]:
    """Layers, width and heads of the teacher, which has to have a configuration."""
    require(
        hasattr(teacher, "config"),
        f"--student {name}: is made from the teacher, but what {teacher!r} looks like is not known; give a folder or a "
        "Hub id",
    )
    return shape(teacher)
