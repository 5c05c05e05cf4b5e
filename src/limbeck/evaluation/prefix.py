"""What stands before every query, read once: its key-value cache is shared by all queries and all their options.

A prefix is ``None``, token ids (1-D int64) or vectors (l d) in the model's embedding space. A decoder reads it at
positions 0 to l - 1. An encoder-decoder reads it with its encoder, vectors as ``inputs_embeds``; what is shared then is
the encoder's output, the keys and values that the decoder made of it, and the decoder's start token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from limbeck.core.check import one_of, require
from limbeck.evaluation.cache import cache_bytes, head_at, quiet, repeated, shareable
from limbeck.evaluation.model import check_positions, embedded, encode, encoder_output, ones, start_token

CACHE_BYTES = 1 << 30  # fewer rows are read at once where the copies of a prefix's cache would take more

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, repr=False)
class Prefix:
    """A prefix that ``lm`` has read.

    ``length``: positions of the decoder that are taken (the start token of an encoder-decoder is one). ``cache``: one
    row's, None where nothing is shared. ``embeds`` 1 l d: the prefix as embeddings, None for no prefix. ``states`` 1 s
    d: the encoder's output, None for a decoder. ``query``: which side of an encoder-decoder reads the prompts.
    """

    lm: Any
    length: int = 0
    cache: Any = None
    embeds: Tensor | None = None
    states: Tensor | None = None
    query: str = "decoder"

    def __repr__(self) -> str:
        size = 0 if self.embeds is None else self.embeds.shape[1]
        return f"Prefix({type(self.lm).__name__}, length={size}, cached={self.cache is not None})"

    @property
    def seq2seq(self) -> bool:
        """Whether the model is an encoder-decoder."""
        return bool(self.lm.config.is_encoder_decoder)

    def at_once(self, rows: int) -> int:
        """How many rows to read together: ``rows``, or fewer where copies of the cache would not fit."""
        return max(1, min(rows, CACHE_BYTES // max(cache_bytes(self.cache), 1)))

    def check_room(self, prompt: int, scored: int) -> None:
        """Raise if a prompt and what follows it are, with the prefix, more than the model can read."""
        if self.query == "encoder":
            check_positions(self.lm, 0 if self.embeds is None else self.embeds.shape[1], prompt)
            check_positions(self.lm, 1, scored - 1)
        else:
            check_positions(self.lm, max(self.length, int(self.seq2seq)), prompt + scored - 1)

    def inputs(self, rows: Sequence[Pair]) -> tuple[dict[str, Any], Tensor]:
        """Arguments with which the model reads (prompt, scored) rows, and which positions b t predict a scored token.

        The last scored token is not read, since nothing follows it. Rows are padded on the right, where no real token
        of a causal decoder looks, so padding needs no mask (a position with nothing to see is NaN in some models).
        """
        if self.seq2seq:
            return self._seq2seq_inputs(rows)
        ids, _, where = padded(rows, self.lm.device)
        if self.cache is None and self.embeds is not None:
            embeds = torch.cat([self.embeds.expand(len(rows), -1, -1), self.lm.get_input_embeddings()(ids)], dim=1)
            return {"inputs_embeds": embeds, "attention_mask": ones(embeds), "use_cache": False}, where
        return {"input_ids": ids, "attention_mask": self._seen(ids), **self._cached(len(rows))}, where

    def _seq2seq_inputs(self, rows: Sequence[Pair]) -> tuple[dict[str, Any], Tensor]:
        states, mask = self.encoder_states([prompt for prompt, _ in rows])
        if self.query == "encoder":
            rows = [((), scored) for _, scored in rows]
        if self.cache is None:
            rows = [((start_token(self.lm), *prompt), scored) for prompt, scored in rows]
        ids, _, where = padded(rows, self.lm.device)
        decoder = {"decoder_input_ids": ids, "decoder_attention_mask": self._seen(ids), **self._cached(len(rows))}
        return {"encoder_outputs": encoder_output(states), "attention_mask": mask, **decoder}, where

    def _seen(self, ids: Tensor) -> Tensor:
        """A mask for what is cached and ``ids`` b t behind it: all of it."""
        return ids.new_ones(ids.shape[0], self.length + ids.shape[1])

    def _cached(self, rows: int) -> dict[str, Any]:
        """Arguments that share the cache among ``rows`` rows."""
        if self.cache is None:
            return {"use_cache": False}
        return {"past_key_values": repeated(self.cache, rows), "use_cache": True}

    def encoder_states(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The encoder's output b s d and its mask b s: for the prefix alone, or for prefix and prompts together."""
        if self.states is not None:
            states = self.states.expand(len(prompts), -1, -1)
            return states, ones(states)
        ids, mask, _ = padded([(prompt, (0,)) for prompt in prompts], self.lm.device)
        embeds = self.lm.get_input_embeddings()(ids)
        if self.embeds is not None:
            embeds = torch.cat([self.embeds.expand(len(prompts), -1, -1), embeds], dim=1)
            mask = torch.cat([mask.new_ones(len(prompts), self.embeds.shape[1]), mask], dim=1)
        return encode(self.lm, embeds, mask), mask


def read_prefix(
    lm: Any, prefix: Tensor | None, *, enter: str = "embeddings", query: str = "decoder", share: bool = True
) -> Prefix:
    """Let ``lm`` read ``prefix`` once.

    For an encoder-decoder, ``enter="states"`` puts vectors in the place of the encoder's output instead of its input,
    and ``query="encoder"`` lets the encoder read the prompts, behind the prefix; without a prefix and with prompts in
    the decoder, the encoder reads its end-of-text token alone. ``share=False`` keeps no cache (for comparison).

    Raises if vectors have another width than the model's embeddings, ids lie outside its vocabulary, or the prefix is
    longer than the model's positions.
    """
    one_of(enter, ("embeddings", "states"), "enter, where vectors go in an encoder-decoder")
    one_of(query, ("decoder", "encoder"), "query, the side of an encoder-decoder that reads it")
    embeds = None if prefix is None else embedded(lm, prefix)
    check_positions(lm, 0 if embeds is None else embeds.shape[1], 0)
    with quiet(lm):
        if not lm.config.is_encoder_decoder:
            return _read_decoder(lm, embeds, share)
        if query == "encoder":
            require(
                enter == "embeddings" or prefix is None,
                "vectors in place of the encoder's output leave no room there for a query; use query='decoder'",
            )
            return Prefix(lm, embeds=embeds, query=query)
        return _read_seq2seq(lm, embeds, enter, share)


def padded(rows: Sequence[Pair], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (prompt, scored) without their last token: ids b t, their mask b t (int64), true where t predicts scored."""
    sizes = torch.tensor([[len(prompt), len(prompt) + len(scored) - 1] for prompt, scored in rows], device=device)
    read = [torch.tensor([*prompt, *scored][:-1], dtype=torch.long) for prompt, scored in rows]
    ids = pad_sequence(read, batch_first=True).to(device)
    place = torch.arange(ids.shape[1], device=device)[None, :]
    mask = place < sizes[:, 1:]
    return ids, mask.long(), mask & (place >= sizes[:, :1] - 1)


def _read_decoder(lm: Any, embeds: Tensor | None, share: bool) -> Prefix:
    if embeds is None or not share:
        return Prefix(lm, 0 if embeds is None else embeds.shape[1], embeds=embeds)
    with head_at(lm, ones(embeds)[:, :0].bool()):
        said = lm(inputs_embeds=embeds, attention_mask=ones(embeds), use_cache=True)
    cache = getattr(said, "past_key_values", None)  # a recurrent model has a state instead, which is not shared here
    return Prefix(lm, embeds.shape[1], cache if shareable(cache) else None, embeds)


def _read_seq2seq(lm: Any, embeds: Tensor | None, enter: str, share: bool) -> Prefix:
    end = lm.config.eos_token_id if isinstance(lm.config.eos_token_id, int) else start_token(lm)
    given = embedded(lm, torch.tensor([end])) if embeds is None else embeds
    states = given if enter == "states" and embeds is not None else encode(lm, given, ones(given))
    if not share:
        return Prefix(lm, embeds=embeds, states=states)
    start = torch.tensor([[start_token(lm)]], device=states.device)
    args = {"encoder_outputs": encoder_output(states), "attention_mask": ones(states), "decoder_input_ids": start}
    with head_at(lm, start[:, :0].bool()):
        cache = lm(**args, use_cache=True).past_key_values
    return Prefix(lm, 1, cache, embeds, states) if shareable(cache) else Prefix(lm, embeds=embeds, states=states)
