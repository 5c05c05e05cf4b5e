"""The README.md beside a student: what it is, how to load it, what was measured, what it cannot do."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from limbeck.cards import Card, parse_card
from limbeck.core.save import write_atomic
from limbeck.report.values import flat, show

if TYPE_CHECKING:
    from limbeck.run import Started

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
ENDINGS = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}


def card_of(cfg: Any, method: str) -> Card:
    """The card of the method whose configuration ``cfg`` is: the docstring of the module that defines its class."""
    module = sys.modules.get(type(cfg).__module__)
    return parse_card(inspect.getdoc(module) or method, method)


def model_card(run: Started, metrics: Mapping[str, Any], base_model: str | None, code: str | None) -> str:
    """The text of the model card; ``code`` is the Python that loads the student, None if there is none."""
    card = card_of(run.cfg, run.method)
    parts = [_front_matter(run.method, base_model), f"# {run.out.name}: {card.title}"]
    if says := card.fields.get("Says"):
        parts.append(f"What the method does: {says}")
    parts.append("\n".join(_made(run, card, base_model)))
    if code:
        parts += ["## Load it", f"```python\n{code}\n```"]
    parts += ["## What was measured", _metric_table(metrics)]
    limits = [card.fields[name] for name in ("Needs", "Departures") if name in card.fields]
    parts += ["## Limits", "\n".join([*(f"- {text}" for text in limits), *_limits(base_model)])]
    return "\n\n".join(parts) + "\n"


def write_model_card(run: Started, metrics: Mapping[str, Any], base_model: str | None, code: str | None) -> None:
    """Write ``README.md`` into the run's folder."""
    write_atomic(run.out / "README.md", model_card(run, metrics, base_model, code))


def loading(model: Any, tokenizer: Any, out: Path) -> str | None:
    """The lines of Python that load what the run saved in ``out``; None if it saved no model."""
    if model is None:
        return None
    kind = type(model)
    if kind.__module__.startswith("limbeck."):
        return f'from {kind.__module__} import {kind.__name__}\n\nmodel = {kind.__name__}.from_pretrained("{out}")'
    auto = next((auto for ending, auto in ENDINGS.items() if kind.__name__.endswith(ending)), "AutoModel")
    names = [auto] if tokenizer is None else [auto, "AutoTokenizer"]
    lines = [f"from transformers import {', '.join(names)}", "", f'model = {auto}.from_pretrained("{out}")']
    if tokenizer is not None:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{out}")')
    return "\n".join(lines)


def _front_matter(method: str, base_model: str | None) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["limbeck", "distillation", method]}
    if base_model and HUB_ID.match(base_model) and not Path(base_model).exists():  # the Hub takes nothing else here
        head["base_model"] = base_model
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _made(run: Started, card: Card, base_model: str | None) -> list[str]:
    lines = [f"- method: `{run.method}`" + (f" ({paper})" if (paper := card.fields.get("Paper")) else "")]
    if base_model:
        lines.append(f"- made from: {base_model}")
    lines.append(f"- seed: {run.cfg.seed}; configuration, versions and commit: `run.json`; curves: `report.html`")
    return lines


def _metric_table(metrics: Mapping[str, Any]) -> str:
    rows = flat(metrics)
    if not rows:
        return "Nothing was measured in this run."
    return "\n".join(["| metric | value |", "| --- | --- |", *(f"| {name} | {show(value)} |" for name, value in rows)])


def _limits(base_model: str | None) -> list[str]:
    inherits = f"- What {base_model} gets wrong, and its licence, pass on to this model." if base_model else None
    return [line for line in (inherits, "- The numbers above hold for the data of this run.") if line]
