"""The distiller: a small language model that reads demonstrations and writes a few vectors for a big one.

MEND (arXiv 2403.06914): the backbone, without its head, reads the demonstrations' tokens and then ``length`` learned
placeholders; its last states at the placeholders, projected where the widths differ, are the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from limbeck.context.backbone import as_backbone, blank_backbone, first_placeholders, first_projection
from limbeck.context.collate import Collate
from limbeck.context.host import Host
from limbeck.context.reading import Reading, plan_reading
from limbeck.context.start import behind, embeddings, start_of
from limbeck.context.vectors import Vectors
from limbeck.core.check import require
from limbeck.core.save import load_tensors, read_json, save_tensors, write_json
from limbeck.data.stream import lengths_mask, pad
from limbeck.data.templates import Example
from limbeck.models.load import load_network, load_tokenizer, place
from limbeck.models.tokenizers import check_same_tokenizer
from limbeck.sources.views import gather, pack, positions

CONFIG, WEIGHTS, TOKENIZER, KIND = "config.json", "model.safetensors", "tokenizer", "limbeck-distiller"
WHOSE = "LLM and distiller"
Settings = TypeVar("Settings")


class Distiller(nn.Module):
    """Demonstrations' ids b t (or b g t) to vectors b l d (or b g*l d) in the LLM's embedding space.

    Where the LLM's texts start with a token of their own, its embedding, ``start`` s d, stands before the vectors
    (``context.start``).

    ``backbone`` is a transformer without head: a decoder, or the encoder of an encoder-decoder. ``init`` "vocab" starts
    the placeholders as embeddings of random tokens, "random" as N(0, initializer_range); ``seed`` draws them. The
    projection, tanh(W h + b), is there only where the backbone's width is not the LLM's, as in the released code.
    """

    start: Tensor | None

    def __init__(
        self,
        backbone: Any,
        host: Host,
        reading: Reading,
        tokenizer: Any = None,
        init: str = "vocab",
        seed: int = 0,
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.host, self.reading, self.tokenizer = backbone, host, reading, tokenizer
        draws = torch.Generator().manual_seed(seed)
        self.placeholders = nn.Parameter(first_placeholders(backbone, reading.length, init, draws))
        width = self.placeholders.shape[1]
        self.projection = None if width == host.width else first_projection(width, host.width, backbone.config, draws)
        require(
            len(reading.start) == (0 if start is None else len(start)),
            f"everything starts with {len(reading.start)} tokens, whose embeddings a distiller needs; use build",
        )
        self.register_buffer("start", None if start is None else start.to(self.placeholders.device))

    @classmethod
    def build(
        cls,
        llm: Any,
        name: str | Path,
        tokenizer: Any,
        backbone: Any,
        own_tokenizer: Any = None,
        init: str = "vocab",
        seed: int = 0,
        **reading: Any,
    ) -> Distiller:
        """A new distiller for ``llm``, loaded from ``name``; ``backbone`` is a model or where to load one from.

        ``reading``: arguments of ``plan_reading``; ``start`` is by default what the tokenizer itself puts before a
        text, and nothing for an encoder-decoder. The distiller's tokenizer, ``own_tokenizer`` or the one beside the
        backbone, has to be the LLM's.
        """
        host = Host.of(llm, name)
        if isinstance(backbone, str | Path):
            own_tokenizer = own_tokenizer or load_tokenizer(backbone)
            backbone = as_backbone(load_network(backbone, "base"), host.seq2seq)
        if own_tokenizer is not None:
            check_same_tokenizer(tokenizer, own_tokenizer, WHOSE)
        first = () if host.seq2seq or tokenizer is None else start_of(tokenizer)
        plan = plan_reading(host.positions, positions(backbone.config), **{"start": first, **reading})
        require(not (host.seq2seq and plan.start), "an encoder-decoder has a start of its own; leave start out")
        return cls(backbone, host, plan, tokenizer, init, seed, embeddings(llm, plan.start))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors b l d for demonstrations ``ids`` b t with ``mask`` b t, or b (g l) d for groups b g t.

        Input is right-padded. The placeholders stand directly behind the last real token of their row, at positions
        cumsum(mask) - 1, so padding changes nothing. Groups are read alone and their vectors stand one after another,
        behind ``start``.
        """
        if ids.dim() == 2:
            return behind(self.start, self._read(ids, mask))
        vectors = self._read(ids.flatten(0, 1), mask.flatten(0, 1))
        return behind(self.start, vectors.unflatten(0, tuple(ids.shape[:2])).flatten(1, 2))

    def _read(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors b l d of each row alone."""
        embeds = self.backbone.get_input_embeddings()(ids)
        placeholders = self.placeholders.to(embeds.dtype).expand(ids.shape[0], -1, -1)
        present = torch.ones(placeholders.shape[:2], dtype=torch.bool, device=ids.device)
        joined, joined_mask, where = pack(embeds, mask, placeholders, present)
        room = positions(self.backbone.config)
        require(
            room is None or joined.shape[1] <= room,
            f"demonstrations and {self.reading.length} placeholders take {joined.shape[1]} positions, but the "
            f"distiller has {room}; lower the budget",
        )
        states = self.backbone(inputs_embeds=joined, attention_mask=joined_mask.long()).last_hidden_state
        vectors = gather(states, where)
        return vectors if self.projection is None else torch.tanh(self.projection(vectors))

    def collate(self) -> Collate:
        """What turns episodes into batches that this distiller and its LLM read."""
        require(self.tokenizer is not None, "this distiller has no tokenizer; give one when building it")
        return Collate(self.tokenizer, self.host, self.reading)

    @torch.no_grad()
    def distill(self, demos: Sequence[Example]) -> Vectors:
        """The vectors that stand in for ``demos``; as many demonstrations are read as the budget holds."""
        require(demos, "the list of demonstrations is empty; give at least one example")
        collate, device = self.collate(), self.placeholders.device
        groups = collate.demos(list(demos))
        training = self.training
        found = self.eval()(pad(groups)[None].to(device), lengths_mask(groups)[None].to(device))[0]
        self.train(training)
        require(
            bool(found.isfinite().all()), "the distiller gave NaN or infinity; its weights are broken, train it again"
        )
        tokens = sum(map(len, groups)) - len(groups) * len(self.reading.start)
        return Vectors(found.float().cpu(), self.host, self.reading, collate.used(list(demos)), tokens, self.tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and ``tokenizer/`` (not the LLM) into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / TOKENIZER)
        save_tensors(folder / WEIGHTS, dict(self.state_dict()), {"kind": KIND})
        backbone = self.backbone.config.to_dict()
        backbone.pop("_name_or_path", None)  # where it was loaded from here means nothing elsewhere
        write_json(
            folder / CONFIG,
            {"kind": KIND, "host": asdict(self.host), "reading": asdict(self.reading), "backbone": backbone},
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Distiller:
        """A distiller from a folder that ``save_pretrained`` or ``limbeck mend`` wrote, or from one in the package."""
        path = Path(place(folder))
        require(
            (path / CONFIG).is_file(),
            f"{folder}: expected the folder of a distiller, but it has no {CONFIG}; 'limbeck mend' makes one",
        )
        said = read_json(path / CONFIG)
        require(
            isinstance(said, dict) and said.get("kind") == KIND,
            f"{path / CONFIG}: expected a distiller's configuration; give the folder that 'limbeck mend' wrote",
        )
        host, reading = from_json(Host, said["host"], path), from_json(Reading, said["reading"], path)
        backbone = blank_backbone(said["backbone"], host.seq2seq, path / CONFIG)
        start = torch.zeros(len(reading.start), host.width) if reading.start else None
        distiller = cls(backbone, host, reading, load_tokenizer(path / TOKENIZER), init="random", start=start)
        _fill(distiller, path / WEIGHTS)
        return distiller.eval()


def is_distiller(folder: str | Path) -> bool:
    """Whether ``folder`` holds a distiller (and not a model that a backbone is made from)."""
    path = Path(place(folder)) / CONFIG
    return path.is_file() and read_json(path).get("kind") == KIND


def open_distiller(
    folder: str | Path, llm: Any, name: str | Path, tokenizer: Any, init: str = "vocab", seed: int = 0, **reading: Any
) -> Distiller:
    """A distiller for ``llm`` (loaded from ``name``) from what ``folder`` holds: a distiller to go on from, or a model.

    ``reading``: arguments of ``plan_reading``; None is its default. A distiller to go on from keeps its own, but for
    ``limit``, ``budget`` and ``context``.
    """
    given = {key: value for key, value in reading.items() if value is not None}
    if not is_distiller(folder):
        return Distiller.build(llm, name, tokenizer, folder, init=init, seed=seed, **given)
    distiller = Distiller.from_pretrained(folder)
    distiller.host.check(llm, f"the distiller in {folder}")
    check_same_tokenizer(tokenizer, distiller.tokenizer, WHOSE)
    own = asdict(distiller.reading)
    for key in ("length", "layout", "groups", "channel", "enter", "query", "start"):
        wanted = given.get(key, own[key])
        plain = key not in ("length", "layout") and wanted == getattr(Reading, key)  # a flag that was not given
        require(
            plain or wanted == own[key],
            f"{key} {wanted}: the distiller in {folder} learned with {own[key]}; leave it out",
        )
    own |= {key: given[key] for key in ("limit", "budget", "context") if key in given}
    distiller.host = Host.of(llm, name)
    distiller.reading = plan_reading(distiller.host.positions, positions(distiller.backbone.config), **own)
    return distiller


def from_json(kind: type[Settings], said: dict[str, Any], where: Path) -> Settings:
    """The dataclass ``kind`` from its JSON; fields that it does not have are refused."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    odd = sorted(set(said) - known)
    require(not odd, f"{where}: unknown settings {', '.join(odd)}; it was written by another version of limbeck")
    return kind(**said)


def _fill(distiller: Distiller, path: Path) -> None:
    weights, _ = load_tensors(path)
    said = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    own = {name: tuple(tensor.shape) for name, tensor in distiller.state_dict().items()}
    odd = sorted(name for name in own.keys() | said.keys() if own.get(name) != said.get(name))
    require(not odd, f"{path}: the weights do not fit the configuration ({', '.join(odd[:3])}); copy the folder again")
    distiller.load_state_dict(weights)
