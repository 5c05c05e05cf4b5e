"""What README, guide and the other pages tell a reader to type works: flags, make's targets, Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import tiny_llms

from limbeck import Vectors, lm_batches
from limbeck.arguments import config_class, parse
from limbeck.commands import find_commands, match

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = find_commands()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NOT_ALL = re.compile(r"\.\.\.|<|^limbeck (methods|hint)\b")


def blocks(page: Path, language: str = "") -> list[str]:
    return [block for name, block in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def commands_in(page: Path) -> list[str]:
    """The commands of a page, in its blocks and in its sentences, but those that are shortened or only imagined."""
    told = [line for block in blocks(page) for line in block.splitlines()]
    told += re.findall(r"`([^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))
    return [line for line in told if line.startswith("limbeck ") and not NOT_ALL.search(line)]


TYPED = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands_in(page)})


def test_the_pages_hold_commands() -> None:
    assert len(TYPED) > 15
    assert ("README.md", "limbeck vocab_trim") in TYPED


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_a_command_is_understood(page: str, line: str) -> None:
    command, words = match(shlex.split(line, comments=True)[1:], COMMANDS)
    if words and "--config" not in words and words != ["--help"]:
        parse(config_class(command.function()), words, f"limbeck {command.words}")


def test_make_has_what_the_pages_name() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_demonstrations_become_vectors_from_python(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = next(block for block in blocks(ROOT / page, "python") if "Distiller" in block)
    found: dict[str, object] = {}
    exec(code.replace('"runs/mend"', '"limbeck:atlas/weights/distiller"'), found)
    assert isinstance(found["vectors"], Vectors)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert len(list(tmp_path.glob("*-peft/adapter_config.json"))) == 1


def test_parts_mix_from_python(tmp_path: Path) -> None:
    code = next(block for block in blocks(ROOT / "README.md", "python") if "mean_source" in block)
    models = {name: tiny_llms.build("gpt2", seed=seed) for seed, name in enumerate(("a", "b", "student"))}
    stream = lm_batches(["good film great book"] * 200, tiny_llms.tokenizer(), 8, 2)
    exec(code.replace("steps=1000", "steps=2"), {**models, "stream": stream, "out": tmp_path})
    assert (tmp_path / "two-teachers" / "done").exists()
