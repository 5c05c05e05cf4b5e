"""TAID against the released code (golden arrays), and its mechanics."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.core.batch import next_token_batch
from limbeck.core.check import LimbeckError
from limbeck.core.signals import Signals
from limbeck.core.terms import Clock
from limbeck.losses.divergence import forward_kl, interpolate
from limbeck.methods.language_models.taid import Config, main, taid
from limbeck.objectives.pace import AdaptiveT, interpolated

GOLDEN = Path(__file__).parents[2] / "golden" / "taid"
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


def tensor(array: np.ndarray, grad: bool = False) -> torch.Tensor:
    return torch.from_numpy(array.copy()).requires_grad_(grad)


def loss_of(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, pace: AdaptiveT) -> torch.Tensor:
    terms = interpolated(pace)(Signals(logits=student), Signals(logits=teacher), {"answer": mask}, Clock(0, 1))
    return terms.total({"answer": int(mask.sum())})


def fixed(t: float) -> AdaptiveT:
    pace = AdaptiveT(0.0, 1.0, 0.0, 0.0)
    pace.t = t
    return pace


def test_golden_loss_target_and_gradient_at_five_t():
    case = golden("loss_at_t")
    mask = tensor(case["in_mask"]).bool()
    for i, t in enumerate(case["hp_t"]):
        student, teacher = tensor(case["in_student_logits"], grad=True), tensor(case["in_teacher_logits"])
        target = interpolate(student, teacher, float(t)).softmax(-1)
        np.testing.assert_allclose(target.numpy(), case["ref_p_t"][i], **CLOSE)
        loss = loss_of(student, teacher, mask, fixed(float(t)))
        loss.backward()
        np.testing.assert_allclose(loss.item(), case["out_loss"][i], **CLOSE)
        np.testing.assert_allclose(student.grad.numpy(), case["out_grad"][i], **CLOSE)
        entropy = -(target * target.log()).sum(-1)[mask].mean()
        np.testing.assert_allclose(loss.item() - entropy.item(), case["fix_loss_kl"][i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", range(5))
def test_golden_controller(path):
    case = golden("controller")
    t_start, t_end, alpha, beta, steps, adaptive = case[f"hp_path{path}"].tolist()
    pace = AdaptiveT(t_start, t_end, alpha, beta, bool(adaptive))
    ts, momenta = [], []
    for step, loss in zip(case["in_global_step"].tolist(), case["in_losses"].tolist(), strict=True):
        pace.move(loss, step, int(steps))
        ts.append(pace.t)
        momenta.append(pace.momentum)
    np.testing.assert_allclose(ts, case[f"out_t_path{path}"], rtol=0, atol=2e-6)
    if adaptive:
        np.testing.assert_allclose(momenta, case[f"out_momentum_path{path}"], rtol=0, atol=2e-6)


def test_golden_trajectory():
    """The loss is computed with the old t, then t moves; ``fit`` calls the pace with the number of steps done."""
    case = golden("trajectory")
    t_start, t_end, alpha, beta, steps = case["hp_tstart_tend_alpha_beta_total"].tolist()
    pace = AdaptiveT(t_start, t_end, alpha, beta)
    for i, step in enumerate(case["in_global_step"].tolist()):
        logits = tensor(case["in_student_logits"][i]), tensor(case["in_teacher_logits"][i])
        loss = loss_of(*logits, tensor(case["in_mask"][i]).bool(), pace)
        np.testing.assert_allclose(loss.item(), case["out_loss"][i], **CLOSE)
        pace({"taid": loss.item()}, Clock(step + 1, int(steps)))
        np.testing.assert_allclose(pace.t, case["out_t_after"][i], rtol=0, atol=2e-6)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_at_one_the_gradient_is_forward_kl_and_at_zero_there_is_none():
    student, teacher, mask = logits(0, 2, 3, 7), logits(1, 2, 3, 7), torch.ones(2, 3, dtype=torch.bool)
    gradients = []
    for t in (1.0, 0.0):
        mine = student.clone().requires_grad_()
        loss_of(mine, teacher, mask, fixed(t)).backward()
        gradients.append(mine.grad)
    mine = student.clone().requires_grad_()
    forward_kl(mine, teacher).mean().backward()
    torch.testing.assert_close(gradients[0], mine.grad, atol=1e-7, rtol=1e-5)
    assert gradients[1].abs().max() < 1e-7


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_forbidden_tokens_stay_forbidden_and_finite(t):
    student, teacher, mask = logits(0, 1, 2, 5), logits(1, 1, 2, 5), torch.ones(1, 2, dtype=torch.bool)
    student[..., 0], teacher[..., 1] = -torch.inf, -torch.inf
    student.requires_grad_()
    assert interpolate(student, teacher, t).softmax(-1)[..., :2].abs().max() == 0
    loss = loss_of(student, teacher, mask, fixed(t))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(student.grad).all()


def test_t_moves_upwards_between_its_line_and_its_end():
    pace, losses = AdaptiveT(0.3, 0.9, 0.05, 0.9), torch.rand(200, generator=torch.Generator().manual_seed(0)).tolist()
    seen = []
    for step, loss in enumerate(losses):
        pace.move(loss, step, 200)
        seen.append(pace.t)
        assert pace.t >= min(0.9, 0.3 + 0.6 * step / 200) - 1e-12 or step == 0
    assert seen == sorted(seen)
    assert seen[-1] == 0.9
    assert 0 < pace.share <= 1


def test_a_small_alpha_is_the_linear_schedule_and_says_so():
    slow, line = AdaptiveT(0.4, 1.0, 5e-4, 0.99), AdaptiveT(0.4, 1.0, 5e-4, 0.99, adaptive=False)
    for step in range(300):
        for pace in (slow, line):
            pace.move(3.0 - step / 300, step, 300)
    assert slow.t == line.t
    assert slow.share == line.share == 0


def test_a_loss_that_is_not_finite_moves_nothing():
    pace = AdaptiveT(0.4, 1.0, 0.1, 0.5)
    pace.move(2.0, 0, 10)
    before = pace.state_dict()
    pace.move(float("nan"), 1, 10)
    assert pace.state_dict() == before


def test_a_restored_pace_goes_on_exactly():
    losses = [3.0, 2.5, 2.6, 2.0, 1.9, 1.5]
    whole, first = AdaptiveT(0.4, 1.0, 0.1, 0.5), AdaptiveT(0.4, 1.0, 0.1, 0.5)
    for step, loss in enumerate(losses):
        whole.move(loss, step, 10)
    for step, loss in enumerate(losses[:3]):
        first.move(loss, step, 10)
    second = AdaptiveT(0.4, 1.0, 0.1, 0.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, loss in enumerate(losses[3:], 3):
        second.move(loss, step, 10)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0.5, 0.5, 0.1, 0.9), "0 <= t_start < t_end <= 1"),
        ((0.5, 1.5, 0.1, 0.9), "0 <= t_start < t_end <= 1"),
        ((0.4, 1.0, -0.1, 0.9), "alpha >= 0"),
        ((0.4, 1.0, 0.1, 1.0), "0 <= beta < 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(LimbeckError, match=message):
        AdaptiveT(*settings)


def test_vocabularies_that_differ_and_broken_teachers_are_refused():
    mask, student = torch.ones(1, 2, dtype=torch.bool), logits(0, 1, 2, 5)
    with pytest.raises(LimbeckError, match="student's vocabulary has 5 entries and the teacher's 6"):
        loss_of(student, logits(1, 1, 2, 6), mask, fixed(0.5))
    broken = logits(1, 1, 2, 5)
    broken[0, 0, 0] = torch.nan
    with pytest.raises(LimbeckError, match="the teacher's logits hold NaN"):
        loss_of(student, broken, mask, fixed(0.5))


def model(seed: int, layers: int, width: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=17,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            max_position_embeddings=32,
        )
    )


def stream(batches: int = 12):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(17, (batches, 4, 8), generator=generator)
    return [next_token_batch(row, torch.ones_like(row, dtype=torch.bool)) for row in ids]


@pytest.mark.parametrize("objective", ["taid", "linear", "forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_every_objective_trains_the_student_alone(objective):
    student, teacher = model(0, 1, 8), model(1, 2, 16)
    taught, learned = [[p.clone() for p in m.parameters()] for m in (teacher, student)]
    cfg = Config(objective=objective, steps=3, lr=1e-2, alpha=0.2)
    said = taid(student, teacher, stream(), cfg)
    assert all(torch.equal(a, b) for a, b in zip(taught, teacher.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(learned, student.parameters(), strict=True))
    assert math.isfinite(said["loss"])
    assert ("adaptive_share" in said) == (objective in ("taid", "linear"))
    if objective == "linear":
        assert said["t"] == pytest.approx(0.4 + 0.6 * 2 / 3)
        assert said["adaptive_share"] == 0


def test_the_pace_reads_the_raw_loss_whatever_its_weight():
    """With a share for the hard loss, t moves as it would without: the pace must not see weighted numbers."""
    paces = []
    for hard in (0.0, 0.5):
        said = taid(model(0, 1, 8), model(1, 2, 16), stream(), Config(steps=3, lr=0.0, alpha=0.2, hard=hard))
        paces.append(said["t"])
    assert paces[0] == paces[1]


def test_micro_batches_move_t_as_one_batch_does():
    halves = [{k: v[part] for k, v in batch.items()} for batch in stream() for part in (slice(0, 2), slice(2, 4))]
    whole = taid(model(0, 1, 8), model(1, 2, 16), stream(), Config(steps=4, lr=1e-3, alpha=0.2))
    split = taid(model(0, 1, 8), model(1, 2, 16), halves, Config(steps=4, lr=1e-3, alpha=0.2, accumulate=2))
    assert split["t"] == pytest.approx(whole["t"], abs=1e-7)
    assert split["loss"] == pytest.approx(whole["loss"], abs=1e-5)


def test_alpha_is_scaled_for_short_runs_only():
    short = taid(model(0, 1, 8), model(1, 2, 16), stream(), Config(steps=6))
    assert short["adaptive_share"] > 0.5
    told = taid(model(0, 1, 8), model(1, 2, 16), stream(), Config(steps=6, alpha=5e-4))
    assert told["adaptive_share"] == 0


def test_an_unknown_objective_is_refused():
    with pytest.raises(LimbeckError, match=r"--objective: expected one of taid, linear, .*did you mean 'reverse_kl'"):
        taid(model(0, 1, 8), model(1, 2, 16), stream(), Config(objective="reverse-kl"))  # type: ignore[arg-type]


WORDS = ["[UNK]", "[END]", *(f"w{i}" for i in range(15))]


@pytest.fixture
def files(tmp_path) -> Path:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")
    model(0, 2, 16).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    rng = np.random.default_rng(0)
    rows = [" ".join(f"w{i}" for i in rng.integers(15, size=6)) for _ in range(60)]
    pairs = [json.dumps({"prompt": row[: len(row) // 2], "completion": row[len(row) // 2 :]}) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    (tmp_path / "text.txt").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize(("data", "dtype"), [("pairs.jsonl", "float32"), ("text.txt", "bfloat16")])
def test_the_command_on_a_model_and_data_of_the_user(files, data, dtype):
    settings = {"teacher": str(files / "teacher"), "teacher_dtype": dtype, "data": str(files / data)}
    cfg = Config(files / "run", **settings, steps=3, batch=4, length=12)
    out = main(cfg)
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 < metrics["adaptive_share"] <= 1
    assert set(metrics["held_out"]) == {"forward_kl", "reverse_kl", "student_nll"}
    assert LlamaForCausalLM.from_pretrained(out).config.num_hidden_layers == 1
    assert "Student and teacher on held-out rows" in (out / "report.html").read_text()
    again = json.loads((main(cfg) / "metrics.json").read_text())
    assert (again["t"], again["adaptive_share"]) == (metrics["t"], metrics["adaptive_share"]), "done, and remembered"
    assert again["held_out"] == metrics["held_out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "nowhere"}, "cannot load 'nowhere' as a causal model"),
        ({"student": "9x15"}, "cannot be split into 2 heads"),
        ({"data": "nothing.txt"}, "nothing.txt: no such file"),
        ({"objective": "revers_kl"}, "did you mean 'reverse_kl'"),
        ({"t_start": 1.0}, "0 <= t_start < t_end"),
        ({"hard": 2.0}, "--hard 2.0: expected a share"),
    ],
)
def test_mistakes_of_the_user_leave_nothing_behind(files, changes, message):
    settings = {"teacher": str(files / "teacher"), "data": str(files / "text.txt"), "length": 12, "out": files / "run"}
    with pytest.raises(LimbeckError, match=message):
        main(Config(**settings | changes))
    assert not (files / "run").exists()


def test_a_loss_after_almost_none_does_not_end_the_run():
    pace = AdaptiveT(0.3, 0.9, 0.05, 0.99)
    for step, loss in enumerate((1e-7, 0.5, 0.4)):
        pace.move(loss, step, 10)
    assert 0.3 <= pace.t <= 0.9
