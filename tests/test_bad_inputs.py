"""What cannot go well is told by the command line in one sentence, with exit code 2 and nothing of Python's own.

One table: vocabularies that differ, data in which nothing is to be learned, stores that are damaged, servers that lie,
models that say NaN or infinity. The last are tried on every command that trains.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_classifiers
import tiny_llms
import torch
from serving import Serving
from tiny_served import Teacher, byte_level
from transformers import BertForSequenceClassification

from limbeck.arguments import config_class
from limbeck.cli import main as limbeck
from limbeck.commands import find_commands
from limbeck.sources import patience

WORDS = tiny_llms.WORDS
WRITES = ["--length", "16", "--batch", "4", "--steps", "2"]
READS = ["--length", "8", "--batch", "4", "--steps", "2"]
TEACHES = ["--length", "16", "--top", "8"]
NAN = "the run would be spoiled: .*hold NaN or infinity"


def spoil(folder: Path, source: Path, name: str, value: float | None) -> None:
    """A copy of the model in ``source`` with one NaN in it, or (None) weights so large that logits overflow."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    found = next(key for key in weights if name in key)
    weights[found] = torch.full_like(weights[found], 3e38) if value is None else weights[found]
    if value is not None:
        weights[found].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lines(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, well and not, and data."""
    out = tmp_path_factory.mktemp("place")
    tiny_llms.save("llama", out / "llama")
    tiny_llms.save("llama", out / "small", width=8, layers=1)
    spoil(out / "sick", out / "llama", "layers.1.mlp.up_proj", torch.nan)
    spoil(out / "loud", out / "llama", "lm_head", None)
    other = tiny_llms.tokenizer([f"x{word}" for word in WORDS])
    tiny_llms.build("llama", vocabulary=len(other)).save_pretrained(out / "other")
    other.save_pretrained(out / "other")
    tiny_llms.build("llama", vocabulary=len(other) - 3).save_pretrained(out / "narrow")
    tiny_llms.tokenizer().save_pretrained(out / "narrow")
    tiny_classifiers.write_encoder(out / "bert")
    tiny_classifiers.write_encoder(out / "bert2", seed=1)
    spoil(out / "sick-bert", out / "bert", "layer.3.output.dense.weight", torch.nan)
    names = {"id2label": {i: f"c{i}" for i in range(3)}, "label2id": {f"c{i}": i for i in range(3)}}
    tiny_classifiers.write_encoder(out / "judge", BertForSequenceClassification, **names)
    spoil(out / "sick-judge", out / "judge", "layer.3.output.dense.weight", torch.nan)
    turned = {"id2label": {i: f"c{2 - i}" for i in range(3)}, "label2id": {f"c{2 - i}": i for i in range(3)}}
    tiny_classifiers.write_encoder(out / "turned", BertForSequenceClassification, **turned)
    tiny_llms.write_tasks(out / "tasks")
    pairs = [{"prompt": f"{a} {b}", "completion": f" {b} {a}"} for a in WORDS[:7] for b in WORDS[:7]]
    lines(out / "pairs.jsonl", pairs)
    lines(out / "empty.jsonl", [pair | {"completion": ""} for pair in pairs])
    lines(out / "unanswered.jsonl", [{"messages": [{"role": "user", "content": "good film"}]}] * 20)
    made = [{"text": f"{a} {b} {a} {b}", "domain": "film" if a < "m" else "book"} for a in WORDS for b in WORDS]
    lines(out / "domains.jsonl", made)
    lines(out / "silent.jsonl", [row | {"text": row["text"] * (row["domain"] == "film")} for row in made])
    (out / "text.txt").write_text("\n".join(f"{a} {b} {a} {b}" for a in WORDS for b in WORDS[:8]))
    (out / "nothing.txt").write_text("\n\n \n")
    tiny_classifiers.write_rows(out / "rows.jsonl")
    lines(out / "unlabelled.jsonl", [{"text": f"w{i % 9}"} for i in range(30)])
    lines(out / "places.jsonl", [{"text": f"w{i % 7} w3", "repository": f"r{i % 6}"} for i in range(60)])
    (out / "words.txt").write_text("\n".join(f"w{i % 9} w{i % 7} w{i % 5} w2 w8" for i in range(60)))
    assert limbeck(["teach", "--teacher", str(out / "llama"), *_pairs(out), *TEACHES, "--out", str(out / "store")]) == 0
    for name, damage in {"cut": lambda raw: raw[: len(raw) // 2], "flipped": _flip}.items():
        shutil.copytree(out / "store", out / name)
        shard = next((out / name / "shards").glob("*.safetensors"))
        shard.write_bytes(damage(shard.read_bytes()))
    return out


def _flip(raw: bytes) -> bytes:
    spoiled = bytearray(raw)
    spoiled[-40] ^= 4
    return bytes(spoiled)


def _pairs(place: Path) -> list[str]:
    return ["--data", str(place / "pairs.jsonl")]


def refused(words: Sequence[str], place: Path, out: Path, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``limbeck words`` ends with 2 and says ``message`` in one line; names of files in ``place`` stand for them."""
    known = {path.name for path in place.iterdir()}
    argv = [str(place / word) if word in known else word for word in words]
    capsys.readouterr()
    code = limbeck([*argv, "--out", str(out)])
    said = capsys.readouterr().err
    told = [line for line in said.splitlines() if line.startswith("limbeck: ")]
    assert code == 2, said
    assert "Traceback" not in said
    assert said.rstrip().endswith(told[-1]), "the sentence comes last, and in one line"
    assert len(told) == 1
    assert re.search(message, told[0]), told[0]


def taught(command: str, teacher: str, student: str = "1x8", data: str = "pairs.jsonl", *more: str) -> list[str]:
    return [command, "--teacher", teacher, "--student", student, "--data", data, *WRITES, *more]


def judged(command: str, teacher: str, student: str = "every-other", data: str = "rows.jsonl") -> list[str]:
    return [command, "--teacher", teacher, "--student", student, "--data", data, *READS]


NO_TEXT = "nothing.txt: expected at least one line of text"
MISMATCH = r"need one tokenizer, but theirs have \d+ and \d+ tokens"
TABLE: dict[str, tuple[list[str], str]] = {
    "taid, another vocabulary": (taught("taid", "llama", "other"), MISMATCH),
    "gkd, another vocabulary": (taught("gkd", "llama", "other"), MISMATCH),
    "minilm, another vocabulary": (judged("minilm", "bert", "llama", "words.txt"), MISMATCH),
    "distiller, another vocabulary": (judged("distiller", "judge", "sick"), r"tokenizer|cannot load"),
    "romanian_multi_teacher, another vocabulary": (
        ["romanian_multi_teacher", "--teacher", "bert", "llama", "--data", "words.txt", *READS],
        r"tokenizer|cannot load",
    ),
    "taid, a table too small": (taught("taid", "llama", "narrow"), r"rows, but its tokenizer has \d+ tokens"),
    "distiller, classes in another order": (judged("distiller", "judge", "turned"), r"tells c2, c1, c0 apart"),
    "a store of another tokenizer": (taught("taid", "store", "other"), "tokenizer"),
    "distill, empty answers": (taught("distill", "llama", "small", "empty.jsonl"), "empty.jsonl"),
    "taid, empty answers": (taught("taid", "llama", "small", "empty.jsonl"), "empty.jsonl"),
    "gkd, empty answers": (taught("gkd", "llama", "small", "empty.jsonl"), "empty.jsonl"),
    "teach, empty answers": (["teach", "--teacher", "llama", "--data", "empty.jsonl"], "empty.jsonl"),
    "distill, nobody answers": (taught("distill", "llama", "small", "unanswered.jsonl"), "unanswered.jsonl"),
    "minilm, no text": (
        judged("minilm", "bert", "half", "nothing.txt"),
        "nothing.txt: expected at least one line of text",
    ),
    "taid, no text": (
        taught("taid", "llama", "small", "nothing.txt"),
        "nothing.txt: expected at least one line of text",
    ),
    "distiller, no classes": (judged("distiller", "judge", data="unlabelled.jsonl"), "none of the 30 rows has a class"),
    "well_read_students, no classes": (
        judged("well_read_students", "judge", "bert-tiny", "unlabelled.jsonl"),
        "none of the 30 rows has a class",
    ),
    "taid, a store cut short": (taught("taid", "cut"), r"\d+.safetensors: .*limbeck teach"),
    "distill, a store cut short": (taught("distill", "cut"), r"\d+.safetensors: .*limbeck teach"),
    "taid, a flipped bit": (taught("taid", "flipped"), r"\d+.safetensors: .*limbeck teach"),
    "distill, a flipped bit": (taught("distill", "flipped"), r"\d+.safetensors: .*limbeck teach"),
    "taid, infinite logits": (taught("taid", "loud"), "the teacher's logits hold NaN or infinity"),
    "distill, infinite logits": (taught("distill", "loud"), "the teacher's logits hold NaN or infinity"),
    "gkd, infinite logits": (taught("gkd", "loud"), "the teacher's logits hold NaN or infinity"),
    "teach, infinite logits": (["teach", "--teacher", "loud", "--data", "pairs.jsonl", *TEACHES], "NaN or infinity"),
    "ddk, a domain that is not there": (
        taught("ddk", "llama", "small", "domains.jsonl", "--domains", "code"),
        "'code'",
    ),
    "ddk, a domain without text": (taught("ddk", "llama", "small", "silent.jsonl"), "'book': .*holds no text"),
    "ddk, one domain": (taught("ddk", "llama", "small", "domains.jsonl", "--domains", "film"), "at least two of them"),
    "teach, NaN": (["teach", "--teacher", "sick", "--data", "pairs.jsonl", *TEACHES], "NaN"),
    "doctor, NaN": (["doctor", "--teacher", "sick", "--student", "llama", "--data", "pairs.jsonl"], NAN),
}


@pytest.mark.parametrize("name", TABLE)
def test_it_is_told_in_one_sentence(name, place, tmp_path, capsys):
    words, message = TABLE[name]
    refused(words, place, tmp_path / "out", message, capsys)


SPOILED: dict[str, list[str]] = {
    **{name: taught(name, "sick", "small") for name in ("taid", "distill", "gkd", "distillm", "minillm")},
    "semantic_revision": taught("semantic_revision", "sick", "small"),
    "seqkd": taught("seqkd", "llama", "sick", "pairs.jsonl", "--new-tokens", "4", "--prompt-length", "3"),
    "teacher_hacking": [
        *("teacher_hacking", "--oracle", "sick", "--teacher", "llama", "--student", "small", "--data", "pairs.jsonl"),
        *("--prompts", "8", "--oracle-prompts", "8", "--validation", "8", "--teacher-steps", "1"),
        *("--student-steps", "1", "--new-tokens", "4", *WRITES),
    ],
    "ddk": taught("ddk", "sick", "small", "domains.jsonl"),
    "minilm": judged("minilm", "sick-bert", "half", "words.txt"),
    "distiller": judged("distiller", "sick-judge"),
    "well_read_students": judged("well_read_students", "sick-judge", "bert-tiny"),
    "modular_encoder": [
        *("modular_encoder", "--model", "sick-bert", "--data", "places.jsonl", "--length", "20"),
        *READS[2:],
    ],
    "ernie_tiny": [*judged("ernie_tiny", "sick-judge"), "--stages", "adaptive", "specific"],
    "further_pretraining": ["further_pretraining", "--model", "sick-bert", "--data", "rows.jsonl", *READS],
    "romanian_multi_teacher": [
        *("romanian_multi_teacher", "--teacher", "bert", "sick-bert", "--student", "every-other"),
        *("--data", "words.txt", *READS),
    ],
    "mend": [
        *("mend", "--llm", "sick", "--distiller", "small", "--tasks", "tasks", "--length", "4", "--shots", "4"),
        *("--asked", "1", *WRITES[2:]),
    ],
    "vocab_trim": ["vocab_trim", "--model", "sick", "--data", "text.txt", "--heal", "2", "--size", "30", *WRITES[:4]],
}
APART = {
    "auto_distiller",  # trains by runs of distiller
    "demo",  # trains what ships with limbeck, on what ships with limbeck
    "ground_truth_self_distillation",  # begins with kernels and networks that are made anew
}
EARLIER = {  # found before the doctor comes
    "vocab_trim": "the trimmed LlamaForCausalLM differs from its original by nan",
}


def test_every_command_that_trains_is_tried():
    kinds = {name: config_class(command.function()) for name, command in find_commands().items()}
    trains = {name for name, kind in kinds.items() if {"steps", "heal"} & {f.name for f in dataclasses.fields(kind)}}
    assert trains - APART == set(SPOILED)


@pytest.mark.parametrize("name", SPOILED)
def test_no_run_begins_with_weights_that_are_no_numbers(name, place, tmp_path, capsys):
    refused(SPOILED[name], place, tmp_path / "out", EARLIER.get(name, NAN), capsys)
    assert not list((tmp_path / "out").rglob("step-*")), "nothing was trained"


LIES: dict[str, str] = {
    "nan": "NaN|nan",
    "positive": "above 0|positive|2.0",
    "text": "likely",
    "short": "tokens",
    "unsaid": "logprobs|log-probabilities|probabilit",
    "choices": "expected 1 choices, but got 2",
    "html": "expected JSON",
    "error": "upstream is tired",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_that_lies(lie: str, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(patience, "FIRST", 0.01)
    teacher = Teacher(byte_level(), "ids")
    teacher.tokenizer.save_pretrained(tmp_path / "student")
    teacher.model.save_pretrained(tmp_path / "student")
    with Serving(teacher) as server:
        server.fail(*[lie] * 200)
        words = ["teach", "--teacher", server.url, "--tokenizer", str(tmp_path / "student"), "--data", "pairs.jsonl"]
        refused([*words, "--attempts", "1", *TEACHES], place, tmp_path / "store", LIES[lie], capsys)
