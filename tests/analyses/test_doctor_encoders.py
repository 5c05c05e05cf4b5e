"""What the doctor says of encoders and classifiers: true things only, and nothing about ends of texts."""

import pytest
import tiny_classifiers as classifiers
import torch
from transformers import BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM

from limbeck.analyses.doctor import doctor, joined
from limbeck.core.batch import IGNORE
from limbeck.core.signals import Signals
from limbeck.sources.model import model_source

WRITING = {"ends", "chat templates", "output layers"}


def classifier(seed=0, **settings):
    return model_source(classifiers.bert(seed=seed, **settings))


def knowing(batch):
    """A teacher that knows the classes."""
    return Signals(logits=5.0 * torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float())


def examined(teacher=knowing, student=None, on="labelled", settings=(), **changed):
    batch = classifiers.labelled(0)[0] | changed
    asked = {"batches": [batch], "on": on, **dict(settings)}
    return doctor(student or classifier(), teacher, classifiers.tokenizer(), **asked)


def told(found, check, level):
    return [finding.says for finding in found.at(level) if finding.check == check]


def test_a_healthy_pair_of_classifiers():
    found = examined()
    assert found.well, found
    assert not WRITING & {finding.check for finding in found.found}
    assert told(found, "classes", "ok") == ["3: 0, 1, 2"]
    assert told(found, "supervision", "ok") == ["6 of 8 rows have a class"]
    batch = classifiers.labelled(0)[0]
    known = batch["labelled"]
    nats = [
        torch.nn.functional.cross_entropy(said.logits[known], batch["labels"][known])
        for said in (classifier()(batch), knowing(batch))
    ]
    (line,) = told(found, "perplexity", "ok")
    assert line == f"student {nats[0]:.2f}, teacher {nats[1]:.2f}, a uniform guess 1.10 nats per row"


def test_classes_in_another_order_stop():
    names = [{"id2label": dict(enumerate(order))} for order in ("abc", "bac")]
    found = examined(classifier(1, **names[1]), classifier(0, **names[0]))
    (line,) = told(found, "classes", "stop")
    assert line == "the classes, or their order, differ: a, b, c (student) and b, a, c (teacher)"


def test_classes_that_are_numbered_otherwise():
    batch = classifiers.labelled(0)[0]
    turned = (batch["labels"] + 1) % 3
    wrong = lambda b: knowing({"labels": turned})  # noqa: E731
    assert "so it is untrained or numbers the classes otherwise" in told(examined(wrong), "perplexity", "note")[0]
    assert told(examined(wrong, settings={"taught": False}), "perplexity", "note") == []
    (line,) = told(examined(classifier(1), labels=batch["labels"] + 1), "supervision", "stop")
    assert line.startswith("classes run from ")
    assert line.endswith(" to 3, but the student tells 3 apart; they are numbered from 0")


def test_rows_without_a_class_and_without_a_token():
    nothing = torch.zeros(8, dtype=torch.bool)
    assert told(examined(labelled=nothing), "supervision", "stop") == ["none of the rows has a class"]
    mask = classifiers.labelled(0)[0]["mask"].clone()
    mask[2:4] = False
    line = "2 of 8 rows hold no token that the student reads"
    assert line in told(examined(mask=mask), "row lengths", "note")
    mask[:] = False
    assert "8 of 8 rows hold no token that the student reads" in told(examined(mask=mask), "row lengths", "stop")


def test_logits_that_are_no_numbers():
    sick = lambda b: Signals(logits=knowing(b).logits * torch.nan)  # noqa: E731
    (line,) = told(examined(sick), "speech", "stop")
    assert line == "the teacher's logits hold NaN or infinity; check its weights and number format"


def masked(shown=False):
    batch = classifiers.labelled(0)[0]
    answer = batch["mask"] & (torch.arange(7) % 3 == 1)
    ids = batch["ids"] if shown else batch["ids"].masked_fill(answer, 4)
    words = {"answer": answer, "targets": batch["ids"].where(answer, torch.tensor(IGNORE))}
    return {"ids": ids, "mask": batch["mask"], **words}


def test_masked_words():
    pair = [model_source(classifiers.bert(BertForMaskedLM, seed=seed)) for seed in (0, 1)]
    batch = masked()
    batch["answer"][3] = False  # words are drawn: a row may have none
    found = doctor(*pair, classifiers.tokenizer(), batches=[batch])
    assert not {"ends", "chat templates"} & {finding.check for finding in found.found}
    counts = int(batch["answer"].sum()), int(batch["mask"].sum())
    assert told(found, "supervision", "ok") == [f"{counts[0]} of the {counts[1]} tokens are to be guessed"]
    assert told(found, "supervision", "note") == []
    (line,) = told(doctor(*pair, classifiers.tokenizer(), batches=[masked(shown=True)]), "supervision", "stop")
    assert line.startswith("every supervised place shows its own target")


def test_states():
    """What is compared is looked at: states of real tokens."""
    models = [classifiers.bert(BertModel, seed=seed) for seed in (0, 1)]
    ours, theirs = (model_source(model, qkv=[-1]) for model in models)
    asked = {"batches": classifiers.labelled(0), "on": "mask"}
    found = doctor(ours, theirs, classifiers.tokenizer(), **asked)
    assert found.well, found
    assert {finding.check for finding in found.found} == {"tokenizers", "number formats", "row lengths", "speech"}
    assert told(found, "speech", "ok")[0].startswith("student: states up to ")
    whole = model_source(classifiers.bert(seed=1), hidden=[-1])
    found_in_classifier = doctor(ours, whole, classifiers.tokenizer(), **asked)
    assert told(found_in_classifier, "speech", "ok")[1].startswith("teacher: states up to ")
    models[1].encoder.layer[0].output.dense.weight.data *= torch.inf
    found = doctor(ours, theirs, classifiers.tokenizer(), **asked)
    assert told(found, "speech", "stop") == [
        "the teacher's states hold NaN or infinity; check its weights and number format"
    ]


def test_roberta_counts_positions_from_its_padding():
    plain = classifiers.config().to_dict() | {"pad_token_id": 1, "max_position_embeddings": 8}
    model = RobertaForMaskedLM(RobertaConfig(**{k: v for k, v in plain.items() if k != "model_type"})).eval()
    found = doctor(model_source(model), None, classifiers.tokenizer(), batches=[masked()])
    assert told(found, "row lengths", "stop") == ["rows of 7 tokens, but the student reads 6; shorten them"]
    assert told(found, "speech", "stop") == []


def test_without_a_teacher_nothing_is_said_about_one():
    found = doctor(classifier(), None, classifiers.tokenizer(), batches=classifiers.labelled(0), on="labelled")
    assert not [finding for finding in found.found if "teacher" in finding.says]
    assert found.well


def test_several_teachers_are_told_apart():
    sick = classifiers.bert(seed=1)
    sick.bert.pooler.dense.weight.data[0, 0] = torch.nan
    sources = {"one": classifier(), "two": model_source(sick)}
    found = joined(
        examined(source, classifier(2), settings={"teacher_name": f"teacher {name}"})
        for name, source in sources.items()
    )
    assert told(found, "weights", "stop") == ["the teacher two's weights bert.pooler.dense.weight hold NaN or infinity"]
    assert told(found, "speech", "ok")[0].startswith("student")
    order = [finding.check for finding in found.found]
    assert order == sorted(order, key=order.index)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_changed(training):
    model = classifiers.bert().train(training)
    state = torch.random.get_rng_state()
    examined(student=model_source(model))
    assert model.training is training
    assert torch.equal(torch.random.get_rng_state(), state)
