"""The contract of every stage, kept by a pair with different tokenizers and all objectives for it."""

import pytest
from contract import CHECKS, Case
from cutters import TEXTS, cutter
from test_crossing import gpt2, llama

from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.crossing import across
from limbeck.data.crossed import row_batches, text_rows
from limbeck.losses.across import squared_gap
from limbeck.objectives.across import spans, uld
from limbeck.objectives.tokens import hard
from limbeck.objectives.weighted import weighted
from limbeck.sources.model import model_source


def build(seed: int) -> Stage:
    ours, theirs = cutter("byte level"), cutter("unigram")
    student, teacher = gpt2(len(ours), seed), llama(len(theirs), seed + 1)
    pair = across(model_source(student), model_source(teacher), ours, theirs)
    goal = weighted(soft=(1.0, pair.soft()), spans=(0.01, spans(squared_gap)), uld=(0.3, uld()))
    stream = row_batches(list(text_rows(TEXTS * 2, ours, theirs, 12)), 8, seed)
    step = distill_step(pair.student, pair.teacher, weighted(across=(1.0, goal), hard=(0.3, hard())))
    return Stage("across", step, {"student": student}, stream, 8, Optim(1e-2), frozen={"teacher": teacher}, seed=seed)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, tmp_path):
    check(Case("across", build, steps=16), tmp_path)
