"""``limbeck teach``: ask a teacher once and keep what it says, so that it need not be in memory while a student learns.

``limbeck teach --teacher M --data D --out store/`` writes a store; every method that compares logits then takes
``--teacher store/``, on the same data at the same ``--length``. Run it again after a kill and it goes on; under
``accelerate launch`` every process writes shards of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from accelerate import Accelerator
from tyro.conf import arg

from limbeck.core.check import require
from limbeck.core.device import Device, pick
from limbeck.data.read import existing
from limbeck.data.store.folder import is_store
from limbeck.data.store.imports import import_store
from limbeck.data.store.teach import Keep, teach
from limbeck.methods.language_models import distill
from limbeck.models.load import load_config, load_model, load_tokenizer
from limbeck.models.placement import Held, held, placed
from limbeck.sources.model import model_source


@dataclass(frozen=True)
class Config:
    """Settings of ``limbeck teach``."""

    out: Path = Path("runs/store")
    """Folder that the store is written to; one that was begun with the same settings is gone on with."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model; with --import, whose tokenizer made the ids (no weights are loaded)."""
    teacher_dtype: Held = "float32"
    """How the teacher is held; auto: as it was saved; int8 and nf4 quantise it while loading (bitsandbytes)."""
    teacher_map: str | None = None
    """auto spreads the teacher over all devices, and memory and disk where they do not suffice (device_map)."""
    data: str | None = None
    """As for the method that is to learn from it: conversations, prompts with completions, or text."""
    chat_template: Path | None = None
    """File with a Jinja chat template in place of the tokenizer's own; as for the method that is to learn from it."""
    import_: Annotated[Literal["vllm", "axolotl", "distillkit"] | None, arg(name="import")] = None
    """Read --data as log-probabilities that one of these programs wrote, instead of asking the teacher."""
    length: int = 128
    """Tokens per row; as for the method that is to learn from it."""
    batch: int = 8
    """Rows that the teacher reads at a time."""
    seed: int = 0
    """Seed of the atlas's text, where no --data is given."""
    top: int = 64
    """Tokens whose log-probabilities are kept at each position; 64: see benchmarks/store.py."""
    tilts: int | None = None
    """Directions along which a position's rest is told, a byte each; by default as many as --within needs, up to 64."""
    within: float = 0.04
    """Divergence in nats from what the teacher says to what is kept, which directions are added for."""
    hidden: tuple[int, ...] = ()
    """Layers whose hidden states are kept instead; 0 the embeddings, -1 the last."""
    device: Device = "auto"
    """Where to compute; auto: on an accelerator if there is one."""


def write_store(cfg: Config) -> Path:
    """Write what a teacher says about data into a store, which then teaches in its place."""
    pick(cfg.device)
    for name in ("batch", "length"):
        require(getattr(cfg, name) >= 1, f"--{name} {getattr(cfg, name)}: expected a whole number of at least 1")
    require(not is_store(cfg.teacher), f"--teacher {cfg.teacher}: is a store already")
    engine = Accelerator(cpu=cfg.device == "cpu")
    done = _imported(cfg, engine) if cfg.import_ else _taught(cfg, engine)
    size = done["bytes"] / done["tokens"]
    engine.print(f"wrote {cfg.out}: {done['tokens']} tokens of {done['rows']} texts, {size:.1f} bytes per token")
    return cfg.out


def _taught(cfg: Config, engine: Accelerator) -> dict[str, int]:
    model, tokenizer = load_model(cfg.teacher, "language", **held(cfg.teacher_dtype, cfg.teacher_map))
    if cfg.chat_template is not None:
        tokenizer.chat_template = existing(cfg.chat_template).read_text(encoding="utf-8")
    layers = tuple(_layer(number, model.config.num_hidden_layers) for number in cfg.hidden)
    keep = Keep(cfg.top, cfg.tilts, cfg.within, layers)
    about = {"teacher": cfg.teacher, "dtype": cfg.teacher_dtype, "data": cfg.data or "atlas", "length": cfg.length}
    rows = distill.Config(data=cfg.data, length=cfg.length, batch=cfg.batch, seed=cfg.seed)
    stream = distill.batches(rows, tokenizer, model)
    source = model_source(placed(model, engine.device), hidden=layers)
    return teach(source, stream, tokenizer, cfg.out, keep, about, model.config, engine, engine.device)


def _imported(cfg: Config, engine: Accelerator) -> dict[str, int]:
    require(cfg.data, f"--import {cfg.import_}: needs --data, the file or folder to read")
    require(not cfg.hidden, f"--import {cfg.import_}: holds no hidden states; leave --hidden out")
    config, tokenizer = load_config(cfg.teacher), load_tokenizer(cfg.teacher)
    size = config.get_text_config(decoder=True).vocab_size
    return import_store(str(cfg.import_), Path(str(cfg.data)), tokenizer, size, cfg.out, cfg.top, config, engine)


def _layer(number: int, layers: int) -> int:
    """A layer's number counted from the embeddings, 0."""
    require(-layers - 1 <= number <= layers, f"--hidden {number}: the teacher has layers 0 to {layers}")
    return number if number >= 0 else layers + 1 + number


COMMANDS: dict[str, Callable[[Any], Any]] = {"teach": write_store}
