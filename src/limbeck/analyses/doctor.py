"""What is wrong with a student, a teacher and their data, before anything is trained.

    findings = doctor(model_source(student), model_source(teacher), tokenizer, teacher_tokenizer, batches)
    print(findings)      # one line per check: ok, note or stop
    findings.heed()      # raises where a run would be spoiled

A *stop* spoils the run: NaN in the weights, ids that no row stands for, rows that are too long, nothing supervised,
targets that are not what follows. A *note* is worth knowing. Every check is a small function in ``analyses.complaints``
(what configurations say) or ``analyses.trials`` (what a few rows show); it is silent about what it cannot see, such as
the weights of a teacher behind a server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.analyses.case import Case, Said, make_case
from limbeck.analyses.complaints import COMPLAINTS
from limbeck.analyses.trials import TRIALS
from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals, Source

MARKS = {"ok": "ok", "note": "note", "stop": "STOP"}


@dataclass(frozen=True)
class Finding:
    """What one check found: its name, "ok", "note" or "stop", and a sentence."""

    check: str
    level: str
    says: str


@dataclass(frozen=True)
class Findings:
    """All findings, in the order of the checks; prints as a table."""

    found: tuple[Finding, ...]

    def at(self, level: str) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.found if finding.level == level]

    @property
    def well(self) -> bool:
        """Whether nothing is worth a word."""
        return len(self.at("ok")) == len(self.found)

    def rows(self) -> list[tuple[str, str, str]]:
        """Cells of a table: check, level, what was found; a check's name stands at its first finding."""
        names = [finding.check for finding in self.found]
        shown = [name if name not in names[:i] else "" for i, name in enumerate(names)]
        return [(name, MARKS[f.level], f.says) for name, f in zip(shown, self.found, strict=True)]

    def heed(self) -> None:
        """Raise ``LimbeckError`` in one sentence where a run would be spoiled."""
        if stops := [finding.says for finding in self.at("stop")]:
            raise LimbeckError(f"the run would be spoiled: {'; '.join(stops)}")

    def __repr__(self) -> str:
        rows = self.rows()
        wide = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
        return "\n".join(f"{check:<{wide[0]}}  {level:<{wide[1]}}  {says}" for check, level, says in rows)


def doctor(
    student: Source,
    teacher: Source | None = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    batches: Sequence[Batch] = (),
    on: str = "answer",
    rows: int = 8,
    strict: bool = False,
    taught: bool = True,
    teacher_name: str = "teacher",
) -> Findings:
    """Examine ``student`` and ``teacher``, and what they say about the first ``rows`` rows of ``batches``.

    ``on`` is the mask of supervised places b t (``mask`` where states are compared), or of rows b with a class. Batches
    with both cuts of a text (``data.crossed``) are for tokenizers that differ; without a ``teacher_tokenizer`` both
    sides read by ``tokenizer``. Models are looked at through their sources and are to be where the batches are; nothing
    is changed in them. Checks that need what is not given are left out.

    ``strict``: a teacher that is far worse than a uniform guess is a stop; else a note, for a run may mean it. Not
    ``taught``: the teacher is yet to learn, so what it predicts is not judged. ``teacher_name`` tells several teachers
    apart (``joined``).
    """
    teacher, settings = teacher or _silent, (on, rows, strict, taught, teacher_name)
    case = make_case(student, teacher, tokenizer, teacher_tokenizer, batches, *settings)
    return Findings(tuple(_found(case, [*COMPLAINTS, *TRIALS])))


def joined(examinations: Iterable[Findings]) -> Findings:
    """What several examinations found, such as one for each teacher; what all say is said once."""
    said = dict.fromkeys(finding for each in examinations for finding in each.found)
    order = list(dict.fromkeys(finding.check for finding in said))
    return Findings(tuple(sorted(said, key=lambda finding: order.index(finding.check))))


def _silent(batch: Batch) -> Signals:
    return Signals()


def _found(case: Case, checks: Sequence[Callable[[Case], Iterator[Said]]]) -> Iterator[Finding]:
    for check in checks:
        for level, says in check(case):
            yield Finding(check.__name__.replace("_", " "), level, says)
