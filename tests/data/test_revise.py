"""Correction and re-generation (SCRG) against brute force."""

import math

import pytest
import torch
from tiny_llms import build

from limbeck.core.check import LimbeckError
from limbeck.data.revise import Corrected, worst_token
from limbeck.data.samples import Sample
from limbeck.data.writer import Sampling, Writer
from limbeck.sources.model import model_source


def brute(student: list[list[float]], teacher: list[list[float]], written: list[int]) -> tuple[int, int] | None:
    """Logits that predict each token -> worst place and the teacher's token, in plain Python."""
    best, found = -1.0, None
    for place, (ours, theirs, token) in enumerate(zip(student, teacher, written, strict=True)):
        wanted = max(range(len(theirs)), key=theirs.__getitem__)
        p = [x - math.log(sum(map(math.exp, theirs))) for x in theirs]
        q = [x - math.log(sum(map(math.exp, ours))) for x in ours]
        kl = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        if wanted != token and kl > best:
            best, found = kl, (place, wanted)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_worst_token_by_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    written = torch.randint(5, (6,), generator=generator)
    written[seed % 6] = teacher[seed % 6].argmax()
    assert worst_token(student, teacher, written) == brute(student.tolist(), teacher.tolist(), written.tolist())


def test_a_text_that_the_teacher_would_have_written_has_no_worst_token():
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert worst_token(torch.zeros(6, 5), teacher, teacher.argmax(-1)) is None


def logits(model, row: Sample) -> list[list[float]]:
    """Of every token of the completion, the logits that predict it."""
    ids = torch.tensor([row.prompt + row.completion])
    with torch.no_grad():
        if row.source:
            said = model(input_ids=torch.tensor([row.source]), decoder_input_ids=ids).logits[0]
        else:
            said = model(ids).logits[0]
    return said[len(row.prompt) - 1 : -1].tolist()


def prompts(kind: str) -> list[Sample]:
    if kind == "t5":
        return [Sample([0], [], [5, 6, 7]), Sample([0], [], [8, 9]), Sample([0], [], [4])]
    return [Sample([5, 6, 7], []), Sample([8, 9], []), Sample([4], [])]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_rows_are_corrected_at_their_worst_token_and_written_on(kind):
    student, teacher = build(kind), build(kind, seed=9)
    write = Writer(student, Sampling(7, temperature=0), ends=[1])
    rows = Writer(student, Sampling(7), ends=[1])(prompts(kind), 3)
    corrected = Corrected(model_source(student), model_source(teacher), write)(rows, 0)
    for row, new in zip(rows, corrected, strict=True):
        place, token = brute(logits(student, row), logits(teacher, row), row.completion)
        prefix = [*row.completion[:place], token]
        assert new.completion[: place + 1] == prefix
        assert (new.prompt, new.source) == (row.prompt, row.source)
        if token == 1:
            assert new.completion == prefix
        else:
            begun = Sample(row.prompt + prefix, [], row.source)
            (rest,) = write([begun], 0, [7 - len(prefix)])
            assert new.completion == prefix + rest.completion


def test_the_teacher_s_own_text_stays():
    model = build("gpt2")
    write = Writer(model, Sampling(5, temperature=0))
    rows = write(prompts("gpt2"), 0)
    assert Corrected(model_source(build("gpt2", seed=2)), model_source(model), write)(rows, 0) == rows


def test_where_the_teacher_ends_the_text_nothing_follows_and_length_is_kept():
    student, teacher = build("gpt2"), build("gpt2", seed=9)
    rows = Writer(student, Sampling(6), ends=[])(prompts("gpt2"), 1)
    finders = [brute(logits(student, row), logits(teacher, row), row.completion) for row in rows]
    ends = [token for _, token in finders]
    ended = Corrected(model_source(student), model_source(teacher), Writer(student, Sampling(6), ends))(rows, 0)
    assert [len(row.completion) for row in ended] == [place + 1 for place, _ in finders]
    free = Corrected(model_source(student), model_source(teacher), Writer(student, Sampling(6), []), times=3)(rows, 0)
    assert all(len(row.completion) == 6 for row in free)


def test_training_mode_and_weights_are_left_as_they_were():
    student, teacher = build("gpt2").train(), build("gpt2", seed=9)
    before = [p.clone() for p in student.parameters()]
    rows = Writer(student, Sampling(6))(prompts("gpt2"), 1)
    Corrected(model_source(student), model_source(teacher), Writer(student, Sampling(6)))(rows, 0)
    assert student.training
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, student.parameters(), strict=True))


def test_no_correction_is_refused():
    with pytest.raises(LimbeckError, match="at least one correction"):
        Corrected(None, None, None, 0)
