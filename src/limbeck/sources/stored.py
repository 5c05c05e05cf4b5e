"""A teacher that is not in memory: what it said about the same texts, read from a store (``data.store.folder``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError, require
from limbeck.core.signals import Signals
from limbeck.data.store.book import Book
from limbeck.data.store.folder import TEACHER, Store, open_store
from limbeck.data.store.keys import Text, fingerprint, texts
from limbeck.data.store.records import Kept, decode
from limbeck.data.store.rest import log_sum_outside, spread
from limbeck.data.store.states import decode_states


def stored(store: str | Path | Store, tokenizer: Any = None) -> Stored:
    """What a teacher said about a batch when ``limbeck teach`` asked it.

    A store of predictions gives ``readout``: log-probabilities of the best tokens, and of the others as the store's
    code book tells them, at the positions that were asked about. A store of hidden states gives ``hidden``.

    ``tokenizer`` is the one that cuts the batches' texts. Raises ``LimbeckError`` if it is not the one that the store
    was written with, if the store is cut or changed, and, when asked, for texts that it does not hold.
    """
    store = store if isinstance(store, Store) else open_store(store)
    if tokenizer is not None and fingerprint(tokenizer) != store.card["tokenizer"]:
        raise LimbeckError(
            f"{store.path}: was taught with another tokenizer than the one that cuts these texts ({len(tokenizer)} "
            f"tokens); take a student of the teacher's family, or ask the teacher again ({store.about})"
        )
    return Stored(store)


@dataclass(frozen=True)
class Stored:
    """See ``stored``."""

    store: Store

    def __call__(self, batch: Batch) -> Signals:
        """Signals of the batch, on its device, without gradients."""
        on = self.store.card["on"]
        known = list(texts(batch, self.store.card["tokenizer"], on))
        if self.store.card["hidden"]:
            return self._states(batch, known)
        slots, parts, filled = np.full(tuple(batch["ids"].shape), -1), [], 0
        for text in known:
            positions, kept = self._find(text, batch)
            slots[text.row, text.at[positions]] = np.arange(filled, filled + len(positions))
            parts.append(kept)
            filled += len(positions)
        return Signals(readout=told(parts, slots, self.store.book, batch["ids"].device))

    @property
    def width(self) -> int | None:
        """How many logits it gives; None if it holds hidden states."""
        return None if self.store.card["hidden"] else self.store.book.size

    @cached_property
    def config(self) -> Any:
        """The configuration of the teacher's model."""
        from transformers import AutoConfig

        place = self.store.path / TEACHER
        require(
            (place / "config.json").is_file(),
            f"{self.store.path}: the store does not say what the teacher's model looks like; name a folder or a Hub id",
        )
        return AutoConfig.from_pretrained(place, trust_remote_code=False)

    def _find(self, text: Text, batch: Batch) -> tuple[np.ndarray, Any]:
        """Positions in the text and what was said there, covering all that are asked about."""
        asked, first = np.flatnonzero(text.asked), None
        for block in self.store.blocks(text.key):
            positions, said = self._decoded(block)
            missing = np.setdiff1d(asked, positions)
            if not len(missing):
                return positions, said
            first = missing[0] if first is None else first
        raise LimbeckError(self._unknown(text, batch, first))

    def _decoded(self, block: np.ndarray) -> tuple[np.ndarray, Any]:
        layers = self.store.card["hidden"]
        return decode_states(block, len(layers)) if layers else decode(block, self.store.book)

    def _unknown(self, text: Text, batch: Batch, missing: int | None) -> str:
        ids = batch["ids"][text.row].cpu()[torch.from_numpy(text.at)].tolist()
        what = f"a text of {len(ids)} tokens (ids {', '.join(map(str, ids[:6]))}{', ...' if len(ids) > 6 else ''})"
        if missing is not None:
            what = f"token {missing + 1} of {what}, which was not supervised when the store was written"
        return (
            f"{self.store.path}: the teacher was never asked about {what}; it was asked about {self.store.about}: use "
            "the same data, cut and masked in the same way, or run limbeck teach on these"
        )

    def _states(self, batch: Batch, known: Sequence[Text]) -> Signals:
        """Hidden states b t d by layer, 0 where nothing was asked."""
        layers, found = self.store.card["hidden"], dict[int, np.ndarray]()
        for text in known:
            positions, states = self._find(text, batch)
            if not found:
                found = {n: np.zeros((*batch["ids"].shape, states.shape[-1]), np.float32) for n in layers}
            for index, layer in enumerate(layers):
                found[layer][text.row, text.at[positions]] = states[:, index]
        device = batch["ids"].device
        return Signals(hidden={layer: torch.from_numpy(states).to(device) for layer, states in found.items()})

    def __repr__(self) -> str:
        return f"stored({str(self.store.path)!r})"


def told(parts: Sequence[Kept], slots: np.ndarray, book: Book, device: torch.device) -> Told:
    """Positions of several texts as one: ``slots`` b t numbers them in the order of ``parts``, -1 elsewhere."""
    top = max((part.ids.shape[1] for part in parts), default=1)
    none = np.zeros(0, np.float32)
    empty = Kept(np.zeros((0, top), int), np.zeros((0, top)), none, np.zeros((0, book.tilts), np.int8), none)
    joined = [np.concatenate(part) for part in zip(*(_widened(part, top) for part in [*parts, empty]), strict=True)]
    ids, log_p, rest, tilt, reach = (torch.from_numpy(part).to(device) for part in joined)
    return Told(torch.from_numpy(slots).to(device), ids.long(), log_p.float(), rest.float(), tilt, reach.float(), book)


def _widened(kept: Kept, top: int) -> Kept:
    """The same with room for ``top`` tokens: the first id again, which says nothing."""
    more = top - kept.ids.shape[1]
    if not more:
        return kept
    ids = np.concatenate([kept.ids, np.repeat(kept.ids[:, :1], more, 1)], 1)
    return kept._replace(ids=ids, log_p=np.pad(kept.log_p, ((0, 0), (0, more)), constant_values=-np.inf))


@dataclass(frozen=True)
class Told:
    """Log-probabilities that are kept in part (a ``core.signals.Lazy``).

    Of n positions: the best tokens ``ids`` n k (int64) and their ``log_p`` n k (-inf, and an id that stands there
    already, where a position keeps fewer), and what the others have together, ``rest`` n. ``slots`` b t says which of
    the n stands where in the batch, -1 for none.
    """

    slots: Tensor = field(repr=False)
    ids: Tensor = field(repr=False)
    log_p: Tensor = field(repr=False)
    rest: Tensor = field(repr=False)
    tilt: Tensor = field(repr=False)
    reach: Tensor = field(repr=False)
    book: Book = field(repr=False)

    by_chunk = True
    """A loss may ask for a few positions at a time."""

    def at(self, positions: Tensor | None = None) -> Tensor:
        """Log-probabilities n v at the true entries of ``positions`` b t (row-major), or b t v for all of them.

        Raises ``LimbeckError`` for a position that the teacher was not asked about.
        """
        if positions is None:
            return self._dense(self.number(torch.ones_like(self.slots, dtype=torch.bool))).unflatten(
                0, self.slots.shape
            )
        return self._dense(self.number(positions))

    def number(self, positions: Tensor) -> Tensor:
        """Which of the n stands at each true entry of ``positions`` b t."""
        require(
            positions.shape == self.slots.shape,
            f"positions {tuple(positions.shape)} are chosen from a batch of {tuple(self.slots.shape)}",
        )
        chosen = self.slots[positions.bool()]
        require(
            bool((chosen >= 0).all()),
            "a stored teacher speaks only where it was asked when the store was written; ask it at those positions, "
            "for instance on='answer'",
        )
        return chosen

    def _dense(self, chosen: Tensor) -> Tensor:
        """Log-probabilities n v of some positions."""
        ids, log_p, rest = self.ids[chosen], self.log_p[chosen], self.rest[chosen]
        tables, real = self.book.on(ids.device), log_p != -torch.inf
        reach = self.reach[chosen] if self.book.tilts else log_sum_outside(tables, ids, real)
        others = spread(tables, self.tilt[chosen]).add_((rest - reach)[:, None])
        return others.scatter_(1, ids, torch.where(real, log_p, log_p[:, :1]))
