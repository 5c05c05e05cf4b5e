"""``limbeck teach`` on models and data of the user, and a method that learns from the store."""

import json

import numpy as np
import pytest
import torch
from toy_teacher import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.cli import main as limbeck
from limbeck.core.check import LimbeckError
from limbeck.methods.language_models.distill import Config as Distill
from limbeck.methods.language_models.distill import main as distill
from limbeck.methods.language_models.taid import Config as Taid
from limbeck.methods.language_models.taid import main as taid
from limbeck.methods.language_models.teach import Config, write_store
from limbeck.models.load import load_model
from limbeck.sources.stored import stored

SIZE = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    out = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(out / "teacher")
    tokenizer(SIZE).save_pretrained(out / "teacher")
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in draw.integers(2, SIZE, 8)) for _ in range(60)]
    pairs = [json.dumps({"prompt": text[: len(text) // 2], "completion": text[len(text) // 2 :]}) for text in texts]
    (out / "pairs.jsonl").write_text("\n".join(pairs))
    (out / "text.txt").write_text("\n".join(texts))
    settings = {"teacher": str(out / "teacher"), "data": str(out / "pairs.jsonl"), "length": 20, "top": 16}
    write_store(Config(out / "store", **settings))
    return out


def learned(files, teacher, out, **changes):
    settings = {"data": str(files / "pairs.jsonl"), "length": 20, "steps": 4, "batch": 4, "student": "1x16"} | changes
    return taid(Taid(out, teacher=str(teacher), **settings))


@pytest.mark.parametrize("objective", ["taid", "forward_kl", "jsd"])
def test_a_student_of_the_store_learns_as_one_of_the_model(files, tmp_path, objective):
    ends = []
    for name in ("teacher", "store"):
        out = learned(files, files / name, tmp_path / name, objective=objective)
        metrics = json.loads((out / "metrics.json").read_text())
        ends.append((LlamaForCausalLM.from_pretrained(out), metrics))
    assert ends[0][1]["held_out"] == pytest.approx(ends[1][1]["held_out"], abs=0.08)
    assert ends[0][1]["loss"] == pytest.approx(ends[1][1]["loss"], abs=0.04)
    for (name, a), b in zip(ends[0][0].named_parameters(), ends[1][0].parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0.05, msg=name)


def test_distill_packed_and_beside_sft_from_a_store(files, tmp_path):
    """``limbeck distill`` on padded rows of the model and on packed rows of the store."""
    ends = []
    for name, pack in (("teacher", False), ("store", True)):
        settings = {"data": str(files / "pairs.jsonl"), "length": 20, "steps": 3, "batch": 4, "student": "1x16"}
        compare = {"compare": "sft", "pack": pack} if pack else {}
        out = distill(Distill(tmp_path / name, teacher=str(files / name), **settings, **compare))
        ends.append(json.loads((out / "metrics.json").read_text()))
    assert ends[1]["held_out"]["distilled"]["kl"]["mean"] > 0
    assert ends[0]["held_out"]["before"]["kl"]["mean"] == pytest.approx(
        ends[1]["held_out"]["before"]["kl"]["mean"], abs=0.05
    )
    assert set(ends[1]["cost"]) == {"distilled", "sft"}


def test_the_command_line(files, tmp_path, capsys):
    words = ["teach", "--teacher", str(files / "teacher"), "--data", str(files / "text.txt"), "--length", "16"]
    assert limbeck([*words, "--out", str(tmp_path / "store"), "--top", "8", "--hidden", "-1", "0"]) == 0
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'store'}: " in said
    assert "bytes per token" in said
    store = stored(tmp_path / "store").store
    assert store.card["hidden"] == [2, 0]
    assert store.card["about"]["length"] == 16
    assert limbeck([*words, "--out", str(tmp_path / "store"), "--top", "9"]) == 2
    assert "holds a store of something else" in capsys.readouterr().err


def test_import_from_the_command_line(files, tmp_path, capsys):
    rows = []
    for start in range(2, 40):
        ids = list(range(start, start + 10))
        lists = [None, *({str(i): {"logprob": -0.1}, str(i + 1): {"logprob": -3.0}} for i in ids[1:])]
        rows.append({"prompt_token_ids": ids, "prompt_logprobs": lists})
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["teach", "--import", "vllm", "--teacher", str(files / "teacher"), "--data", str(tmp_path / "said.jsonl")]
    assert limbeck([*words, "--out", str(tmp_path / "store")]) == 0
    assert "342 tokens of 38 texts" in capsys.readouterr().out
    settings = {"data": str(tmp_path / "store" / "rows.jsonl"), "length": 10}
    out = learned(files, tmp_path / "store", tmp_path / "run", **settings)
    assert json.loads((out / "metrics.json").read_text())["loss"] > 0
    with pytest.raises(LimbeckError, match=r"rows.jsonl:1: has 10 tokens, but rows are to have at most 9"):
        learned(files, tmp_path / "store", tmp_path / "other", **settings | {"length": 9})
    assert limbeck(["teach", "--import", "vllm", "--out", str(tmp_path / "other")]) == 2
    assert "--import vllm: needs --data" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": "every-other"}, "--student every-other: copies layers of the teacher, whose weights are not here"),
        ({"length": 5}, r"the teacher was never asked about|no room for a prompt"),
        ({"data": "text.txt"}, r"the teacher was never asked about a text .* length 20"),
    ],
)
def test_mistakes_with_a_store_are_told(files, tmp_path, changes, message):
    changes = {name: str(files / value) if name == "data" else value for name, value in changes.items()}
    with pytest.raises(LimbeckError, match=message):
        learned(files, files / "store", tmp_path / "run", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 0}, "--top 0: a store keeps 1 to 4096"),
        ({"tilts": 100}, "a store keeps 0 to 64 directions"),
        ({"hidden": (3,)}, "--hidden 3: the teacher has layers 0 to 2"),
        ({"batch": 0}, "--batch 0: expected a whole number"),
        ({"teacher": "nowhere"}, "cannot load 'nowhere'"),
        ({"data": "nothing.txt"}, "nothing.txt: no such file"),
        ({"teacher": "store"}, "is a store already"),
    ],
)
def test_mistakes_in_teaching_are_told(files, tmp_path, changes, message):
    settings = {"teacher": str(files / "teacher"), "data": str(files / "text.txt"), "length": 12} | changes
    if settings["teacher"] == "store":
        settings["teacher"] = str(files / "store")
    with pytest.raises(LimbeckError, match=message):
        write_store(Config(tmp_path / "out", **settings))


def test_half_of_a_teacher_that_is_not_there_can_be_made(files):
    from limbeck.students.load import load_student

    source = stored(files / "store")
    student = load_student("half", source, tokenizer(SIZE), "causal")
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (1, 16)
    with pytest.raises(LimbeckError, match=r"what .* looks like is not known"):
        load_student("1x16", lambda batch: None, tokenizer(SIZE), "causal")


def test_a_student_with_a_padded_output_layer_learns_from_the_store(files, tmp_path):
    config = LlamaConfig.from_pretrained(files / "teacher", vocab_size=SIZE + 4, hidden_size=16, intermediate_size=16)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "student")
    tokenizer(SIZE).save_pretrained(tmp_path / "student")
    out = learned(files, files / "store", tmp_path / "run", student=str(tmp_path / "student"))
    assert json.loads((out / "metrics.json").read_text())["held_out"]["forward_kl"] > 0


def test_where_a_model_is_needed_a_store_is_refused(files):
    with pytest.raises(LimbeckError, match=r"is a store of what a teacher said .* here the model itself is needed"):
        load_model(files / "store", "causal")
