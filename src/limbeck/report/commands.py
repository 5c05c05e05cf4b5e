"""``limbeck report compare``: several runs on one page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.report.comparison import compare


@dataclass(frozen=True)
class Compare:
    """Settings of ``limbeck report compare``."""

    runs: tuple[Path, ...]
    """Folders of runs, at least two."""
    out: Path = Path("comparison.html")
    """HTML file to write."""


def compare_runs(cfg: Compare) -> None:
    """Write one page that compares runs: metrics, curves, and where their settings differ."""
    print(f"wrote {compare(cfg.runs, cfg.out)}")


COMMANDS: dict[str, Callable[[Any], None]] = {"compare": compare_runs}
