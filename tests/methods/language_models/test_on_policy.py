"""The on-policy methods as commands, on the user's own models and data; and what they share."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_llms import build, save, tokenizer
from transformers import AutoConfig

from limbeck.core.batch import Batch
from limbeck.core.check import LimbeckError
from limbeck.core.fit import fit
from limbeck.core.signals import Signals
from limbeck.core.stage import Optim, Stage, distill_step
from limbeck.core.terms import Clock
from limbeck.data.compose import Beside
from limbeck.data.samples import Sample, batch_of
from limbeck.data.writer import Writer
from limbeck.methods.language_models import distillm, gkd, minillm, semantic_revision
from limbeck.methods.language_models.on_policy import AlsoText, nll_on
from limbeck.objectives.tokens import hard, soft
from limbeck.sources.model import model_source

METHODS = {"gkd": gkd, "distillm": distillm, "minillm": minillm, "semantic_revision": semantic_revision}
SMALL = {"steps": 3, "sft_steps": 1, "batch": 4, "length": 16, "new_tokens": 5, "seed": 1}
DECODERS = [Sample([4 + i, 5 + i], [6, 7 + i, 1]) for i in range(8)]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    for kind in ("gpt2", "llama", "t5"):
        save(kind, folder / f"{kind}-teacher")
        save(kind, folder / f"{kind}-student", width=8, layers=1, seed=2)
    words = "good bad fine poor film book song plays great awful".split()
    rows = [{"prompt": f"{a} {b}", "completion": f" {b} {a}, {b}"} for a in words for b in words[:6]]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.txt").write_text("\n".join(f"{row['prompt']}{row['completion']}." for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("name", METHODS)
def test_the_command_on_a_model_and_data_of_the_user(files, tmp_path, name, kind):
    module = METHODS[name]
    named = {"teacher": str(files / f"{kind}-teacher"), "student": str(files / f"{kind}-student")}
    cfg = module.Config(out=tmp_path / "run", **named, data=str(files / "pairs.jsonl"), **SMALL)
    if name == "distillm":
        cfg = replace(cfg, start=0.8)
    out = module.main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    measured = {"forward_kl", "reverse_kl", "student_nll", "own_text_forward_kl", "own_text_reverse_kl"}
    assert set(metrics["held_out"]) == set(metrics["before"]) == measured
    assert metrics["held_out"] != metrics["before"]
    assert AutoConfig.from_pretrained(out).model_type == kind
    assert "what the student itself writes" in (out / "report.html").read_text()


def test_running_text_and_a_corpus_beside(files, tmp_path):
    named = {"teacher": str(files / "gpt2-teacher"), "data": str(files / "text.txt"), "text": str(files / "text.txt")}
    for module in (distillm, minillm):
        out = module.main(module.Config(out=tmp_path / module.__name__, **named, **SMALL))
        (path,) = out.glob(f"stages/{module.__name__.split('.')[-1]}/metrics.jsonl")
        row = json.loads(path.read_text().splitlines()[-1])
        assert row["text"] > 0


def test_a_run_that_was_done_is_remembered(files, tmp_path):
    named = {"teacher": str(files / "gpt2-teacher"), "data": str(files / "pairs.jsonl")}
    cfg = gkd.Config(out=tmp_path / "run", **named, **SMALL)
    first = json.loads((gkd.main(cfg) / "metrics.json").read_text())
    again = json.loads((gkd.main(cfg) / "metrics.json").read_text())
    assert again["held_out"] == first["held_out"]
    assert again["share_written"] == first["share_written"]


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (gkd, {"beta": 1.5}, "--beta 1.5: expected a weight from 0 to 1"),
        (gkd, {"share": -0.1}, "must lie from 0 to 1"),
        (gkd, {"hard": -1.0}, "--hard -1.0"),
        (gkd, {"temperature": -1.0}, "temperature of at least 0"),
        (gkd, {"new_tokens": 16, "data": "text.txt"}, "leave no room for a prompt"),
        (distillm, {"alpha": 1.0}, "--alpha 1.0: expected a share"),
        (distillm, {"divergence": "skew_kl"}, "did you mean 'skew_"),
        (distillm, {"start": 1.5}, "shares must lie from 0 to 1"),
        (minillm, {"mixed": 1.0}, "--mixed 1.0: expected a share"),
        (minillm, {"gamma": 1.5}, "--gamma 1.5"),
        (minillm, {"returns": "both"}, "--returns: expected one of paper, released"),
        (semantic_revision, {"least": 1.0}, "--least 1.0"),
        (semantic_revision, {"corrections": -1}, "--corrections -1"),
        (semantic_revision, {"span": -1.0}, "expected weights of at least 0"),
        (gkd, {"reuse": 0}, "--reuse 0"),
        (gkd, {"student": "nowhere"}, "'nowhere' as a language model"),
    ],
)
def test_mistakes_of_the_user_leave_nothing_behind(files, tmp_path, module, changes, message):
    if "data" in changes:
        changes = changes | {"data": str(files / changes["data"])}
    named = {"teacher": str(files / "gpt2-teacher"), "data": str(files / "pairs.jsonl")}
    with pytest.raises(LimbeckError, match=message):
        module.main(module.Config(**{**SMALL, **named, **changes, "out": tmp_path / "run"}))
    assert not (tmp_path / "run").exists()


STREAM = [batch_of(DECODERS[:4])]
CALLS = {  # student, teacher, settings -> what the recipe says; on-policy alone
    "gkd": lambda s, t, how: gkd.gkd(s, t, STREAM, gkd.Config(**how, share=1.0), tokenizer=tokenizer()),
    "distillm": lambda s, t, how: distillm.distillm(
        s, t, STREAM, STREAM, distillm.Config(**how, start=1.0), tokenizer=tokenizer()
    ),
    "minillm": lambda s, t, how: minillm.minillm(s, t, STREAM, minillm.Config(**how), tokenizer=tokenizer()),
    "semantic_revision": lambda s, t, how: semantic_revision.semantic_revision(
        s, t, STREAM, tokenizer(), semantic_revision.Config(**how, share=1.0)
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_output_layers_padded_differently_are_compared_and_written_on_what_both_have(name):
    student, teacher = build("gpt2", vocabulary=150), build("gpt2", seed=3)
    assert teacher.config.vocab_size < 150, "the teacher could not read all that the student may say"
    said = CALLS[name](student, teacher, {**SMALL, "sft_steps": 0, "new_tokens": 12})
    assert said["steps"] == 3


def test_text_beside_is_one_more_term_over_its_own_tokens():
    student, teacher = build("gpt2"), build("gpt2", seed=3)
    says = model_source(student)
    step = AlsoText(distill_step(says, model_source(teacher), soft()), says, weight=0.5)
    text = batch_of([Sample([9], [8, 7, 6]), Sample([5], [4])])
    (batch,) = (next(iter(Beside([batch_of(DECODERS[:2])], [text]))),)
    terms = step(batch, Clock(0, 1))
    (alone,) = hard()(says(text), Signals(), text, Clock(0, 1)).values()
    assert terms["text"].sum.item() == pytest.approx(alone.sum.item(), rel=1e-6)
    assert terms["text"][1:] == ("text_answer", 0.5)
    assert terms["soft"].unit == "answer"


def test_validation_is_the_likelihood_without_dropout_and_leaves_the_mode():
    student = build("gpt2").train()
    batch: Batch = batch_of(DECODERS[:4])
    with torch.no_grad():
        (term,) = hard()(model_source(student.eval())(batch), Signals(), batch, Clock(0, 1)).values()
    student.train()
    assert nll_on(student, [batch])() == pytest.approx(term.sum.item() / int(batch["answer"].sum()), rel=1e-6)
    assert student.training


def test_dropout_in_training_does_not_reach_the_text_and_resuming_keeps_both(tmp_path):
    """Stopped and resumed equals straight, bit for bit, though training and writing both draw at random."""

    class Stop(BaseException):
        pass

    def stage(*after) -> Stage:
        student, teacher = build("gpt2"), build("gpt2", seed=3)
        for part in student.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.2
        write = Writer(student, gkd.Sampling(4))
        stream = gkd.Rollout([batch_of(DECODERS[:4]), batch_of(DECODERS[4:])], write, gkd.Share(0.6), 1)
        step = distill_step(model_source(student), model_source(teacher), soft())
        return Stage("s", step, {"s": student}, stream, 6, Optim(1e-2), accumulate=2, save_every=2, after=after)

    def stop(logs, clock):
        if clock.step == 5:
            raise Stop

    straight, second = stage(), stage()
    fit(straight, tmp_path / "a")
    with pytest.raises(Stop):
        fit(stage(stop), tmp_path / "b")
    fit(second, tmp_path / "b")
    for a, b in zip(straight.train["s"].parameters(), second.train["s"].parameters(), strict=True):
        assert torch.equal(a, b)
    assert straight.stream.given == second.stream.given
