"""`limbeck ground_truth_self_distillation`: the contract, the released loss, the estimate, and the command."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny_classifiers as classifiers
import torch
from contract import CHECKS, Case, stages_of
from safetensors.torch import load_file

from limbeck.analyses.kernel_ridge import rbf
from limbeck.cli import main as limbeck
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.methods.analysis import ground_truth_self_distillation as method
from limbeck.methods.analysis.fitted_to_itself import by_kernel, kernel_model
from limbeck.methods.analysis.ground_truth_self_distillation import (
    Config,
    main,
    mixture,
    numbers_of,
    perceptron,
    reads,
    sets_of,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "groundtruth-self-distillation-krr" / "deep_loss.npz"
START = Clock(0, 1)


def stream(seed: int, classes: int = 3):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(10):
        values = torch.randn(8, 5, generator=generator)
        batches.append({"values": values, "truth": torch.eye(classes)[values[:, :classes].argmax(1)]})
    return batches


def stages(seed: int, classes: bool = True, **settings):
    def anew(number: int):
        torch.manual_seed(number)
        return perceptron(5, 8, 3)

    cfg = Config(seed=seed, generations=2, **settings)
    held = stream(seed + 1)[:2]
    recipe = method.ground_truth_self_distillation
    return stages_of(method, lambda: recipe(anew, stream(seed), held, cfg, classes, reads))


CASES = [
    Case("ground_truth_self_distillation", lambda seed: stages(seed, alpha=0.3)[1]),
    Case("imitating only", lambda seed: stages(seed)[1]),
    Case("of numbers", lambda seed: stages(seed, classes=False, alpha=0.3)[1]),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check, tmp_path):
    check(case, tmp_path)


def test_golden_loss_of_networks():
    case = {name: torch.as_tensor(value) for name, value in np.load(GOLDEN).items()}
    penalty = case["hp_reg_coef"] * sum(value.norm() for name, value in case.items() if name.startswith("w_"))
    student, teacher = (Signals(logits=case[f"in_{who}_logits"]) for who in ("student", "teacher"))
    batch = {"truth": case["in_onehot"]}
    for alpha, wanted in zip(case["hp_alphas"].tolist(), case["out_loss"], strict=True):
        found = mixture(alpha)(student, teacher, batch, START).total({"row": 5})
        assert float(found) == pytest.approx(float(wanted - penalty), abs=1e-6)
    alone = mixture(1.0)(student, Signals(), batch, START).total({"row": 5})
    assert float(alone) == pytest.approx(float(case["out_loss_no_teacher"] - penalty), abs=1e-6)


def test_names_and_order_of_the_stages():
    estimated = [stage.name for stage in stages(0)]
    assert estimated == ["generation-1", "imitation-2", "generation-2"]
    assert [stage.name for stage in stages(0, alpha=0.5)] == ["generation-1", "generation-2"]
    first, second = stages(0, alpha=0.5)
    assert second.frozen["teacher"] is first.train["network"]
    weights = [stage.train["network"][0].weight for stage in (first, second)]
    assert not torch.equal(*weights)


def test_a_weight_is_estimated_by_the_formula():
    found = method.ground_truth_self_distillation(
        lambda seed: perceptron(5, 8, 3), stream(0), stream(1), Config(generations=2, steps=60), True, reads
    )
    one, two = found
    truth = torch.cat([batch["truth"] for batch in stream(1)]).double()
    g1, g0 = (method.predicted(net, stream(1), True, reads) for net in (one.network, two.imitator))
    grid = [float((a * g1 + (1 - a) * g0 - truth).square().sum()) for a in np.linspace(0, 1, 101)]
    assert two.alpha == pytest.approx(int(np.argmin(grid)) / 100, abs=0.006)
    assert (one.alpha, one.imitator) == (1.0, None)


def test_classifiers_of_transformers_distil_themselves():
    batches = [batch | {"truth": torch.eye(3)[batch["ids"][:, 0] % 3]} for batch in classifiers.labelled(0)]
    cfg = Config(generations=2, steps=2)
    found = method.ground_truth_self_distillation(lambda seed: classifiers.bert(seed=seed), batches, batches[:1], cfg)
    assert len(found) == 2
    assert 0 <= found[1].alpha <= 1


def few(**settings):
    return {"generations": 2, "steps": 3, "fits": 3, "width": 4} | settings


def test_the_command_on_a_table_of_numbers(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.uniform(size=(60, 2))
    lines = [f"{a},{b},{np.sin(6 * a) + b}" for a, b in rows]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,y", *lines]))
    cfg = Config(tmp_path / "run", data=str(tmp_path / "rows.csv"), **few())
    out = main(cfg)
    said = json.loads((out / "metrics.json").read_text())
    assert (said["rows"], said["classes"]) == ([36, 12, 12], [])
    assert set(said["kernel"]) == {"best_alphas", "best alphas", *(f"alpha {a:g}" for a in cfg.alphas)}
    assert [row["generation"] for row in said["networks"]] == [1, 2, 2]
    train, _, test = sets_of(cfg)
    kept = load_file(out / "kernel.safetensors")
    assert torch.equal(kept["points"], train.numbers)
    raw, scale = numbers_of(cfg)[2], load_file(out / "scale.safetensors")
    rows = (raw.numbers - scale["mean"]) / scale["deviation"]  # as one would with new rows
    assert torch.equal(rows, test.numbers)
    said_now = rbf(rows, kept["points"], 0.5) @ kept["coefficients"] + kept["middle"]
    error = float((said_now - test.truth).square().mean())
    assert any(
        error == pytest.approx(e) for name in said["kernel"] if " " in name for e in said["kernel"][name]["errors"]
    )


def test_the_command_on_texts_and_an_encoder_of_the_user(tmp_path):
    name = classifiers.write_encoder(tmp_path / "bert")
    rows = [{"text": f"w{i % 3} w{3 + i % 5}", "label": f"c{i % 3}"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cfg = Config(tmp_path / "run", data=str(tmp_path / "rows.jsonl"), encoder=name, rows=20, noise=0.2, **few())
    said = json.loads((main(cfg) / "metrics.json").read_text())
    assert (said["rows"], said["classes"]) == ([20, 8, 8], ["c0", "c1", "c2"])
    assert len(said["kernel"]["alpha 0"]["accuracies"]) == 4
    assert "accuracy" in said["networks"][0]


def test_the_atlas_shows_that_without_the_truth_it_fades(tmp_path):
    cfg = Config(fits=8)
    train, held, test = sets_of(cfg)
    found, sections = by_kernel(kernel_model(train, cfg), held, test, cfg, tmp_path)
    alone, mixed = (found[name]["errors"] for name in ("alpha 0", "alpha 0.35"))
    assert all(later > earlier for earlier, later in pairwise(alone[2:]))
    assert max(mixed[3:]) < 1.02 * min(mixed)
    assert found["alpha 0"]["limit"] > 2 * min(alone)
    assert found["best alphas"]["errors"][-1] < found["best alphas"]["errors"][0]
    assert len(sections) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--alphas", "0.5", "1.5"], "--alpha 1.5: expected a weight of the truth from 0 to 1"),
        (["--alpha", "-1"], "--alpha -1.0: expected a weight"),
        (["--rows", "1"], "--rows 1: expected 2 or more"),
        (["--fits", "0"], "--fits and --generations: expected at least 1"),
        (["--noise", "0.2", "--data", "DATA"], "makes labels wrong, but the target is a number"),
        (["--ridge", "0", "--data", "DATA"], "expected a ridge above 0"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, capsys, words, said):
    rows = "\n".join(["x,y", *(f"{i},{i / 7}" for i in range(20))])
    (tmp_path / "rows.csv").write_text(rows)
    given = [str(tmp_path / "rows.csv") if word == "DATA" else word for word in words]
    assert limbeck(["ground_truth_self_distillation", "--out", str(tmp_path / "run"), *given]) == 2
    heard = capsys.readouterr().err.strip()
    assert said in heard
    assert "\n" not in heard
    assert not (tmp_path / "run").exists()


def test_a_weight_outside_of_0_to_1_is_refused():
    with pytest.raises(LimbeckError, match="from 0 to 1"):
        mixture(1.2)
