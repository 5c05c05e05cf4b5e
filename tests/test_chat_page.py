"""The page on chat models: its code runs as it stands, but for the names of models and files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

PAGE = Path(__file__).parents[1] / "docs" / "distil-a-chat-model.md"
sys.path.insert(0, str(Path(__file__).parent / "methods" / "language_models"))

import chats_of  # noqa: E402


def block(holding: str) -> str:
    found = [
        code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) if holding in code
    ]
    assert len(found) == 1, f"the page has {len(found)} blocks with {holding!r}"
    return found[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    chats_of.make_files(tmp_path)
    (tmp_path / "manuals.txt").write_text((tmp_path / "text.txt").read_text() * 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_three_lines(place: Path) -> None:
    code = block("main(Config(")
    assert len([line for line in code.splitlines() if line]) <= 3
    for name, mine in (
        ("Qwen/Qwen3-8B", "llama"),
        ("Qwen/Qwen3-0.6B", "small"),
        ("steps=2000", "steps=2"),
        ("1024", "96"),
    ):
        assert name in code
        code = code.replace(name, mine)
    exec(code, {})
    assert json.loads((place / "runs" / "distill" / "metrics.json").read_text())["steps"] == 2


def names(place: Path) -> dict[str, Any]:
    load = transformers.AutoModelForCausalLM.from_pretrained
    models = {
        name: load(place / folder) for name, folder in (("big", "llama"), ("other", "llama"), ("student", "small"))
    }
    return {**models, "tokenizer": transformers.AutoTokenizer.from_pretrained(place / "llama")}


def test_inside_another_trainer(place: Path) -> None:
    items = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]} for _ in range(4)]
    args = transformers.TrainingArguments(place / "t", max_steps=1, use_cpu=True, disable_tqdm=True, report_to=[])
    collate = transformers.default_data_collator
    known = {**names(place), "Trainer": transformers.Trainer, "args": args, "data": items, "collate": collate}
    before = known["student"].lm_head.weight.clone()
    exec(block("distilling("), known)
    assert known["trainer"].state.global_step == 1
    assert not torch.equal(before, known["student"].lm_head.weight)
