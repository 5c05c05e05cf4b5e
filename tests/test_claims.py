"""The scripts of the claims fit the package as it stands, and every result says what was claimed and what came out."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parents[1] / "claims"


@pytest.mark.parametrize("script", sorted(path.stem for path in CLAIMS.glob("*.py")))
def test_scripts_can_be_imported(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CLAIMS))
    module = importlib.import_module(script)
    assert script == "common" or callable(module.main)


@pytest.mark.parametrize("path", sorted((CLAIMS / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_are_whole(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (CLAIMS / f"{path.stem}.py").exists()
    assert result["claim"]
    assert all({"claim", "holds"} <= set(check) for check in result["checks"])
    held = sum(check["holds"] for check in result["checks"])
    whole = held == len(result["checks"])
    assert result["verdict"] == ("confirmed" if whole else f"{held} of {len(result['checks'])} checks hold")
