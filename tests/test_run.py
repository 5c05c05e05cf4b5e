"""A run's folder: what is written, what is refused, what resumes."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from limbeck.core.check import LimbeckError
from limbeck.record import commit, config_of
from limbeck.report.model_card import loading
from limbeck.report.sections import Table
from limbeck.run import Run, begin


@dataclass(frozen=True)
class Config(Run):
    """Settings of a fake method."""

    steps: int = 10
    lr: float = 1e-3
    student: Any = "gpt2"
    data: tuple[Path, ...] = (Path("a.jsonl"),)
    weights: dict[str, float] = field(default_factory=lambda: {"kl": 0.5})


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(out=tmp_path / "run")


def small_model() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=11, n_positions=8))


def test_begin_writes_the_record(cfg: Config) -> None:
    run = begin(cfg, "fake")
    record = json.loads((run.out / "run.json").read_text())
    assert record["method"] == "fake"
    assert record["seed"] == 0
    assert record["config"]["data"] == ["a.jsonl"]
    assert record["config"]["weights"] == {"kl": 0.5}
    assert {"python", "limbeck", "torch", "transformers"} <= set(record["versions"])
    assert record["platform"]["system"]
    assert record["command"]
    assert record["commit"] == commit()
    assert run.stage_dir == cfg.out / "stages"


def test_begin_seeds_everything(cfg: Config) -> None:
    drawn = []
    for _ in range(2):
        begin(cfg, "fake")
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    begin(replace(cfg, out=cfg.out / "other", seed=1), "fake")
    assert random.random() != drawn[0][0]


def test_the_same_configuration_resumes(cfg: Config) -> None:
    begin(cfg, "fake")
    begin(replace(cfg, device="cpu", save_every=3), "fake")
    record = json.loads((cfg.out / "run.json").read_text())
    assert len(record["resumed"]) == 1
    assert record["config"]["device"] == "auto"


def test_another_configuration_is_refused_and_nothing_changes(cfg: Config) -> None:
    begin(cfg, "fake")
    before = (cfg.out / "run.json").read_text()
    with pytest.raises(LimbeckError, match=r"another configuration \(steps was 10 and is now 11\)"):
        begin(replace(cfg, steps=11), "fake")
    with pytest.raises(LimbeckError, match="holds a run of fake, not of other"):
        begin(cfg, "other")
    assert (cfg.out / "run.json").read_text() == before


def test_somebody_elses_files_are_not_overwritten(cfg: Config) -> None:
    cfg.out.mkdir()
    (cfg.out / "config.json").write_text("{}")
    with pytest.raises(LimbeckError, match=r"holds config\.json of another origin"):
        begin(cfg, "fake")
    assert [path.name for path in cfg.out.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_written_is_named(cfg: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LimbeckError, match="file/run"):
        begin(replace(cfg, out=tmp_path / "file" / "run"), "fake")


def test_a_broken_record_is_named(cfg: Config) -> None:
    cfg.out.mkdir()
    (cfg.out / "run.json").write_text('{"method": "fa')
    with pytest.raises(LimbeckError, match=r"run.json:1"):
        begin(cfg, "fake")


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lr": float("nan")}, "--lr nan"),
        ({"seed": -1}, "--seed -1"),
        ({"accumulate": 0}, "--accumulate 0"),
        ({"save_every": 0}, "--save-every 0"),
        ({"device": "gpu"}, "--device: expected one of auto, cpu"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(cfg: Config, change: dict[str, Any], flag: str) -> None:
    with pytest.raises(LimbeckError, match=flag):
        begin(replace(cfg, **change), "fake")
    assert not cfg.out.exists()


def test_finish_writes_student_card_metrics_and_report(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    run = begin(cfg, "fake")
    model = small_model()
    table = Table("Result", ("method", "score"), [("fake", 0.5)])
    folder = run.finish(model, metrics={"score": {"held_out": 0.5}}, sections=[table])
    again = GPT2LMHeadModel.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert json.loads((folder / "metrics.json").read_text()) == {"score": {"held_out": 0.5}}
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "gpt2"
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "| score.held_out | 0.500 |" in card
    assert "<h2>Result</h2>" in (folder / "report.html").read_text()
    assert str(folder) in capsys.readouterr().out
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_the_card_says_how_to_load_each_kind(cfg: Config) -> None:
    out = cfg.out
    assert "AutoTokenizer" not in str(loading(small_model(), None, out))
    assert f'tokenizer = AutoTokenizer.from_pretrained("{out}")' in str(loading(small_model(), "tokenizer", out))
    assert loading(None, None, out) is None
    ours = loading(begin(cfg, "fake"), None, out)
    assert ours == f'from limbeck.run import Started\n\nmodel = Started.from_pretrained("{out}")'


@pytest.mark.parametrize(("student", "base"), [("every-other", None), ("6x384", None), ("org/small", "org/small")])
def test_a_size_is_no_base_model(cfg: Config, student: str, base: str | None) -> None:
    card = (begin(replace(cfg, student=student), "fake").finish() / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]).get("base_model") == base


@pytest.mark.parametrize(
    ("name", "listed"), [("org/model-7b", True), ("our own small model", False), ("/models/x", False)]
)
def test_only_a_hub_id_is_a_base_model(cfg: Config, name: str, listed: bool) -> None:
    card = (begin(cfg, "fake").finish(base_model=name) / "README.md").read_text()
    assert (yaml.safe_load(card.split("---")[1]).get("base_model") == name) is listed
    assert f"made from: {name}" in card


def test_finish_without_a_model_promises_none(cfg: Config) -> None:
    card = (begin(cfg, "fake").finish(metrics={}) / "README.md").read_text()
    assert "from_pretrained" not in card
    assert "Nothing was measured" in card


def test_what_cannot_be_saved_is_named(cfg: Config) -> None:
    with pytest.raises(LimbeckError, match="cannot save Linear"):
        begin(cfg, "fake").finish(torch.nn.Linear(1, 1))
    assert not (cfg.out / "metrics.json").exists()


def test_other_ranks_write_nothing(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    begin(cfg, "fake").finish(small_model())
    assert list(cfg.out.iterdir()) == []


def test_objects_are_recorded_by_their_class(cfg: Config) -> None:
    assert config_of(replace(cfg, student=small_model()))["student"] == {"object": "GPT2LMHeadModel"}


def test_the_accelerator_follows_the_configuration(cfg: Config) -> None:
    run = begin(replace(cfg, device="cpu", tracker="tensorboard"), "fake")
    assert run.accelerator.device.type == "cpu"
    assert run.accelerator is run.accelerator
    assert (cfg.out / "tensorboard").exists()
    run.finish()


@pytest.mark.parametrize(("accelerator", "cpu"), [(None, True), ("cuda", False)])
def test_the_accelerator_is_told_of_a_machine_without_one(
    cfg: Config, monkeypatch: pytest.MonkeyPatch, accelerator: str | None, cpu: bool
) -> None:
    """Left alone, Accelerate takes each process of torchrun for the only one where there is no accelerator."""
    told: dict[str, Any] = {}
    found = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)
    monkeypatch.setattr("accelerate.Accelerator", lambda **settings: told.update(settings))
    begin(cfg, "fake").accelerator  # noqa: B018
    assert told["cpu"] is cpu
