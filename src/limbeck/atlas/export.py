"""The atlas's sets as files, to see the format that limbeck reads: a jsonl file, and PNG images where there are any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from limbeck.atlas import corpora, digits, entities, pairs, questions, rendered
from limbeck.core.check import LimbeckError, one_of
from limbeck.core.save import write_atomic

Row = dict[str, Any]


def export(
    kind: str, folder: str | Path, locale: str = "en", n: int = 1000, seed: int = 0, other: str | None = None
) -> Path:
    """Write ``n`` rows of ``kind`` (a key of ``KINDS``) to ``folder/<kind>.jsonl``, and return that path.

    ``other`` is the second locale where there is one: the target of parallel text, the locale of questions, queries,
    second sentences or captions. Images go to ``folder/images/`` as PNG and are named in the row; there are at most
    1,197 digits.
    """
    one_of(kind, KINDS, "kind")
    if kind.startswith("parallel") and other is None:
        raise LimbeckError(f"export: {kind!r} needs a second locale; pass other=, for instance other='ro'")
    folder = Path(folder)
    lines = [
        json.dumps(_on_disk(row, folder, i), ensure_ascii=False)
        for i, row in enumerate(KINDS[kind](locale, n, seed, other))
    ]
    path = folder / f"{kind}.jsonl"
    write_atomic(path, "\n".join(lines) + "\n")
    return path


def _on_disk(row: Row, folder: Path, number: int) -> Row:
    """The row with its image, if any, written to a file and replaced by that file's name."""
    if not isinstance(row.get("image"), Tensor):
        return row
    name = f"images/{number:06d}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray((row["image"][0] * 255).round().byte().numpy()).save(folder / name)
    return {**row, "image": name}


def _digits(locale: str, n: int, seed: int, other: str | None) -> Iterable[Row]:
    images, labels = digits.digits()
    said = digits.captions(labels, other or locale, seed)
    triples = list(zip(images, labels.tolist(), said, strict=True))[:n]
    return ({"image": image, "label": label, "caption": caption} for image, label, caption in triples)


def _rendered(locale: str, n: int, seed: int, other: str | None) -> Iterable[Row]:
    images, said = rendered.captioned(locale, n, seed, other)
    return ({"image": image, "caption": caption} for image, caption in zip(images, said, strict=True))


def _parallel(locale: str, n: int, seed: int, other: str | None) -> Iterable[Row]:
    found = corpora.parallel(locale, other or locale, n, seed)
    return ({"source": source, "target": target} for source, target in found)


KINDS: dict[str, Callable[[str, int, int, str | None], Iterable[Row]]] = {
    "sentences": lambda locale, n, seed, _: ({"text": text} for text in corpora.sentences(locale, n, seed)),
    "documents": lambda locale, n, seed, _: ({"text": text} for text in corpora.documents(locale, n, seed)),
    "parallel": _parallel,
    "entities": lambda locale, n, seed, _: entities.entities(locale, n, seed),
    "questions": lambda locale, n, seed, other: questions.questions(locale, n, seed, asked_in=other),
    "similarity": lambda locale, n, seed, other: pairs.similarity(locale, n, seed, other),
    "retrieval": lambda locale, n, seed, other: pairs.retrieval(locale, n, seed, asked_in=other),
    "parallel_retrieval": lambda locale, n, seed, other: pairs.parallel_retrieval(locale, other or locale, n, seed),
    "digits": _digits,
    "rendered": _rendered,
}
