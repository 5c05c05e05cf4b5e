"""The record of a run, ``run.json``: its configuration, and where its numbers came from."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck.core.check import LimbeckError, require
from limbeck.core.save import read_json

RECORD = "run.json"
FREE = (  # what a resumed run may change: none of them moves a number
    *("out", "device", "save_every", "tracker"),
    *("key_env", "concurrency", "timeout", "attempts", "price", "responses"),  # of a served teacher
)
WRITTEN = ("config.json", "model.safetensors", "tokenizer.json", "metrics.json", "README.md", "report.html")
PACKAGES = ("limbeck", "torch", "transformers", "tokenizers", "accelerate", "numpy")


def make_record(cfg: Any, method: str, past: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of a run of ``method`` that starts now, or ``past`` with this start added under ``resumed``."""
    start = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": _command(),
        "commit": commit(),
        "versions": versions(),
        "platform": platform_of_run(),
    }
    if past is not None:
        return {**past, "resumed": [*past.get("resumed", []), start]}
    return {"method": method, "seed": cfg.seed, "config": config_of(cfg), **start}


def find_record(out: Path, method: str, cfg: Any) -> dict[str, Any] | None:
    """The record of the run in ``out`` that this one resumes, or None; refuses all else."""
    config = config_of(cfg)
    if not (out / RECORD).exists():
        there = [name for name in WRITTEN if (out / name).exists()]
        require(
            not there,
            f"--out {out}: the folder holds {', '.join(there)} of another origin, which would be overwritten; "
            "choose another --out",
        )
        return None
    past = read_json(out / RECORD)
    require(
        isinstance(past, dict) and "config" in past,
        f"{out / RECORD}: expected the record of a run; choose another --out",
    )
    if past.get("method") != method:
        raise LimbeckError(f"--out {out}: holds a run of {past.get('method')}, not of {method}; choose another --out")
    old = past["config"]
    changed = [k for k in config if k not in FREE and old.get(k) != config[k]]
    if changed:
        what = ", ".join(f"{k} was {old.get(k)!r} and is now {config[k]!r}" for k in changed)
        raise LimbeckError(
            f"--out {out}: holds a run with another configuration ({what}); choose another --out, or delete the folder"
        )
    return past


def config_of(cfg: Any) -> dict[str, Any]:
    """The configuration as JSON values: paths as text, tuples as lists, objects by their class."""
    return {f.name: _plain(getattr(cfg, f.name)) for f in fields(cfg)}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def platform_of_run() -> dict[str, Any]:
    """System, processor, threads and accelerator of this process."""
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": cuda,
        "processes": _world_size(),
    }


def commit() -> str | None:
    """Commit of the checkout that limbeck runs from, with ``+changes`` if its tree differs; None when installed."""
    package = Path(__file__).parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top, "src", "limbeck").resolve() != package.resolve():
        return None
    head = _git(package, "rev-parse", "HEAD")
    return f"{head}+changes" if _git(package, "status", "--porcelain", "--", ".") else head


def _command() -> list[str]:
    """The words that started this process, without the folder that the program lies in."""
    program = Path(sys.argv[0]).name
    return ["limbeck" if program == "__main__.py" else program, *sys.argv[1:]]


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else {"object": type(value).__name__}
