"""The batch: named tensors, shifted once and here.

Keys that mean the same everywhere (b rows, t positions):

========================  ======================================================================
``ids`` b t               token ids the model reads (decoder ids for an encoder-decoder)
``mask`` b t bool         true at real tokens, false at padding
``targets`` b t           what position t has to predict, ``IGNORE`` where nothing is supervised
``answer`` b t bool       positions with a supervised target; the unit of the hard loss
``segment`` b t           which of several texts packed in a row a token belongs to (``sources.segments``)
``encoder_ids, encoder_mask``  what the encoder of an encoder-decoder reads
``labels`` b              class or score of the whole row
========================  ======================================================================

A boolean tensor's name may be a *unit* of a term (see ``terms``): the term is averaged over its true entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.core.check import LimbeckError

Batch = dict[str, Tensor]

IGNORE = -100


def shift(ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Next-token targets and the mask of positions that have one.

    ``ids`` b t token ids; ``keep`` b t bool, true at tokens that are to be *predicted*. Returns ``targets`` b t, where
    position t holds the token at t+1 or ``IGNORE``, and ``answer`` b t, true where a target stands.
    """
    if ids.shape != keep.shape:
        raise LimbeckError(f"shift: ids {tuple(ids.shape)} and keep {tuple(keep.shape)} differ in shape")
    answer = torch.zeros_like(keep, dtype=torch.bool)
    answer[:, :-1] = keep[:, 1:]
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = torch.where(answer[:, :-1], ids[:, 1:], targets[:, :-1])
    return targets, answer


def next_token_batch(ids: Tensor, mask: Tensor, keep: Tensor | None = None) -> Batch:
    """A batch for causal language modelling: every real token but the first is a target, or those in ``keep`` only."""
    targets, answer = shift(ids, mask.bool() if keep is None else keep.bool() & mask.bool())
    return {"ids": ids, "mask": mask.bool(), "targets": targets, "answer": answer}


def rows(batch: Batch) -> int:
    """Number of rows of the batch (the size of the first dimension of its tensors)."""
    for value in batch.values():
        return value.shape[0]
    return 0


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on ``device``."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
