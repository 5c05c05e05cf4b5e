"""The command line, on a small package of two fake methods and a group, and on the real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from limbeck import cli
from limbeck.commands import Command, find_commands, match
from limbeck.core.check import LimbeckError

METHOD = '''"""Tiny KD: a fake.

Paper: Nobody 2026, arXiv 0000.00000
Says:  what is large
       becomes small.
"""
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
import json
from limbeck.core.check import LimbeckError

@dataclass(frozen=True)
class Config:
    """Settings."""
    out: Path = Path("runs/tiny_kd")
    """Where it goes."""
    steps: int = 10
    """Optimizer steps; paper, table 2."""
    lr: float = 1e-4  # authors' code, train.py
    teacher: str | None = None
    """Folder or Hub id."""
    data: tuple[str, ...] = ()
    """Files."""
    kind: Literal["kl", "jsd"] = "kl"
    """Divergence; ours."""
    sampled_pairs: bool = False
    """Whether pairs are sampled; ours."""

def main(cfg: Config) -> None:
    """Run."""
    if cfg.teacher == "bad":
        raise LimbeckError("--teacher bad: expected a folder or Hub id; name another")
    if cfg.teacher == "stop":
        raise KeyboardInterrupt
    if cfg.teacher == "bug":
        raise ZeroDivisionError("unforeseen")
    print(json.dumps({**vars(cfg), "out": str(cfg.out)}))
'''
GROUP = '''"""A group."""
from collections.abc import Callable
from dataclasses import dataclass

@dataclass(frozen=True)
class Words:
    """Settings."""
    text: str
    """What is said."""

def say_it(cfg: Words) -> None:
    """Say it.

    And more.
    """
    print("said", cfg.text)

COMMANDS: dict[str, Callable[..., None]] = {"say": say_it}
'''
EXTRA = '''"""No method: a command."""
from dataclasses import dataclass

@dataclass(frozen=True)
class Nothing:
    """Settings."""

def show(cfg: Nothing) -> None:
    """Show the house."""
    print("shown")

COMMANDS = {"demo": show}
'''
HELPER = "raise RuntimeError('a helper is never imported')\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Command]:
    """Commands of a package written for the test."""
    house = tmp_path / "fakehouse"
    files = {
        "methods/toys/tiny_kd.py": METHOD,
        "methods/toys/helper.py": HELPER,
        "methods/toys/demo.py": EXTRA,
        "context/commands.py": GROUP,
    }
    for name, text in files.items():
        path = house / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("fakehouse")]:
        monkeypatch.delitem(sys.modules, name)
    return find_commands(house, "fakehouse")


@pytest.fixture
def ran(fake: Mapping[str, Command], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the fake command line: exit code, output, errors."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(words, fake)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_finds_methods_commands_and_groups(fake: Mapping[str, Command]) -> None:
    assert list(fake) == ["demo", "tiny_kd", "context say"]
    assert fake["tiny_kd"].card is not None
    assert fake["context say"].title == "Say it."


@pytest.mark.parametrize("name", ["tiny_kd", "tiny-kd"])
@pytest.mark.parametrize("flag", ["--sampled_pairs", "--sampled-pairs"])
def test_hyphens_and_underscores_are_the_same(ran: Callable[..., tuple[int, str, str]], name: str, flag: str) -> None:
    code, out, _ = ran(name, flag, "--lr", "0.5", "--data", "a", "b")
    assert code == 0
    said = json.loads(out)
    assert (said["sampled_pairs"], said["lr"], said["data"], said["steps"]) == (True, 0.5, ["a", "b"], 10)


def test_group_and_plain_commands(ran: Callable[..., tuple[int, str, str]]) -> None:
    assert ran("context", "say", "--text", "hello") == (0, "said hello\n", "")
    assert ran("demo") == (0, "shown\n", "")
    code, out, _ = ran("context")
    assert code == 0
    assert "context say  Say it." in out


def test_help_shows_what_each_default_comes_from(ran: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = ran("tiny-kd", "--help")
    assert code == 0
    for part in ("Tiny KD: a fake.", "arXiv 0000.00000", "table 2", "authors' code, train.py", "(default: 10)"):
        assert part in out


def test_overview_version_and_methods(ran: Callable[..., tuple[int, str, str]]) -> None:
    assert "tiny_kd" in ran()[1]
    assert "context say" in ran("--help")[1]
    assert ran("--version")[1].strip() == f"limbeck {metadata.version('limbeck')}"
    code, out, _ = ran("methods")
    assert code == 0
    assert "what is large becomes small." in out
    assert "limbeck tiny_kd" in out
    assert "demo" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tiny_kb"], "there is no command 'tiny_kb'; did you mean 'limbeck tiny_kd'"),
        (["xyzzy"], "there is no command 'xyzzy'; limbeck --help lists the commands"),
        (["context", "sey"], "expected one of limbeck context say, but got 'limbeck context sey'"),
        (["tiny_kd", "--stepz", "3"], "there is no flag --stepz; did you mean --steps"),
        (["tiny_kd", "--qqqqq"], "there is no flag --qqqqq; limbeck tiny_kd --help lists the flags"),
        (["tiny_kd", "--steps", "many"], "invalid literal for int() with base 10: 'many'"),
        (["tiny_kd", "--steps"], "Missing value for argument '--steps'"),
        (["tiny_kd", "--kind", "mse"], "Expected one of ('kl', 'jsd')"),
        (["tiny_kd", "stray"], "Unrecognized options: stray"),
        (["tiny_kd", "--teacher", "bad"], "--teacher bad: expected a folder or Hub id; name another"),
        (["tiny_kd", "--config"], "--config: expected the path"),
        (["tiny_kd", "--config", "gone.json"], "--config gone.json: cannot be read: No such file"),
        (["context", "say"], "limbeck context say: expected --text, which has no default"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_2(
    ran: Callable[..., tuple[int, str, str]], words: list[str], expected: str
) -> None:
    code, out, err = ran(*words)
    assert (code, out) == (2, "")
    assert err.startswith("limbeck: ")
    assert err.count("\n") == 1
    assert expected in err


def test_stopping_says_how_to_go_on(ran: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = ran("tiny_kd", "--teacher", "stop")
    assert code == 130
    assert "limbeck tiny_kd --teacher stop" in err


def test_what_is_unforeseen_keeps_its_traceback(ran: Callable[..., tuple[int, str, str]]) -> None:
    with pytest.raises(ZeroDivisionError):
        ran("tiny_kd", "--teacher", "bug")


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_config_repeats_a_run_and_the_line_wins(
    ran: Callable[..., tuple[int, str, str]], tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"run.{suffix}"
    config = {"out": "runs/a", "steps": 7, "lr": 1, "data": ["x"], "teacher": None, "sampled-pairs": True}
    path.write_text(json.dumps({"method": "tiny_kd", "config": config, "seed": 0}))  # JSON is YAML too
    for words in (["--config", str(path)], [f"--config={path}"]):
        code, out, err = ran("tiny_kd", *words, "--steps", "8")
        assert code == 0, err
        said = json.loads(out)
        assert (said["out"], said["steps"], said["lr"], said["data"]) == ("runs/a", 8, 1.0, ["x"])
        assert said["sampled_pairs"] is True


def test_plain_yaml_reads_numbers_as_yaml_writes_them(ran: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text("lr: 1e-3\nkind: jsd\n")
    said = json.loads(ran("tiny_kd", "--config", str(path))[1])
    assert (said["lr"], said["kind"]) == (1e-3, "jsd")


def test_config_may_leave_what_the_line_must_give(ran: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("{}\n")
    assert ran("context", "say", "--config", str(path), "--text", "x")[:2] == (0, "said x\n")
    code, _, err = ran("context", "say", "--config", str(path))
    assert code == 2
    assert "--text" in err


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", "{", "a.json:1: expected JSON"),
        ("a.yaml", "a: [1\nb: 2", "a.yaml:2: expected YAML"),
        ("a.yaml", "- 1", "expected names and values, but got list"),
        ("a.json", '{"stepz": 3}', "did you mean 'steps'"),
        ("a.json", '{"steps": "many"}', "steps: expected int, but got 'many'"),
        ("a.json", '{"steps": true}', "steps: expected int, but got True"),
        ("a.json", '{"lr": "fast"}', "lr: expected float, but got 'fast'"),
        ("a.json", '{"kind": "mse"}', "kind: expected one of kl, jsd, but got 'mse'"),
        ("a.json", '{"data": "x"}', "data: expected a list, but got 'x'"),
        ("a.json", '{"teacher": 3}', "teacher: expected str | None, but got 3"),
        ("a.json", '{"method": "taid", "config": {}}', "is the record of 'limbeck taid', not of 'limbeck tiny_kd'"),
        ("a.json", '{"teacher": {"object": "GPT2Model"}}', "the run was given a GPT2Model from Python"),
    ],
)
def test_a_bad_config_names_file_and_field(
    ran: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str, text: str, expected: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    code, _, err = ran("tiny_kd", "--config", str(path))
    assert code == 2
    assert err.count("\n") == 1
    assert name in err
    assert expected in err


def test_two_commands_of_one_name_are_refused(tmp_path: Path) -> None:
    for family in ("a", "b"):
        path = tmp_path / "methods" / family / "same.py"
        path.parent.mkdir(parents=True)
        path.write_text('"""Same."""\ndef main(cfg): ...\n')
    with pytest.raises(LimbeckError, match="the command 'limbeck same' is there twice"):
        find_commands(tmp_path, "x")


def test_python_m_limbeck() -> None:
    words = [sys.executable, "-m", "limbeck"]
    done = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("limbeck ")
    done = subprocess.run([*words, "tiad"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


REAL = find_commands()


@pytest.mark.parametrize("name", list(REAL))
def test_every_command_has_help_with_a_word_on_each_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*name.replace("_", "-").split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: limbeck" in shown
    assert match(name.split(), REAL)[0].title


@pytest.mark.parametrize("name", [name for name, command in REAL.items() if command.card])
def test_every_method_has_a_whole_card_and_its_own_folder(name: str) -> None:
    from limbeck.arguments import config_class
    from limbeck.run import Run

    card = REAL[name].card
    assert card is not None
    missing = {"Paper", "Says", "Parts", "Needs", "Departures", "Checked", "Claim"} - set(card.fields)
    assert not missing, f"the card of {name} lacks {sorted(missing)}"
    config = config_class(REAL[name].function())
    assert issubclass(config, Run)
    assert config().out == Path("runs") / name
