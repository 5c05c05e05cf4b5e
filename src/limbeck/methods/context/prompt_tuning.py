"""Prompt tuning: free vectors, trained on one task's examples.

Paper:      Lester et al., EMNLP 2021, arXiv 2104.08691; as MEND's baseline in bigheiniu/MEND at 169e60d.
Says:       the vectors before the query are themselves what is trained, by the answer's loss on the target task's own
            examples; nothing reads demonstrations, and every new task needs training.
Parts:      sources.views (compressed context) | objectives (hard)
Needs:      a frozen LLM. Signals: readout. Batch: ids, mask, targets, answer.
Departures: AdamW in place of Adafactor, and a learning rate that suits it.
Checked:    only the vectors move; their gradient equals that of a loss written out.
Claim:      claims/mend.py, as a baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.context.collate import Collate
from limbeck.context.start import behind, embeddings
from limbeck.context.streams import query_stream
from limbeck.context.vectors import Vectors
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, distill_step, freeze
from limbeck.data.templates import Example
from limbeck.objectives.tokens import hard
from limbeck.sources.views import compressed_context


@dataclass(frozen=True)
class Config:
    """Settings of prompt tuning."""

    length: int = 100
    """Vectors; MEND's script, and the longest of Lester et al."""
    steps: int = 200
    """Optimizer steps; a choice: with 16 examples and batches of 8, 100 epochs."""
    batch: int = 8
    """Examples per batch."""
    lr: float = 3e-3
    """Learning rate; a choice for AdamW (Lester et al.: 0.3 for Adafactor)."""
    seed: int = 0
    """Seed of the first vectors and of the order of the examples."""


class FreeVectors(nn.Module):
    """Vectors 1 l d that begin as embeddings of random tokens (Lester et al., "sampled vocabulary").

    They stand behind ``start`` s d, which does not learn: the embeddings of the LLM's start tokens, if it has some.
    """

    start: Tensor | None

    def __init__(self, table: Tensor, length: int, seed: int = 0, start: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("start", start)
        draws = torch.Generator().manual_seed(seed)
        chosen = torch.randint(min(100, len(table) // 2), len(table), (length,), generator=draws)
        self.vectors = nn.Parameter(table.detach()[chosen.to(table.device)].float().clone())

    def forward(self) -> Tensor:
        """The vectors behind the start, one row that all queries share."""
        return behind(self.start, self.vectors[None])


def prompt_tuning(
    lm: Any, collate: Collate, examples: Sequence[Example], cfg: Config, out: Path | None = None, engine: Any = None
) -> Vectors:
    """Vectors tuned on ``examples`` of one task for the frozen ``lm``; ``collate`` lays the examples out."""
    freeze(lm)
    start = embeddings(lm, collate.reading.start)
    free = FreeVectors(lm.get_input_embeddings().weight, cfg.length, cfg.seed, start)
    reader = compressed_context(lm, lambda batch: free(), collate.reading.enter)
    stage = Stage(
        "prompt",
        distill_step(reader, lambda batch: Signals(), hard()),
        train={"vectors": free},
        stream=query_stream(collate, examples, cfg.batch, cfg.seed),
        steps=cfg.steps,
        optim=Optim(cfg.lr, "linear"),
        frozen={"llm": lm},
        seed=cfg.seed,
    )
    fit(stage, out, engine)
    return Vectors(free()[0].detach().cpu(), collate.host, collate.reading, 0, 0)
