"""The generated pages are those of the tree, and every setting says where its default comes from."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from limbeck.cards import METHODS, parse_card, read_card
from limbeck.commands import find_commands
from limbeck.core.check import LimbeckError

ROOT = Path(__file__).parents[1]


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_make", ROOT / "docs" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()
METHOD_FILES = [METHODS / c.card.family / f"{c.card.name}.py" for c in find_commands().values() if c.card]


def test_pages_on_disk_are_up_to_date() -> None:
    assert [path.relative_to(ROOT).as_posix() for path in make.stale()] == [], "run make docs"


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: path.stem)
def test_every_setting_says_what_it_is(path: Path) -> None:
    bare = [option.name for option in make.options(path) if not option.source]
    assert bare == [], f"{path.name}: these settings need a line that names the source of their default: {bare}"


def test_options_read_docstrings_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "class Config:\n"
        '    """Settings."""\n'
        "    steps: int = 3\n"
        '    """Steps;\n    paper."""\n'
        "    lr: float | None = None  # code\n"
        "    model: str\n"
    )
    assert [tuple(option) for option in make.options(path)] == [
        ("steps", "int", "3", "Steps; paper."),
        ("lr", "float | None", "None", "code"),
        ("model", "str", "(needed)", ""),
    ]


def test_options_are_inherited_from_whatever_a_config_is_made_of_but_the_run(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text(
        "from limbeck.run import Run\n"
        "from limbeck.sources.served import Service\n"
        "class Base:\n"
        "    beams: int = 5  # the paper\n"
        "    steps: int = 3  # unseen\n"
        "class Config(Base, Service, Run):\n"
        "    steps: int = 4  # a choice\n"
    )
    found = make.options(path)
    assert [tuple(option) for option in found[:2]] == [
        ("steps", "int", "4", "a choice"),
        ("beams", "int", "5", "the paper"),
    ]
    names = [option.name for option in found]
    assert "served_model" in names
    assert all(option.source for option in found)
    assert "seed" not in names


def test_a_page_that_is_old_or_belongs_to_nothing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "DOCS", tmp_path)
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["make.py"])
    assert make.stale() == sorted(make.pages())
    assert make.main() == 0
    assert make.stale() == []
    (tmp_path / "methods.md").write_text("old")
    (tmp_path / "methods" / "gone.md").write_text("a method that was removed")
    assert [path.name for path in make.stale()] == ["gone.md", "methods.md"]
    monkeypatch.setattr("sys.argv", ["make.py", "--check"])
    assert make.main() == 1
    assert (tmp_path / "methods" / "gone.md").exists()


def test_tables_escape_bars() -> None:
    assert make.table(("a", "b"), [("x | y", "1")]).splitlines()[-1] == "| x \\| y | 1 |"


def test_claims_show_verdict_and_numbers() -> None:
    result = {
        "rows": [{"seed": 0, "method": "a", "kl": 0.5}],
        "summary": {"a": {"kl": {"mean": 0.5, "sd": 0.01}}, "b": {"kl": {"mean": 0.4}, "steps": 3}},
        "checks": [{"claim": "A beats B", "holds": False, "seen": "0.5 against 0.4"}],
        "verdict": "0 of 1 checks hold",
        "setting": {"steps": 300},
    }
    text = "\n".join(make._claim("fake", result))
    assert "**Verdict:** 0 of 1 checks hold" in text
    assert "| no | A beats B | 0.5 against 0.4 |" in text
    assert "| a | 0.500 ± 0.010 |  |" in text
    assert "| b | 0.400 | 3 |" in text
    assert "| steps | 300 |" in text
    assert "seed" not in text


def test_a_card_is_title_fields_and_free_text() -> None:
    card = parse_card("TAID: a title.\n\nFree text.\n\nPaper: p\nSays:  one\n       two\n\nNot a field: three", "taid")
    assert card.title == "TAID: a title."
    assert card.fields == {"Paper": "p", "Says": "one two"}
    assert card.text == "Free text.\n\nNot a field: three"


def test_a_method_without_a_card_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bare.py"
    path.write_text("x = 1\n")
    with pytest.raises(LimbeckError, match=r"bare.py: expected a card"):
        read_card(path)
