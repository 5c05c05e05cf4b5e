"""``limbeck teach``: ask a teacher once and keep what it says, so that it need not be in memory while a student learns.

``limbeck teach --teacher M --data D --out store/`` writes a store; every method that compares logits then takes
``--teacher store/``, on the same data at the same ``--length``. Run it again after a kill and it goes on; under
``accelerate launch`` every process writes shards of its own.

A teacher behind an API is asked how likely the tokens of the data are (``echo`` and ``logprobs`` of the completions
API, as vLLM has them): ``limbeck teach --teacher http://... --tokenizer student --top 20``. Replies are kept in the
store's folder, so nothing is asked twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from accelerate import Accelerator
from tyro.conf import arg

from limbeck.core.check import require
from limbeck.core.device import Device, pick
from limbeck.data.named import Names
from limbeck.data.read import existing
from limbeck.data.store.folder import is_store
from limbeck.data.store.foreign import Spoken
from limbeck.data.store.imports import import_store, spoken_store
from limbeck.data.store.teach import Keep, teach
from limbeck.data.stream import Batches
from limbeck.methods.language_models.rows import rows
from limbeck.models.load import load_config, load_model, load_tokenizer
from limbeck.models.placement import Held, held, placed
from limbeck.sources.model import model_source
from limbeck.sources.served import Server, Service
from limbeck.sources.wire import is_url
from limbeck.writers import listed

REPLIES = ".responses.sqlite"  # in the store's folder; out of the way of its own files


@dataclass(frozen=True)
class Config(Service):
    """Settings of ``limbeck teach``."""

    out: Path = Path("runs/store")
    """Folder that the store is written to; one that was begun with the same settings is gone on with."""
    teacher: str = "limbeck:atlas/weights/lm"
    """Folder or Hub id of a language model, or a server's address; with --import, whose tokenizer made the ids."""
    tokenizer: str | None = None
    """Of a served teacher: folder or Hub id of the student, whose tokens have to be the teacher's."""
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
    engine = Accelerator(cpu=pick(cfg.device).type == "cpu")
    done = (_imported if cfg.import_ else _served if is_url(cfg.teacher) else _taught)(cfg, engine)
    size = done["bytes"] / done["tokens"]
    engine.print(f"wrote {cfg.out}: {done['tokens']} tokens of {done['rows']} texts, {size:.1f} bytes per token")
    return cfg.out


def _taught(cfg: Config, engine: Accelerator) -> dict[str, int]:
    model, tokenizer = load_model(cfg.teacher, "language", **held(cfg.teacher_dtype, cfg.teacher_map))
    layers = tuple(_layer(number, model.config.num_hidden_layers) for number in cfg.hidden)
    keep = Keep(cfg.top, cfg.tilts, cfg.within, layers)
    about = {"teacher": cfg.teacher, "dtype": cfg.teacher_dtype, "data": cfg.data or "atlas", "length": cfg.length}
    stream = batches(cfg, tokenizer, model.config)
    source = model_source(placed(model, engine.device), hidden=layers)
    return teach(source, stream, tokenizer, cfg.out, keep, about, model.config, engine, engine.device)


def _imported(cfg: Config, engine: Accelerator) -> dict[str, int]:
    require(cfg.data, f"--import {cfg.import_}: needs --data, the file or folder to read")
    require(not cfg.hidden, f"--import {cfg.import_}: holds no hidden states; leave --hidden out")
    config, tokenizer = load_config(cfg.teacher), load_tokenizer(cfg.teacher)
    size = config.get_text_config(decoder=True).vocab_size
    return import_store(str(cfg.import_), Path(str(cfg.data)), tokenizer, size, cfg.out, cfg.top, config, engine)


def _served(cfg: Config, engine: Accelerator) -> dict[str, int]:
    require(cfg.tokenizer, f"--teacher {cfg.teacher}: needs --tokenizer, the student's folder or Hub id")
    require(not cfg.hidden, f"--teacher {cfg.teacher}: a server gives no hidden states; leave --hidden out")
    config, tokenizer = load_config(str(cfg.tokenizer)), load_tokenizer(str(cfg.tokenizer))
    server, stream = Server(cfg.teacher, cfg, cfg.out / REPLIES), batches(cfg, tokenizer, config)
    require(not config.is_encoder_decoder, f"--teacher {cfg.teacher}: a server tells of causal models only")
    names = Names(tokenizer)

    def read() -> Iterator[Spoken]:
        for number, row in enumerate(listed(server, asked(stream), names, cfg.top)):
            likeliest = zip(row.positions.tolist(), row.top, row.log_p, strict=True)
            after = {at: (top[log_p > -np.inf], log_p[log_p > -np.inf]) for at, top, log_p in likeliest}
            yield Spoken(f"{cfg.teacher} text {number}", row.ids, after)

    about = {"teacher": server.url, "model": server.model, "data": cfg.data or "atlas", "length": cfg.length}
    size = config.get_text_config(decoder=True).vocab_size
    done = spoken_store(read, about, tokenizer, size, cfg.out, cfg.top, config, engine)
    engine.print(server.receipt())
    if names.unknown:
        engine.print(f"{names.unknown / names.heard:.1%} of the candidates are no one token of the student's")
    server.close()
    return done


def asked(stream: Batches) -> Iterator[tuple[list[int], list[int]]]:
    """The ids of every text of ``stream``, in the order of the data, and its positions that have a target."""
    for number in range(stream.size or 0):
        batch = stream.collate([stream.rows[number]])
        yield batch["ids"][0, batch["mask"][0]].tolist(), batch["answer"][0].nonzero()[:, 0].tolist()


def batches(cfg: Config, tokenizer: Any, config: Any) -> Batches:
    """The rows that ``cfg`` names, as ``limbeck distill`` reads them for a model of ``config``."""
    if cfg.chat_template is not None:
        tokenizer.chat_template = existing(cfg.chat_template).read_text(encoding="utf-8")
    return rows(cfg, tokenizer, config)


def _layer(number: int, layers: int) -> int:
    """A layer's number counted from the embeddings, 0."""
    require(-layers - 1 <= number <= layers, f"--hidden {number}: the teacher has layers 0 to {layers}")
    return number if number >= 0 else layers + 1 + number


COMMANDS: dict[str, Callable[[Any], Any]] = {"teach": write_store}
