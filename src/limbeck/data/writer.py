"""Text by a model: sampled continuations of prompts, by the model as it stands at the moment of asking.

Where the model is one that ``fit`` trains, it is reached by reference: ``fit`` moves the same module to its device and
wraps it only from outside, so under one process and under DDP a ``Writer`` made before training speaks with the
weights of the step at hand. Sharded weights (FSDP2) are refused, because processes would have to write in lockstep.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from limbeck.core.check import LimbeckError, require
from limbeck.data.samples import Sample
from limbeck.data.stream import lengths_mask, pad


@dataclass(frozen=True)
class Sampling:
    """How a model writes: ``new_tokens`` at most, drawn at ``temperature`` (0: the likeliest token) from the ``top_k``
    likeliest tokens (0: all) that hold ``top_p`` of the probability."""

    new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        require(self.new_tokens >= 1, f"sampling: expected at least 1 new token, but got {self.new_tokens}")
        require(self.temperature >= 0, f"sampling: expected a temperature of at least 0, but got {self.temperature}")
        require(0 < self.top_p <= 1, f"sampling: expected top_p above 0 and at most 1, but got {self.top_p}")
        require(self.top_k >= 0, f"sampling: expected top_k of at least 0, but got {self.top_k}")


class Writer:
    """Continues the prompts of rows with ``model``, all rows of a call at once.

    A completion ends with the first of ``ends`` (token ids; default: what the model's own configuration calls the end
    of text), which belongs to it, or after ``sampling.new_tokens``. The model writes in eval mode, so without dropout,
    and without gradients. What is written depends on the weights, the rows and the seed alone; the random state
    that training goes on with is left as it was.

    ``mixed`` is another model and its share of every token's distribution, ``share * other + (1 - share) * model``
    (MiniLLM's teacher-mixed sampling, 2306.08543, section 2.2). ``size``: only ids below it are written, where the
    output layer has more (padding that another model cannot read). ``dtype`` writes under autocast to that type.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling | None = None,
        ends: Sequence[int] | None = None,
        mixed: tuple[Any, float] | None = None,
        size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.sampling, self.mixed = model, sampling or Sampling(), mixed
        self.size, self.dtype = size, dtype
        self.ends = end_tokens(model) if ends is None else sorted(set(ends))
        if mixed is not None:
            require(0 <= mixed[1] <= 1, f"the other model's share must lie from 0 to 1, but is {mixed[1]}")

    def __call__(self, rows: Sequence[Sample], seed: int, rooms: Sequence[int] | None = None) -> list[Sample]:
        """``rows`` with new completions; ``rooms`` bounds the new tokens of each row (0: its completion is empty)."""
        rooms = [self.sampling.new_tokens] * len(rows) if rooms is None else rooms
        texts: list[list[int]] = [[] for _ in rows]
        with self._speaking(seed):
            for group in self._groups(rows, rooms):
                written = self._write([rows[i] for i in group], max(rooms[i] for i in group))
                for i, ids in zip(group, written, strict=True):
                    texts[i] = self._cut(ids, rooms[i])
        return [replace(row, completion=text) for row, text in zip(rows, texts, strict=True)]

    def _groups(self, rows: Sequence[Sample], rooms: Sequence[int]) -> list[list[int]]:
        """Rows that are written together: all of them, but for an encoder-decoder those with prompts of one length."""
        groups: dict[int, list[int]] = defaultdict(list)
        for index, (row, room) in enumerate(zip(rows, rooms, strict=True)):
            require(row.prompt, "a prompt is empty; the first token needs something to follow")
            self._check_room(row, room)
            if room > 0:
                groups[len(row.prompt) if self._seq2seq else 0].append(index)
        return list(groups.values())

    @property
    def _seq2seq(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _check_room(self, row: Sample, room: int) -> None:
        most = _positions(self.model)
        if most is not None and len(row.prompt) + room > most:
            raise LimbeckError(
                f"a prompt of {len(row.prompt)} tokens and {room} new ones exceed the {most} positions that the model "
                "can read; shorten the prompts (--length) or write fewer tokens (--new-tokens)"
            )

    @contextmanager
    def _speaking(self, seed: int) -> Iterator[None]:
        """Eval mode, no gradients, a random state of its own."""
        parameter = next(self.model.parameters())
        require(
            not any(isinstance(p, DTensor) for p in self.model.parameters()),
            "text by a model in training needs its whole weights on every process, but FSDP2 has sharded them; train "
            "on one process or under DDP, or let a server write (limbeck seqkd)",
        )
        devices = [parameter.device] if parameter.is_cuda else []
        half = torch.autocast(parameter.device.type, self.dtype, enabled=self.dtype is not None)
        with silent(self.model), without_defaults(self.model), torch.random.fork_rng(devices), half:
            torch.manual_seed(seed)
            yield

    def _write(self, rows: Sequence[Sample], room: int) -> list[list[int]]:
        """New ids of every row, ``room`` at most."""
        inputs = self._inputs(rows)
        given = inputs["decoder_input_ids" if self._seq2seq else "input_ids"].shape[1]
        how = [self._allowed] + ([_Mixed(*self.mixed, inputs)] if self.mixed else [])
        ids = self.model.generate(**inputs, generation_config=self._settings(rows, room), logits_processor=how)
        return ids[:, given:].tolist()

    def _inputs(self, rows: Sequence[Sample]) -> dict[str, Tensor]:
        device = next(self.model.parameters()).device
        prompts = [row.prompt for row in rows]
        if not self._seq2seq:  # padded on the left, so that all rows go on at the same place
            ids, mask = (_flipped(part) for part in (pad([p[::-1] for p in prompts]), lengths_mask(prompts)))
            return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
        sources = [row.source for row in rows]
        require(all(sources), "an encoder-decoder writes from a source, but a row has none; give its encoder_ids")
        read = {"input_ids": pad(sources), "attention_mask": lengths_mask(sources).long()}
        return {name: value.to(device) for name, value in (read | {"decoder_input_ids": pad(prompts)}).items()}

    def _allowed(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Logits b v without those that may not be written."""
        if self.size is None or scores.shape[1] <= self.size:
            return scores
        return scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) >= self.size, -torch.inf)

    def _settings(self, rows: Sequence[Sample], room: int) -> Any:
        """What ``generate`` is told."""
        from transformers import GenerationConfig

        how, ends = self.sampling, {"eos_token_id": self.ends or None, "pad_token_id": self.ends[0] if self.ends else 0}
        if self._seq2seq:
            ends["decoder_start_token_id"] = rows[0].prompt[0]  # any other would be put before the decoder's ids
        drawn = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k}
        return GenerationConfig(**(drawn if how.temperature else {"do_sample": False}), **ends, max_new_tokens=room)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """``ids`` up to the first end, which stays, and to ``room``; behind an end stands only padding."""
        stop = next((place + 1 for place, token in enumerate(ids) if token in self.ends), len(ids))
        return ids[: min(stop, room)]


class _Mixed:
    """A logits processor: log of the mixture of what ``generate``'s model says and what ``other`` says."""

    def __init__(self, other: Any, share: float, inputs: dict[str, Tensor]) -> None:
        self.other, self.share, self.cache = other, share, None
        self.seq2seq = "decoder_input_ids" in inputs
        plain = other.get_base_model() if hasattr(other, "get_base_model") else other  # inside an adapter
        self.counts = "position_ids" in inspect.signature(plain.forward).parameters
        self.mask = inputs["attention_mask"]
        self.read = other.get_encoder()(inputs["input_ids"], self.mask) if self.seq2seq else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``input_ids`` b t all ids so far, ``scores`` b v the logits of the model: log-probabilities b v."""
        new = input_ids if self.cache is None else input_ids[:, -1:]
        with silent(self.other):
            said = self.other(**self._inputs(input_ids, new), past_key_values=self.cache, use_cache=True)
        self.cache = said.past_key_values
        size = min(said.logits.shape[-1], scores.shape[-1])  # one vocabulary, but one layer may be padded
        forbidden = scores[:, :size].isneginf()
        heard = said.logits[:, -1, :size].masked_fill(forbidden, -torch.inf), scores[:, :size]
        theirs, ours = (logits.float().log_softmax(-1) for logits in heard)
        shares = torch.tensor([self.share, 1 - self.share], device=ours.device).log()
        both = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        both[:, :size] = torch.logaddexp(theirs + shares[0], ours + shares[1])
        return both

    def _inputs(self, ids: Tensor, new: Tensor) -> dict[str, Any]:
        if self.seq2seq:
            return {"decoder_input_ids": new, "encoder_outputs": self.read, "attention_mask": self.mask}
        more = ids.shape[1] - self.mask.shape[1]
        mask = torch.cat([self.mask, self.mask.new_ones(len(ids), more)], 1)
        said = {"input_ids": new, "attention_mask": mask}
        if self.counts:
            said["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        return said


@contextmanager
def silent(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def without_defaults(model: Any) -> Iterator[None]:
    """Inside, the model's own generation settings (a temperature, a penalty, an end of its own) do not count."""
    from transformers import GenerationConfig

    inner = [model.get_base_model()] if hasattr(model, "get_base_model") else []  # that of an adapter
    parts = [model, *inner]
    own = [part.generation_config for part in parts]
    try:
        for part in parts:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, settings in zip(parts, own, strict=True):
            part.generation_config = settings


def end_tokens(model: Any, tokenizer: Any = None) -> list[int]:
    """All ids that end a text: those of the model's generation settings and configuration, and of its tokenizer."""
    named = [getattr(part, "eos_token_id", None) for part in (model.generation_config, model.config, tokenizer)]
    lists = [value if isinstance(value, list | tuple) else [value] for value in named if value is not None]
    return sorted({int(token) for ids in lists for token in ids})


def _positions(model: Any) -> int | None:
    """How many positions a model can read; None where nothing limits it (relative positions, as in T5)."""
    if getattr(model.config, "relative_attention_num_buckets", None):
        return None
    return getattr(model.config, "max_position_embeddings", None)


def _flipped(part: Tensor) -> Tensor:
    return part.flip(1)
