"""Files are whole or absent, and broken ones are named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core import save
from limbeck.core.check import LimbeckError
from limbeck.core.save import (
    load_tensors,
    make_folder,
    pack,
    read_json,
    replace_dir,
    save_tensors,
    unpack,
    write_atomic,
    write_json,
)


def test_text_bytes_and_json_come_back(tmp_path: Path) -> None:
    write_atomic(tmp_path / "deep" / "text", "straße")
    assert (tmp_path / "deep" / "text").read_bytes() == "straße".encode()
    write_atomic(tmp_path / "raw", b"\x00\xff")
    assert (tmp_path / "raw").read_bytes() == b"\x00\xff"
    write_json(tmp_path / "value.json", {"a": [1, 0.1, "ț"]})
    assert read_json(tmp_path / "value.json") == {"a": [1, 0.1, "ț"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "raw", "value.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(path: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LimbeckError, match=r"cannot write .*a: No space left on device"):
        write_atomic(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{\n "a": 1,\n "b" 2}')
    with pytest.raises(LimbeckError, match=r"x\.json:3: expected JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(LimbeckError, match=r"cannot read .*none\.json"):
        read_json(tmp_path / "none.json")


def test_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    given = {
        "plain": base,
        "view": base[1:3, ::2],
        "turned": base.T,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 2),
        "half": base.to(torch.bfloat16),
        "mask": base > 0,
    }
    save_tensors(tmp_path / "t.safetensors", given, {"note": "ț"})
    came, note = load_tensors(tmp_path / "t.safetensors")
    assert note == {"note": "ț"}
    assert came.keys() == given.keys()
    for name, value in given.items():
        assert came[name].dtype == value.dtype
        assert torch.equal(came[name], value)


@pytest.mark.parametrize("length", [0, 5, 60, 150])
def test_a_truncated_safetensors_file_is_named(tmp_path: Path, length: int) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(8, 8)})
    assert path.stat().st_size > 150
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(LimbeckError, match=r"t\.safetensors is not a whole safetensors file"):
        load_tensors(path)


def test_a_missing_safetensors_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"no\.safetensors: there is no such file"):
        load_tensors(tmp_path / "no.safetensors")


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="cannot write"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(LimbeckError, match="cannot write"):
        save_tensors(tmp_path / "file" / "t.safetensors", {"a": torch.zeros(1)})
    with pytest.raises(LimbeckError, match="cannot write"):
        write_json(tmp_path / "file" / "x.json", {})


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    replace_dir(tmp_path / "new", tmp_path / "final")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert (tmp_path / "final" / "new").read_text() == "new"


def test_nested_state_comes_back_exactly(tmp_path: Path) -> None:
    given = {
        "numbers": [1, 2**70, -0.1, 1e-320, True, None],
        "tuple": (1, ("a", [2.5])),
        7: {"by number": torch.arange(3)},
        "$": {"a": 1},
        "array": np.arange(4, dtype=np.int64),
        "text": "ț",
    }
    tensors: dict[str, torch.Tensor] = {}
    write_json(tmp_path / "words.json", pack(given, tensors))
    save_tensors(tmp_path / "t.safetensors", tensors)
    came = unpack(read_json(tmp_path / "words.json"), load_tensors(tmp_path / "t.safetensors")[0])
    assert list(came) == list(given)
    assert came["numbers"] == given["numbers"]
    assert came["tuple"] == given["tuple"]
    assert came["$"] == {"a": 1}
    assert torch.equal(came[7]["by number"], torch.arange(3))
    assert isinstance(came["array"], np.ndarray)
    assert came["array"].tolist() == [0, 1, 2, 3]


def test_infinities_survive(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", pack([math.inf, -math.inf, math.nan], {}))
    above, below, none = unpack(read_json(tmp_path / "x.json"), {})
    assert (above, below) == (math.inf, -math.inf)
    assert math.isnan(none)


def test_what_cannot_be_saved_is_named() -> None:
    with pytest.raises(LimbeckError, match=r"'/pace/model' is a Linear"):
        pack({"pace": {"model": torch.nn.Linear(1, 1)}}, {})


def test_nothing_here_unpickles() -> None:
    source = Path(save.__file__).parent
    text = "".join(path.read_text() for path in source.glob("*.py"))
    assert "pickle" not in text.replace("unpickles", "")
    assert "torch.load" not in text


def test_tensors_have_the_permissions_of_other_files(tmp_path):
    save.write_json(tmp_path / "a.json", {})
    save.save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "a.json").stat().st_mode
