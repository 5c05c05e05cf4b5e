"""The page on text by the student: its code runs, its commands and parts are there."""

import re
from pathlib import Path

import pytest
from tiny_llms import save

from limbeck.commands import find_commands

PAGE = Path(__file__).parents[1] / "docs" / "text-by-the-student.md"


def test_its_code_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)[1]
    save("gpt2", tmp_path / "teacher")
    save("gpt2", tmp_path / "student", width=8, layers=1, seed=2)
    rows = ['{"prompt": "good bad", "completion": " film"}', '{"prompt": "one two", "completion": " three four"}'] * 8
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code.replace("steps=100", "steps=2"), names)
    assert (tmp_path / "runs" / "mine" / "rollout" / "done").exists()
    assert names["rollout"].position == 2


@pytest.mark.parametrize("name", ["gkd", "distillm", "minillm", "semantic-revision", "teacher-hacking"])
def test_its_commands_are_there(name):
    assert f"limbeck {name}" in PAGE.read_text(encoding="utf-8")
    assert name.replace("-", "_") in find_commands()
