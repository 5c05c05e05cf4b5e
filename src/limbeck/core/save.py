"""Files that are whole or absent: written under a temporary name, flushed to disk, renamed. Nothing here unpickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from limbeck.core.check import LimbeckError

STORE = "store.json"
"""What makes a folder a store of what a teacher said (``data.store``), and not a model."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says about a failed write into one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LimbeckError(f"cannot write {path}: {reason}; choose a folder that is writable and has space") from error


def _flush(path: Path) -> None:
    """Force a file's or a folder's entries onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush(path.parent)


def make_folder(path: Path) -> Path:
    """Create the folder ``path`` (and its parents) and prove that it can be written to, or raise ``LimbeckError``."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    return path


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` whole or not at all; text is UTF-8. ``LimbeckError`` where it cannot be written."""
    raw = data.encode() if isinstance(data, str) else data
    _replace(path, lambda temporary: _write(temporary, raw))


def _write(path: Path, raw: bytes) -> None:
    path.write_bytes(raw)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; a missing or broken file is named together with the line that is broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise LimbeckError(
            f"{path}:{error.lineno}: expected JSON, but {error.msg.lower()}; make the file again"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LimbeckError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors (any device, shape and layout) and text metadata as safetensors, whole or not at all."""
    _replace(path, lambda temporary: write_tensors(temporary, tensors, metadata))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """``save_tensors`` without care for what a kill leaves behind: for folders that ``replace_dir`` puts in place."""
    save_file({name: _plain(tensor) for name, tensor in tensors.items()}, str(path), dict(metadata or {}))
    open_to_readers(path)


def open_to_readers(path: Path) -> None:
    """Give a file the usual permissions: safetensors lets its owner alone read it, whatever the umask says."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as safetensors wants it: on the CPU, contiguous, and sharing its memory with nobody."""
    plain = tensor.detach().cpu().contiguous()
    whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
    return plain if whole else plain.clone()


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (on the CPU) and metadata of a safetensors file; a missing, truncated or corrupt file is named."""
    path = Path(path)
    if not path.is_file():
        raise LimbeckError(f"cannot read {path}: there is no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LimbeckError(
            f"{path} is not a whole safetensors file ({str(error).splitlines()[0]}); copy or make it again"
        ) from None


def replace_dir(temporary: Path, final: Path) -> None:
    """Put the finished folder ``temporary`` in the place of ``final``; a folder that stood there goes afterwards.

    Between the two renames ``final`` may be absent for an instant; its former content then stands beside it under the
    name ``.<final>.old``.
    """
    old = final.with_name(f".{final.name}.old")
    with writing(final):
        for path in sorted(temporary.rglob("*")):
            _flush(path)
        _flush(temporary)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(final, old)
        os.replace(temporary, final)
        _flush(final.parent)
    shutil.rmtree(old, ignore_errors=True)


_MARK = "$"  # a JSON object with this one key stands for something JSON has no word for


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """``value`` (dicts, lists, tuples, numbers, text, tensors, arrays) as JSON; its tensors go into ``tensors``."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_MARK: "tensor", "name": name}
    if hasattr(value, "__array__") and hasattr(value, "tobytes"):  # NumPy arrays and scalars, without importing NumPy
        tensors[name] = torch.as_tensor(value)
        return {_MARK: "array", "name": name}
    if isinstance(value, Mapping):
        pairs = [[key, pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]
        plain = all(isinstance(key, str) and key != _MARK for key in value)
        return dict(pairs) if plain else {_MARK: "items", "items": pairs}
    if isinstance(value, list | tuple):
        items = [pack(item, tensors, f"{name}/{index}") for index, item in enumerate(value)]
        return items if isinstance(value, list) else {_MARK: "tuple", "items": items}
    raise LimbeckError(
        f"the state {name!r} is a {type(value).__name__}, but only numbers, text, tensors, lists and "
        "dictionaries of these can be saved"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``pack``."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind is None:
        return {key: unpack(item, tensors) for key, item in value.items()}
    if kind in ("tensor", "array"):
        return tensors[value["name"]] if kind == "tensor" else tensors[value["name"]].numpy()
    items = unpack(value["items"], tensors)
    return tuple(items) if kind == "tuple" else dict(items)
