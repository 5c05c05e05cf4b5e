"""The wheel: small, whole, and nothing but the package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT = 25 * 2**20


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    words = ["-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", str(out), str(ROOT)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < LIMIT


def test_it_holds_the_package_and_its_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0].split("-")[0] for name in names}
    assert tops == {"limbeck"}
    inside = {name.removeprefix("limbeck/") for name in names}
    data = [
        path for path in (ROOT / "src" / "limbeck").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.relative_to(ROOT / "src" / "limbeck").as_posix() for path in data} <= inside
    assert {"report/style.css", "py.typed", "cli.py"} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_offers_the_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "limbeck = limbeck.cli:main" in archive.read(points).decode()
