"""Method cards: the docstring that opens every method file, read without importing the file.

A card is one title line and then fields, ``Name: text``, whose text may run over indented lines::

    \"\"\"TAID: temporally adaptive interpolated distillation.

    Paper:  arXiv 2501.16937
    Says:   the target moves from the student's own distribution to the teacher's.
    \"\"\"
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck.core.check import LimbeckError

METHODS = Path(__file__).parent / "methods"
FIELDS = ("Paper", "Says", "Parts", "Needs", "Departures", "Checked", "Claim")
_FIELD = re.compile(rf"^({'|'.join(FIELDS)}):\s*(.*)$")


@dataclass(frozen=True)
class Card:
    """What a method says of itself: ``name`` as on the command line, ``family`` its folder, ``fields`` by name."""

    name: str
    family: str
    title: str
    fields: Mapping[str, str]
    text: str = ""

    @property
    def module(self) -> str:
        """Import path of the method's module."""
        return f"limbeck.methods.{self.family}.{self.name}"


def parse_card(docstring: str, name: str, family: str = "") -> Card:
    """The card in ``docstring``. Text before the first field that is not the title is kept as ``text``."""
    lines = inspect.cleandoc(docstring).splitlines()
    title, fields, free, current = lines[0].strip() if lines else "", {}, [], None
    for line in lines[1:]:
        found = _FIELD.match(line)
        if found:
            current = found[1]
            fields[current] = [found[2]]
        elif current and (line.startswith(" ") or not line.strip()):
            fields[current].append(line.strip())
        else:
            current = None
            free.append(line)
    joined = {key: " ".join(part for part in parts if part) for key, parts in fields.items()}
    return Card(name, family, title, joined, "\n".join(free).strip())


def read_card(path: Path) -> Card:
    """The card of the method file ``path``; the file is parsed, not run."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if docstring is None:
        raise LimbeckError(f"{path}: expected a card, the docstring that opens a method file, but there is none")
    return parse_card(docstring, path.stem, path.parent.name)
