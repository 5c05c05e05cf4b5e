"""Models by name: a teacher from a folder or the Hub, and a student that is loaded or made from its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from limbeck.core.check import LimbeckError, require
from limbeck.core.models import BROKEN, check_same_tokenizer, first_line, place
from limbeck.students.layers import every_other, keep_layers, parse_size, shape, smaller

Kind = Literal["base", "masked", "causal"]
Dtype = Literal["float32", "bfloat16", "float16"]
AUTO = {"base": "AutoModel", "masked": "AutoModelForMaskedLM", "causal": "AutoModelForCausalLM"}
EVERY_OTHER, HALF = "every-other", "half"


def load_model(name: str | Path, kind: Kind, dtype: Dtype = "float32") -> tuple[Any, Any]:
    """The model and tokenizer in the folder or Hub repository ``name``; code that comes with a model is not run.

    ``kind``: "base" (no head), "masked" or "causal" language model. Raises ``LimbeckError`` if there is no such model,
    or if its files lack weights, which would silently be random; a base model without a pooler stays without.
    """
    import transformers

    where = place(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        auto = getattr(transformers, AUTO[kind])
        model, info = auto.from_pretrained(where, dtype=dtype, output_loading_info=True)
    except BROKEN as error:
        raise LimbeckError(
            f"cannot load {str(name)!r} as a {kind} model: {first_line(error)}; give a folder or a Hub id"
        ) from None
    absent = sorted(info["missing_keys"])
    if any(key.startswith("pooler.") for key in absent):
        model.pooler = None
    absent = [key for key in absent if not key.startswith("pooler.")]
    if absent:
        raise LimbeckError(
            f"{str(name)!r} holds no weights for {absent[0]} ({len(absent)} in all), so as a {kind} model it would be "
            "random there; give a checkpoint that was trained as one"
        )
    return model.eval(), tokenizer


def load_as_saved(name: str | Path) -> tuple[Any, Any]:
    """The model, of the class and in the precision that it was saved in, and the tokenizer in ``name``; in eval mode.

    Raises ``LimbeckError`` if there is no such model, or its files are broken or lack weights.
    """
    import transformers

    where = place(name)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        saved = transformers.AutoConfig.from_pretrained(where).architectures or ["AutoModel"]
        auto = getattr(transformers, saved[0])
        model, info = auto.from_pretrained(where, dtype="auto", output_loading_info=True)
    except (*BROKEN, AttributeError) as error:
        raise LimbeckError(
            f"cannot load a model and its tokenizer from {str(name)!r}: {first_line(error)}; give a folder or a Hub id"
        ) from None
    absent = sorted(info["missing_keys"])
    require(not absent, f"{str(name)!r} holds no weights for {', '.join(absent[:3])}; give a whole checkpoint")
    return model.eval(), tokenizer


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
