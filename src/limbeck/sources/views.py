"""Sources that read one frozen language model under different contexts.

A *view* is the model, a context in front of the query, and the query itself. The context is always a sequence of
vectors in the model's embedding space: the embeddings of demonstrations (``full_context``), a few vectors that stand in
for them (``compressed_context``), or nothing (``no_context``). A token that the model expects before every text (such
as Llama's ``<s>``) is the head of its context. MEND (arXiv 2403.06914) is then ordinary distillation between two views
of the same model.

Decoder-only models read ``[context; query]``; the signals are those of the query's positions, so index i of a row
predicts query token i + 1. Encoder-decoder models read the context on the encoder side (followed by ``encoder_ids``
where the batch has them) and ``ids`` on the decoder side. A row may hold several queries, told apart by
``batch["segment"]`` (``sources.segments``): each then reads the context and itself alone.

Everything is right-padded and padding between two pieces is closed (``pack``), so a row gives the same numbers whatever
stands beside it, for any kind of positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import require
from limbeck.core.signals import Signals
from limbeck.sources.readout import instead, output_layer, readout, reads_out
from limbeck.sources.segments import apart, check_apart

Enter = Literal["embeddings", "states"]


class Context(NamedTuple):
    """What stands before the query: ``vectors`` b c d in the embedding space and ``mask`` b c, right-padded.

    One row (b = 1) is shared by all queries.
    """

    vectors: Tensor
    mask: Tensor


@dataclass
class View:
    """A source: ``model`` reading ``context(batch)`` and then the batch's query; made by the functions below.

    Gives ``Signals.readout`` with states b t d at the positions of ``ids`` b t (``logits`` for a model whose output
    layer cannot be taken apart).
    """

    name: str
    model: Any
    context: Callable[[Batch], Context] = field(repr=False)
    enter: Enter = "embeddings"
    _tried: tuple[Any, bool] = field(default=(None, False), init=False, repr=False)
    _apart: Any = field(default=None, init=False, repr=False)

    def __call__(self, batch: Batch) -> Signals:
        """Signals at the positions of the query, ``batch["ids"]``."""
        rows = batch["ids"].shape[0]
        context = self.context(batch)
        require(
            context.vectors.shape[0] in (1, rows),
            f"{self.name}: {context.vectors.shape[0]} contexts for {rows} queries; give one for all or one for each",
        )
        context = Context(context.vectors.expand(rows, -1, -1), context.mask.expand(rows, -1))
        inputs, where = (self._seq2seq if self.model.config.is_encoder_decoder else self._decoder)(context, batch)
        return self._said({**inputs, "use_cache": False}, where)

    def _decoder(self, context: Context, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """The model's inputs, context and query in one row, and where the query stands in it."""
        query = self.model.get_input_embeddings()(batch["ids"])
        joined, mask, where = pack(context.vectors.to(query.dtype), context.mask, query, batch["mask"])
        inputs, length = {"inputs_embeds": joined, "attention_mask": mask.long()}, joined.shape[1]
        if "segment" in batch:
            if self._apart is not self.model:  # once per model
                check_apart(self.model)
                self._apart = self.model
            everyone = torch.zeros(context.mask.shape, dtype=torch.long, device=mask.device)
            segment, _, _ = pack(everyone, context.mask, batch["segment"], batch["mask"])
            inputs |= apart(self.model, segment, mask)
            length = int(inputs["position_ids"].max()) + 1
        check_positions(self.model, length)
        return inputs, where

    def _seq2seq(self, context: Context, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """The model's inputs, context for the encoder and query for the decoder, and where the query stands."""
        require("segment" not in batch, "an encoder-decoder reads one query per row; ask one query per context")
        table = self.model.get_input_embeddings()
        vectors, mask = context.vectors.to(table.weight.dtype), context.mask
        if "encoder_ids" in batch:
            require(self.enter == "embeddings", "vectors in place of encoder states leave no room for a query there")
            vectors, mask, _ = pack(vectors, mask, table(batch["encoder_ids"]), batch["encoder_mask"])
        inputs: dict[str, Any] = {"attention_mask": mask.long()}
        inputs |= {"inputs_embeds": vectors} if self.enter == "embeddings" else {"encoder_outputs": (vectors,)}
        inputs |= {"decoder_input_ids": batch["ids"], "decoder_attention_mask": batch["mask"].long()}
        return inputs, torch.arange(batch["ids"].shape[1], device=mask.device).expand_as(batch["ids"])

    def _said(self, inputs: dict[str, Any], where: Tensor) -> Signals:
        """One forward pass; the output layer's product is left to whoever asks for logits."""
        layer = output_layer(self.model)
        if self._tried[0] is not layer:  # once per output layer
            self._tried = layer, reads_out(self.model, _first_row(inputs))
        if layer is None or not self._tried[1]:
            return Signals(logits=gather(self.model(**inputs).logits, where))
        with instead(layer, lambda states: states[:, :0]) as seen:
            self.model(**inputs)
        return Signals(readout=readout(self.model, gather(seen[0], where)))

    def __repr__(self) -> str:
        return f"{self.name}({type(self.model).__name__})"


def full_context(model: Any, ids: str = "context") -> View:
    """The model reading the demonstrations' text: token ids ``batch[ids]`` b c with mask ``batch[ids + "_mask"]``."""

    def context(batch: Batch) -> Context:
        return Context(model.get_input_embeddings()(batch[ids]), batch[f"{ids}_mask"].bool())

    return View("full_context", model, context)


def compressed_context(model: Any, compress: Callable[[Batch], Tensor], enter: Enter = "embeddings") -> View:
    """The model reading vectors: ``compress(batch)`` gives b l d, or 1 l d shared by all rows.

    ``enter``: whether vectors are the inputs of an encoder-decoder's encoder or stand in place of its output states.
    Gradients flow through the model, frozen or not, to ``compress``.
    """

    def context(batch: Batch) -> Context:
        vectors, width = compress(batch), model.get_input_embeddings().weight.shape[1]
        require(
            vectors.dim() == 3 and vectors.shape[2] == width,
            f"compressed_context: expected vectors of shape (rows, length, {width}), but got {tuple(vectors.shape)}",
        )
        return Context(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    return View("compressed_context", model, context, enter)


def no_context(model: Any, start: Sequence[int] = ()) -> View:
    """The model reading the query alone, behind the tokens ``start`` if it expects some before every text.

    An encoder that has nothing else to read reads the end-of-text token.
    """

    def context(batch: Batch) -> Context:
        config = model.config
        alone = config.is_encoder_decoder and "encoder_ids" not in batch
        first = [config.eos_token_id] if alone else list(start)
        ids = torch.tensor([first], dtype=torch.long, device=batch["ids"].device)
        return Context(model.get_input_embeddings()(ids), torch.ones_like(ids, dtype=torch.bool))

    return View("no_context", model, context)


def pack(left: Tensor, left_mask: Tensor, right: Tensor, right_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put ``right`` directly behind the real entries of ``left``, row by row.

    ``left`` b m ..., ``right`` b n ... and their masks, both right-padded. Returns the joined tensor b t ...
    (right-padded, t no longer than needed), its mask b t and ``where`` b n, the position of each entry of ``right``.
    """
    mask = torch.cat([left_mask, right_mask], 1).bool()
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)  # real entries first, in their order
    length = max(int(mask.sum(1).max()), 1)
    order = order[:, :length]
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    start = left_mask.sum(1, dtype=torch.long)[:, None]
    where = (start + torch.arange(right.shape[1], device=mask.device)).clamp(max=length - 1)
    return torch.cat([left, right], 1)[row, order], mask[row, order], where


def gather(states: Tensor, where: Tensor) -> Tensor:
    """``states`` b t d at the positions ``where`` b n: b n d."""
    return states[torch.arange(states.shape[0], device=states.device)[:, None], where]


def _first_row(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for the first row alone."""
    outputs = {"encoder_outputs": (inputs["encoder_outputs"][0][:1],)} if "encoder_outputs" in inputs else {}
    return {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()} | outputs


def check_positions(model: Any, length: int) -> None:
    """Refuse ``length`` tokens and vectors if the model has fewer positions."""
    room = positions(model.config)
    require(
        room is None or length <= room,
        f"context and query take {length} positions, but {type(model).__name__} has {room}; use fewer demonstrations "
        "or shorter queries",
    )


def positions(config: Any) -> int | None:
    """How many tokens a model can read; None where nothing limits it (relative positions, as in T5)."""
    if getattr(config, "relative_attention_num_buckets", None):
        return None
    return getattr(config, "max_position_embeddings", None)
