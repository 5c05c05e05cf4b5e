"""Students that learn through low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), by PEFT."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from limbeck.core.check import LimbeckError, require

SCALE = 2  # alpha / rank: what QLoRA's and most recipes use


def with_lora(model: Any, rank: int, alpha: int | None = None, targets: str = "all-linear") -> Any:
    """``model`` with adapters of ``rank`` on its linear layers (but the output layer), which alone learn; in place.

    ``alpha`` scales them by alpha / rank, by default 2. An adapter is 0 to begin with, so nothing changes yet. Raises
    where PEFT is not installed.
    """
    require(rank >= 1, f"--lora {rank}: expected a rank of at least 1")
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError:
        raise LimbeckError("adapters need PEFT; install it with pip install 'limbeck[peft]'") from None
    kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    settings = LoraConfig(
        task_type=kind, r=rank, lora_alpha=SCALE * rank if alpha is None else alpha, target_modules=targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT sees that GPT-2 keeps its weights the other way round, and says so
        return get_peft_model(model, settings)


def is_adapted(model: Any) -> bool:
    """Whether ``model`` is one of PEFT's."""
    return hasattr(model, "merge_and_unload")


def learning(model: Any) -> nn.Module:
    """What of ``model`` learns, as a module of its own: all of it, or the adapters of one that has them.

    For ``Stage.train``: a checkpoint then holds the adapters, not the weights around them, which never change.
    """
    if not is_adapted(model):
        return model
    parts = nn.ModuleDict()
    for name, module in model.named_modules():
        pairs = {key: getattr(module, key) for key in ("lora_A", "lora_B") if len(getattr(module, key, ()))}
        if pairs:
            parts[name.replace(".", "/")] = nn.ModuleDict(pairs)
    inside = {id(p) for p in parts.parameters()}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    require(not left, f"{left[:1]} learns, but is no part of an adapter; train the whole model")
    return parts


def merged(model: Any) -> Any:
    """``model`` with its adapters added to its weights: an ordinary model. Save the adapters before."""
    return model.merge_and_unload() if is_adapted(model) else model
