"""Values as text, the same on a page, in a model card and on a terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.report.sections import Spread


def show(value: Any, digits: int = 3) -> str:
    """``value`` for a reader: floats with ``digits`` decimals (powers of ten if tiny or huge), None as nothing."""
    if value is None:
        return ""
    if isinstance(value, Spread):
        return f"{show(float(value.mean), digits)} ± {show(float(value.half), digits)}"
    if isinstance(value, float):
        return _number(value, digits)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {show(item, digits)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item, digits) for item in value)
    return str(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested mappings with dotted names, in order."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _number(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 10.0**-digits <= abs(value) < 1e6:
        return f"{value:.{digits}f}"
    return power(f"{value:.{max(digits - 1, 1)}e}")


def power(text: str) -> str:
    """``1.20e+06`` as ``1.20e6``."""
    return re.sub(r"e([+-])0*(\d)", lambda found: f"e{found[1].strip('+')}{found[2]}", text)
