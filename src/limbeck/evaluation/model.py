"""What a language model takes and gives: embeddings, output layer, vocabulary, positions, start token and encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Source, innermost
from limbeck.evaluation.cache import quiet


def embedded(lm: Any, prefix: Tensor) -> Tensor:
    """Token ids or vectors as the model's input embeddings: 1 l d, on its device and in its precision."""
    table = lm.get_input_embeddings()
    width, vectors = table.weight.shape[1], prefix.is_floating_point()
    require(
        prefix.dim() == 1 + vectors, f"a prefix is ids (l) or vectors (l d), but got a tensor of {tuple(prefix.shape)}"
    )
    require(len(prefix), "the prefix is empty; give at least one token or vector, or None")
    if not vectors:
        check_ids(lm, prefix.tolist())
        with quiet(lm):
            return table(prefix.to(lm.device))[None]
    require(
        prefix.shape[1] == width,
        f"the vectors are {prefix.shape[1]} wide, but the language model's embeddings are {width} wide; "
        "use the model that the vectors were made for",
    )
    require(prefix.isfinite().all(), "the vectors hold NaN or infinite values; distil them again")
    return prefix.detach().to(lm.device, table.weight.dtype)[None]


def check_ids(lm: Any, ids: Sequence[int]) -> None:
    """Raise if token ids lie outside the model's vocabulary."""
    size = lm.get_input_embeddings().weight.shape[0]
    odd = next((token for token in ids if not 0 <= token < size), None)
    require(
        odd is None,
        f"token {odd} is outside the language model's vocabulary of {size}; use the tokenizer that belongs to it",
    )


def check_positions(lm: Any, before: int, tokens: int) -> None:
    """Raise if ``before`` positions and ``tokens`` behind them are more than the model can read."""
    most = positions(lm)
    if most is not None and before + tokens > most:
        raise LimbeckError(
            f"a prefix of {before} positions and {tokens} tokens behind it exceed the {most} positions that the "
            "language model can read; use fewer demonstrations or shorter text"
        )


def positions(lm: Any) -> int | None:
    """How many positions a model can read; None where nothing limits it (relative positions, as in T5)."""
    if getattr(lm.config, "relative_attention_num_buckets", None):
        return None
    most = getattr(lm.config, "max_position_embeddings", None)
    return most if most is None else most - _counted_from(lm)


def _counted_from(lm: Any) -> int:
    """The number of the first position: RoBERTa and its kin count on from the padding token's id."""
    inside = getattr(getattr(lm, "base_model", lm), "embeddings", None)
    padding = getattr(getattr(inside, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def check_length(length: int, **models: Any) -> None:
    """Raise if rows of ``length`` tokens are longer than one of ``models``, by name, can read."""
    for name, model in models.items():
        most = positions(model)
        require(most is None or length <= most, f"--length {length}: the {name} reads {most} tokens at most")


def table_height(lm: Any) -> int | None:
    """Rows of the input embeddings; None where there is no such table."""
    table = lm.get_input_embeddings() if hasattr(lm, "get_input_embeddings") else None
    return getattr(table, "num_embeddings", None)


def head_width(lm: Any) -> int | None:
    """Rows of the output layer, the number of logits; None where there is no such layer."""
    layer = lm.get_output_embeddings() if hasattr(lm, "get_output_embeddings") else None
    return getattr(layer, "out_features", None)


def logits_of(source: Source) -> int | None:
    """How many logits a source has to give, if that is known without asking it: its model's, or a store's."""
    inner = innermost(source)
    return head_width(inner.model) if hasattr(inner, "model") else getattr(inner, "width", None)


def start_token(lm: Any) -> int:
    """The token that the decoder of an encoder-decoder starts with."""
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        for config in (lm.config, lm.generation_config):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
    raise LimbeckError("the encoder-decoder's configuration names no decoder_start_token_id; set it")


def encode(lm: Any, embeds: Tensor, mask: Tensor) -> Tensor:
    """The encoder's output b s d for input embeddings b s d and their mask b s."""
    return lm.get_encoder()(inputs_embeds=embeds, attention_mask=mask).last_hidden_state


def encoder_output(states: Tensor) -> Any:
    """Encoder states b s d as the models of transformers expect them."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=states)


def ones(states: Tensor) -> Tensor:
    """A mask b s for states b s d that are all real."""
    return torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
