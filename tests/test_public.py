"""The public surface: listed once, true, documented, and fast to import."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import limbeck

SLOW = ("torch", "transformers", "numpy", "accelerate", "tyro", "rich")


def loaded(code: str) -> list[str]:
    """The modules of ``SLOW`` that a fresh interpreter holds after ``code``."""
    asked = f"import sys, json\n{code}\nprint(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", limbeck.__all__)
def test_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(limbeck, name)
    home = limbeck._PUBLIC[name]
    assert vars(sys.modules[f"limbeck.{home}"])[name] is value
    assert not callable(value) or name == "Batch" or inspect.getdoc(value), f"{name} has no docstring"


def test_names_are_listed_in_order_and_once() -> None:
    assert sorted(limbeck.__all__, key=str.lower) == limbeck.__all__
    assert set(limbeck.__all__) <= set(dir(limbeck))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'distill_everything'"):
        limbeck.distill_everything  # noqa: B018


def test_importing_limbeck_imports_nothing_heavy() -> None:
    assert loaded("import limbeck") == []
    assert loaded("from limbeck import LimbeckError") == []


def test_the_command_line_starts_without_torch() -> None:
    lists = "import limbeck.cli\nassert limbeck.cli.main(['methods']) == 0\nassert limbeck.cli.main(['--help']) == 0"
    assert "torch" not in loaded(lists)
    assert "transformers" not in loaded(lists)
