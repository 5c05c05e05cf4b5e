"""The experiment with oracle, teacher and student: its parts, its sources, its command."""

import json

import pytest
import torch
from tiny_llms import build, save, tokenizer

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.prompts import prompt_batches
from limbeck.data.samples import Sample, samples_of
from limbeck.data.writer import Sampling, Writer
from limbeck.losses.divergence import forward_kl, reverse_kl
from limbeck.methods.language_models.teacher_hacking import (
    DIVERGENCES,
    Config,
    Prompts,
    alike,
    main,
    prompts_of,
    source,
    teacher_hacking,
)
from limbeck.objectives.texts import per_text

SMALL = {
    "oracle_prompts": 8,
    "prompts": 8,
    "validation": 8,
    "teacher_steps": 3,
    "student_steps": 2,
    "steps": 6,
    "look_every": 2,
    "batch": 4,
    "new_tokens": 4,
    "lr": 1e-2,
}


def prompts() -> Prompts:
    rows = [Sample([4 + i, 5 + i % 7], []) for i in range(24)]
    return Prompts(rows[:8], rows[8:16], rows[16:])


def models() -> list:
    return [build("gpt2", width=8, layers=1), build("gpt2", seed=3), build("gpt2", seed=4)]


@pytest.mark.parametrize("kind", ["offline", "online_teacher", "online_student"])
def test_student_and_teacher_learn_and_both_distances_are_seen(kind, tmp_path):
    student, teacher, oracle = models()
    kept = [p.clone() for p in oracle.parameters()]
    said, watch = teacher_hacking(student, teacher, oracle, prompts(), Config(source=kind, **SMALL), tmp_path)
    assert [look.step for look in watch.looks] == [0, 2, 4, 6]
    assert all(torch.equal(a, b) for a, b in zip(kept, oracle.parameters(), strict=True))
    assert said["teacher_gap"] > 0
    assert said["golden_last"] == watch.looks[-1].golden
    again, seen = teacher_hacking(*models(), prompts(), Config(source=kind, **SMALL), tmp_path)
    assert seen.looks == watch.looks, "done, and remembered"
    assert again["fixed_texts"] == said["fixed_texts"]


def texts(stream, number: int) -> list[str]:
    batches = iter(stream)
    return [str(row.completion) for _ in range(number) for row in samples_of(next(batches))]


def test_offline_gives_the_same_texts_at_every_visit_and_online_new_ones():
    student, teacher, _ = models()
    by_teacher, by_student = (Writer(model, Sampling(4)) for model in (teacher, student))
    fixed = by_teacher(prompts().student, 1)
    known = {str(row.completion) for row in fixed}
    offline = texts(source(Config(source="offline", batch=4), fixed, by_teacher, by_student), 4)
    assert set(offline) == known
    assert sorted(offline[:8]) == sorted(offline[8:])
    for kind in ("online_teacher", "online_student"):
        online = texts(source(Config(source=kind, batch=4), fixed, by_teacher, by_student), 4)
        assert not set(online) & known
        assert len(set(online)) == 16
    half = texts(source(Config(source="online_teacher", fixed=0.5, batch=4), fixed, by_teacher, by_student), 12)
    assert 0 < sum(text in known for text in half) < 48


def test_models_padded_differently_are_compared_on_what_all_have():
    student, teacher, oracle = (
        build("gpt2", vocabulary=140),
        build("gpt2", seed=3),
        build("gpt2", seed=4, vocabulary=150),
    )
    said, _ = teacher_hacking(student, teacher, oracle, prompts(), Config(**{**SMALL, "source": "online_student"}))
    assert said["golden_last"] > 0


def test_a_model_whose_output_layer_does_not_say_its_width_is_taken_as_it_is():
    plain, wrapped = build("gpt2"), build("gpt2")
    batch = next(iter(prompt_batches(["one two three four five six"] * 8, tokenizer(), 8, 2, 0, 4)))
    width = plain.get_output_embeddings().out_features
    wrapped.lm_head = torch.nn.Sequential(wrapped.lm_head)
    for says in alike(plain, wrapped):
        assert says(batch).logits_at(batch["answer"]).shape[-1] == width


def test_jeffreys_is_the_mean_of_both_kls():
    a, b = torch.randn(2, 5, 7).unbind(0)
    a, b, answer = a[None], b[None], torch.tensor([[True, False, True, True, False]])
    goal = per_text(*DIVERGENCES["jeffreys"])
    (term,) = goal(Signals(logits=a), Signals(logits=b), {"answer": answer}, Clock(0, 1)).values()
    torch.testing.assert_close(term.sum, ((forward_kl(a, b) + reverse_kl(a, b)) / 2)[answer].mean())


def test_no_prompt_is_in_two_parts(tmp_path):
    rows = [{"prompt": f"good {i % 40} film", "completion": " bad"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {**SMALL, "data": str(tmp_path / "pairs.jsonl"), "length": 16}
    stream = prompt_batches(settings["data"], tokenizer(), 16, 4)
    parts = prompts_of(Config(**settings), stream)
    found = [str(row.prompt) for part in parts for row in part]
    assert [len(part) for part in parts] == [8, 8, 8]
    assert len(set(found)) == 24
    assert all(row.completion == [] for part in parts for row in part)
    with pytest.raises(LimbeckError, match="ask for 56 different prompts, but the data has 40"):
        prompts_of(Config(**{**settings, "prompts": 40}), stream)


@pytest.fixture
def files(tmp_path):
    for kind in ("gpt2", "llama", "t5"):
        save(kind, tmp_path / kind)
        save(kind, tmp_path / f"{kind}-small", width=8, layers=1, seed=2)
    rows = [{"prompt": f"good {i} film", "completion": " bad"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_the_command_on_models_of_the_user(files, kind):
    named = {"oracle": str(files / kind), "teacher": str(files / kind), "student": str(files / f"{kind}-small")}
    cfg = Config(out=files / "run", **named, data=str(files / "pairs.jsonl"), length=16, **SMALL)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert [look["step"] for look in metrics["looks"]] == [0, 2, 4, 6]
    assert metrics["golden_least"] <= metrics["golden_last"]
    assert "Golden against proxy" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "offlin"}, "did you mean 'offline'"),
        ({"divergence": "kl"}, "--divergence: expected one of"),
        ({"fixed": 1.5}, "--fixed 1.5"),
        ({"validation": 0}, "--validation 0: expected a whole number"),
        ({"prompts": 400}, "different prompts, but the data has 40"),
    ],
)
def test_mistakes_of_the_user_leave_nothing_behind(files, changes, message):
    named = {"oracle": str(files / "gpt2"), "data": str(files / "pairs.jsonl"), "length": 16}
    with pytest.raises(LimbeckError, match=message):
        main(Config(out=files / "run", **{**SMALL, **named, **changes}))
    assert not (files / "run").exists()
