"""The four stages: who teaches what by which loss, a kill in any of them, and the command on a user's BERT."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_classifiers as classifiers
import torch
from contract import Stop
from encoder_stages import ernie_stages
from transformers import AutoModel, AutoModelForSequenceClassification, BertForSequenceClassification

from limbeck.core.check import LimbeckError
from limbeck.core.save import load_tensors
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.data.labelled import Row, labelled_batches
from limbeck.data.stream import text_batches
from limbeck.methods.encoders import ernie_tiny
from limbeck.methods.encoders.ernie_tiny import PROJECTIONS, TABLE, Config, latent, main, objective, ordered, taken_over

GOLDEN = Path(__file__).parents[2] / "golden" / "ernie-tiny"
ARMS = tuple(TABLE)
FEW = {f"{name}_steps": 2 for name in ("teacher", "general", "enhanced", "adaptive")} | {"steps": 2}


def models(seed: int):
    student = classifiers.bert(width=8, layers=2, seed=seed + 2)
    return student, {"pre-trained": classifiers.bert(seed=seed), "fine-tuned": classifiers.bert(seed=seed + 1)}


def test_each_stage_changes_one_thing():
    for one, other in pairwise(TABLE.values()):
        assert sum(a != b for a, b in zip(one, other, strict=True)) == 1


def test_each_stage_hears_its_teacher_on_its_data_by_its_loss():
    stages = ernie_stages(0)
    assert [one.name for one in stages] == list(ARMS)
    seen = dict(zip(TABLE.values(), stages, strict=True))
    for now, one in seen.items():
        for then, other in seen.items():
            assert (one.frozen["teacher"] is other.frozen["teacher"]) == (now.teacher == then.teacher)
            assert (one.stream is other.stream) == (now.data == then.data)
        spoken, teacher = one.step.teacher.model, one.frozen["teacher"]
        assert spoken is (teacher if "soft" in now.objective else teacher.base_model)
        terms = one.step(next(iter(one.stream)), Clock(0, 1))
        inner = {"latent.embeddings", "latent.states", "latent.attention"}
        assert set(terms) == inner | ({"soft", "hard"} if "soft" in now.objective else set())
        assert ("labels" in next(iter(one.stream))) == (now.data == "task")
    first = models(0)[1]["pre-trained"].state_dict()
    assert all(torch.equal(value, first[name]) for name, value in stages[0].frozen["teacher"].state_dict().items())
    for one, other in pairwise(stages):
        assert one.train["student"] is other.train["student"]
        assert one.train["projections"] is other.train["projections"]


def test_the_last_stage_without_labels_is_the_one_before():
    stages = ernie_stages(0, weight_soft=0.0, weight_hard=0.0)
    batch = next(iter(stages[-1].stream))
    last, before = (one.step(batch, Clock(0, 1)) for one in (stages[-1], stages[-2]))
    assert last.keys() == before.keys()
    for name, term in last.items():
        torch.testing.assert_close(term.sum, before[name].sum)


@pytest.mark.parametrize("index", [0, 1])
def test_golden_soft_labels(index):
    case = np.load(GOLDEN / "soft_loss.npz")
    cfg = Config(temperature=float(case["hp_temperatures"][index]), weight_latent=0.0, weight_hard=0.0)
    student, teachers = models(0)
    goal = objective("latent + soft + hard", latent(student, teachers["fine-tuned"], cfg).goal, cfg)
    ours, theirs = (torch.from_numpy(case[f"in_{side}_logits"]) for side in ("student", "teacher"))
    batch = {"ids": torch.zeros(len(ours), 1)}
    found = goal(Signals(logits=ours), Signals(logits=theirs), batch, Clock(0, 1)).total({"row": len(ours)})
    np.testing.assert_allclose(found, case["fix_soft_batch_mean"][index], rtol=1e-6)


class Falling:
    """A stream that ends the run at one of its batches, once."""

    def __init__(self, stream, at: int) -> None:
        self.stream, self.left = stream, at

    def __iter__(self):
        for batch in self.stream:
            if self.left == 0:
                raise Stop
            self.left -= 1
            yield batch

    def state_dict(self):
        return self.stream.state_dict()

    def load_state_dict(self, state):
        self.stream.load_state_dict(state)


def run(folder: Path, falls: tuple[str, int] = ("", 0)):
    """All stages on streams that know where they stand; the student afterwards."""
    student, teachers = models(0)
    tokenizer = classifiers.tokenizer()
    texts = [f"w{i % 20} w{i % 7} w{i % 11}" for i in range(40)]
    rows = [Row(text, label=f"c{i % 3}" if i % 4 else None) for i, text in enumerate(texts)]
    data = {
        "general": text_batches(texts, tokenizer, 8, 4),
        "task": labelled_batches(rows, ("c0", "c1", "c2"), tokenizer, 8, 4),
    }
    kind, at = falls
    data = {name: Falling(stream, at if name == kind else -1) for name, stream in data.items()}
    names = ("general", "enhanced", "adaptive")
    cfg = Config(save_every=2, **{f"{name}_steps": 3 for name in names}, steps=3)
    torch.manual_seed(1)
    said = ernie_tiny.ernie_tiny(student, teachers, data, cfg, out=folder)
    return student.state_dict(), {name: words["loss"] for name, words in said.items()}


@pytest.fixture(scope="module")
def straight_run(tmp_path_factory):
    return run(tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("falls", [("general", 2), ("general", 4), ("task", 1), ("task", 5)], ids=ARMS)
def test_killed_in_any_stage_and_resumed_equals_straight(tmp_path, straight_run, falls):
    straight, words = straight_run
    with pytest.raises(Stop):
        run(tmp_path / "killed", falls)
    stage = ARMS[["general", "task"].index(falls[0]) * 2 + (falls[1] >= 3)]
    assert [name for name in ARMS if (tmp_path / "killed" / name / "done").exists()] == list(ARMS[: ARMS.index(stage)])
    resumed, again = run(tmp_path / "killed")
    assert again == words
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def corpus(folder: Path) -> str:
    path = folder / "general.txt"
    path.write_text("\n".join(f"w{i % 20} w{i % 13} w{i % 7} w{i % 5}" for i in range(60)))
    return str(path)


def settings(folder: Path, **more) -> dict:
    data = classifiers.write_rows(folder / "rows.jsonl")
    return {"data": data, "corpus": corpus(folder), "batch": 4, "length": 8, "student": "2x8", **FEW, **more}


NAMES = {"id2label": {0: "c2", 1: "c1", 2: "c0"}, "label2id": {"c2": 0, "c1": 1, "c0": 2}}


def fine_tune(teacher: str, folder: Path) -> str:
    """The same encoder with a head."""
    BertForSequenceClassification.from_pretrained(teacher, num_labels=3, **NAMES).save_pretrained(folder)
    classifiers.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_the_command_on_a_bert_and_rows_of_the_user(tmp_path, fine_tuned):
    teacher = classifiers.write_encoder(tmp_path / "bert")
    tuned = fine_tune(teacher, tmp_path / "tuned") if fine_tuned else None
    out = main(Config(tmp_path / "run", teacher=teacher, tuned=tuned, **settings(tmp_path)))
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics) == {*ARMS, "held_out", "before", "distance"} | (set() if fine_tuned else {"teacher"})
    for name, now in TABLE.items():
        assert now._asdict().items() <= metrics[name].items()
    assert list(metrics["distance"]) == ["start", *ARMS]
    page, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    for text in ("latent + soft + hard", "pre-trained", "fine-tuned"):
        assert text in page
        assert text in card
    student = AutoModelForSequenceClassification.from_pretrained(out)
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 8)
    assert student.config.id2label[0] == ("c2" if fine_tuned else "c0")


def test_general_distillation_serves_several_tasks(tmp_path, settings_of_user):
    once = main(Config(tmp_path / "once", **settings_of_user, stages=("general",)))
    assert not json.loads((once / "metrics.json").read_text()).keys() & {"held_out", "before"}
    encoder = AutoModel.from_pretrained(once)
    ours = latent(encoder, classifiers.bert(), Config())
    taken_over(ours, once / PROJECTIONS)
    saved, _ = load_tensors(once / PROJECTIONS)
    assert all(torch.equal(value, saved[name]) for name, value in ours.links.state_dict().items())
    out = main(Config(tmp_path / "task", **settings_of_user | {"student": str(once)}, stages=ARMS[1:]))
    assert AutoModelForSequenceClassification.from_pretrained(out).config.hidden_size == encoder.config.hidden_size
    wider = latent(classifiers.bert(width=4, layers=2), classifiers.bert(), Config())
    with pytest.raises(LimbeckError, match="maps between other layers or widths"):
        taken_over(wider, once / PROJECTIONS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stages": ("general", "specific")}, "from general to specific more than one .* add enhanced and adaptive"),
        ({"stages": ("general", "adaptive", "specific")}, "add enhanced, or give --jumps"),
        ({"stages": ("adaptve",)}, "did you mean 'adaptive'"),
        ({"stages": ()}, "--stages: expected at least one"),
        ({"teacher_steps": 0}, "--teacher-steps 0: expected a whole number"),
        ({"adaptive_steps": 0}, "--adaptive-steps 0: expected a whole number"),
        ({"weight_soft": -1.0}, r"--weight-soft -1\.0: expected"),
        ({"weight_latent": 0.0, "weight_soft": 0.0, "weight_hard": 0.0}, "all weights are 0"),
        ({"corpus": None}, "read general text, not the task's; give it as --corpus"),
        ({"student": "6x8"}, "a student of 6 layers cannot learn layer by layer from a teacher of 4"),
        ({"latent": "relations", "relation_heads": 3}, "3 relation heads do not divide a width of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, settings_of_user, settings, message):
    given = settings_of_user | settings
    with pytest.raises(LimbeckError, match=message):
        main(Config(tmp_path / "run", **given))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def settings_of_user(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    return settings(folder) | {"teacher": classifiers.write_encoder(folder / "bert")}


def test_jumps_are_taken_when_asked_for():
    assert ordered(("specific", "general"), jumps=True) == ["general", "specific"]
    assert ordered(("specific", "adaptive")) == ["adaptive", "specific"]


def test_teachers_that_are_no_kin_are_refused(tmp_path, settings_of_user):
    tuned = classifiers.write_encoder(tmp_path / "tuned", BertForSequenceClassification, seed=5, **NAMES)
    with pytest.raises(LimbeckError, match="token vectors of the fine-tuned and the pre-trained teacher differ"):
        main(Config(tmp_path / "run", **settings_of_user, tuned=tuned))
    shallow = classifiers.write_encoder(tmp_path / "shallow", BertForSequenceClassification, layers=3, **NAMES)
    with pytest.raises(LimbeckError, match="num_hidden_layers 3, the pre-trained one 4"):
        main(Config(tmp_path / "run", **settings_of_user, tuned=shallow))
    with pytest.raises(LimbeckError, match="is no fine-tuned classifier"):
        main(Config(tmp_path / "run", **settings_of_user, tuned=settings_of_user["teacher"]))


def test_a_fine_tuned_teacher_alone_does_without_the_general_stage(tmp_path, settings_of_user):
    tuned = classifiers.write_encoder(tmp_path / "tuned", BertForSequenceClassification, **NAMES)
    given = settings_of_user | {"teacher": tuned}
    with pytest.raises(LimbeckError, match="is fine-tuned already, and stage general hears"):
        main(Config(tmp_path / "run", **given))
    out = main(Config(tmp_path / "run", **given | {"latent": "relations", "relation_heads": 4}, stages=ARMS[1:]))
    assert list(json.loads((out / "metrics.json").read_text())["distance"]["start"]) == [
        "general data, fine-tuned teacher",
        "task data, fine-tuned teacher",
    ]
