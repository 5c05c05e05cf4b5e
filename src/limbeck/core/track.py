"""What training says while it runs: ``metrics.jsonl``, trackers, and a progress bar or a line now and then."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from limbeck.core.save import write_atomic

QUIET_SECONDS = 30.0  # without a terminal: one line at most this often


def say(text: str) -> None:
    """One line for the user, from the first of all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


class Metrics:
    """``metrics.jsonl``, one object per logged step, cut back to the checkpoint's step when training resumes."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [line for line in _lines(path) if _step(line) <= step] if step else []
        write_atomic(path, "".join(kept))
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row and hand it to the system, so that a kill of this process cannot lose it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Force the rows onto the disk, before a checkpoint stands that counts on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """The step of a row; infinite for a row that a kill left half-written."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Voice:
    """Progress for people: a bar on a terminal, else a line every half minute; silent unless ``speaks``."""

    def __init__(self, name: str, step: int, rows: int, steps: int, speaks: bool) -> None:
        self.name, self.steps, self.speaks = name, steps, speaks
        self.began = self.spoke = time.monotonic()
        self.rows, self.done = rows, 0
        self.words = ""
        self.bar: Progress | None = None
        if speaks and sys.stderr.isatty():
            text = TextColumn("[bold]{task.description}[/bold]"), BarColumn(), MofNCompleteColumn()
            self.bar = Progress(
                *text,
                TextColumn("{task.fields[words]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                refresh_per_second=4,
            )
            self.task = self.bar.add_task(name, total=steps, completed=step, words="")
            self.bar.start()

    def tell(self, step: int, rows: int, row: Mapping[str, Any] | None) -> None:
        """``step`` optimizer steps and ``rows`` rows are done; ``row`` is the log's row if one was written."""
        self.done = rows - self.rows
        if self.bar is not None:
            self.words = self.words if row is None else self._words(row)
            self.bar.update(self.task, completed=step, words=self.words)
        elif self.speaks and row is not None and time.monotonic() - self.spoke > QUIET_SECONDS:
            self.spoke = time.monotonic()
            print(f"{self.name} {step}/{self.steps} {self._words(row)}", file=sys.stderr, flush=True)

    def _words(self, row: Mapping[str, Any]) -> str:
        speed = self.done / max(time.monotonic() - self.began, 1e-9)
        return f"loss {row['loss']:.4g}  {speed:.4g} rows/s"

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.stop()
