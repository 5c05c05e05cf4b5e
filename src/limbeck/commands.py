"""What the command line offers, found by reading files, not by importing them.

Three kinds of file offer commands:

- ``methods/<family>/<method>.py`` with a function ``main``: the method, ``limbeck <method>``;
- ``methods/<family>/<any>.py`` with ``COMMANDS``: one command per entry, ``limbeck <entry>``;
- ``<room>/commands.py`` with ``COMMANDS``: a group, ``limbeck <room> <entry>``.

``COMMANDS`` is a dictionary, written out, of names and functions that take one configuration dataclass.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from limbeck.cards import Card, read_card
from limbeck.core.check import LimbeckError, require

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Command:
    """``words`` as typed after ``limbeck``, what it does in one line, and where its function is."""

    words: str
    title: str
    module: str
    entry: str | None = None
    card: Card | None = None

    def function(self) -> Callable[[Any], Any]:
        """Import the module and give the function, which takes one configuration."""
        module = import_module(self.module)
        return module.main if self.entry is None else module.COMMANDS[self.entry]


def find_commands(package: Path = PACKAGE, name: str = "limbeck") -> dict[str, Command]:
    """Every command by its words with underscores; methods first, in order of family and name."""
    found: dict[str, Command] = {}
    for path in sorted((package / "methods").glob("*/*.py")):
        _add(found, _in_method_file(path, f"{name}.methods.{path.parent.name}.{path.stem}"), path)
    for path in sorted(package.glob("*/commands.py")):
        room = path.parent.name
        _add(found, _entries(_parse(path), f"{name}.{room}.commands", f"{room} "), path)
    return found


def match(words: list[str], commands: dict[str, Command]) -> tuple[Command, list[str]]:
    """The command that ``words`` begin with, and the words that are left; hyphens and underscores are the same."""
    plain = [word.replace("-", "_") for word in words[:2]]
    for length in (2, 1):
        command = commands.get(" ".join(plain[:length]))
        if command is not None and len(plain) >= length:
            return command, words[length:]
    raise LimbeckError(_unknown(words, plain, commands))


def _unknown(words: list[str], plain: list[str], commands: dict[str, Command]) -> str:
    group = [name for name in commands if name.startswith(f"{plain[0]} ")]
    if group:
        names = ", ".join(f"limbeck {name}" for name in group)
        return f"expected one of {names}, but got {' '.join(['limbeck', *words[:2]])!r}"
    groups = {name.split()[0] for name in commands}
    near = get_close_matches(plain[0], [*commands, *groups], 1)
    hint = f"did you mean 'limbeck {near[0]}'" if near else "limbeck --help lists the commands"
    return f"there is no command {words[0]!r}; {hint}"


def _add(found: dict[str, Command], new: Iterator[Command], path: Path) -> None:
    for command in new:
        key = command.words.replace("-", "_")
        require(key not in found, f"{path}: the command 'limbeck {command.words}' is there twice; rename one of them")
        found[key] = command


def _in_method_file(path: Path, module: str) -> Iterator[Command]:
    tree = _parse(path)
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
        card = read_card(path)
        yield Command(path.stem, card.title, module, card=card)
    yield from _entries(tree, module, "")


def _entries(tree: ast.Module, module: str, prefix: str) -> Iterator[Command]:
    said = {n.name: (ast.get_docstring(n) or "").split("\n\n")[0] for n in tree.body if isinstance(n, ast.FunctionDef)}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        named = any(isinstance(target, ast.Name) and target.id == "COMMANDS" for target in targets)
        if named and isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                if isinstance(key, ast.Constant):
                    title = " ".join(said.get(getattr(value, "id", ""), "").split())
                    yield Command(prefix + str(key.value), title, module, str(key.value))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))
