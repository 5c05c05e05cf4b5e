"""Classifiers by name: fine-tuned ones as they are, other encoders with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from limbeck.core.check import require
from limbeck.models.load import PLAIN, Dtype, _loading, load_network, load_tokenizer, place


class Classifier(NamedTuple):
    """A sequence classifier, its tokenizer, the names of its classes, and whether its head was trained."""

    model: Any
    tokenizer: Any
    classes: list[str]
    tuned: bool


def load_classifier(name: str, classes: Sequence[str], dtype: Dtype = "float32") -> Classifier:
    """The classifier that ``name`` stands for, or an encoder of that name with an untrained head for ``classes``.

    A fine-tuned one keeps its own order of classes; each of ``classes`` has to be among them.
    """
    from transformers import AutoConfig

    with _loading(f"{name!r} as a classifier"):
        config = AutoConfig.from_pretrained(place(name), **PLAIN)
    tokenizer = load_tokenizer(name)
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or []):
        return Classifier(headed(load_network(name, "base", dtype), classes), tokenizer, list(classes), False)
    own = class_names(config)
    unknown = sorted(set(classes) - set(own))
    require(not unknown, f"{name!r} tells {', '.join(own)} apart, but the data has the class {unknown[:1]}")
    return Classifier(load_network(name, "saved", dtype), tokenizer, own, True)


def class_names(config: Any) -> list[str]:
    """The names of a classifier's classes in their order; plain numbers where it has none of its own."""
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    return [str(i) for i in range(len(names))] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def headed(base: Any, classes: Sequence[str]) -> Any:
    """``base``, an encoder without a head, as a classifier of ``classes`` with an untrained head, in eval mode."""
    from copy import deepcopy

    from transformers import AutoModelForSequenceClassification

    config = deepcopy(base.config)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    model = AutoModelForSequenceClassification.from_config(config).to(next(base.parameters()).dtype)
    found = model.base_model.load_state_dict(base.state_dict(), strict=False)
    odd = [key for key in [*found.missing_keys, *found.unexpected_keys] if not key.startswith("pooler.")]
    require(not odd, f"{type(model).__name__} cannot take over {odd[:1]} of {type(base).__name__}")
    return model.eval()
