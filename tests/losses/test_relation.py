"""Self-attention relations: against released code, an independent NumPy loop, and at the edges."""

from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.losses.relation import attention_kl, relation_kl, value_kl

GOLDEN = Path(__file__).parents[1] / "golden" / "minilm"


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def reference(student, teacher, mask, heads, causal=False):
    """Plain loops over rows, heads and queries; inputs b t (h d), joined heads, as the papers write them."""
    rows = []
    for b in range(mask.shape[0]):
        real, total = np.flatnonzero(mask[b]), 0.0
        for h in range(heads):
            for i in real:
                keys = [j for j in real if not causal or j <= i]
                sides = []
                for first, second in (teacher, student):
                    d = first.shape[-1] // heads
                    part = slice(h * d, (h + 1) * d)
                    sides.append(softmax(np.array([first[b, i, part] @ second[b, j, part] for j in keys]) / np.sqrt(d)))
                total += (sides[0] * np.log(sides[0] / sides[1])).sum()
        rows.append(total / (heads * max(len(real), 1)))
    return np.array(rows)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def heads_of(x, heads):
    x = torch.as_tensor(x)
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


MASKS = {
    "full": np.ones((3, 6), bool),
    "right": np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]], bool),
    "left": np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool),
    "holes": np.array([[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 1, 1]], bool),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [None, 2, 6])
def test_matches_numpy(mask, causal, heads):
    student, teacher = [draw(3, 6, 12, seed=i) for i in (1, 2)], [draw(3, 6, 24, seed=i) for i in (3, 4)]
    expected = reference(student, teacher, MASKS[mask], heads or 3, causal)
    pairs = [tuple(heads_of(x, 3) for x in pair) for pair in (student, teacher)]
    got = relation_kl(*pairs, torch.tensor(MASKS[mask]), heads=heads, causal=causal)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("chunk", [None, 1])
def test_gradcheck(causal, chunk):
    tensors = [heads_of(draw(2, 3, 4, seed=i), 2).requires_grad_() for i in range(4)]
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: relation_kl((a, b), (c, d), mask, causal=causal, chunk=chunk), tensors, fast_mode=True
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 9])
def test_heads_in_turns_equal_all_at_once(chunk):
    student = [heads_of(draw(2, 5, 8, seed=i), 2).float().requires_grad_() for i in (0, 1)]
    teacher = [heads_of(draw(2, 5, 16, seed=i), 2).float() for i in (2, 3)]
    mask = torch.tensor(MASKS["left"][:2, :5])
    results = []
    for size in (None, chunk):
        values = relation_kl(tuple(student), tuple(teacher), mask, heads=4, chunk=size)
        results.append((values, *torch.autograd.grad(values.sum(), student)))
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-7)


def test_nothing_of_the_size_of_a_relation_is_kept_for_the_backward_pass():
    t, kept = 32, []
    q = torch.randn(1, 4, t, 2, requires_grad=True)
    pair, other, mask = (q, q), (q.detach() + 1,) * 2, torch.ones(1, t).bool()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        values = relation_kl(pair, other, mask, chunk=1)
    assert all(x.numel() < t * t for x in kept if x.is_floating_point())  # the mask itself is one, and shared
    values.sum().backward()
    assert q.grad.abs().sum() > 0


def test_equal_inputs_give_zero_and_no_gradient():
    q, k = (heads_of(draw(3, 6, 12, seed=i), 3).float() for i in (0, 1))
    student = q.clone().requires_grad_()
    values = relation_kl((student, k), (q, k), torch.tensor(MASKS["holes"]))
    assert values.abs().max() < 1e-6
    assert torch.autograd.grad(values.sum(), student)[0].abs().max() < 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_fully_masked_row_is_zero_with_finite_gradients(causal):
    q, k, v, w = (heads_of(draw(2, 4, 6, seed=i), 2).float().requires_grad_() for i in range(4))
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    values = relation_kl((q, k), (v, w), mask, causal=causal)
    assert values[1] == 0
    assert values[0] > 0
    for gradient in torch.autograd.grad(values.sum(), [q, k, v, w]):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


def test_one_token_gives_zero():
    q, k = (heads_of(draw(2, 1, 6, seed=i), 2) for i in (0, 1))
    assert relation_kl((q, q), (k, k), torch.ones(2, 1).bool()).abs().max() == 0


def test_first_causal_query_counts_as_zero_in_the_mean():
    q, k = (heads_of(draw(1, 2, 4, seed=i), 1) for i in (0, 1))
    mask = torch.ones(1, 2).bool()
    full, causal = relation_kl((q, q), (k, k), mask), relation_kl((q, q), (k, k), mask, causal=True)
    second_query = reference([q[:, 0].numpy()] * 2, [k[:, 0].numpy()] * 2, np.array([[True, True]]), 1, causal=True)
    assert causal.item() == pytest.approx(second_query[0])
    assert causal.item() < full.item()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_huge_scores_stay_finite(scale):
    q, k = ((heads_of(draw(2, 5, 8, seed=i), 2) * scale).float().requires_grad_() for i in (0, 1))
    values = relation_kl((q, q), (k, k), torch.tensor(MASKS["right"][:2, :5]))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), q)[0].isfinite().all()


def test_half_precision_and_autocast_compute_in_float32():
    pairs = [tuple(heads_of(draw(2, 5, 8, seed=i), 2).bfloat16() for i in j) for j in ((0, 1), (2, 3))]
    mask = torch.ones(2, 5).bool()
    exact = relation_kl(*[tuple(x.double() for x in pair) for pair in pairs], mask)
    with torch.autocast("cpu", torch.bfloat16):
        got = relation_kl(*pairs, mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-6)


def test_grouped_heads_are_repeated_beside_their_queries():
    """4 query heads over 2 key heads: queries 0 and 1 use key head 0, as grouped attention does."""
    q, k = heads_of(draw(2, 5, 16), 4), heads_of(draw(2, 5, 8, seed=1), 2)
    other = [heads_of(draw(2, 5, 16, seed=i), 4) for i in (2, 3)]
    mask = torch.ones(2, 5).bool()
    expected = relation_kl((q, k[:, [0, 0, 1, 1]]), tuple(other), mask)
    torch.testing.assert_close(relation_kl((q, k), tuple(other), mask), expected)
    torch.testing.assert_close(
        relation_kl(tuple(other), (q, k), mask), relation_kl(tuple(other), (q, k[:, [0, 0, 1, 1]]), mask)
    )
    split = relation_kl((k, k), (k, k), mask, heads=4)  # two heads of 4 as four of 2
    assert split.shape == (2,)


def test_value_relation_equals_v2_with_the_same_split():
    q, k, v = (heads_of(draw(3, 6, 12, seed=i), 3) for i in range(3))
    teacher = tuple(heads_of(draw(3, 6, 24, seed=i), 3) for i in range(3, 6))
    mask = torch.tensor(MASKS["right"])
    expected = relation_kl((v, v), (teacher[2], teacher[2]), mask, heads=3)
    torch.testing.assert_close(value_kl((q, k, v), teacher, mask), expected)


def test_refusals():
    q = torch.zeros(2, 3, 5, 4)
    mask = torch.ones(2, 5).bool()
    with pytest.raises(LimbeckError, match="give heads="):
        relation_kl((q, q), (torch.zeros(2, 6, 5, 4),) * 2, mask)
    with pytest.raises(LimbeckError, match="do not divide a width of 12"):
        relation_kl((q, q), (q, q), mask, heads=5)
    with pytest.raises(LimbeckError, match="do not divide a width"):
        relation_kl((q, q), (q, q), mask, heads=0)
    with pytest.raises(LimbeckError, match="same batch"):
        relation_kl((q, q), (torch.zeros(2, 3, 6, 4),) * 2, mask)
    with pytest.raises(LimbeckError, match="same batch"):
        relation_kl((q, q), (q, q), mask[:1])  # would broadcast
    with pytest.raises(LimbeckError, match="grouped heads"):
        relation_kl((q, torch.zeros(2, 2, 5, 4)), (q, q), mask)
    with pytest.raises(LimbeckError, match="b h t d"):
        relation_kl((q[0], q[0]), (q, q), mask)


def golden():
    data = dict(np.load(GOLDEN / "relations.npz"))
    sides = {}
    for side in ("student", "teacher"):
        sides[side] = {x: torch.tensor(data[f"in_{side}_{x}"], requires_grad=side == "student") for x in "qkv"}
    return data, sides, torch.tensor(data["in_mask"]).bool()


def golden_value(sides, mask, pair, heads, relation_heads):
    pairs = [tuple(heads_of(sides[side][x], heads) for x in pair) for side in ("student", "teacher")]
    return relation_kl(*pairs, mask, heads=relation_heads).mean()


def check_gradients(data, sides, name, total):
    given = torch.autograd.grad(total, list(sides["student"].values()), allow_unused=True)
    for x, gradient in zip("qkv", given, strict=True):
        expected = data[f"out_grad_{name}_student_{x}"]
        got = np.zeros_like(expected) if gradient is None else gradient.numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_golden_version_1():
    data, sides, mask = golden()
    heads = int(data["hp_heads"])
    three = [tuple(heads_of(sides[side][x], heads) for x in "qkv") for side in ("student", "teacher")]
    attention, values = attention_kl(*three, mask).mean(), value_kl(*three, mask).mean()
    assert attention.item() == pytest.approx(float(data["out_att"]), rel=1e-6, abs=1e-6)
    assert values.item() == pytest.approx(float(data["out_vr"]), rel=1e-6, abs=1e-6)
    assert (attention + values).item() == pytest.approx(float(data["out_v1_total"]), rel=1e-6, abs=1e-6)
    check_gradients(data, sides, "v1", attention + values)


def test_golden_version_2():
    data, sides, mask = golden()
    heads, relation_heads = int(data["hp_heads"]), int(data["hp_relation_heads"])
    values = {pair: golden_value(sides, mask, pair, heads, relation_heads) for pair in ("qq", "kk", "vv", "qk")}
    for pair, value in values.items():
        assert value.item() == pytest.approx(float(data[f"out_{pair}"]), rel=1e-6, abs=1e-6)
    total = values["qq"] + values["kk"] + values["vv"]
    assert total.item() == pytest.approx(float(data["out_v2_total"]), rel=1e-6, abs=1e-6)
    assert total.item() / 3 == pytest.approx(float(data["out_v2_third"]), rel=1e-6, abs=1e-6)
    check_gradients(data, sides, "v2", total)


def test_golden_left_padding_uses_the_mask():
    data, sides, _ = golden()
    mask, heads = torch.tensor(data["in_mask_left"]).bool(), int(data["hp_heads"])
    attention = golden_value(sides, mask, "qk", heads, None).item()
    values = golden_value(sides, mask, "vv", heads, int(data["hp_relation_heads"])).item()
    assert attention == pytest.approx(float(data["fix_att_leftpad"]), rel=1e-6, abs=1e-6)
    assert values == pytest.approx(float(data["fix_vv_leftpad"]), rel=1e-6, abs=1e-6)
    assert abs(values - float(data["bad_vv_leftpad"])) > 1e-3
