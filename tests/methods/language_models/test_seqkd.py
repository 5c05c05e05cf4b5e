"""SeqKD: from the teacher's text to a student, with a teacher in a folder or behind an API; killed runs go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny_llms
import torch
from serving import Parrot, Serving
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from limbeck.core.check import LimbeckError
from limbeck.data.asked import read_prompts
from limbeck.data.model_writer import Decoding, ModelWriter
from limbeck.evaluation.metrics import sentence_bleu
from limbeck.methods.language_models import seqkd as method
from limbeck.methods.language_models.seqkd import Config, main, seqkd
from limbeck.sources import patience

WORDS = tiny_llms.WORDS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seqkd")
    for kind in tiny_llms.KINDS:
        tiny_llms.save(kind, folder / kind)
    chats = [{"messages": [{"role": "user", "content": f"{a} {b}?"}]} for a in WORDS[:4] for b in WORDS[:6]]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    rows = [{"prompt": f"{a} {b}", "completion": f" {a} {a}"} for a in WORDS[:6] for b in WORDS[:6]]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "text.txt").write_text("\n".join(f"{a} {b} {a} {b} {b} {a}" for a in WORDS[:6] for b in WORDS[:6]))
    return folder


def config(place: Path, out: Path, **settings) -> Config:
    usual = {"teacher": str(place / "llama"), "student": "every-other", "data": str(place / "pairs.jsonl")}
    sizes = {"new_tokens": 4, "steps": 3, "batch": 4, "length": 16, "prompt_length": 3}
    return Config(out, **{**usual, **sizes, **settings})


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "written" / "written.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("data", "decode"), [("pairs.jsonl", None), ("text.txt", "sample")])
def test_the_command_on_a_model_and_data_of_the_user(place, tmp_path, kind, data, decode):
    cfg = config(place, tmp_path / "run", teacher=str(place / kind), data=str(place / data), decode=decode)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert math.isfinite(metrics["held_out"]["nll"])
    assert metrics["before"]["nll"] > 0
    assert metrics["text"]["settings"]["decode"] == (decode or "beam")
    prompts = read_prompts(place / data, tiny_llms.tokenizer(), 3)
    model = AutoModelForCausalLM.from_pretrained(place / kind)
    how = Decoding(decode or "beam", 4, seed=0)
    texts = ModelWriter(model, tiny_llms.tokenizer(), how)([prompt.text for prompt in prompts], 0)
    expected = [(prompt.text, text) for prompt, [(text, _)] in zip(prompts, texts, strict=True) if text.strip()]
    assert [(row["prompt"], row["completion"]) for row in rows(out)] == expected
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    page = (out / "report.html").read_text()
    assert "Student on the teacher&#x27;s text" in page or "Student on the teacher's text" in page
    before = (out / "written" / "written.jsonl").stat().st_mtime_ns, metrics["held_out"]
    parts = [path.stat().st_mtime_ns for path in sorted((out / "written" / "parts").iterdir())]
    again = json.loads((main(cfg) / "metrics.json").read_text())
    assert again["held_out"] == before[1], "done, and remembered"
    assert [path.stat().st_mtime_ns for path in sorted((out / "written" / "parts").iterdir())] == parts


def test_a_teacher_behind_an_api(place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(patience, "FIRST", 0.01)
    with Serving(Parrot()) as server:
        server.fail("429", "500", "cut", "broken")
        settings = {"teacher": server.url, "student": str(place / "llama"), "price": (1.0, 10.0), "length": 32}
        out = main(config(place, tmp_path / "run", **settings))
        assert len(server.answered) == 36 + 2, "the cut and the broken reply were answered"
        main(config(place, tmp_path / "run", **settings, concurrency=2, timeout=9.0))
        assert len(server.answered) == 38
    assert rows(out)[0] == {"prompt": "good good", "completion": "good good again", "finished": True}
    assert server.answered[0]["temperature"] == 1.0
    served = json.loads((out / "metrics.json").read_text())["served"]
    assert (served["in_all"]["replies"], served["model"]) == (36, "parrot")
    assert served["in_all"]["cost"] > 0
    assert "parrot: 36 replies asked for, 0 from" in capsys.readouterr().err
    assert "The served teacher" in (out / "report.html").read_text()
    record = json.loads((out / "run.json").read_text())
    assert record["config"]["teacher"] == server.url


def test_an_encoder_decoder(place, tmp_path):
    out = main(config(place, tmp_path / "run", teacher=str(place / "t5"), data=str(place / "pairs.jsonl")))
    metrics = json.loads((out / "metrics.json").read_text())
    assert math.isfinite(metrics["held_out"]["nll"])
    assert AutoModelForSeq2SeqLM.from_pretrained(out).config.num_layers == 1


@pytest.mark.parametrize("served", [False, True])
def test_conversations_are_answered_by_the_teacher_and_learned_through_the_template(place, tmp_path, served):
    settings = {"data": str(place / "chats.jsonl"), "length": 64, "student": str(place / "gpt2")}
    settings |= {"new_tokens": 20, "stop": ("e", "o")}  # a random model hardly ever ends a text by itself
    with Serving(Parrot()) as server:
        teacher = server.url if served else str(place / "llama")
        out = main(config(place, tmp_path / "run", teacher=teacher, **settings))
    for row in rows(out):
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["finished"], "chats that are cut are left out"
    left = json.loads((out / "metrics.json").read_text())["text"]["left_out"]
    assert len(rows(out)) + sum(left.values()) == 24
    assert set(left) <= {"not finished", "empty", "duplicate"}
    assert "Assistant" in AutoTokenizer.from_pretrained(out).chat_template


def test_a_run_that_stops_while_the_teacher_writes_goes_on(place, tmp_path, monkeypatch):
    straight = main(config(place, tmp_path / "straight", prompts=20, decode="sample"))
    monkeypatch.setattr("limbeck.writers.CHUNK", 6)
    whole = main(config(place, tmp_path / "whole", prompts=20, decode="sample"))
    calls: list[int] = []
    write = ModelWriter.__call__

    def tired(self, prompts, number):
        calls.append(number)
        if calls == [0, 1]:
            raise KeyboardInterrupt
        return write(self, prompts, number)

    monkeypatch.setattr(ModelWriter, "__call__", tired)
    cfg = config(place, tmp_path / "stopped", prompts=20, decode="sample")
    with pytest.raises(KeyboardInterrupt):
        main(cfg)
    main(cfg)
    assert calls == [0, 1, 1, 2, 3]
    assert (tmp_path / "stopped/written/written.jsonl").read_bytes() == (whole / "written/written.jsonl").read_bytes()
    names = [f"{out}/model.safetensors" for out in (tmp_path / "stopped", whole)]
    assert Path(names[0]).read_bytes() == Path(names[1]).read_bytes()
    assert (straight / "written/written.jsonl").read_bytes() != (whole / "written/written.jsonl").read_bytes()


def test_the_student_learns_what_the_teacher_writes(place, tmp_path):
    """A teacher that always says the same: the student comes to say it too."""
    student = tiny_llms.build("gpt2", width=32)
    tokenizer = tiny_llms.tokenizer()
    cfg = Config(tmp_path, steps=60, batch=6, length=16, lr=1e-2)
    prompts = read_prompts(place / "pairs.jsonl", tokenizer, 3)
    said = seqkd(student, tokenizer, prompts, lambda texts, number: [[(" red blue", True)]] * len(texts), cfg)
    assert said["held_out"]["nll"] < 0.1 < said["before"]["nll"]
    answer = ModelWriter(student.eval(), tokenizer, Decoding("greedy", 6))(["good bad"], 0)
    assert answer == [[(" red blue", True)]]


def test_of_the_beams_the_one_nearest_to_the_data(place, tmp_path):
    out = main(config(place, tmp_path / "run", choose="nearest", beams=4, prompts=8))
    prompts = read_prompts(place / "pairs.jsonl", tiny_llms.tokenizer(), 3)[:8]
    model = AutoModelForCausalLM.from_pretrained(place / "llama")
    how = Decoding("beam", 4, samples=4, beams=4)
    texts = ModelWriter(model, tiny_llms.tokenizer(), how)([prompt.text for prompt in prompts], 0)
    for row, prompt, found in zip(rows(out), prompts, texts, strict=True):
        best = max(sentence_bleu(text, prompt.reference) for text, _ in found)
        assert sentence_bleu(row["completion"], prompt.reference) == best


def test_texts_that_do_not_fit_a_row_are_left_out_and_unfinished_ones_if_asked(place, tmp_path):
    def write(texts, number):
        return [[(" red" * (n % 20 + 1), n % 2 == 0)] for n in range(len(texts))]

    prompts = read_prompts(place / "pairs.jsonl", tiny_llms.tokenizer(), 3)
    student = tiny_llms.build("gpt2")
    for unfinished, left in (("keep", {"too long": 8}), ("drop", {"not finished": 18, "too long": 4})):
        cfg = Config(tmp_path / unfinished, steps=1, batch=4, length=16, unfinished=unfinished)
        said = seqkd(student, tiny_llms.tokenizer(), prompts, write, cfg)
        assert said["text"]["left_out"] == left


def test_the_default_prompts_are_tasks_of_the_atlas():
    cfg = method.settled(Config(prompts=5))
    prompts = method.prompts_of(cfg, None)
    assert cfg.stop == ("\n\n\n",)
    assert len(prompts) == 5
    assert all(prompt.text.count("\n\n\n") == 8 and prompt.reference.startswith("\n") for prompt in prompts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere"}, "cannot load 'nowhere' as a"),
        (
            {"teacher": "http://127.0.0.1:9"},
            "--student every-other is made from its teacher, but http://127.0.0.1:9 is",
        ),
        ({"teacher": "http://127.0.0.1:9", "student": "GPT", "decode": "beam"}, "cannot search with beams"),
        ({"teacher": "http://127.0.0.1:9", "student": "GPT"}, "the connection failed"),
        ({"teacher": "http://me:pw@a.example", "student": "GPT"}, "holds a name or password"),
        ({"choose": "nearest", "decode": "greedy"}, "--choose nearest needs several texts"),
        ({"decode": "greedy", "samples": 2}, "--samples 2"),
        ({"data": "nothing.jsonl"}, "nothing.jsonl: no such file"),
        ({"length": 2}, "--length 2: expected at least 3 tokens"),
        ({"prompt_length": 0, "data": "text.txt"}, "--prompt-length 0"),
    ],
)
def test_mistakes_of_the_user_leave_nothing_behind(place, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(patience, "FIRST", 0.01)
    if changes.get("student") == "GPT":
        changes = {**changes, "student": str(place / "gpt2")}
    if changes.get("data") == "text.txt":
        changes = {**changes, "data": str(place / "text.txt")}
    with pytest.raises(LimbeckError, match=message):
        main(config(place, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_sentence_bleu():
    assert sentence_bleu("a b c d e", "a b c d e") == pytest.approx(1.0)
    assert sentence_bleu("a b", "a b") == pytest.approx(1.0)
    assert sentence_bleu("x y", "a b") == sentence_bleu("", "a") == 0.0
    # unigrams 2/3, bigrams (1 + 1)/(2 + 1), trigrams (0 + 1)/(1 + 1), four-grams (0 + 1)/(0 + 1); brevity exp(1 - 4/3)
    expected = (2 / 3 * 2 / 3 * 1 / 2 * 1) ** 0.25 * math.exp(1 - 4 / 3)
    assert sentence_bleu("a b x", "a b c d") == pytest.approx(expected)
    assert sentence_bleu("a a a", "a b c") == pytest.approx((1 / 3 * 1 / 3 * 1 / 2) ** 0.25)


def test_the_teacher_writes_in_eval_mode_and_learns_nothing(place, tmp_path):
    teacher = tiny_llms.build("gpt2").train()
    before = [p.clone() for p in teacher.parameters()]
    write, server = method.writer(config(place, tmp_path, decode="greedy"), teacher, tiny_llms.tokenizer())
    assert server is None
    write(["good"], 0)
    assert not teacher.training
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
