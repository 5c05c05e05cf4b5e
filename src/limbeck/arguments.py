"""A configuration from the words of a command line, from a file, or from both: the line wins."""

from __future__ import annotations

import dataclasses
import io
import json
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from limbeck.core.check import LimbeckError, one_of, require


def config_class(function: Callable[[Any], Any]) -> type:
    """The dataclass that ``function`` takes, from the annotation of its first parameter."""
    hints = {name: hint for name, hint in get_type_hints(function).items() if name != "return"}
    found = next(iter(hints.values()), None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise TypeError(f"{function.__qualname__} must take one dataclass, with the parameter annotated")
    return found


def parse(cls: type, words: Sequence[str], prog: str, description: str = "") -> Any:
    """An instance of ``cls`` from ``words``. ``--config FILE`` gives defaults, from a run.json or a YAML file.

    ``--help`` prints and raises ``SystemExit(0)``; a wrong flag or value raises ``LimbeckError``.
    """
    import tyro

    path, words = take_config(words)
    known = {field.name.rstrip("_") for field in dataclasses.fields(cls)}  # import_: Python keeps the word for itself
    _check_flags(words, known, prog)
    default = {} if path is None else {"default": read_config(Path(path), cls, prog.split(" ", 1)[-1])}
    heard = io.StringIO()
    try:
        with redirect_stderr(heard):
            return tyro.cli(cls, args=list(words), prog=prog, description=description, **default)
    except SystemExit as stop:
        if not stop.code:
            raise
        reason = _missing(cls, words, default) or _sentence(heard.getvalue())
        raise LimbeckError(f"{prog}: {reason}; {prog} --help lists the flags") from None


def take_config(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of ``--config`` (None without it) and the other words."""
    rest, path, following = [], None, iter(words)
    for word in following:
        if word == "--config":
            path = next(following, None)
            require(path, "--config: expected the path of a run.json or YAML file after it")
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
        else:
            rest.append(word)
    return path, rest


def read_config(path: Path, cls: type, command: str) -> Any:
    """An instance of ``cls`` from a JSON or YAML file: the fields themselves, or a ``run.json`` that holds them."""
    values = _load(path)
    if "config" in values and "method" in values:
        ran, wanted = str(values["method"]), command.replace("-", "_")
        require(ran.replace("-", "_") == wanted, f"{path}: is the record of 'limbeck {ran}', not of 'limbeck {wanted}'")
        values = values["config"]
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    given = {one_of(str(k).replace("-", "_"), fields, f"{path}: field"): v for k, v in values.items()}
    ready = {name: coerce(value, hints[name], f"{path}: {name}") for name, value in given.items()}
    return cls(**{**_unset(fields), **ready})


def coerce(value: Any, hint: Any, where: str) -> Any:
    """``value`` from a file as the type ``hint``, or a ``LimbeckError`` that names ``where``."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, dict) and set(value) == {"object"}:
        raise LimbeckError(
            f"{where}: the run was given a {value['object']} from Python; name a folder or Hub id instead"
        )
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, inner, hint, where)
    if origin is Literal:
        require(value in inner, f"{where}: expected one of {', '.join(map(str, inner))}, but got {value!r}")
        return value
    if origin is tuple or hint is tuple:
        return _tuple(value, inner, where)
    if origin is list or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return list(_tuple(value, (*inner[:1], ...), where))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        require(isinstance(value, dict), f"{where}: expected names and values, but got {value!r}")
        return {key: coerce(item, inner[1], f"{where}.{key}") for key, item in value.items()}
    return _scalar(value, hint, where)


def _first_that_fits(value: Any, hints: Sequence[Any], hint: Any, where: str) -> Any:
    for choice in hints:
        try:
            return coerce(value, choice, where)
        except LimbeckError:
            continue
    raise LimbeckError(f"{where}: expected {_named(hint)}, but got {value!r}")


def _tuple(value: Any, inner: Sequence[Any], where: str) -> tuple[Any, ...]:
    require(isinstance(value, list | tuple), f"{where}: expected a list, but got {value!r}")
    hints = inner or (Any, ...)
    if len(hints) == 2 and hints[1] is ...:
        hints = [hints[0]] * len(value)
    require(len(hints) == len(value), f"{where}: expected {len(hints)} values, but got {len(value)}")
    return tuple(coerce(item, hint, f"{where}[{n}]") for n, (item, hint) in enumerate(zip(value, hints, strict=True)))


def _scalar(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Path) and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML reads 1e-4 as text
        return _number(value, where)
    fits = value is None if hint in (None, type(None)) else isinstance(value, hint)
    fits = fits and (hint is bool or not isinstance(value, bool))  # Python counts True as a number, a reader does not
    require(fits, f"{where}: expected {_named(hint)}, but got {value!r}")
    return value


def _number(value: str, where: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise LimbeckError(f"{where}: expected float, but got {value!r}") from None


def _named(hint: Any) -> str:
    return "nothing" if hint in (None, type(None)) else getattr(hint, "__name__", None) or str(hint)


def _unset(fields: Mapping[str, dataclasses.Field[Any]]) -> dict[str, Any]:
    """``tyro.MISSING`` for each field without a default, so that the line has to give it."""
    import tyro

    absent = dataclasses.MISSING
    return {n: tyro.MISSING for n, f in fields.items() if f.default is absent and f.default_factory is absent}


def _load(path: Path) -> dict[str, Any]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise LimbeckError(f"--config {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except json.JSONDecodeError as error:
        raise LimbeckError(f"--config {path}:{error.lineno}: expected JSON, but {error.msg.lower()}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise LimbeckError(f"--config {path}:{line}: expected YAML, but {getattr(error, 'problem', error)}") from None
    require(isinstance(values, dict), f"--config {path}: expected names and values, but got {type(values).__name__}")
    return values


def _check_flags(words: Sequence[str], known: set[str], prog: str) -> None:
    plain = [*known, *(f"no_{name}" for name in known), "config", "help"]
    names = sorted(f"--{name.replace('_', '-')}" for name in plain)
    for word in words:
        flag = word.split("=")[0].split(".")[0].replace("_", "-")
        if word.startswith("--") and flag not in names:
            near = get_close_matches(flag, names, 1)
            hint = f"did you mean {near[0]}" if near else f"{prog} --help lists the flags"
            raise LimbeckError(f"{prog}: there is no flag {word.split('=')[0]}; {hint}")


def _missing(cls: type, words: Sequence[str], default: Mapping[str, Any]) -> str:
    """Which flags without a default neither the line nor the file gives, in words; empty if none is missing."""
    import tyro

    given = {word.split("=")[0].replace("_", "-") for word in words}
    wanted = {f"--{name.replace('_', '-')}": name for name in _unset({f.name: f for f in dataclasses.fields(cls)})}
    values = vars(default["default"]) if default else {}
    lacking = [f for f, name in wanted.items() if f not in given and values.get(name, tyro.MISSING) is tyro.MISSING]
    return f"expected {' and '.join(lacking)}, which has no default" if lacking else ""


def _sentence(said: str) -> str:
    """The first paragraph of a boxed message as one line."""
    kept: list[str] = []
    for line in said.splitlines():
        inner = line.strip().strip("│╭╰╮╯").strip()
        if kept and (not inner or set(inner) <= {"─"}):
            break
        if inner and not line.lstrip().startswith(("╭", "╰")):
            kept.append(inner)
    return " ".join(kept).rstrip(".") or "the command line cannot be read"
