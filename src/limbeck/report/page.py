"""One self-contained HTML page from sections: no script, no network, light and dark, readable on a phone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from limbeck.report.curves import figure
from limbeck.report.sections import Cell, Curve, Examples, KeyValues, Section, Spread, Table, Text, Worked
from limbeck.report.values import flat, power, show

STYLE = Path(__file__).with_name("style.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{subtitle}</p>
{nav}
</header>
<main>
{body}
</main>
<footer><p>Written by limbeck {version}. This page needs no network.</p></footer>
</body>
</html>
"""


def page(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The page as HTML text. Curves that follow each other share one heading, as small multiples."""
    from importlib.metadata import version

    groups = _grouped(sections)
    anchors = _anchors([_heading(group) for group in groups])
    return PAGE.format(
        policy=escape(POLICY),
        title=escape(title),
        subtitle=escape(subtitle),
        style=STYLE.read_text(encoding="utf-8"),
        nav=_nav(groups, anchors),
        body="\n".join(_block(group, anchor) for group, anchor in zip(groups, anchors, strict=True)),
        version=version("limbeck"),
    )


def _grouped(sections: Sequence[Section]) -> list[list[Section]]:
    groups: list[list[Section]] = []
    for section in sections:
        if isinstance(section, Curve) and groups and isinstance(groups[-1][0], Curve):
            groups[-1].append(section)
        else:
            groups.append([section])
    return groups


def _heading(group: Sequence[Section]) -> str:
    return "Curves" if isinstance(group[0], Curve) else group[0].title


def _anchors(headings: Sequence[str]) -> list[str]:
    """One anchor per heading: its words in lower case, numbered where a heading comes twice."""
    taken: dict[str, int] = {}
    for number, heading in enumerate(headings):
        anchor = re.sub(r"\W+", "-", heading.lower()).strip("-") or "section"
        taken[anchor if anchor not in taken else f"{anchor}-{number}"] = number
    return list(taken)


def _nav(groups: Sequence[Sequence[Section]], anchors: Sequence[str]) -> str:
    pairs = zip(anchors, map(_heading, groups), strict=True)
    links = "".join(f'<li><a href="#{anchor}">{escape(text)}</a></li>' for anchor, text in pairs)
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def _block(group: Sequence[Section], anchor: str) -> str:
    heading = _heading(group)
    inner = "\n".join(_RENDER[type(section)](section) for section in group)
    if isinstance(group[0], Curve):
        inner = f'<div class="figures">{inner}</div>'
    return f'<section id="{anchor}">\n<h2>{escape(heading)}</h2>\n{inner}\n</section>'


def _text(section: Text) -> str:
    return "\n".join(f"<p>{escape(part)}</p>" for part in re.split(r"\n\s*\n", section.text.strip()))


def _key_values(section: KeyValues) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td dir="auto">{escape(_value(value))}</td></tr>'
        for name, value in flat(section.values)
    )
    return _scroll(f'<table class="pairs"><tbody>{rows}</tbody></table>', section.title)


def _value(value: object) -> str:
    """A setting or measurement: numbers as they were given, to five digits."""
    if isinstance(value, float):
        return power(f"{value:.5g}")
    return "not set" if value is None else show(value)


def _table(section: Table) -> str:
    numeric = [
        any(isinstance(row[n], int | float | Spread) for row in section.rows) for n in range(len(section.columns))
    ]
    head = "".join(
        f'<th scope="col"{" class=number" * number}>{escape(name)}</th>'
        for name, number in zip(section.columns, numeric, strict=True)
    )
    rows = "".join(f"<tr>{_row(row, section.digits)}</tr>" for row in section.rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return _scroll(table, section.title) + _note(section.note)


def _row(row: Sequence[Cell], digits: int) -> str:
    first = f'<th scope="row" dir="auto">{escape(show(row[0], digits))}</th>' if row else ""
    return first + "".join(_cell(value, digits) for value in row[1:])


def _cell(value: Cell, digits: int) -> str:
    if isinstance(value, Spread):
        half = f'<span class="half">± {escape(show(float(value.half), digits))}</span>'
        return f'<td class="number">{escape(show(float(value.mean), digits))} {half}</td>'
    kind = ' class="number"' if isinstance(value, int | float) else ' dir="auto"'
    return f"<td{kind}>{escape(show(value, digits))}</td>"


def _examples(section: Examples) -> str:
    return _note(section.note) + "\n".join(_worked(item) for item in section.items)


def _worked(item: Worked) -> str:
    task = f"<h3>{escape(item.task)}</h3>" if item.task else ""
    pairs = "".join(
        f'<li><bdi>{escape(x)}</bdi> <span aria-hidden="true">→</span> <bdi>{escape(y)}</bdi></li>'
        for x, y in item.demos
    )
    demos = (
        f"<details open><summary>{len(item.demos)} demonstrations</summary><ol>{pairs}</ol></details>" if pairs else ""
    )
    asked = "".join(
        f'<tr class="asked"><th scope="row">{name}</th><td><bdi>{escape(text)}</bdi></td></tr>'
        for name, text in (("query", item.query), ("expected", item.expected))
    )
    answers = "".join(_answer(item, method) for method in item.answers)
    table = f"<table><tbody>{asked}{answers}</tbody></table>"
    return f'<article class="worked">{task}{demos}{_scroll(table, "query and answers")}</article>'


def _answer(item: Worked, method: str) -> str:
    verdict, mark = ("right", "✓") if item.verdict(method) else ("wrong", "✗")
    shown = (
        f'<span class="mark" role="img" aria-label="{verdict}">{mark}</span> <bdi>{escape(item.answers[method])}</bdi>'
    )
    return f'<tr class="{verdict}"><th scope="row">{escape(method)}</th><td>{shown}</td></tr>'


def _scroll(table: str, label: str) -> str:
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _note(note: str) -> str:
    return f'<p class="note">{escape(note)}</p>' if note else ""


_RENDER: Mapping[type, Callable[[Any], str]] = {
    Text: _text,
    KeyValues: _key_values,
    Table: _table,
    Curve: figure,
    Examples: _examples,
}
