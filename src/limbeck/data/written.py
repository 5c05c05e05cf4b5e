"""Text by a teacher: prompts in, rows of prompt and completion out, before training begins.

Whoever writes is a function from prompts to texts: a model here (``data.model_writer``) or one behind an API
(``sources.served``). ``write_down`` lets it write chunk by chunk. A chunk is on the disk, whole, before the next one
begins, so a run that was killed goes on with the first that is missing. ``put_together`` makes rows of them:
``written.jsonl``, beside ``written.json`` with all settings and with what was left out and why.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import read_json, write_atomic, write_json
from limbeck.core.track import say
from limbeck.data.read import read_jsonl

ROWS, SETTINGS, PARTS = "written.jsonl", "written.json", "parts"
CHUNK = 64  # prompts; what a kill can lose of a model that writes here
NOTICE = 30.0  # seconds between two lines about progress

Text = str | list[dict[str, Any]]  # a prompt: text to be continued, or messages to be answered
Write = Callable[[Sequence[Text], int], Sequence[Sequence[tuple[str, bool]]]]
"""Prompts of a chunk and its number -> for every prompt its texts, each with whether the writer ended it."""
Filter = Callable[[Mapping[str, Any]], str | None]
"""A row -> why it is left out, or None."""
Near = Callable[[str, str], float]
"""A text and the data's own completion -> how near they are."""


class Prompt(NamedTuple):
    """What the teacher is given, and how the data itself goes on there, if it does."""

    text: Text
    reference: str | None = None


def write_down(
    prompts: Sequence[Prompt],
    write: Write,
    out: Path,
    settings: Mapping[str, Any],
    chunk: int = CHUNK,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Let ``write`` write for all ``prompts``, ``chunk`` of them at a time, into ``out``/parts.

    What stands there is not written again. ``settings`` say how the text comes about; ``out`` is refused if it holds
    text of other settings or prompts. ``share``: the number of this process and of all; each writes its own chunks.
    """
    require(prompts, "there are no prompts to write for; give at least one")
    record = {"settings": dict(settings), "prompts": len(prompts), "chunk": chunk, "content": _digest(prompts)}
    _check_same(out / PARTS / SETTINGS, record)
    numbers = range(share[0], -(-len(prompts) // chunk), share[1])
    for number in _told([number for number in numbers if not _part(out, number).exists()]):
        given = prompts[number * chunk : (number + 1) * chunk]
        _write_part(_part(out, number), [prompt.text for prompt in given], write, number)


def put_together(
    prompts: Sequence[Prompt], out: Path, filters: Sequence[Filter] = (), nearest: Near | None = None
) -> Path:
    """What ``write_down`` wrote for ``prompts`` as ``out``/written.jsonl, whose path is returned.

    A row is ``{"prompt", "completion", "finished"}``, or ``{"messages", "finished"}`` for a prompt of messages. Of
    several texts for a prompt all become rows or, with ``nearest``, the one nearest to the data's own completion.
    Rows that a filter names a reason for are left out and counted, empty texts always.
    """
    record = read_json(out / PARTS / SETTINGS)
    dropped, lines = Counter[str](), []
    for prompt, texts in zip(prompts, _texts(out, len(prompts), record["chunk"]), strict=True):
        for row in _rows(prompt, texts, nearest, dropped):
            reason = next((why for judge in filters if (why := judge(row))), None)
            if reason is None:
                lines.append(json.dumps(row, ensure_ascii=False))
            else:
                dropped[reason] += 1
    left = ", ".join(f"{many} {why}" for why, many in dropped.items())
    require(lines, f"{out}: nothing that the teacher wrote is left ({left}); let it write more, or filter less")
    write_atomic(out / ROWS, "\n".join(lines).encode(errors="replace") + b"\n")
    write_json(out / SETTINGS, {**record, "rows": len(lines), "left_out": dict(dropped)})
    return out / ROWS


def finished(row: Mapping[str, Any]) -> str | None:
    """A filter: leave out texts that their writer did not end, such as those cut at the limit of tokens."""
    return None if row["finished"] else "not finished"


def length(least: int = 1, most: int | None = None, size: Callable[[str], int] = len) -> Filter:
    """A filter: leave out texts shorter or longer than this; ``size`` counts, by default characters."""

    def judge(row: Mapping[str, Any]) -> str | None:
        many = size(completion_of(row))
        return "too short" if many < least else "too long" if most is not None and many > most else None

    return judge


def distinct() -> Filter:
    """A filter: leave out all but the first of rows that are the same."""
    seen: set[str] = set()

    def judge(row: Mapping[str, Any]) -> str | None:
        key = json.dumps([row.get("prompt"), row.get("completion"), row.get("messages")])
        if key in seen:
            return "duplicate"
        seen.add(key)
        return None

    return judge


def completion_of(row: Mapping[str, Any]) -> str:
    """What the teacher wrote in a row."""
    return row["completion"] if "completion" in row else row["messages"][-1]["content"]


def _digest(prompts: Iterable[Prompt]) -> str:
    whole = hashlib.sha256()
    for prompt in prompts:
        whole.update(json.dumps(prompt).encode() + b"\n")
    return whole.hexdigest()


def _check_same(path: Path, record: Mapping[str, Any]) -> None:
    """Write the record where there is none, refuse one that differs."""
    if not path.exists():
        return write_json(path, record)
    past = json.loads(json.dumps(read_json(path)))
    now = json.loads(json.dumps(record))
    old, new = ({**each, **each.pop("settings")} for each in (past, now))
    changed = [name for name in new if old.get(name) != new[name]]
    what = ", ".join(f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in changed)
    require(not changed, f"{path.parent}: holds text by a teacher under other settings ({what}); choose another folder")
    return None


def _told(numbers: Sequence[int]) -> Iterator[int]:
    """The numbers, with a line now and then about how long they will take."""
    began = told = time.monotonic()
    for done, number in enumerate(numbers):
        now = time.monotonic()
        if done and now - told > NOTICE:
            told, left = now, (now - began) / done * (len(numbers) - done)
            say(f"text by the teacher: {done} of {len(numbers)} chunks, {left:.0f} s to go")
        yield number


def _part(out: Path, number: int) -> Path:
    return out / PARTS / f"{number:06d}.jsonl"


def _write_part(path: Path, prompts: Sequence[Text], write: Write, number: int) -> None:
    """One line per prompt: its texts, each with whether it is finished."""
    texts = write(prompts, number)
    require(len(texts) == len(prompts), f"the writer gave texts for {len(texts)} of {len(prompts)} prompts")
    lines = [json.dumps({"texts": [[text, bool(done)] for text, done in each]}, ensure_ascii=True) for each in texts]
    write_atomic(path, "\n".join(lines) + "\n")


def _texts(out: Path, prompts: int, chunk: int) -> Iterator[list[tuple[str, bool]]]:
    for number in range(-(-prompts // chunk)):
        path, many = _part(out, number), 0
        for _, line in read_jsonl(path):
            many += 1
            yield [(text, done) for text, done in line["texts"]]
        expected = min(chunk, prompts - number * chunk)
        require(many == expected, f"{path}: expected texts for {expected} prompts, but got {many}; delete the file")


def _rows(
    prompt: Prompt, texts: Sequence[tuple[str, bool]], nearest: Near | None, dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    said = [(text, done) for text, done in texts if text.strip()]
    dropped.update(["empty"] * (len(texts) - len(said)))
    if nearest is not None and said:
        if prompt.reference is None:
            raise LimbeckError(f"the prompt {str(prompt.text)[:60]!r} has no completion of its own to be near to")
        reference = prompt.reference
        said = [max(said, key=lambda pair: nearest(pair[0], reference))]
    for text, done in said:
        if isinstance(prompt.text, str):
            yield {"prompt": prompt.text, "completion": text, "finished": done}
        else:
            yield {"messages": [*prompt.text, {"role": "assistant", "content": text}], "finished": done}
