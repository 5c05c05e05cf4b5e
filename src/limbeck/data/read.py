"""Readers. Every error names the file and the line, says what was expected and what came."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck.core.check import LimbeckError, first_line, require

SUFFIXES = (".jsonl", ".txt", ".parquet")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The non-blank lines of a UTF-8 file with their numbers, from 1. Raises if there are none."""
    path = existing(path)
    found = False
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            text = _decode(raw, path, number)
            if text.strip():
                found = True
                yield number, text
    require(found, f"{path}: expected at least one line of text, but the file is empty")


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON-lines file with their line numbers."""
    for number, text in lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise LimbeckError(
                f"{path}:{number}: expected one JSON object per line, but {error.msg} at column {error.colno}"
            ) from None
        require(isinstance(row, dict), f"{path}:{number}: expected a JSON object, but got {_kind(row)}")
        yield number, row


def field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    """``row[name]``, which must be a ``kind``; ``where`` is the file and line for the message."""
    require(
        name in row, f"{where}: the field {name!r} is missing; the row has {', '.join(map(repr, row)) or 'no fields'}"
    )
    value = row[name]
    require(isinstance(value, kind), f"{where}: the field {name!r} must be a {_name(kind)}, but got {_kind(value)}")
    return value


def read_text(source: str | Path, field_name: str = "text", split: str = "train") -> Iterator[str]:
    """The texts of a corpus, one document each, in a fixed order.

    ``source`` is a ``.jsonl`` file (field ``field_name``), a ``.txt`` file (one document per line), a ``.parquet`` file
    (column ``field_name``; needs the extra ``limbeck[data]``), a folder of such files, or the id of a data set on the
    Hub (its ``split`` and column; the same extra). Empty texts are left out.
    """
    path = Path(source)
    if _on_hub(path):
        yield from _hub(str(source), field_name, split)
        return
    for file in files(path, SUFFIXES):
        yield from _READ[file.suffix](file, field_name)


def read_rows(source: str | Path, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a data set, each with the place where it stands, for messages.

    ``source`` is as for ``read_text``, or a ``.json`` file that holds one list of objects. A line of a ``.txt`` file is
    a row with the field ``text``. Every error names file and line (of a list: its number, from 0).
    """
    path = Path(source)
    if _on_hub(path):
        yield from ((f"{source} ({split}) row {n}", row) for n, row in enumerate(_hub_rows(str(source), split)))
        return
    for file in [existing(path)] if path.suffix == ".json" else files(path, SUFFIXES):
        yield from _ROWS[file.suffix](file)


def files(path: str | Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The file itself, or every file below a folder with one of ``suffixes``, sorted by path."""
    path = existing(path)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        require(found, f"{path}: the folder holds no file that ends in {', '.join(suffixes)}")
        return found
    expected = ", ".join(suffixes)
    require(
        path.suffix in suffixes,
        f"{path}: expected a file that ends in {expected}, but got {path.suffix or 'no ending'!r}",
    )
    return [path]


def existing(path: str | Path) -> Path:
    """The path, or an error that says it is not there."""
    path = Path(path)
    require(path.exists(), f"{path}: no such file or folder; check the path")
    return path


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise LimbeckError(
            f"{path}:{number}: expected UTF-8 text, but byte {error.start} of the line is not; convert the file"
        ) from None


def _jsonl_text(path: Path, name: str) -> Iterator[str]:
    texts = (field(row, name, str, f"{path}:{number}") for number, row in read_jsonl(path))
    yield from (text for text in texts if text.strip())


def _plain_text(path: Path, name: str) -> Iterator[str]:
    yield from (text for _, text in lines(path))


def _parquet(path: Path) -> Any:
    """The parquet file, opened; it is read in parts."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise LimbeckError(
            f"{path}: reading parquet needs pyarrow; install it with pip install 'limbeck[data]'"
        ) from None
    try:
        return parquet.ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        raise LimbeckError(f"{path}: expected a parquet file, but it cannot be read: {first_line(error)}") from None


def _parquet_text(path: Path, name: str) -> Iterator[str]:
    table = _parquet(path)
    columns = table.schema_arrow.names
    require(name in columns, f"{path}: the column {name!r} is missing; the file has {', '.join(map(repr, columns))}")
    for batch in table.iter_batches(columns=[name]):
        for value in batch.column(0).to_pylist():
            require(
                value is None or isinstance(value, str),
                f"{path}: the column {name!r} must hold strings, but got {_kind(value)}",
            )
            if value and value.strip():
                yield value


def _jsonl_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path))


def _text_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((f"{path}:{number}", {"text": text}) for number, text in lines(path))


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for batch in _parquet(path).iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}:{number}", row


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise LimbeckError(f"{path}: expected JSON, but it cannot be read: {first_line(error)}") from None
    require(isinstance(rows, list) and rows, f"{path}: expected a list of objects, but got {_kind(rows)}")
    for number, row in enumerate(rows):
        require(isinstance(row, dict), f"{path}[{number}]: expected a JSON object, but got {_kind(row)}")
        yield f"{path}[{number}]", row


_READ = {".jsonl": _jsonl_text, ".txt": _plain_text, ".parquet": _parquet_text}
_ROWS = {".jsonl": _jsonl_rows, ".txt": _text_rows, ".parquet": _parquet_rows, ".json": _json_rows}


def _on_hub(path: Path) -> bool:
    return not path.exists() and path.suffix not in _ROWS and bool(HUB_ID.match(str(path)))


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise LimbeckError(
            f"{name!r} is neither a file nor a folder; the Hub needs datasets: pip install 'limbeck[data]'"
        ) from None
    try:
        rows = load_dataset(name, split=split, streaming=True)
    except Exception as error:
        raise LimbeckError(
            f"{name!r} is neither a file nor a folder, and the Hub gave no data set of that name: {first_line(error)}"
        ) from None
    yield from rows


def _hub(name: str, column: str, split: str) -> Iterator[str]:
    for number, row in enumerate(_hub_rows(name, split)):
        text = field(row, column, str, f"{name} ({split}) row {number}")
        if text.strip():
            yield text


def _name(kind: type) -> str:
    return {str: "string", list: "list", dict: "object", int: "number"}.get(kind, kind.__name__)


def _kind(value: object) -> str:
    return "null" if value is None else f"a {_name(type(value))}"
