"""The page on mixing parts: all of its code runs as it stands, but for the numbers of steps."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
import transformers

PAGE = Path(__file__).parents[1] / "docs" / "mix-the-parts.md"
WORDS = "good film bad book fine song poor plays great awful red blue green one two three four five".split()


def code(heading: str, steps: int) -> str:
    """The code below ``heading``, with fewer steps."""
    (found,) = re.findall(rf"^## {heading}$.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    assert len(re.findall(r"steps=\d+", found)) == 1
    return re.sub(r"steps=\d+", f"steps={steps}", found)


def rows(folder: str) -> list[dict[str, Any]]:
    (path,) = Path("runs", folder).rglob("metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = [" ".join(WORDS[i % 7 : i % 7 + 8]) for i in range(800)]
    pairs = [json.dumps({"prompt": " ".join(WORDS[i % 5 : i % 5 + 4]), "completion": " good film"}) for i in range(60)]
    for folder, files in {"domains": ("manuals.txt", "chats.jsonl"), "asked": ("a.jsonl", "b.jsonl")}.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_text("\n".join(lines if name.endswith("txt") else pairs))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names() -> dict[str, Any]:
    build = tiny_llms.build
    return {
        "student": build("llama", width=16, layers=1, positions=128),
        "big": build("llama", width=32, seed=1, positions=128),
        "other": build("llama", width=16, seed=2, positions=128),
        "tokenizer": tiny_llms.tokenizer(),
    }


def test_all_in_one_expression(place: Path) -> None:
    known = names()
    kept = {name: [p.clone() for p in known[name].parameters()] for name in ("student", "big", "other")}
    exec(code("All in one expression", 4).replace("period=100", "period=2"), known)
    log = rows("mix")
    assert [row["step"] for row in log] == [1, 2, 4]
    for row in log:
        parts = 0.7 * row["taid"] + 0.2 * row["values"] + 0.1 * row["data"]
        assert row["loss"] == pytest.approx(parts, rel=1e-5)
        assert all(row[name] > 0 for name in ("taid", "values", "data"))
        assert row["share.chats"] + row["share.manuals"] == pytest.approx(1)
    assert log[0]["teacher_perplexity.chats"] == log[2]["teacher_perplexity.chats"]
    assert log[2]["share.chats"] != log[0]["share.chats"]
    assert known["stream"].weights == pytest.approx({name: log[2][f"share.{name}"] for name in ("chats", "manuals")})
    assert known["pace"].t > 0.4
    for name, before in kept.items():
        still = [torch.equal(old, new) for old, new in zip(before, known[name].parameters(), strict=True)]
        assert all(still) if name != "student" else not any(still)


def test_a_pace_alone(place: Path) -> None:
    known = names()
    exec(code("All in one expression", 1), known)
    exec(code("A pace alone", 4), known)
    assert known["pace"].t == pytest.approx(0.2 + 0.8 * 3 / 4)


def test_exits(place: Path) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    core = tiny_llms.tokenizer()
    core.add_special_tokens({"mask_token": "<mask>"})
    torch.manual_seed(0)
    encoder, teacher = (
        transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(core), max_position_embeddings=32, **size))
        for _ in range(2)
    )
    texts = ["good film bad book fine song"] * 20
    exec(
        code("Exits", 2),
        {"encoder": encoder, "encoder_teacher": teacher, "encoder_tokenizer": core, "texts": texts},
    )
    assert {"soft.1", "soft.2"} <= set(rows("exits")[0])
    assert transformers.BertForMaskedLM.from_pretrained("runs/shallow").config.num_hidden_layers == 1


def test_on_policy_streams(place: Path) -> None:
    known = names()
    exec(code("On-policy streams", 4), known)
    assert sum(known["rollout"].given.values()) == 4
    assert sum(known["prompts"].drawn.values()) == 32
    assert min(known["prompts"].drawn.values()) > 0
