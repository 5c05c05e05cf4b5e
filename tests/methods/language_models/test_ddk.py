"""DDK: its loss against the equations, its recipe, and the command on models and data of the user."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_llms
import torch
from transformers import AutoModelForCausalLM

from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.domains import part_domains, text_domains
from limbeck.methods.language_models import ddk as module
from limbeck.methods.language_models.ddk import Config, Domain, ddk, main, parts
from limbeck.methods.language_models.teach import Config as Teach
from limbeck.methods.language_models.teach import write_store

GOLDEN = Path(__file__).parents[2] / "golden" / "ddk"
TEXTS = {"taste": "good film bad book fine song poor plays", "count": "one two three four five red blue green"}


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
@pytest.mark.parametrize("number", [0, 1])
def test_golden_loss(divergence, number):
    case = dict(np.load(GOLDEN / "student_loss.npz"))
    gamma, temperature = float(case["hp_gamma"]), float(case["hp_temperatures"][number])
    _, goal = parts(Config(gamma=gamma, divergence=divergence, temperature=temperature))
    student, teacher, targets = (
        torch.from_numpy(case[f"in_{name}"].copy()) for name in ("student_logits", "teacher_logits", "labels")
    )
    batch = {"targets": targets, "answer": targets != -100}
    terms = goal(Signals(logits=student), Signals(logits=teacher), batch, Clock(0, 1))
    count = int(batch["answer"].sum())
    assert float(terms["hard"].sum) / count == pytest.approx(float(case["ref_ce"]), rel=1e-5)
    assert float(terms["soft"].sum) / count == pytest.approx(float(case[f"ref_{divergence}"][number]), rel=1e-5)
    total = float(terms.total({"answer": count}))
    assert total == pytest.approx(float(case[f"ref_total_{divergence.removesuffix('_kl')}"][number]), rel=1e-5)


def test_without_a_weight_for_the_teacher_there_is_the_ordinary_loss_alone():
    _, goal = parts(Config(gamma=0.0))
    logits = torch.randn(1, 2, 5)
    batch = {"targets": torch.tensor([[1, 2]]), "answer": torch.ones(1, 2, dtype=torch.bool)}
    assert list(goal(Signals(logits=logits), Signals(), batch, Clock(0, 1))) == ["hard"]


def domains(**counts: int) -> dict[str, Domain]:
    texts = {name: [TEXTS[name]] * count for name, count in counts.items()}
    splits = part_domains(text_domains(texts, tiny_llms.tokenizer(), 8, 2))
    return {name: Domain(split.stream, split.batches) for name, split in splits.items()}


def students():
    return tiny_llms.build("gpt2", width=8, layers=1), tiny_llms.build("gpt2", seed=1)


SHORT = {"batch": 2, "steps": 8, "interval": 2}


@pytest.mark.parametrize(("mixture", "shares"), [("natural", None), ("equal", {"taste": 0.5, "count": 0.5})])
def test_fixed_mixtures_stay_and_are_watched(mixture, shares):
    parts = domains(taste=90, count=20)
    _, weights = ddk(*students(), parts, Config(mixture=mixture, **SHORT))
    sizes = {name: domain.stream.size for name, domain in parts.items()}
    natural = {name: size / sum(sizes.values()) for name, size in sizes.items()}
    assert weights.stream.weights == pytest.approx(shares or natural)
    assert [look["step"] for look in weights.looks] == [1, 2, 4, 6, 8]


def test_weights_follow_the_student_and_stand_in_the_log(tmp_path):
    said, weights = ddk(*students(), domains(taste=90, count=20), Config(**SHORT), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "ddk" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8], "steps that are looked at are logged"
    for row, look in zip(rows, weights.looks, strict=True):
        assert {name: row[name] for name in look} == look
        assert {"loss", "hard", "soft"} < set(row)
    previous = {name: math.log(share) for name, share in _first(rows[0]).items()}
    for row in rows[1:]:
        psi = {name: math.exp(previous[name] + _ratio(row, name)) for name in TEXTS}
        expected = {name: 0.5 * value / sum(psi.values()) + 0.25 for name, value in psi.items()}
        for name, share in expected.items():
            assert row[f"share.{name}"] == pytest.approx(share, rel=1e-9)
        previous = {name: math.log(share) for name, share in expected.items()}
    read = sum(said[f"passes.{name}"] * domain.stream.size for name, domain in domains(taste=90, count=20).items())
    assert read == pytest.approx(8 * 2)


def _ratio(row, name):
    return row[f"perplexity.{name}"] / row[f"teacher_perplexity.{name}"]


def _first(row):
    """softmax of the ratios, without leaving the floats."""
    top = max(_ratio(row, name) for name in TEXTS)
    values = {name: math.exp(_ratio(row, name) - top) for name in TEXTS}
    return {name: value / sum(values.values()) for name, value in values.items()}


class Killed(BaseException):
    """What ends the run."""


@pytest.mark.parametrize("kill", [1, 5])
def test_killed_and_resumed_is_bit_for_bit_the_same(tmp_path, kill, monkeypatch):
    cfg = Config(**SHORT, save_every=1)
    straight, _ = students()
    said, weights = ddk(straight, students()[1], domains(taste=90, count=20), cfg, tmp_path / "straight")

    class Dying(module.DomainWeights):
        def __call__(self, logs, clock):
            said = super().__call__(logs, clock)
            if clock.step == kill:
                raise Killed
            return said

    monkeypatch.setattr(module, "DomainWeights", Dying)
    with pytest.raises(Killed):
        ddk(*students(), domains(taste=90, count=20), cfg, tmp_path / "killed")
    monkeypatch.undo()
    resumed, _ = students()
    again, same = ddk(resumed, students()[1], domains(taste=90, count=20), cfg, tmp_path / "killed")
    assert same.looks == weights.looks
    assert same.stream.state_dict() == weights.stream.state_dict()
    assert again["passes.taste"] == said["passes.taste"]
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def place(tmp_path) -> Path:
    for kind in ("gpt2", "llama"):
        tiny_llms.save(kind, tmp_path / kind)
    rows = [{"text": text, "source": name} for name, text in TEXTS.items() for _ in range(60)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "taste.txt").write_text(f"{TEXTS['taste']}\n" * 60)
    pairs = [{"prompt": TEXTS["count"][:7], "completion": TEXTS["count"][7:]}] * 60
    (tmp_path / "parts" / "count.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return tmp_path


@pytest.mark.parametrize(("kind", "data", "by"), [("gpt2", "all.jsonl", "source"), ("llama", "parts", None)])
def test_the_command_on_a_model_and_data_of_the_user(place, kind, data, by):
    cfg = Config(place / "run", teacher=str(place / kind), data=str(place / data), domain_field=by, length=12, **SHORT)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["held_out_perplexity"]) == set(TEXTS)
    assert set(metrics["held_out_perplexity"]["taste"]) == {"before", "after", "teacher"}
    assert sum(metrics["shares"].values()) == pytest.approx(1)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    report = (out / "report.html").read_text()
    for part in ("Domains, on held-out rows", "ddk: share", "ddk: perplexity", "over the teacher"):
        assert part in report
    again = json.loads((main(cfg) / "metrics.json").read_text())
    assert again == metrics, "done, and remembered"


def test_a_store_of_prompts_and_completions_stands_in_for_the_teacher(place):
    words = tiny_llms.WORDS
    pairs = [
        {"prompt": f"{words[i % 9]} {words[i % 7]}", "completion": f" {words[9 + i % 5]}", "domain": "ab"[i % 2]}
        for i in range(80)
    ]
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    data = {"data": str(place / "pairs.jsonl"), "length": 12}
    write_store(Teach(place / "store", teacher=str(place / "gpt2"), top=128, **data))
    found = []
    for name in ("gpt2", "store"):
        out = main(Config(place / f"of-{name}", teacher=str(place / name), student="1x8", **data, **SHORT))
        found.append(json.loads((out / "metrics.json").read_text()))
    for name in "ab":
        both = [said["held_out_perplexity"][name]["teacher"] for said in found]
        assert both[0] == pytest.approx(both[1], rel=0.1)
    assert found[0]["shares"] == pytest.approx(found[1]["shares"], abs=0.1)


def test_a_domain_that_is_told_apart_by_its_text_alone_gets_its_weight(place):
    """The student has read one domain before: the other one is to get more than half."""
    student, teacher = students()
    known = domains(taste=60, count=60)
    train = Config(batch=2, steps=60, lr=1e-2, mixture="natural", gamma=0.0)
    one = {"taste": known["taste"], "again": known["taste"]}
    ddk(student, teacher, one, train)
    _, weights = ddk(student, teacher, known, replace(train, mixture="ddk", steps=4, interval=2, lr=1e-6))
    assert weights.stream.weights["count"] > 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "all.jsonl", "domain_field": "domain"}, r"all.jsonl:1: the field 'domain' is missing"),
        ({"domains": ("taste", "code")}, "there is no text of the domain 'code'"),
        ({"domains": ("taste",)}, "need at least two of them, but there is taste"),
        ({"data": None, "domains": ("date",)}, "--domains: weights of domains need at least two of them"),
        ({"data": None, "domains": ("date", "names")}, "did you mean 'name'"),
        ({"batch": 16}, "domain 'count': its 60 rows are too few to hold some out, which takes 64"),
        ({"mixture": "dkd"}, "did you mean 'ddk'"),
        ({"alpha": 2.0}, "--alpha 2.0: expected a share"),
        ({"gamma": -1.0}, "--gamma -1.0: expected a weight"),
        ({"interval": 0}, "--interval 0: expected a whole number"),
        ({"temperature": 0.0}, "--temperature 0.0"),
        ({"data": "nowhere"}, "no such file|neither a file nor a folder"),
    ],
)
def test_mistakes_of_the_user_leave_nothing_behind(place, changes, message):
    settings = {"teacher": str(place / "gpt2"), "data": "parts", "length": 12, "out": place / "run", **SHORT} | changes
    settings["data"] = settings["data"] and str(place / settings["data"])
    with pytest.raises(LimbeckError, match=message):
        main(Config(**settings))
    assert not (place / "run").exists()
