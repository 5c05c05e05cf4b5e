"""Classifiers by name: fine-tuned ones as they are, other encoders with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import torch

from limbeck.core.check import require
from limbeck.models.load import PLAIN, Dtype, _loading, load_network, load_tokenizer, place
from limbeck.models.tokenizers import check_same_tokenizer


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
    from transformers import AutoModelForSequenceClassification

    config = deepcopy(base.config)
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    config.problem_type = "single_label_classification"
    model = AutoModelForSequenceClassification.from_config(config).to(next(base.parameters()).dtype)
    found = model.base_model.load_state_dict(base.state_dict(), strict=False)
    odd = [key for key in [*found.missing_keys, *found.unexpected_keys] if not key.startswith("pooler.")]
    require(not odd, f"{type(model).__name__} cannot take over {odd[:1]} of {type(base).__name__}")
    return model.eval()


def load_kin(name: str, tuned: str | None, classes: Sequence[str], dtype: Dtype = "float32") -> tuple[Any, Classifier]:
    """The pre-trained encoder ``name``, and the classifier ``tuned`` that was fine-tuned from it, for ``classes``.

    Without ``tuned`` the classifier is a float32 copy of the encoder, not tuned yet. If ``name`` is fine-tuned already,
    it is the classifier, and the encoder is None.
    """
    first = load_classifier(name, classes, dtype)
    if first.tuned:
        require(tuned is None, f"{name!r} is fine-tuned itself, as {tuned!r} is; {KIN} as the first of them")
        return None, first
    if tuned is None:
        return first.model, first._replace(model=deepcopy(first.model).float())
    second = load_classifier(tuned, classes, dtype)
    require(second.tuned, f"{tuned!r} is no fine-tuned classifier; give one, or leave it out and have it fine-tuned")
    check_same_tokenizer(first.tokenizer, second.tokenizer, "the pre-trained and the fine-tuned teacher")
    check_kin(second.model, first.model)
    return headed(first.model.base_model, second.classes), second  # classes in the order of the fine-tuned one


KIN = "give the encoder that the classifier was fine-tuned from"


def check_kin(tuned: Any, base: Any) -> None:
    """Refuse a pair of which ``tuned`` cannot come from ``base``: other sizes, or other vectors for the tokens.

    Fine-tuning turns the vectors of tokens by little, while those of two pre-trainings have nothing in common.
    """
    for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
        ours, theirs = (getattr(model.config, name, None) for model in (tuned, base))
        require(ours == theirs, f"the fine-tuned teacher has {name} {ours}, the pre-trained one {theirs}; {KIN}")
    a, b = (model.get_input_embeddings().weight.detach().float().flatten() for model in (tuned, base))
    cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
    require(
        cosine > 0.5, f"token vectors of the fine-tuned and the pre-trained teacher differ (cosine {cosine:.2f}); {KIN}"
    )
