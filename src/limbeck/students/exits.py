"""One encoder, many depths: a masked language model that can be read after some of its layers.

All exits share one head. An exit says who it is by a vector of its own, added to the state before the head; folded into
the head's first bias it makes the model cut at that exit an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.save import load_tensors, save_tensors
from limbeck.core.signals import Lazy, Readout, Signals, chosen
from limbeck.models.load import load_model, load_network, load_tokenizer, place
from limbeck.students.layers import keep_layers, parse_size, shape, smaller

EXITS = "exits.safetensors"
HEADS = ("cls", "lm_head")  # BERT; RoBERTa and its kin


def _before(head: nn.Module, layer: nn.Linear, states: Tensor) -> Tensor:
    """What ``layer`` reads where ``head`` reads ``states`` b t d; no logits are computed."""
    seen: list[Tensor] = []

    def nothing(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0][:, :0],)

    with layer.register_forward_pre_hook(nothing):
        head(states)
    return seen[0]


@torch.no_grad()
def _last_layer(model: Any) -> nn.Linear | None:
    """The output layer of ``model`` if its product is all that the head ends in, tried on made-up states."""
    head, layer = head_of(model), model.get_output_embeddings()
    if type(layer) is not nn.Linear:
        return None
    states = torch.sin(torch.arange(3.0 * layer.in_features)).view(1, 3, -1).to(layer.weight)
    read = _before(head, layer, states)
    return layer if torch.allclose(layer(read), head(states), rtol=1e-3, atol=1e-4) else None


@torch.no_grad()
def check_cuts(model: Any, layer: int) -> None:
    """Raise unless the state after ``layer`` is what the model of ``layer`` layers ends in, tried on made-up ids."""
    if layer == shape(model)[0]:
        return
    ids, small = torch.arange(3, device=model.device)[None], keep_layers(model, range(layer)).base_model.eval()
    was, mask = model.training, torch.ones_like(ids)
    states = model.eval().base_model(ids, mask, output_hidden_states=True).hidden_states[layer]
    model.train(was)
    require(
        torch.allclose(small(ids, mask).last_hidden_state, states, rtol=1e-3, atol=1e-4),
        f"{type(model).__name__} has a norm behind its last layer, so a model cut at an exit would say something else "
        "than the exit; give an encoder like BERT or RoBERTa",
    )


@dataclass(frozen=True)
class HeadOf:
    """Logits not computed yet: ``head`` of ``hidden`` b t d at the positions that somebody asks for."""

    head: nn.Module
    hidden: Tensor

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Logits n v at the true entries of ``positions`` b t (row-major), or b t v for all of them."""
        return self.head(chosen(self.hidden, positions))


class MultiExit(nn.Module):
    """``model``, a masked language model, with exits after the layers ``exits`` (counted from 1).

    ``said`` tells exits apart (one vector each, zero at first); ``same`` judges from the first token of an exit whether
    the texts of a row belong together.
    """

    def __init__(self, model: Any, exits: Sequence[int]) -> None:
        super().__init__()
        layers, width, _ = shape(model)
        rising = list(exits) == sorted(set(exits)) and len(exits) > 0
        fits = rising and exits[0] >= 1 and exits[-1] <= layers
        require(fits, f"exits {list(exits)}: expected rising numbers of layers from 1 to {layers}")
        check_cuts(model, exits[0])
        self.model, self.exits = model, tuple(exits)
        self.said = nn.Parameter(torch.zeros(len(self.exits), width))
        self.same = nn.Linear(width, 1)
        self.late = _last_layer(model) is not None

    @property
    def depth(self) -> int:
        """Layers of the whole model."""
        return shape(self.model)[0]

    def forward(self, batch: Batch) -> Signals:
        """``exits``: one Signals each with ``readout``, ``hidden`` (by layer) and ``extra["same"]`` b, a logit."""
        states = self.model.base_model(batch["ids"], batch["mask"].long(), output_hidden_states=True).hidden_states
        return Signals(exits=tuple(self._exit(i, states[layer]) for i, layer in enumerate(self.exits)))

    def at_exit(self, layer: int) -> Any:
        """The model of the first ``layer`` layers, by itself: a masked language model of the same class.

        Its predictions are those of the exit: the exit's own vector is folded into the head.
        """
        require(layer in self.exits, f"exit {layer}: the model has exits after layers {list(self.exits)}")
        whole = layer == self.depth
        small = deepcopy(self.model) if whole else keep_layers(self.model, range(layer))
        first = _first_linear(head_of(small))
        with torch.no_grad():
            first.bias.add_(first.weight @ self.said[self.exits.index(layer)].to(first.weight))
        return small.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """The last exit as an ordinary model in ``folder``, and ``exits.safetensors`` for the others (``load_exits``).

        The last exit's vector is folded in, and the others are kept as differences from it.
        """
        self.at_exit(self.exits[-1]).save_pretrained(folder)
        last = self.said[-1].detach()
        kept = {"said": self.said.detach() - last, "weight": self.same.weight.detach()}
        kept["bias"] = self.same.bias.detach() + self.same.weight.detach() @ last
        save_tensors(Path(folder) / EXITS, kept, {"exits": " ".join(map(str, self.exits))})

    def _exit(self, index: int, states: Tensor) -> Signals:
        states = states + self.said[index]
        same = self.same(states[:, 0])[:, 0]
        return Signals(readout=self._read(states), hidden={self.exits[index]: states}, extra={"same": same})

    def _read(self, states: Tensor) -> Lazy:
        """What the head says: up to its output layer where that is its end, for fused losses; else all of it."""
        head, layer = head_of(self.model), self.model.get_output_embeddings()
        return Readout(_before(head, layer, states), layer.weight, layer.bias) if self.late else HeadOf(head, states)


def load_exits(folder: str | Path) -> MultiExit:
    """The model that ``MultiExit.save_pretrained`` wrote, in eval mode."""
    kept, said = load_tensors(Path(folder) / EXITS)
    model = MultiExit(load_network(folder, "masked"), [int(layer) for layer in said["exits"].split()])
    with torch.no_grad():
        model.said.copy_(kept["said"])
        model.same.weight.copy_(kept["weight"])
        model.same.bias.copy_(kept["bias"])
    return model.eval()


def open_exits(name: str, exits: Sequence[int] = (), size: str | None = None) -> tuple[MultiExit, Any]:
    """The masked language model ``name`` with ``exits`` (default: four at most, evenly spread), and its tokenizer.

    What ``MultiExit.save_pretrained`` wrote keeps its exits. ``size``, like 6x384: the architecture anew at that size.
    """
    folder = Path(place(name))
    if (folder / EXITS).is_file() and size is None:
        model = load_exits(folder)
        kept = " ".join(map(str, model.exits))
        require(tuple(exits) in ((), model.exits), f"{name} has exits after layers {kept}; leave --exits out")
        return model, load_tokenizer(name)
    whole, tokenizer = load_model(name, "masked")
    if size is not None:
        anew = parse_size(size)
        require(anew, f"--size {size}: expected layers and width, such as 6x384")
        whole = smaller(whole, *(anew or (0, 0)))
    layers = whole.config.num_hidden_layers
    return MultiExit(whole, exits or even_exits(layers, min(4, layers))), tokenizer


def head_of(model: Any) -> nn.Module:
    """The part of a masked language model that turns states into logits."""
    for name in HEADS:
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    raise LimbeckError(f"{type(model).__name__} has no head that exits can share; use a model like BERT or RoBERTa")


def even_exits(layers: int, number: int) -> tuple[int, ...]:
    """``number`` exits, evenly spread, the last after the last layer."""
    require(1 <= number <= layers, f"a model of {layers} layers has from 1 to {layers} exits, not {number}")
    return tuple(-(-layers * i // number) for i in range(1, number + 1))


def _first_linear(head: nn.Module) -> nn.Linear:
    found = next((part for part in head.modules() if isinstance(part, nn.Linear)), None)
    require(found is not None and found.bias is not None, "an exit is folded into a bias, but the head has none")
    assert found is not None
    return found
