"""The report of one run: what its files say, and the sections that the method adds."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.save import write_atomic
from limbeck.report.curves import COLOURS
from limbeck.report.page import page
from limbeck.report.sections import Curve, KeyValues, Points, Section

NOT_A_CURVE = ("step", "rows", "seconds", "time", "epoch")
ORDER = {"loss": 0, "lr": 2, "grad_norm": 3}  # the loss first, then its terms (1), then the machinery


def write_run_report(
    out: Path, record: Mapping[str, Any], metrics: Mapping[str, Any], sections: Sequence[Section] = ()
) -> Path:
    """Write ``report.html``: the method's sections, metrics, curves from every ``metrics.jsonl``, provenance."""
    measured = [KeyValues("Metrics", metrics)] if metrics else []
    facts = [
        KeyValues("Configuration", record.get("config", {})),
        KeyValues("Environment", _environment(record)),
        KeyValues("Files", dict(_files(out))),
    ]
    html = page(
        title=f"{out.resolve().name}: {record.get('method', 'run')}",
        subtitle=f"begun {str(record.get('time', '')).replace('T', ' ').rstrip('Z')} UTC, seed {record.get('seed')}",
        sections=[*_with_curves(sections, curves(out)), *measured, *facts],
    )
    write_atomic(out / "report.html", html)
    return out / "report.html"


def curves(out: Path) -> list[Curve]:
    """Curves of every stage below ``out``, from its ``metrics.jsonl``: one picture per quantity, loss first.

    Quantities of one kind, ``share.news`` and ``share.code``, share a picture.
    """
    found = []
    for path in sorted(out.rglob("metrics.jsonl"), key=lambda p: p.stat().st_mtime):
        rows = read_rows(path)
        lines = {name: _series(rows, name) for name in _quantities(rows)}
        no_more = [n for n in lines if n != "loss" and lines[n] == lines.get("loss")]  # the only term, with weight 1
        shown = [name for name, (xs, _) in lines.items() if len(xs) > 1 and name not in no_more]
        for title, names in _pictures(shown):
            series = {name.removeprefix(f"{title}."): lines[name] for name in names}
            found.append(Curve(f"{_stage(path, out)}: {title}", series, ylabel=title))
    return found


def _pictures(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Names that are drawn in one picture, and its title: those with the same words before their first dot."""
    kinds = dict.fromkeys(name.partition(".")[0] for name in names)
    for kind in kinds:
        alike = [name for name in names if name.partition(".")[0] == kind]
        for start in range(0, len(alike), COLOURS):
            part = alike[start : start + COLOURS]
            yield (kind if len(part) > 1 else part[0]), part


def _stage(path: Path, out: Path) -> str:
    """The stage's name, with the folders that tell it from another of its name."""
    parts = [part for part in path.relative_to(out).parent.parts if part != "stages"]
    return " / ".join(parts) or out.resolve().name


def _with_curves(sections: Sequence[Section], more: Sequence[Curve]) -> list[Section]:
    """``sections`` with ``more`` after the method's own last curve, or at the end."""
    last = max((n for n, section in enumerate(sections) if isinstance(section, Curve)), default=len(sections) - 1)
    return [*sections[: last + 1], *more, *sections[last + 1 :]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``: a line cut short by a kill is left out, of a repeated step the last wins."""
    rows: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows[int(row["step"])] = row
    return [rows[step] for step in sorted(rows)]


def _quantities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(key for row in rows for key, value in row.items() if _is_number(value))
    chosen = [name for name in names if name not in NOT_A_CURVE]
    return sorted(chosen, key=lambda name: ORDER.get(name, 1))


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> Points:
    points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    return [x for x, _ in points], [y for _, y in points]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _environment(record: Mapping[str, Any]) -> dict[str, Any]:
    command = record.get("command", [])
    names = ("commit", "versions", "platform")
    said = {"command": shlex.join(map(str, command)), **{name: record.get(name) for name in names}}
    return {**said, "resumed": len(record.get("resumed", []))}


def _files(out: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        parts = path.relative_to(out)
        if not any(part.startswith(".") for part in parts.parts):
            yield parts.as_posix(), f"{path.stat().st_size:,} bytes"
