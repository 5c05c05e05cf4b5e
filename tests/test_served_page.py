"""The page on teachers behind an API: its Python runs, its command lines are ones that limbeck reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from serving import Parrot, Serving

from limbeck.arguments import config_class, parse
from limbeck.commands import find_commands, match

PAGE = (Path(__file__).parents[1] / "docs" / "served-teachers.md").read_text(encoding="utf-8")


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    with Serving(Parrot()) as server:
        assert "http://localhost:8000/v1" in code
        exec(code.replace("http://localhost:8000/v1", server.url), {})
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["Why is the sky blue? again True", "And at dusk? again True"]
    assert re.fullmatch(r"parrot: 2 replies asked for, 0 from answers\.sqlite; .* cost .* in all", said[2])


def test_its_commands_are_read() -> None:
    lines = [line for block in re.findall(r"^```\w*\n(.*?)^```", PAGE, re.S | re.M) for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("limbeck ")]
    assert len(commands) == 4
    for words in commands:
        command, rest = match(words, find_commands())
        cfg = parse(config_class(command.function()), rest, f"limbeck {command.words}")
        assert "Qwen/Qwen3-0.6B" in (getattr(cfg, "student", None), getattr(cfg, "tokenizer", None))
