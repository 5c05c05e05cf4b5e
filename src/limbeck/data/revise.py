"""Sequence correction and re-generation (SCRG): the worst token of a text is the teacher's, and the rest is new.

Liu et al. 2024, arXiv 2407.10068. A written text is read by teacher and student; of the tokens that the teacher would
not have said, the one where both differ most (KL(P || Q)) is replaced by the teacher's own, everything behind it is
dropped, and the student writes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from limbeck.core.batch import to_device
from limbeck.core.check import require
from limbeck.core.signals import Source
from limbeck.data.samples import Sample, batch_of
from limbeck.data.writer import Writer, silent
from limbeck.losses.divergence import forward_kl


class Corrected:
    """Corrects rows ``times`` times, to be used as ``Rollout(revise=...)``.

    ``student`` and ``teacher`` are sources; ``write`` is the student's ``Writer``, whose sampling and whose bound on
    new tokens hold for a text as a whole. A text in which the teacher would have said every token itself stays as it
    is. Where the teacher's token ends the text, or no room is left, nothing is written behind it.
    """

    def __init__(self, student: Source, teacher: Source, write: Writer, times: int = 1) -> None:
        require(times >= 1, f"SCRG: expected at least one correction, but got {times}")
        self.student, self.teacher, self.write, self.times = student, teacher, write, times

    def __call__(self, rows: list[Sample], seed: int) -> list[Sample]:
        """The rows with corrected completions."""
        for turn in range(self.times):
            rows = self._once(rows, seed + turn)
        return rows

    def _once(self, rows: list[Sample], seed: int) -> list[Sample]:
        begun = [row if fix is None else _begun(row, *fix) for row, fix in zip(rows, self.faults(rows), strict=True)]
        rooms = [self._room(new) if new is not old else 0 for new, old in zip(begun, rows, strict=True)]
        asked = [replace(row, prompt=row.prompt + row.completion) for row in begun]
        return [
            replace(row, completion=row.completion + more.completion)
            for row, more in zip(begun, self.write(asked, seed, rooms), strict=True)
        ]

    def _room(self, row: Sample) -> int:
        if row.completion[-1] in self.write.ends:
            return 0
        return max(0, self.write.sampling.new_tokens - len(row.completion))

    def faults(self, rows: Sequence[Sample]) -> list[tuple[int, int] | None]:
        """Of every row the place of its worst token in the completion and the teacher's token there, or None."""
        batch = to_device(batch_of(rows), next(self.write.model.parameters()).device)
        with silent(self.write.model):
            said = self.student(batch), self.teacher(batch)
            found = []
            for row in range(len(rows)):  # one row at a time: tokens x vocabulary of a batch is too much
                where = torch.zeros_like(batch["answer"])
                where[row] = batch["answer"][row]
                ours, theirs = (signals.logits_at(where) for signals in said)
                found.append(worst_token(ours, theirs, batch["targets"][where]))
        return found


def worst_token(student: Tensor, teacher: Tensor, written: Tensor) -> tuple[int, int] | None:
    """Where to correct a text of n tokens, and by which token; None where the teacher agrees with all of it.

    ``student`` and ``teacher`` n v are the logits that *predict* each token (those of the position before it),
    ``written`` n the tokens. Candidates are the tokens that are not the teacher's likeliest; among them the greatest
    KL(P || Q) wins.
    """
    wanted = teacher.argmax(-1)
    wrong = wanted != written
    if not wrong.any():
        return None
    place = int(forward_kl(student, teacher).masked_fill(~wrong, -torch.inf).argmax())
    return place, int(wanted[place])


def _begun(row: Sample, place: int, token: int) -> Sample:
    return replace(row, completion=[*row.completion[:place], token])
