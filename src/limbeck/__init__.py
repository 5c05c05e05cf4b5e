"""limbeck distils what a large model knows into something small.

The public names are listed once, below, and imported when they are first asked for: ``import limbeck`` alone is fast.
Everything else is importable from the module that holds it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Batch": "core.batch",
    "LimbeckError": "core.check",
    "Signals": "core.signals",
    "Terms": "core.terms",
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
