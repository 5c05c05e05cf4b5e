"""A Hugging Face model as a source: any causal, masked or encoder-decoder language model, encoder or classifier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, one_of, require
from limbeck.core.signals import Signals
from limbeck.sources.attention import layer_number, recorded
from limbeck.sources.readout import instead, output_layer, reads_out, to_be_read
from limbeck.sources.segments import apart, check_apart

Pooled = Literal["cls", "mean"] | None
Stack = Literal["encoder", "decoder"]


def model_source(
    model: Any,
    *,
    hidden: Sequence[int] = (),
    qkv: Sequence[int] = (),
    pooled: Pooled = None,
    stack: Stack = "decoder",
    dtype: torch.dtype | None = None,
) -> ModelSource:
    """What ``model`` says about a batch.

    A language model gives ``readout`` (logits at the positions that somebody asks for), a classifier ``logits`` b c. On
    request:

    - ``hidden``: states b t d of these layers; 0 are the embeddings, 1 the first block, -1 the last one (after
      the final norm of models that have one);
    - ``qkv``: q, k, v of these layers (from 1), before any rotation, each b h t d with its own number of heads;
    - ``pooled``: b d from the last layer, "cls" (the first real token) or "mean" (over real tokens).

    In an encoder-decoder these are taken from ``stack``. ``dtype`` runs the forward pass under autocast to that type.
    The batch gives ``ids``, ``mask`` and, where the model takes them, ``positions`` and ``types``; ``encoder_ids`` and
    ``encoder_mask`` for an encoder-decoder. Positions of a causal model count its real tokens, so padding may stand on
    either side. A causal model keeps texts that share a row apart where the batch has ``segment``; that it can is tried
    once.

    Nothing is changed in the model: hooks stand during a call only. Gradients flow unless the caller turns them off.
    """
    if pooled is not None:
        one_of(pooled, ("cls", "mean"), "model_source: pooled")
    one_of(stack, ("encoder", "decoder"), "model_source: stack")
    return ModelSource(model, tuple(hidden), tuple(qkv), pooled, stack, dtype)


@dataclass
class ModelSource:
    """See ``model_source``."""

    model: Any
    hidden: tuple[int, ...] = ()
    qkv: tuple[int, ...] = ()
    pooled: Pooled = None
    stack: Stack = "decoder"
    dtype: torch.dtype | None = None
    _tried: tuple[Any, bool] = field(default=(None, False), init=False, repr=False)
    _apart: Any = field(default=None, init=False, repr=False)

    def __call__(self, batch: Batch) -> Signals:
        """Signals of one forward pass."""
        if "segment" in batch:
            self._check_segments()
        inputs, home = model_inputs(self.inner, batch), batch["ids"].device
        states = bool(self.hidden or self.pooled)
        with ExitStack() as stack:
            stack.enter_context(self._precision())
            seen = self._intercept(inputs, stack)
            qkv = stack.enter_context(recorded(self.inner, self.qkv, self.stack))
            said = self.model(**inputs, **({"output_hidden_states": True} if states else {}))
        return Signals(
            logits=getattr(said, "logits", None) if seen is None else None,
            readout=None if seen is None else to_be_read(self.inner, seen[0], home),
            hidden=self._layers(said) if self.hidden else {},
            qkv={layer: (q.to(home), k.to(home), v.to(home)) for layer, (q, k, v) in qkv.items()},
            pooled=self._pool(said, batch) if self.pooled else None,
        )

    @property
    def inner(self) -> Any:
        """The model without what ``DistributedDataParallel`` put around it, which hides all but the forward pass."""
        return self.model.module if isinstance(self.model, DistributedDataParallel) else self.model

    def __repr__(self) -> str:
        asked = {"hidden": self.hidden, "qkv": self.qkv, "pooled": self.pooled, "dtype": self.dtype}
        shown = [f"{name}={value!r}" for name, value in asked.items() if value]
        return f"model_source({', '.join([type(self.inner).__name__, *shown])})"

    def _check_segments(self) -> None:
        """Refuse what would mix the texts of a row; the model is tried once."""
        require(self.pooled is None, "one vector per row would mix the texts that share it; give each a row of its own")
        model = _unwrapped(self.inner)
        if self._apart is not model:
            require(
                is_causal(model) and not model.config.is_encoder_decoder,
                f"{type(model).__name__} does not read from left to right, so texts cannot share a row of it; give "
                "each a row of its own",
            )
            check_apart(model)
            self._apart = model

    def _precision(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, self.dtype)

    def _intercept(self, inputs: Mapping[str, Any], stack: ExitStack) -> list[Tensor] | None:
        """Keep the output layer from computing logits and catch what it would have read; None if it cannot be."""
        layer = output_layer(self.inner)
        if self._tried[0] is not layer:  # once per output layer: surgery may have replaced it
            self._tried = layer, reads_out(self.inner, inputs)
        return stack.enter_context(instead(layer, lambda states: states[:, :0])) if layer and self._tried[1] else None

    def _states(self, said: Any) -> tuple[Tensor, ...]:
        if self.inner.config.is_encoder_decoder:
            return said.encoder_hidden_states if self.stack == "encoder" else said.decoder_hidden_states
        return said.hidden_states

    def _layers(self, said: Any) -> dict[int, Tensor]:
        states = self._states(said)
        numbers = [layer_number(n, len(states) - 1, "hidden") for n in self.hidden]
        return {number: states[number] for number in numbers}

    def _pool(self, said: Any, batch: Batch) -> Tensor:
        """b d from the last layer."""
        states = self._states(said)[-1]
        on_encoder = self.inner.config.is_encoder_decoder and self.stack == "encoder"
        mask = _mask(batch, "encoder_" if on_encoder else "")
        if self.pooled == "cls":
            return states[torch.arange(len(states), device=states.device), mask.argmax(1)]
        return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of the forward pass of a Hugging Face ``model`` for ``batch``."""
    accepted = _accepted(_unwrapped(model))
    seq2seq = model.config.is_encoder_decoder
    for name in ("ids", "encoder_ids") if seq2seq else ("ids",):
        require(name in batch, f"{type(model).__name__} reads {name!r}, but the batch holds only {sorted(batch)}")
    mask = _mask(batch)
    inputs: dict[str, Any] = {"input_ids": batch["ids"], "attention_mask": mask}
    if seq2seq:
        inputs = {"decoder_input_ids": batch["ids"], "decoder_attention_mask": mask, "input_ids": batch["encoder_ids"]}
        inputs["attention_mask"] = _mask(batch, "encoder_")
    elif "segment" in batch:
        inputs |= apart(_unwrapped(model), batch["segment"], mask)
    elif "positions" in batch or is_causal(model):
        inputs["position_ids"] = batch.get("positions", (mask.cumsum(1) - 1).clamp(min=0))
    if "types" in batch:
        inputs["token_type_ids"] = batch["types"]
    inputs["use_cache"] = False  # a cache of keys and values would only cost memory
    return {name: value for name, value in inputs.items() if name in accepted}


def _mask(batch: Batch, part: str = "") -> Tensor:
    """The mask as integers, because some models compute with it; all true where the batch has none."""
    mask = batch.get(f"{part}mask")
    return torch.ones_like(batch[f"{part}ids"]) if mask is None else mask.long()


def _unwrapped(model: Any) -> Any:
    """The model inside what ``torch.compile`` or an adapter put around it."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _accepted(model: Any) -> set[str]:
    """Names that the forward pass takes: of the class that names them, should a subclass say ``*args, **kwargs``."""
    for forward in (model.forward, *(kind.forward for kind in type(model).__mro__ if hasattr(kind, "forward"))):
        names = set(inspect.signature(forward).parameters)
        if "input_ids" in names:
            return names
    raise LimbeckError(f"{type(model).__name__} takes no input_ids; model_source is for models that read token ids")


def is_causal(model: Any) -> bool:
    """Whether ``model`` is a decoder that reads from left to right; its positions then may count real tokens."""
    from transformers.models.auto import modeling_auto as auto

    kind, config = model.config.model_type, model.config
    decoder_only = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return decoder_only or bool(getattr(config, "is_decoder", False))
