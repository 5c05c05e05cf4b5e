"""What ``limbeck further_pretraining`` works on: texts or images, and how a model of either kind is spoken to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch

from limbeck.atlas.digits import digits
from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Source
from limbeck.core.stage import Objective
from limbeck.data.images import Look, Picture, holds_images, image_batches, look_of, read_images
from limbeck.data.labelled import Row, Rows, classes_in, in_turn, labelled_batches, part, with_labels
from limbeck.data.read import read_text
from limbeck.data.stream import Batches, mlm_batches
from limbeck.evaluation.model import check_length
from limbeck.methods.encoders.classification import ATLAS, task
from limbeck.models.classifiers import headed
from limbeck.models.images import image_classifier, load_autoencoder, new_autoencoder
from limbeck.models.load import load_model, place
from limbeck.objectives.patches import reconstruction
from limbeck.objectives.tokens import hard
from limbeck.sources.images import AutoencoderSource, ImageSource
from limbeck.sources.model import Pooled, model_source
from limbeck.sources.whole import WholeSource

DIGITS, TOPICS = "digits", "topics"
GENERAL = 7  # digits below it are what the small autoencoder reads first


class Voices(NamedTuple):
    """A kind of model: as a source of the masked view, of the whole view, of both; and the masked view's loss."""

    masked: Callable[[Any], Source]
    whole: Callable[[Any], Source]
    both: Callable[[Any], Source]
    goal: Objective


class Task(NamedTuple):
    """A model with its ``reader`` (tokenizer or look), the streams to read and to learn from, and rows to judge by.

    ``test`` are the rows to judge by, ``unseen`` some of the same with parts hidden. ``general`` is what a model that
    is made anew reads first. ``classifier`` puts a new head on a model, ``says`` makes a source of it. ``rows`` counts
    what there is.
    """

    model: Any
    reader: Any
    voices: Voices
    masked: Batches
    labelled: Callable[[], Batches]
    test: list[Batch]
    unseen: list[Batch]
    classifier: Callable[[Any], Any]
    says: Callable[[Any], Source]
    rows: dict[str, int]
    general: Batches | None = None


def of_texts(feature: Pooled = "cls") -> Voices:
    """Masked language models."""
    whole = partial(WholeSource, pooled=feature)
    return Voices(model_source, partial(whole, masked_view=False), whole, hard())


def of_images(model: Any) -> Voices:
    """ViT-MAE, its loss as ``model`` was trained with: on normalised pixels or on plain ones."""
    size = model.config.patch_size
    require(isinstance(size, int), f"expected a ViT-MAE of square patches, but they are {size}")
    goal = reconstruction(size, bool(model.config.norm_pix_loss))
    masked, whole = (partial(AutoencoderSource, **{view: False}) for view in ("whole_view", "hidden_view"))
    return Voices(masked, whole, AutoencoderSource, goal)


def task_of(cfg: Any) -> Task:
    """The task that a configuration of ``further_pretraining`` describes, loaded whole."""
    if cfg.data == DIGITS or holds_images(cfg.data):
        require(cfg.corpus is None, "--corpus: texts are no help with images; put more images into the folder")
        return image_task(cfg)
    return text_task(cfg)


def text_task(cfg: Any) -> Task:
    """Rows of texts, the user's or the atlas's."""
    rows = task(None if cfg.data == TOPICS else cfg.data, cfg.seed)
    rows = with_labels(rows, 60 if cfg.data == TOPICS and cfg.labels is None else cfg.labels)
    model, tokenizer = load_model(cfg.model or ATLAS, "masked")
    check_length(cfg.length, model=model)
    names = classes_in(rows.train)
    texts = [text for row in rows.train for text in row[:2] if text]
    texts += read_text(cfg.corpus) if cfg.corpus else []
    share = 0.15 if cfg.mask is None else cfg.mask
    words = lambda texts, seed: mlm_batches(texts, tokenizer, cfg.length, cfg.batch, seed, share)  # noqa: E731
    types = getattr(model.config, "type_vocab_size", 1) > 1 and rows.test[0].pair is not None
    batches = partial(labelled_batches, classes=names, tokenizer=tokenizer, length=cfg.length, types=types)
    return Task(
        model,
        tokenizer,
        of_texts(cfg.feature),
        words(texts, cfg.seed),
        lambda: batches(_known(rows), batch=cfg.batch, seed=cfg.seed),
        in_turn(batches(rows.test, batch=1)),
        _first(words([text for row in rows.test for text in row[:2] if text], 0)),
        lambda body: headed(body.base_model, names).to(next(body.parameters()).device),
        model_source,
        _count(rows),
    )


def image_task(cfg: Any) -> Task:
    """Images in a folder of the user's, or the atlas's digits."""
    if cfg.data == DIGITS:
        seen, pictures = _digits(range(GENERAL)), _digits(range(GENERAL, 10))
    else:
        require(cfg.model, "--model: images in a folder need a ViT-MAE; give one, such as facebook/vit-mae-base")
        seen, pictures = [], read_images(cfg.data)
    model = load_autoencoder(cfg.model) if cfg.model else new_autoencoder(2, 32, 8, 2, 1)
    look = look_of(place(cfg.model), model.config) if cfg.model else Look(8, 1)
    rows = _parted(pictures, cfg)
    at = {str(number): picture for number, picture in enumerate(pictures)}
    names = classes_in(rows.train)
    hidden = model.config.mask_ratio if cfg.mask is None else cfg.mask
    count = model.vit.embeddings.patch_embeddings.num_patches

    def batches(some: Iterable[Row], size: int, patches: int = 0) -> Batches:
        kept = [at[row.text]._replace(label=row.label) for row in some]
        return image_batches(kept, names, look, size, cfg.seed, patches, hidden)

    return Task(
        model,
        look,
        of_images(model),
        batches(rows.train, cfg.batch, count),
        lambda: batches(_known(rows), cfg.batch),
        in_turn(batches(rows.test, 1)),
        _first(batches(rows.test, cfg.batch, count)),
        lambda body: image_classifier(body, names),
        ImageSource,
        _count(rows),
        image_batches(seen, (), look, cfg.batch, cfg.seed, count, hidden) if seen and not cfg.model else None,
    )


def _digits(wanted: Iterable[int]) -> list[Picture]:
    """The atlas's digits that are among ``wanted``, of all its splits."""
    images, labels = (torch.cat(parts) for parts in zip(*map(digits, ("train", "dev", "test")), strict=True))
    kept = set(wanted)
    return [Picture(image, str(int(x))) for image, x in zip(images, labels, strict=True) if int(x) in kept]


def _parted(pictures: list[Picture], cfg: Any) -> Rows:
    """Rows whose text is the picture's number. Of the atlas's digits all but 60 judge."""
    rows = [Row(str(number), label=picture.label) for number, picture in enumerate(pictures)]
    if cfg.data != DIGITS:
        return with_labels(part(rows, seed=cfg.seed), cfg.labels)
    return part(rows, share=1 - (cfg.labels or 60) / len(rows), seed=cfg.seed)


def _known(rows: Rows) -> list[Row]:
    return [row for row in rows.train if row.label is not None]


def _first(stream: Batches, most: int = 16) -> list[Batch]:
    """The first batches, ``most`` at most and one epoch at most."""
    return stream.take(max(1, min(most, (stream.size or 0) // stream.batch)))


def _count(rows: Rows) -> dict[str, int]:
    return {"train": len(rows.train), "labelled": len(_known(rows)), "test": len(rows.test)}
