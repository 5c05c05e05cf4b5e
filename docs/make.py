"""Write the generated pages: ``methods.md``, ``methods/<method>.md``, ``claims.md`` and ``benchmarks.md`` in ``docs/``.

``make docs`` runs it. The pages come from the method files (read, not imported), from ``claims/results/*.json``, and
from ``benchmarks/results/*.json`` (by ``figures.py``); a test compares them with what stands on disk. ``--check``
writes nothing and exits with 1 if a page is out of date.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from limbeck.cards import FIELDS, METHODS, Card
from limbeck.commands import find_commands
from limbeck.core.save import write_atomic
from limbeck.report.values import show

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "claims" / "results"
NOTE = "<!-- written by docs/make.py; run make docs to write it again -->"


class Option(NamedTuple):
    """A field of a method's ``Config`` as its file writes it."""

    name: str
    kind: str
    default: str
    source: str


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    cards = [command.card for command in find_commands().values() if command.card]
    written = {DOCS / "methods.md": overview(cards), DOCS / "claims.md": claims_page(sorted(RESULTS.glob("*.json")))}
    written[DOCS / "benchmarks.md"] = f"{NOTE}\n\n{figures().benchmarks_page(ROOT / 'benchmarks' / 'results', table)}\n"
    return written | {DOCS / "methods" / f"{card.name}.md": method_page(card) for card in cards}


def figures() -> ModuleType:
    """``figures.py`` beside this file, also where this file is loaded from elsewhere."""
    spec = importlib.util.spec_from_file_location("docs_figures", Path(__file__).with_name("figures.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def overview(cards: list[Card]) -> str:
    """The table of methods, by family."""
    parts = [NOTE, "# Methods", "One paper, one file, one command. `limbeck methods` prints this table."]
    for family in dict.fromkeys(card.family for card in cards):
        rows = [
            (
                f"[{card.name}](methods/{card.name}.md)",
                card.fields.get("Says", card.title),
                card.fields.get("Paper", ""),
            )
            for card in cards
            if card.family == family
        ]
        parts += [f"## {family.replace('_', ' ').capitalize()}", table(("method", "what it distils", "paper"), rows)]
    return "\n\n".join(parts) + "\n"


def method_page(card: Card) -> str:
    """A method's page: its card, command, recipe and settings."""
    path = METHODS / card.family / f"{card.name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    command = f"limbeck {card.name} --out runs/{card.name}"
    parts = [NOTE, f"# {card.name}", card.title, card.text, f"```\n{command}\n```"]
    parts += [f"**{name}:** {card.fields[name]}" for name in FIELDS if name in card.fields]
    if recipe := signature(tree, card.name):
        parts += ["## From Python", f"```python\nfrom {card.module} import Config, {card.name}\n\n{recipe}\n```"]
    rows = [(f"`--{o.name.replace('_', '-')}`", f"`{o.kind}`", f"`{o.default}`", o.source) for o in options(path)]
    parts += ["## Settings", table(("flag", "type", "default", "what it is, and where its default comes from"), rows)]
    parts.append(
        "Every method also takes the settings of `limbeck.run.Run`: `--out`, `--seed`, `--device`, `--precision`,"
    )
    parts[-1] += "\n`--accumulate`, `--save-every`, `--tracker`; and `--config run.json` repeats a run."
    return "\n\n".join(part for part in parts if part) + "\n"


def signature(tree: ast.Module, name: str) -> str:
    """The first line of the recipe, the function that has the method's name; empty if there is none."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            said = (ast.get_docstring(node) or "").strip()
            return f"{name}({ast.unparse(node.args)}){returns}" + "".join(
                f"\n# {line}".rstrip() for line in said.splitlines()
            )
    return ""


def options(path: Path) -> list[Option]:
    """The fields of the file's ``Config`` in order, then those of the classes it is made of, but for ``Run``.

    The source is the docstring after a field or its comment.
    """
    found: dict[str, Option] = {}
    for option in _options_of("Config", path):
        found.setdefault(option.name, option)
    return list(found.values())


def _options_of(name: str, path: Path) -> Iterator[Option]:
    """The fields of the class ``name``, which the file at ``path`` defines or imports from the package."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield from _options(node, text.splitlines())
            for base in node.bases:
                if isinstance(base, ast.Name) and base.id != "Run":
                    yield from _options_of(base.id, path)
        elif isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names] and node.module:
            yield from _options_of(name, METHODS.parent.joinpath(*node.module.split(".")[1:]).with_suffix(".py"))


def _options(node: ast.ClassDef, lines: list[str]) -> Iterator[Option]:
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            default = ast.unparse(field.value) if field.value else "(needed)"
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            comment = lines[(field.end_lineno or field.lineno) - 1][field.end_col_offset or 0 :].strip().lstrip("# ")
            yield Option(
                field.target.id, ast.unparse(field.annotation), default, " ".join(str(said or comment).split())
            )


def claims_page(files: list[Path]) -> str:
    """One part per result file: what was claimed, what came out, the numbers."""
    parts = [
        NOTE,
        "# Claims",
        "What each paper says, tried at small scale against its baselines with equal budgets and at least three seeds. "
        "The scripts are in `claims/`, the full results with every seed in `claims/results/`.",
    ]
    for path in files:
        parts += _claim(path.stem, json.loads(path.read_text(encoding="utf-8")))
    return "\n\n".join(parts) + "\n"


def _claim(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """The parts of one result: what was claimed and what came out first, then each check, then the other entries."""
    yield f"## {name}"
    for key in ("claim", "verdict"):
        if key in result:
            yield f"**{key.capitalize()}:** {_said(result[key])}"
    if checks := result.get("checks"):
        rows = [("yes" if check["holds"] else "no", check["claim"], _said(check.get("seen", ""))) for check in checks]
        yield table(("holds", "what should hold", "what was seen"), rows)
    for key, value in result.items():
        if key not in ("claim", "verdict", "checks", "rows", "method"):
            yield from _entry(key, value)


def _entry(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
        columns = list(dict.fromkeys(column for row in value.values() for column in row))
        rows = [(name, *(_said(row.get(column)) for column in columns)) for name, row in value.items()]
        yield table((key, *columns), rows)
    elif isinstance(value, Mapping):
        yield table((key, "value"), [(name, _said(item)) for name, item in value.items()])
    else:
        yield f"{key}: {_said(value)}"


def _said(value: Any) -> str:
    """A value as text; a mean with its standard deviation or half-width as ``mean ± spread``."""
    if isinstance(value, Mapping) and "mean" in value:
        spread = next((value[name] for name in ("half", "sd", "spread", "std") if value.get(name) is not None), None)
        return show(value["mean"]) if spread is None else f"{show(value['mean'])} ± {show(spread)}"
    return show(value)


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(str(c).replace("|", "\\|").split()) for c in row) + " |" for row in lines
    )


def stale() -> list[Path]:
    """Pages on disk that differ from what would be written, are missing, or belong to no method any more."""
    wanted = pages()
    left = set((DOCS / "methods").glob("*.md")) - set(wanted)
    wrong = {p for p, text in wanted.items() if not p.exists() or p.read_text(encoding="utf-8") != text}
    return sorted(left | wrong)


def main() -> int:
    """Write the pages, or with ``--check`` only name those that are out of date."""
    wrong = stale()
    if "--check" in sys.argv[1:]:
        for path in wrong:
            print(f"{path.relative_to(ROOT)} is out of date; run make docs", file=sys.stderr)
        return 1 if wrong else 0
    wanted = pages()
    for path in wrong:
        if path in wanted:
            write_atomic(path, wanted[path])
        else:
            path.unlink()
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
