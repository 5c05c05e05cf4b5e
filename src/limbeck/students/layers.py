"""Smaller students from a teacher: fewer layers or a smaller width, for any architecture with a transformers config.

``keep_layers`` copies chosen layers and everything around them (DistilBERT's initialisation); ``smaller`` builds the
teacher's architecture anew at another size, randomly initialised (MiniLM's students). Both return a new model and leave
the given one alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.check import LimbeckError, require

DEPTHS = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
SCALED = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff")
HEAD_WIDTHS = ("head_dim", "d_kv")
SAME_AS_WIDTH = ("word_embed_proj_dim", "embedding_size", "hidden_size_per_layer_input")


def parse_size(text: str) -> tuple[int, int] | None:
    """``"6x384"`` -> (6 layers, width 384); None when ``text`` is not a size (then it names a model)."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    return (int(match[1]), int(match[2])) if match else None


def every_other(layers: int, kept: int) -> list[int]:
    """``kept`` of ``layers`` layer indices (0-based), evenly spread from the first: 6 of 12 -> 0 2 4 6 8 10."""
    require(0 < kept < layers, f"every_other: can keep 1 to {layers - 1} of {layers} layers, not {kept}")
    return [i * layers // kept for i in range(kept)]


def keep_layers(model: nn.Module, keep: Sequence[int]) -> Any:
    """A copy of ``model`` with only the layers ``keep`` (0-based, in that order); embeddings and heads are kept whole.

    An encoder-decoder loses the same layers on both sides. Refuses layers that do not exist, layers given twice, a
    choice that changes nothing, and architectures whose layers are not one list of modules (ALBERT).
    """
    config = _config(model)
    total = config.num_hidden_layers
    chosen = [layer + total if layer < 0 else layer for layer in keep]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= layer < total for layer in chosen):
        raise LimbeckError(f"keep_layers: the model has layers 0 to {total - 1}; asked to keep {list(keep)}")
    require(chosen != list(range(total)), f"keep_layers: all {total} layers would be kept, so nothing would change")
    small = _build(model, _with_depth(config, chosen))
    stacks = [name for name, part in small.named_modules() if _is_stack(part, model, name, len(chosen), total)]
    require(
        stacks, f"keep_layers: found no list of {total} layers in {type(model).__name__}; build the student yourself"
    )
    state = {name: value for name, value in model.state_dict().items() if not _inside(name, stacks)}
    for stack in stacks:
        for new, old in enumerate(chosen):
            layer = model.get_submodule(f"{stack}.{old}").state_dict()
            state |= {f"{stack}.{new}.{name}": value for name, value in layer.items()}
    _load(small, state)
    return small


def smaller(model: nn.Module, layers: int, width: int, heads: int | None = None) -> Any:
    """The architecture of ``model`` with ``layers`` layers of ``width``, randomly initialised (seed it with torch).

    Vocabulary and positions stay; feed-forward and head widths scale with the width; the number of heads stays unless
    ``heads`` is given (MiniLM v1 needs the teacher's), and has to divide the width.
    """
    old = _config(model)
    config = resized(old, layers, width, heads)
    same = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    if same == (old.num_hidden_layers, old.hidden_size, old.num_attention_heads):
        raise LimbeckError(f"smaller: the model already has {layers} layers of width {width}; choose a smaller size")
    return _build(model, config)


def resized(config: Any, layers: int, width: int, heads: int | None = None) -> Any:
    """A copy of a transformers ``config`` with another depth and width; see ``smaller``."""
    require(layers > 0 and width > 0, f"a model needs at least one layer and a width; got {layers} x {width}")
    old, old_heads = config.hidden_size, config.num_attention_heads
    heads = heads or old_heads
    require(width % heads == 0, f"a width of {width} cannot be split into {heads} heads; choose a multiple of {heads}")
    if getattr(config, "rope_parameters", None) and width // heads % 2:
        raise LimbeckError(f"{width} / {heads} = {width // heads} is odd, and rotary positions need an even head width")
    new = _with_depth(config, [i * config.num_hidden_layers // layers for i in range(layers)])
    for name in (n for n in SCALED if isinstance(getattr(new, n, None), int)):
        setattr(new, name, max(1, getattr(new, name) * width // old))
    for name in (n for n in HEAD_WIDTHS if isinstance(getattr(new, n, None), int)):
        setattr(new, name, max(1, getattr(new, name) * width * old_heads // (old * heads)))
    for name in (n for n in SAME_AS_WIDTH if getattr(new, n, None) == old):
        setattr(new, name, width)
    groups = getattr(config, "num_key_value_heads", None)
    if groups:
        new.num_key_value_heads = max(1, groups * heads // old_heads)
    new.hidden_size, new.num_attention_heads = width, heads
    return new


def shape(model: nn.Module) -> tuple[int, int, int]:
    """Layers, width and attention heads of a transformers model."""
    config = _config(model)
    return config.num_hidden_layers, config.hidden_size, config.num_attention_heads


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if not all(hasattr(config, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")):
        raise LimbeckError(f"expected a transformers model with layers, width and heads; got {type(model).__name__}")
    return config


def _with_depth(config: Any, chosen: Sequence[int]) -> Any:
    """A copy of ``config`` for the layers ``chosen``: depths are set, lists with one entry per layer are cut."""
    new, total = deepcopy(config), config.num_hidden_layers
    for name in (n for n in DEPTHS if isinstance(getattr(new, n, None), int)):
        setattr(new, name, len(chosen))
    for name, value in vars(new).items():
        if (
            isinstance(value, list)
            and len(value) == total
            and name.endswith(("layer_types", "_layers", "no_rope_layers"))
        ):
            setattr(new, name, [value[i] for i in chosen])
    return new


def _build(model: nn.Module, config: Any) -> Any:
    small = type(model)(config)
    for name, _ in list(small.named_children()):  # built without on purpose, such as a pooler
        if getattr(model, name, None) is None:
            setattr(small, name, None)
    parameter = next(model.parameters())
    if getattr(model, "generation_config", None) is not None:
        small.generation_config = deepcopy(model.generation_config)
    return small.to(dtype=parameter.dtype, device=parameter.device)


def _is_stack(part: nn.Module, model: nn.Module, name: str, kept: int, total: int) -> bool:
    if not isinstance(part, nn.ModuleList) or len(part) != kept:
        return False
    old = model.get_submodule(name)
    return isinstance(old, nn.ModuleList) and len(old) == total


def _inside(name: str, stacks: Sequence[str]) -> bool:
    return any(name.startswith(f"{stack}.") for stack in stacks)


def _load(small: nn.Module, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        try:
            small.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[1:2] or [str(error)]
            raise LimbeckError(
                f"keep_layers: these layers do not make a {type(small).__name__} ({reason[0].strip()}); "
                "keep layer 0 too, or build the student yourself"
            ) from error
