"""Teachers that are held in another form or spread over devices: what reaches transformers, and what is not moved."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.core.check import LimbeckError
from limbeck.models import placement
from limbeck.models.load import load_model, load_network
from limbeck.models.placement import held, placed, settled
from limbeck.sources.model import model_source
from limbeck.sources.readout import Distant, readout, to_be_read

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 11}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What from_pretrained is asked for; it gives nothing."""
    seen: dict[str, Any] = {}

    def from_pretrained(name: str, **settings: Any) -> Any:
        seen.update(settings)
        raise OSError("enough")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return seen


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes, as far as its configuration looks."""
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.50.0" if name == "bitsandbytes" else version(name)
    )
    monkeypatch.setattr(placement, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("dtype", "spread", "expected"),
    [
        ("bfloat16", None, {"dtype": "bfloat16"}),
        ("auto", "auto", {"dtype": "auto", "device_map": "auto"}),
        ("float32", "balanced", {"dtype": "float32", "device_map": "balanced"}),
    ],
)
def test_arguments_reach_from_pretrained(
    folder: Path, asked: dict[str, Any], dtype: Any, spread: str | None, expected: dict[str, Any]
) -> None:
    with pytest.raises(LimbeckError, match="enough"):
        load_model(folder, "language", **held(dtype, spread))
    assert {name: asked[name] for name in expected} == expected
    assert ("device_map" in asked) == (spread is not None)
    assert "quantization_config" not in asked


@pytest.mark.parametrize(("dtype", "bits"), [("int8", "load_in_8bit"), ("nf4", "load_in_4bit")])
def test_quantisation_reaches_from_pretrained(
    folder: Path, asked: dict[str, Any], installed: None, dtype: Any, bits: str
) -> None:
    with pytest.raises(LimbeckError, match="enough"):
        load_model(folder, "language", **held(dtype))
    assert asked["dtype"] == "auto"
    assert getattr(asked["quantization_config"], bits) is True
    if dtype == "nf4":
        assert asked["quantization_config"].bnb_4bit_quant_type == "nf4"
        assert asked["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16


def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    with pytest.raises(LimbeckError, match="nf4 needs bitsandbytes; install it with pip install bitsandbytes"):
        held("nf4")
    with pytest.raises(LimbeckError, match=r"--teacher-map: expected one of auto, .* did you mean 'balanced'"):
        held("float32", "balance")


def test_a_model_with_its_place_is_frozen_and_stays(folder: Path, tmp_path: Path) -> None:
    spread = {"model": "cpu", "lm_head": "disk"}
    model = load_network(folder, "language", device_map=spread, offload_folder=str(tmp_path / "kept"))
    assert settled(model)
    model.to = None
    assert placed(model, torch.device("meta")) is model
    assert not any(p.requires_grad for p in model.parameters())
    plain = load_network(folder, "language", device_map="auto")  # there is only one place here
    assert not settled(plain)
    assert placed(plain, torch.device("meta")).device.type == "meta"


BATCH = {"ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "mask": torch.tensor([[True, True, True], [True, True, False]])}


def test_weights_that_are_kept_on_disk_are_read_by_the_model_itself(folder: Path, tmp_path: Path) -> None:
    exact = model_source(load_network(folder, "language"))(BATCH).logits_at(BATCH["mask"])
    spread = {"model": "cpu", "lm_head": "disk"}
    model = load_network(folder, "language", device_map=spread, offload_folder=str(tmp_path / "kept"))
    assert model.lm_head.weight.device.type == "meta"
    said = model_source(model)(BATCH)
    assert said.present() == ["logits"]
    torch.testing.assert_close(said.logits_at(BATCH["mask"]), exact)


def test_a_readout_from_another_device_is_handed_over_at_home(folder: Path) -> None:
    model = load_network(folder, "language")
    states = torch.randn(2, 3, 16)
    near = to_be_read(model, states, torch.device("cpu"))
    assert type(near) is type(readout(model, states))
    far = to_be_read(model, states, torch.device("meta"))
    assert isinstance(far, Distant)
    assert far.at(BATCH["mask"]).device.type == "meta"
    assert far.at(BATCH["mask"]).shape == (5, 11)
    torch.testing.assert_close(Distant(readout(model, states), torch.device("cpu")).at(), readout(model, states).at())
