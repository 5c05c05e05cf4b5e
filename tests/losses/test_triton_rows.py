"""The Triton kernels by Triton's interpreter, where Triton is installed, as it is with PyTorch for CUDA; its absence.

The interpreter has to be asked for before Triton is imported, so the numbers come from a child process.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.closed import FORMS
from limbeck.losses.divergence import jsd
from limbeck.losses.fused import fused
from limbeck.losses.heads import Head

CHILD = Path(__file__).with_name("triton_child.py")


def heads() -> tuple[Head, Head]:
    student, teacher = (Head(torch.randn(3, 4), torch.randn(9, 4)) for _ in range(2))
    student.hidden.requires_grad_()
    return student, teacher


if importlib.util.find_spec("triton"):

    def child(*args, **settings):
        env = os.environ | {"PYTHONWARNINGS": "ignore"} | settings
        done = subprocess.run([sys.executable, CHILD, *args], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @pytest.fixture(scope="module")
    def said():
        return child(TRITON_INTERPRET="1")

    def test_compiles_for_a_gpu(tmp_path):
        assert min(child("compile", TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))) > 1000

    def test_every_form_has_run(said):
        assert set(said["ran"]) == {form.__name__ for form in FORMS if form.__name__ != "adaptive_kl"} | {
            "cross_entropy"
        }

    @pytest.mark.parametrize("case", ["far", "near", "banned", "capped"])
    def test_as_close_to_float64_as_the_closed_forms(said, case):
        errors = {name: pair for name, pair in said["errors"].items() if name.startswith(case)}
        assert errors
        for name, (kernel, closed) in errors.items():
            assert kernel <= 3 * closed + 1e-6, name

    def test_on_the_cpu_without_the_interpreter_nothing_changes(monkeypatch):
        sides = heads()
        expected = fused(jsd, *sides)
        monkeypatch.setenv("LIMBECK_TRITON", "1")
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert torch.equal(fused(jsd, *sides), expected)


def test_triton_that_is_asked_for_and_not_there(monkeypatch):
    monkeypatch.setenv("LIMBECK_TRITON", "1")
    monkeypatch.setitem(sys.modules, "limbeck.losses.triton_rows", None)
    monkeypatch.delattr("limbeck.losses.triton_rows", raising=False)
    with pytest.raises(LimbeckError, match="LIMBECK_TRITON=1 asks for Triton, which is not installed"):
        fused(jsd, *heads())


def test_nobody_imports_triton_unasked():
    code = "import sys, limbeck.losses.fused; sys.exit('limbeck.losses.triton_rows' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
