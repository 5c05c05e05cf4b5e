"""From what a model's output layer reads to its logits, without computing logits that nobody asked for.

A language model ends in a matrix of vocabulary x width. Handing on the states before it and the matrix (``Readout``)
lets an objective compute logits at the positions that count only. What a family does around that matrix (a bias kept
apart, a scale, a soft cap) is read from the model; ``reads_out`` tries the result against the model itself, and a
source that finds it wrong falls back to the model's own logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.signals import Lazy, Readout

PROBE_SIZES = (1.0, 10.0, 100.0, 1000.0)
"""Lengths of the made-up states of a trial: small ones show a wrong scale or bias, large ones an unknown soft cap."""

PROBE_TOLERANCE = 0.01
"""Relative to the largest logit of a position: above the rounding of half precision, far below any forgotten factor."""


def output_layer(model: Any) -> nn.Linear | None:
    """The output layer of a language model if its product can be taken elsewhere: linear, plain and on this process.

    None for models without one, for quantised or adapted layers (LoRA), and for weights that are sharded over processes
    or kept elsewhere until they are needed (offloaded to memory or disk).
    """
    layer = model.get_output_embeddings()
    plain = type(layer) is nn.Linear and not hasattr(layer.weight, "full_tensor") and layer.weight.numel() > 0
    plain = plain and layer.weight.device.type != "meta"
    return layer if plain else None


def readout(model: Any, states: Tensor) -> Readout:
    """Logits-to-be from ``states`` b t d, what the output layer of ``model`` reads (see ``output_layer``)."""
    layer = output_layer(model)
    assert layer is not None, "ask output_layer first"
    config = model.config.get_text_config(decoder=True)
    scale = (
        getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0
    )  # Cohere, Falcon-H1
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
    return Readout(states, layer.weight, _bias(model, layer), scale, getattr(config, "final_logit_softcapping", None))


def to_be_read(model: Any, states: Tensor, home: torch.device) -> Lazy:
    """``readout`` for who computes on ``home``, also where the model's last layers are on another device."""
    said = readout(model, states)
    return said if states.device == said.weight.device == home else Distant(said, home)


@dataclass(frozen=True)
class Distant:
    """A ``Readout`` of a model that is spread over devices: computed where its weights are, handed over at ``home``."""

    said: Readout
    home: torch.device

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the true entries of ``positions`` b t, or b t v for all of them, on ``home``."""
        there = self.said.weight.device
        near = self.said._replace(hidden=self.said.hidden.to(there))
        return near.at(None if positions is None else positions.to(there)).to(self.home)


def _bias(model: Any, layer: nn.Linear) -> Tensor | None:
    """The layer's bias and the one that BART's relatives keep beside it."""
    apart = getattr(model, "final_logits_bias", None)
    if apart is None:
        return layer.bias
    return apart[0] if layer.bias is None else layer.bias + apart[0]


@contextmanager
def instead(layer: nn.Module, states: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """While this is open, ``layer`` reads ``states(input)``; its true inputs are collected in the list."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (states(args[0]), *args[1:])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def reads_out(model: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether ``readout`` gives this model's own logits, tried on one row of ``inputs`` and made-up states.

    The trial draws no random numbers that training would miss.
    """
    layer = output_layer(model)
    if layer is None:
        return False
    row = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    probe = _probe(layer)
    gpus = [probe.device] if probe.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(gpus), instead(layer, lambda _: probe) as seen:
        logits = model(**row).logits
        expected = readout(model, probe).at()
    once = len(seen) == 1 and seen[0].dim() == 3
    return once and logits.shape == expected.shape and _close(logits.float(), expected.float())


def _probe(layer: nn.Linear) -> Tensor:
    """States 1 n d that no model would produce, of growing length; the same on every call."""
    waves = torch.sin(torch.arange(len(PROBE_SIZES) * layer.in_features, dtype=torch.float64) ** 1.5)
    states = waves.view(1, len(PROBE_SIZES), -1) * torch.tensor(PROBE_SIZES, dtype=torch.float64)[:, None]
    return states.to(layer.weight.device, layer.weight.dtype)


def _close(logits: Tensor, expected: Tensor) -> bool:
    """Equal at every position up to a share of that position's largest logit."""
    gap, size = (logits - expected).abs().amax(-1), expected.abs().amax(-1)
    return bool((gap <= PROBE_TOLERANCE * size + torch.finfo(torch.float32).tiny).all())
