"""The README.md beside a student: what it is, how to load it, what was measured, what it cannot do."""

from __future__ import annotations

import inspect
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

LOAD = """```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{out}")
tokenizer = AutoTokenizer.from_pretrained("{out}")
```"""


def card_of(cfg: Any, method: str) -> Card:
    """The card of the method whose configuration ``cfg`` is: the docstring of the module that defines its class."""
    module = sys.modules.get(type(cfg).__module__)
    return parse_card(inspect.getdoc(module) or method, method)


def model_card(run: Started, metrics: Mapping[str, Any], base_model: str | None, auto: str | None) -> str:
    """The text of the model card; ``auto`` names the transformers class that loads the student, if one does."""
    card = card_of(run.cfg, run.method)
    parts = [_front_matter(run.method, base_model), f"# {run.out.name}: {card.title}"]
    if says := card.fields.get("Says"):
        parts.append(f"What the method does: {says}")
    parts.append("\n".join(_made(run, card, base_model)))
    if auto:
        parts += ["## Load it", LOAD.format(auto=auto, out=run.out)]
    parts += ["## What was measured", _metric_table(metrics)]
    limits = [card.fields[name] for name in ("Needs", "Departures") if name in card.fields]
    parts += ["## Limits", "\n".join([*(f"- {text}" for text in limits), *_limits(base_model)])]
    return "\n\n".join(parts) + "\n"


def write_model_card(run: Started, metrics: Mapping[str, Any], base_model: str | None, auto: str | None) -> None:
    """Write ``README.md`` into the run's folder."""
    write_atomic(run.out / "README.md", model_card(run, metrics, base_model, auto))


def auto_class(model: Any) -> str | None:
    """The transformers class that loads ``model`` again, from its architecture's name; None for other objects."""
    names = getattr(getattr(model, "config", None), "architectures", None) or [type(model).__name__]
    kinds = {
        "ForCausalLM": "AutoModelForCausalLM",
        "LMHeadModel": "AutoModelForCausalLM",
        "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
        "ForMaskedLM": "AutoModelForMaskedLM",
        "ForSequenceClassification": "AutoModelForSequenceClassification",
        "ForTokenClassification": "AutoModelForTokenClassification",
    }
    found = [auto for ending, auto in kinds.items() if str(names[0]).endswith(ending)]
    plain = "AutoModel" if hasattr(model, "config") and hasattr(model, "get_input_embeddings") else None
    return found[0] if found else plain


def _front_matter(method: str, base_model: str | None) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["limbeck", "distillation", method]}
    if base_model and not Path(base_model).exists():
        head["base_model"] = base_model
    return f"---\n{yaml.safe_dump(head, sort_keys=False).strip()}\n---"


def _made(run: Started, card: Card, base_model: str | None) -> list[str]:
    lines = [f"- method: `{run.method}`" + (f" ({paper})" if (paper := card.fields.get("Paper")) else "")]
    if base_model:
        lines.append(f"- made from: `{base_model}`")
    lines.append(f"- seed: {run.cfg.seed}; configuration, versions and commit: `run.json`; curves: `report.html`")
    return lines


def _metric_table(metrics: Mapping[str, Any]) -> str:
    rows = flat(metrics)
    if not rows:
        return "Nothing was measured in this run."
    return "\n".join(["| metric | value |", "| --- | --- |", *(f"| {name} | {show(value)} |" for name, value in rows)])


def _limits(base_model: str | None) -> list[str]:
    inherits = f"- What `{base_model}` gets wrong, and its licence, pass on to this model." if base_model else None
    return [line for line in (inherits, "- The numbers above hold for the data of this run.") if line]
