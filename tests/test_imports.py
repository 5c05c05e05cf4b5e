"""Who may import whom: the plan of the house, read from the source with ast."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "limbeck"
LOSSES = {"losses"}
PARTS = {"core", "losses"}
ROOMS = {
    "losses": set(),
    "core": set(),
    "models": {"core"},
    "objectives": PARTS,
    "sources": {*PARTS, "data.store"},
    "students": {*PARTS, "models"},
    "data": PARTS,
    "condense": PARTS,
    "evaluation": {*PARTS, "sources", "data.templates", "data.tasks"},
    "context": {*PARTS, "models", "data", "sources", "evaluation"},
    "analyses": {*PARTS, "evaluation"},
    "atlas": {*PARTS, "data"},
}
OUTSIDE = {
    "losses": {"torch", "math", "triton"},
    "core": {"torch", "accelerate", "safetensors", "numpy", "rich"},
    "models": {"torch", "transformers"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that the file imports anywhere, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are written out in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """The folder that sets the rules for a file; a room's ``commands.py`` is part of the command line."""
    if path.name == "commands.py":
        return "cli"
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    if here not in ROOMS:
        return
    allowed = {here, *ROOMS[here], "core.check"}
    inside = {name.removeprefix("limbeck.") for name in imported(path) if name.startswith("limbeck.")}
    strangers = sorted(name for name in inside if not within(name, allowed))
    assert not strangers, f"{here} may import {sorted(allowed)}, but {path.name} imports {strangers}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_some_rooms_stand_on_little(path: Path) -> None:
    here = room(path)
    if here not in OUTSIDE:
        return
    allowed = {*OUTSIDE[here], "limbeck", *sys.stdlib_module_names}
    strangers = sorted({name.split(".")[0] for name in imported(path)} - allowed)
    assert not strangers, f"{here} may import {sorted(OUTSIDE[here])}, but {path.name} imports {strangers}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_nobody_imports_methods(path: Path) -> None:
    here = room(path)
    others = {name for name in imported(path) if name.startswith("limbeck.methods")}
    if here == "methods":  # one method may call another: a recipe is a function
        return
    assert not others, f"{path.name} imports {sorted(others)}; only the command line, claims and tests may"


def test_init_files_are_empty() -> None:
    full = [p for p in FILES if p.name == "__init__.py" and p.parent != SOURCE and p.read_text().strip()]
    assert full == []


def test_the_test_sees_a_wrong_import(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from limbeck.methods.encoders import minilm\n    import transformers.models\n")
    assert sorted(imported(path)) == ["limbeck.methods.encoders.minilm", "transformers.models"]
    assert not within("methods.encoders.minilm", {"core", "data"})
    assert not within("database", {"data"})
