"""limbeck distils what a large model knows into something small.

The public names are listed once, below, and imported when they are first asked for: ``import limbeck`` alone is fast.
Everything else is importable from the module that holds it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "across": "crossing",
    "Batch": "core.batch",
    "Clock": "core.terms",
    "distill_step": "core.stage",
    "Distiller": "context.distiller",
    "doctor": "analyses.doctor",
    "Example": "data.templates",
    "fit": "core.fit",
    "frequent_tokens": "students.vocabulary",
    "hard": "objectives.tokens",
    "hidden": "objectives.features",
    "Layout": "data.templates",
    "LimbeckError": "core.check",
    "lm_batches": "data.stream",
    "mean_source": "sources.ensemble",
    "mlm_batches": "data.stream",
    "model_source": "sources.model",
    "Optim": "core.stage",
    "read_tasks": "data.tasks",
    "relation": "objectives.relations",
    "score_options": "evaluation.score",
    "Signals": "core.signals",
    "soft": "objectives.tokens",
    "Stage": "core.stage",
    "stored": "sources.stored",
    "Task": "data.tasks",
    "teach": "data.store.teach",
    "Terms": "core.terms",
    "trim_vocabulary": "students.vocabulary",
    "Vectors": "context.vectors",
    "weighted": "objectives.weighted",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name from its home, once."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
    value = getattr(import_module(f"limbeck.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
