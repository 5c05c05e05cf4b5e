"""The page on stores: its Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limbeck.atlas import corpora
from limbeck.data.store.folder import open_store
from limbeck.models.load import load_model
from limbeck.students.layers import smaller

PAGE = Path(__file__).parents[1] / "docs" / "stores.md"


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, tokenizer = load_model("limbeck:atlas/weights/lm", "causal")
    smaller(teacher, 1, 40).save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    (tmp_path / "corpus.txt").write_text("\n".join(corpora.documents("en", 12, 0)))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    exec(compile(code, "docs/stores.md", "exec"), {})
    open_store(tmp_path / "store").check()
