"""Data in domains: one file for each, or a field of every row that says which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.check import LimbeckError, require
from limbeck.data.held import Split, hold_out
from limbeck.data.pairs import Located, rows_batches
from limbeck.data.read import SUFFIXES, field, read_rows
from limbeck.data.stream import Batches, lm_batches

FIELD = "domain"


def domain_batches(
    source: str | Path,
    tokenizer: Any,
    length: int,
    batch: int,
    seed: int = 0,
    by: str | None = None,
    only: Sequence[str] = (),
) -> dict[str, Batches]:
    """Batches of each domain of ``source``, by name, as ``data.pairs.causal_batches`` makes them.

    A folder holds one domain per file or subfolder, which has its name (without the ending). Anything else, and a
    folder too if ``by`` is given, holds rows that name their domain in the field ``by`` ("domain"). ``only`` picks
    domains. Raises ``LimbeckError`` for fewer than two domains, and for one without text.
    """
    found = _by_file(Path(source)) if by is None and Path(source).is_dir() else _by_field(source, by or FIELD)
    for name in only:
        require(name in found, f"{source}: there is no text of the domain {name!r}; there are {', '.join(found)}")
    chosen = {name: rows for name, rows in found.items() if not only or name in only}
    check_count(chosen, f"{source}")

    def batches(name: str) -> Batches:
        rows = list(chosen[name])
        require(rows, "there is no text")
        return rows_batches(rows, tokenizer, length, batch, seed, f"{source}, domain {name!r}")

    return _each(chosen, batches)


def text_domains(
    texts: Mapping[str, Iterable[str]], tokenizer: Any, length: int, batch: int, seed: int = 0
) -> dict[str, Batches]:
    """Batches of running text by domain (``data.stream.lm_batches``)."""
    return _each(texts, lambda name: lm_batches(texts[name], tokenizer, length, batch, seed))


def part_domains(domains: Mapping[str, Batches], share: float = 0.05, most: int = 16) -> dict[str, Split]:
    """``data.held.hold_out`` of each domain; one that is too short for it is refused, for its weight follows them."""
    return _each(domains, lambda name: _parted(domains[name], share, most))


def natural(domains: Mapping[str, Batches]) -> dict[str, float]:
    """How many rows each domain has: weights of the natural mixture."""
    return {name: float(stream.size or 0) for name, stream in domains.items()}


def check_count(domains: Mapping[str, Any], where: str) -> None:
    """Refuse fewer than two domains."""
    names = ", ".join(domains) or "none"
    require(
        len(domains) > 1,
        f"{where}: weights of domains need at least two of them, but there is {names}; give a folder with one file for "
        f"each, or rows with a field {FIELD!r}",
    )


def _by_file(folder: Path) -> dict[str, Iterable[Located]]:
    found: dict[str, Iterable[Located]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in SUFFIXES or (path.is_dir() and any(p.suffix in SUFFIXES for p in path.rglob("*"))):
            name = path.name if path.is_dir() else path.stem
            require(name not in found, f"{folder}: two files are called {name!r} but for their ending; rename one")
            found[name] = read_rows(path)
    return found


def _by_field(source: str | Path, name: str) -> dict[str, Iterable[Located]]:
    found: dict[str, list[Located]] = {}
    for where, row in read_rows(source):
        found.setdefault(field(row, name, str, where), []).append((where, row))
    return dict(found)


def _parted(stream: Batches, share: float, most: int) -> Split:
    split = hold_out(stream, share, most)
    require(
        split.held_out,
        f"its {stream.size} rows are too few to hold some out, which takes {4 * stream.batch}; give it more text, join "
        "it to another domain, or make rows shorter or batches smaller",
    )
    return split


def _each(names: Iterable[str], make: Callable[[str], Any]) -> dict[str, Any]:
    """What ``make`` gives for each domain; its errors name the domain."""
    made = {}
    for name in names:
        try:
            made[name] = make(name)
        except LimbeckError as error:
            raise LimbeckError(f"domain {name!r}: {error}") from error
    return made
