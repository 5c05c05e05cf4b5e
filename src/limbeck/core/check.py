"""Errors that a user can act on, and the few checks that every room needs."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LimbeckError(Exception):
    """A mistake in the input: one sentence saying what was expected, what came, where, and what to do.

    The command line prints the sentence and exits with code 2; no traceback reaches the user.
    """


def require(condition: object, message: str) -> None:
    """Raise ``LimbeckError(message)`` unless ``condition`` holds."""
    if not condition:
        raise LimbeckError(message)


def one_of(value: str, choices: Iterable[str], what: str) -> str:
    """Return ``value`` if it is one of ``choices``; else say what the choices are and which is nearest."""
    known = list(choices)
    if value in known:
        return value
    near = get_close_matches(value, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise LimbeckError(f"{what}: expected one of {', '.join(known)}, but got {value!r}{hint}")


def in_order(chosen: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    """``chosen`` in the order of ``known``; at least one, none that is not known."""
    names, order = list(chosen), list(known)
    for name in names:
        one_of(name, order, what)
    require(names, f"{what}: expected at least one of {', '.join(order)}")
    return [name for name in order if name in names]


def first_line(error: BaseException) -> str:
    """The first line of what an error says (with the second, where the first only announces it), or its name."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
