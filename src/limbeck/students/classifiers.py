"""Students that classify, by name: loaded, cut from their teacher, or made anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.core.check import require
from limbeck.models.classifiers import headed, load_classifier
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.students.layers import every_other, keep_layers, parse_size, shape, smaller
from limbeck.students.load import EVERY_OTHER, HALF
from limbeck.students.sizes import Size, miniature, miniature_config


def classifier_student(name: str, teacher: Any, tokenizer: Any, classes: Sequence[str]) -> Any:
    """The student that ``name`` describes, for the teacher's ``classes`` and ``tokenizer``, in float32 and eval mode.

    ``bert-mini`` and the other miniatures (``students.sizes``): BERT anew; ``6x384`` or ``half``: the teacher's
    architecture anew; ``every-other``: half of the teacher's layers; else a folder or Hub id, whose head is kept if it
    was fine-tuned for the same classes and new otherwise.
    """
    if size := miniature(name):
        return headed(bert_of(size, teacher), classes).float()
    layers, width, _ = shape(teacher)
    if name == EVERY_OTHER:
        return keep_layers(teacher, every_other(layers, max(1, layers // 2))).float().eval()
    if anew := (max(1, layers // 2), width // 2) if name == HALF else parse_size(name):
        return smaller(teacher, *anew).float().eval()
    student, own, order, _ = load_classifier(name, classes)
    check_same_tokenizer(own, tokenizer)
    require(
        order == list(classes),
        f"--student {name} tells {', '.join(order)} apart, in this order, but the teacher {', '.join(classes)}; give "
        "the encoder that it was fine-tuned from",
    )
    return student


def bert_of(size: Size, teacher: Any) -> Any:
    """A miniature without a head, randomly initialised, with the vocabulary and positions of ``teacher``."""
    from transformers import BertModel

    config = teacher.config
    places = getattr(config, "max_position_embeddings", 512)
    return BertModel(miniature_config(size, config.vocab_size, places, pad_token_id=config.pad_token_id)).eval()
