"""Which device a word stands for, on machines with and without an accelerator."""

from __future__ import annotations

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.core.device import pick


def machine(monkeypatch: pytest.MonkeyPatch, accelerator: str | None) -> None:
    """A machine with this accelerator, or none."""
    found = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: found)


@pytest.mark.parametrize(
    ("accelerator", "name", "device"),
    [
        (None, "auto", "cpu"),
        (None, "cpu", "cpu"),
        ("cuda", "auto", "cuda"),
        ("cuda", "cuda", "cuda"),
        ("cuda", "cpu", "cpu"),
        ("mps", "auto", "mps"),
    ],
)
def test_a_word_stands_for_a_device(
    accelerator: str | None, name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, accelerator)
    assert pick(name) == torch.device(device)


@pytest.mark.parametrize(
    ("accelerator", "name", "message"),
    [
        (None, "cuda", "--device cuda: PyTorch finds no cuda here; give auto, which is cpu"),
        ("mps", "cuda", "finds no cuda here; give auto, which is mps"),
        (None, "cudda", "--device: expected one of auto, cpu, cuda, mps, xpu, but got 'cudda'; did you mean 'cuda'?"),
    ],
)
def test_other_words_are_refused(
    accelerator: str | None, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, accelerator)
    with pytest.raises(LimbeckError) as error:
        pick(name)
    assert message in str(error.value)
