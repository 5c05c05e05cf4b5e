"""A student by name: loaded, or made from its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.core.check import require
from limbeck.models.load import Kind, load_model
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.students.layers import every_other, keep_layers, parse_size, shape, smaller

EVERY_OTHER, HALF = "every-other", "half"


def load_student(name: str | Path, teacher: Any, tokenizer: Any, kind: Kind) -> Any:
    """The student that ``name`` describes, which reads the teacher's ``tokenizer``.

    ``"6x384"``: the teacher's architecture, 6 layers of width 384, randomly initialised; ``"half"``: half of its
    layers and width; ``"every-other"``: a copy of the teacher with half of its layers; anything else: a folder or Hub
    id, whose tokenizer has to be the teacher's. It is held in float32 whatever the teacher is held in.
    """
    if size := parse_size(str(name)):
        return smaller(teacher, *size).float()
    if name in (EVERY_OTHER, HALF):
        layers, width, _ = shape(teacher)
        require(layers > 1, f"--student {name}: the teacher has a single layer; give a model or a size like 6x384")
        if name == HALF:
            return smaller(teacher, layers // 2, width // 2).float()
        return keep_layers(teacher, every_other(layers, layers // 2)).float()
    student, own = load_model(name, kind)
    check_same_tokenizer(own, tokenizer)
    return student
