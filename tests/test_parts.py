"""No file of the package lies idle: commands, public names or scripts lead to it, or docs/architecture.md lists it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import limbeck

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "limbeck"
FILES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}
SCRIPTS = [path for folder in ("claims", "benchmarks", "tools", "examples") for path in (ROOT / folder).glob("*.py")]


def leads_to(path: Path) -> Iterator[str]:
    """The files of the package that ``path`` imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            yield from (name for full in names if (name := full.removeprefix("limbeck.")) in FILES)


def starts() -> Iterator[str]:
    """What a user reaches at once: methods and commands, the public names, whatever runs as a script."""
    yield from (name for name in FILES if name.startswith("methods.") or name.endswith("commands"))
    yield from limbeck._PUBLIC.values()
    yield from (name for name, path in FILES.items() if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))
    yield from (name for path in SCRIPTS for name in leads_to(path))


def reached() -> set[str]:
    found, left = set[str](), list(starts())
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += leads_to(FILES[name])
    return found


def listed() -> set[str]:
    """The parts named in the first column of the page's table."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Parts that no method uses yet")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


def test_every_part_is_used_or_listed() -> None:
    idle = {name for name in FILES if not name.endswith("__init__")} - reached()
    assert sorted(idle - listed()) == [], "use these, list them in docs/architecture.md, or delete them"
    assert sorted(listed() - idle) == [], "docs/architecture.md lists these as unused, but they are used or gone"
