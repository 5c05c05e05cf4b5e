"""Fused losses: the plain functions and autograd in float64 are the reference, at the edges too."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.core.check import LimbeckError
from limbeck.losses import divergence as plain
from limbeck.losses import products, sweep
from limbeck.losses.closed import FORMS, closed_form
from limbeck.losses.fused import fused, fused_cross_entropy, fused_parts
from limbeck.losses.heads import Head
from limbeck.losses.sweep import Part

POSITIONS, TOKENS = 7, 23
SETTINGS = {
    plain.skew_forward_kl: [{"alpha": alpha} for alpha in (0, 0.1, 0.7)],
    plain.skew_reverse_kl: [{"alpha": alpha} for alpha in (0, 0.1, 0.7, 1)],
    plain.jsd: [{"beta": beta} for beta in (0, 0.1, 0.5, 1)],
    plain.interpolated_cross_entropy: [{"share": share} for share in (0, 0.4, 1)],
}
FAMILY = {
    " ".join([function.__name__, *map(str, settings.values())]): partial(function, **settings)
    for function in FORMS
    for settings in SETTINGS.get(function, [{}])
}
ONE_EACH = {function.__name__: function for function in FORMS}
LAYERS = {
    "plain": {"bias": False},
    "bias": {},
    "scaled": {"scale": 0.5, "bias": False},
    "capped": {"softcap": 3.0},
    "all": {"scale": 2.0, "softcap": 30.0},
}


def head(width, *, positions=POSITIONS, tokens=TOKENS, bias=True, dtype=torch.float64, learns=True, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    shapes = (positions, width), (tokens, width), (tokens,)
    hidden, weight, offset = (2 * torch.randn(*s, generator=generator, dtype=torch.float64) for s in shapes)
    tensors = [x.to(dtype).requires_grad_(learns) for x in (hidden, weight, offset)]
    return Head(*tensors[:2], tensors[2] if bias else None, **settings)


def pair(**settings):
    return head(5, **settings), head(4, learns=False, seed=1, **settings)


def logits(side):
    """What the output layer would give, in the precision of what it is given."""
    found = torch.nn.functional.linear(*side[:3]) * side.scale
    return found if side.softcap is None else torch.tanh(found / side.softcap) * side.softcap


def leaves(side):
    return [x for x in side[:3] if x is not None]


def compare(got, expected, side, upstream=None, rtol=1e-10, atol=1e-12):
    """Values, and the gradients of their weighted sum."""
    torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    upstream = torch.ones_like(got) if upstream is None else upstream
    ours, theirs = (torch.autograd.grad((upstream * x).sum(), leaves(side)) for x in (got, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_is_the_plain_divergence(name, layer, temperature):
    student, teacher = pair(**LAYERS[layer])
    expected = FAMILY[name](logits(student), logits(teacher), temperature)
    compare(fused(FAMILY[name], student, teacher, temperature, chunk=3), expected, student)


@pytest.mark.parametrize("name", FAMILY)
def test_any_weight_per_position(name):
    student, teacher = pair(softcap=5.0)
    upstream = torch.rand(POSITIONS, dtype=torch.float64) - 0.5
    expected = FAMILY[name](logits(student), logits(teacher), 1.5)
    compare(fused(FAMILY[name], student, teacher, 1.5, chunk=3), expected, student, upstream)


@pytest.mark.parametrize("name", [name for name in FAMILY if "interpolated" not in name and "adaptive" not in name])
def test_gradcheck(name):
    student, teacher = pair(positions=3, tokens=4, scale=0.5)

    def values(hidden, weight, bias):
        return fused(FAMILY[name], Head(hidden, weight, bias, 0.5), teacher, 1.3, chunk=2)

    assert torch.autograd.gradcheck(values, leaves(student))


@pytest.mark.parametrize("upstream", ["alike", "each its own"])
def test_cross_entropy(upstream):
    student = head(5, softcap=4.0)
    targets = torch.randint(TOKENS, (POSITIONS,), generator=torch.Generator().manual_seed(0))
    targets[2] = -100
    weights = torch.full((POSITIONS,), 0.3) if upstream == "alike" else torch.rand(POSITIONS)
    got, expected = fused_cross_entropy(student, targets, chunk=4), plain.cross_entropy(logits(student), targets)
    compare(got, expected, student, weights.double())
    ignored = fused_cross_entropy(student, targets, ignore=int(targets[0]))
    assert ignored[0] == 0
    assert ignored[1] == got[1]


@pytest.mark.parametrize("name", [*ONE_EACH, "cross_entropy"])
@pytest.mark.parametrize("chunk", [1, 2, POSITIONS, 100, None])
def test_any_chunk_and_block_give_the_same(name, chunk, monkeypatch):
    monkeypatch.setattr(sweep, "BLOCK_LOGITS", 2 * TOKENS)
    student, teacher = pair(dtype=torch.float32)
    targets = torch.arange(POSITIONS)

    def values(chunk):
        if name == "cross_entropy":
            return fused_cross_entropy(student, targets, chunk=chunk)
        return fused(ONE_EACH[name], student, teacher, chunk=chunk)

    compare(values(chunk), values(3), student, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FAMILY if name != "skew_reverse_kl 1"])  # that is 0
def test_float32_is_as_good_as_the_plain_functions(name):
    student, teacher = pair(positions=12, tokens=3000, bias=False)
    exact = FAMILY[name](logits(student), logits(teacher))
    (slope,) = torch.autograd.grad(exact.sum(), student.hidden)
    small, single = (Head(*(x if x is None else x.float() for x in side[:3])) for side in (student, teacher))
    small = Head(*(x.detach().requires_grad_() for x in small[:2]))
    errors = []
    for values in (fused(FAMILY[name], small, single), FAMILY[name](logits(small), logits(single))):
        (gradient,) = torch.autograd.grad(values.sum(), small.hidden)
        errors.append(((values - exact).abs().max() / exact.max(), (gradient - slope).abs().max() / slope.abs().max()))
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 2 * theirs + 1e-6


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd 0.5", "skew_forward_kl 0.1", "total_variation"])
def test_equal_sides_give_zero_and_no_gradient(name):
    student, _ = pair(tokens=1000, dtype=torch.float32)
    values = fused(FAMILY[name], student, Head(*(x.detach() for x in student[:3])))
    assert values.abs().max() < 1e-6
    for gradient in torch.autograd.grad(values.sum(), leaves(student)):
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["uniform", "each its own"])
def test_a_head_tied_to_the_embeddings_gets_both_gradients(kind):
    table = torch.randn(TOKENS, 5, dtype=torch.float64, requires_grad=True)
    middle = torch.randn(5, 5, dtype=torch.float64, requires_grad=True)
    ids, teacher = torch.arange(POSITIONS), pair()[1]
    weights = torch.ones(POSITIONS) if kind == "uniform" else torch.rand(POSITIONS)
    found = []
    for loss in (fused, lambda f, s, t: f(logits(s), logits(t))):
        student = Head(torch.tanh(table[ids] @ middle), table)
        found.append(torch.autograd.grad((loss(plain.jsd, student, teacher) * weights).sum(), [table, middle]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("learning", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_learns_gets_a_gradient(learning):
    student, teacher = pair()
    for tensor, learns in zip(student[:3], learning, strict=True):
        tensor.requires_grad_(learns)
    chosen = [tensor for tensor in student[:3] if tensor.requires_grad]
    expected = torch.autograd.grad(plain.jsd(logits(student), logits(teacher)).sum(), chosen)
    torch.testing.assert_close(torch.autograd.grad(fused(plain.jsd, student, teacher).sum(), chosen), expected)


@pytest.mark.parametrize("name", [*ONE_EACH, "cross_entropy"])
def test_no_position_at_all(name):
    student, teacher = pair(positions=0)
    none = torch.zeros(0, dtype=torch.long)
    values = fused_cross_entropy(student, none) if name == "cross_entropy" else fused(ONE_EACH[name], student, teacher)
    assert values.shape == (0,)
    for gradient, leaf in zip(torch.autograd.grad(values.sum(), leaves(student)), leaves(student), strict=True):
        assert gradient.shape == leaf.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("barred", ["teacher", "student", "both"])
def test_tokens_that_cannot_be_said(name, barred):
    student, teacher = pair()
    for side, who in ((student, "student"), (teacher, "teacher")):
        if barred in (who, "both"):
            with torch.no_grad():
                side.bias[[3, 8]] = -torch.inf
    got = fused(FAMILY[name], student, teacher, chunk=4)
    assert got.isfinite().all()
    hidden = [
        torch.autograd.grad(x.sum(), student.hidden)[0] for x in (got, FAMILY[name](logits(student), logits(teacher)))
    ]
    torch.testing.assert_close(got, FAMILY[name](logits(student), logits(teacher)))
    torch.testing.assert_close(*hidden)


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_huge_logits_stay_finite(name, scale):
    student, teacher = pair(dtype=torch.float32, scale=scale)
    values = fused(ONE_EACH[name], student, teacher)
    assert values.isfinite().all()
    for gradient in torch.autograd.grad(values.sum(), leaves(student)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ONE_EACH)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("given", ["head", "logits", "function"])
def test_refuses_a_teacher_with_nan_or_infinity(name, bad, given):
    student, teacher = pair()
    teacher.hidden[5, 1] = bad
    full = logits(teacher)
    teacher = {"head": teacher, "logits": full, "function": lambda rows: full[rows]}[given]
    with pytest.raises(LimbeckError, match="teacher's logits hold NaN or infinity"):
        fused(ONE_EACH[name], student, teacher, chunk=2)


def test_a_student_that_is_nan_says_so():
    student, teacher = pair()
    with torch.no_grad():
        student.hidden[2] = torch.nan
    values = fused(plain.forward_kl, student, teacher)
    assert values.isnan().tolist() == [row == 2 for row in range(POSITIONS)]


def test_teachers_by_logits_and_by_function():
    student, teacher = pair()
    full, asked = logits(teacher), []

    def some(rows):
        asked.append(rows)
        return full[rows]

    expected = fused(plain.reverse_kl, student, teacher)
    torch.testing.assert_close(fused(plain.reverse_kl, student, full), expected)
    torch.testing.assert_close(fused(plain.reverse_kl, student, some, chunk=3), expected)
    assert asked == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_leading_dimensions_stay():
    student, teacher = pair(positions=6)
    square = [side._replace(hidden=side.hidden.reshape(2, 3, -1)) for side in (student, teacher)]
    torch.testing.assert_close(fused(plain.jsd, *square), fused(plain.jsd, student, teacher).reshape(2, 3))
    targets = torch.arange(6)
    flat = fused_cross_entropy(student, targets)
    torch.testing.assert_close(fused_cross_entropy(square[0], targets.reshape(2, 3)), flat.reshape(2, 3))


def test_temperatures_may_be_tensors():
    student, teacher = pair()
    warm = torch.linspace(0.5, 3, POSITIONS, dtype=torch.float64)
    expected = plain.jsd(logits(student) / warm[:, None], logits(teacher) / warm[:, None])
    compare(fused(plain.jsd, student, teacher, warm, chunk=3), expected, student)
    torch.testing.assert_close(
        fused(plain.jsd, student, teacher, torch.tensor(2.0)), plain.jsd(logits(student), logits(teacher), 2.0)
    )


@pytest.mark.parametrize("weights", [(1.0, 0.5, 2.0), (1.0, 0.0, 3.0)])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("cap", [None, 4.0])
def test_several_losses_share_a_sweep(weights, kept, cap, monkeypatch):
    student, teacher = pair(softcap=cap)
    targets, products_made = torch.arange(POSITIONS), []
    original = products.to_weight
    monkeypatch.setattr(products, "to_weight", lambda *args, **more: (products_made.append(1), original(*args, **more)))
    expected = [
        plain.forward_kl(logits(student), logits(teacher), 2.0),
        plain.cross_entropy(logits(student), targets),
        plain.jsd(logits(student), logits(teacher)),
    ]
    parts = [Part(plain.forward_kl, 2.0), Part(None, targets=targets), Part(plain.jsd)]
    parts = [part._replace(weight=weight) for part, weight in zip(parts, weights, strict=True)]
    values = fused_parts(student, teacher, parts, chunk=4)
    torch.testing.assert_close(values, tuple(expected))
    upstream = [weight if kept else 1.0 for weight in weights]
    ours, theirs = (
        torch.autograd.grad(sum(u * v.sum() for u, v in zip(upstream, x, strict=True)) / 3, leaves(student))
        for x in (values, expected)
    )
    torch.testing.assert_close(ours, theirs)
    assert len(products_made) == (2 if kept else 4)  # two chunks; foretold weights need no second sweep


def test_a_graph_may_be_used_twice():
    student, teacher = pair()
    total = fused(plain.jsd, student, teacher).mean()
    first = [x.clone() for x in torch.autograd.grad(total, leaves(student), retain_graph=True)]
    torch.testing.assert_close(torch.autograd.grad(total, leaves(student)), tuple(first))


def test_nothing_is_kept_where_nothing_learns():
    student, teacher = pair()
    with torch.no_grad():
        values = fused(plain.jsd, student, teacher)
    assert not values.requires_grad
    assert not fused(plain.jsd, teacher, teacher).requires_grad


class Largest(TorchDispatchMode):
    """The most numbers that any operation has made or written."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(made, torch.Tensor):
                self.most = max(self.most, made.numel())
        return result


@pytest.mark.parametrize("name", [*ONE_EACH, "cross_entropy"])
@pytest.mark.parametrize("upstream", ["alike", "each its own"])
def test_no_matrix_of_positions_and_tokens(name, upstream):
    student, teacher = pair(positions=60, tokens=50, dtype=torch.float32)
    targets = torch.zeros(60, dtype=torch.long)
    with Largest() as seen:
        if name == "cross_entropy":
            values = fused_cross_entropy(student, targets, chunk=5)
        else:
            values = fused(ONE_EACH[name], student, teacher, 1.5, chunk=5)
        (values.sum() if upstream == "alike" else (values * torch.rand(60)).sum()).backward()
    assert 0 < seen.most <= max(5 * 50, 60 * 5)


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_three_products(onednn, dtype, monkeypatch):
    monkeypatch.setattr(products, "TILE", 4)
    if not onednn:
        monkeypatch.setattr(products, "_onednn", lambda: None)
    out = {"dtype": torch.promote_types(dtype, torch.float32)}
    hidden, gradient = torch.randn(5, 3, **out), torch.randn(5, 9, **out)
    for weight in (torch.randn(9, 3).to(dtype), torch.randn(3, 9).to(dtype).t()):
        wide = weight.to(**out)
        found = [torch.full(shape, torch.nan, **out) for shape in ((5, 9), (5, 3), (9, 3))]
        products.logits(hidden.to(dtype), weight, found[0])
        products.to_hidden(gradient, weight, found[1])
        products.to_weight(gradient, hidden, weight, found[2], first=True)
        products.to_weight(gradient, 2 * hidden, weight, found[2], first=False)
        right = hidden.to(dtype).to(**out) @ wide.t(), gradient @ wide, 3 * gradient.t() @ hidden
        torch.testing.assert_close(tuple(found), right)


def test_onednn_is_left_alone_where_it_is_not_there(monkeypatch):
    products._onednn.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert products._onednn() is None
    products._onednn.cache_clear()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd 0.5"])
def test_bfloat16_in_float32_inside(name, monkeypatch):
    monkeypatch.setattr(products, "TILE", 64)
    student, teacher = pair(positions=20, tokens=200, dtype=torch.bfloat16)
    exact = Head(*(x.detach().double().requires_grad_() for x in student[:3]))
    expected = FAMILY[name](logits(exact), logits(Head(*(x.double() for x in teacher[:3]))))
    values = fused(FAMILY[name], student, teacher)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = torch.autograd.grad(values.mean(), student[:3]), torch.autograd.grad(expected.mean(), exact[:3])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).norm() < 2**-8 * other.norm()


def test_a_large_vocabulary_where_the_two_have_little_in_common():
    sides = [head(8, positions=4, tokens=65_536, bias=False, scale=0.3, learns=not seed, seed=seed) for seed in (0, 1)]
    found = []
    for dtype in (torch.float64, torch.float32):
        student, teacher = (side._replace(hidden=side.hidden.to(dtype), weight=side.weight.to(dtype)) for side in sides)
        found += torch.autograd.grad(fused(plain.jsd, student, teacher).sum(), sides[0].weight)
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


def test_autocast_changes_nothing():
    student, teacher = pair(dtype=torch.float32)
    expected = torch.autograd.grad(fused(plain.jsd, student, teacher).sum(), student.weight)
    with torch.autocast("cpu", torch.bfloat16):
        got = torch.autograd.grad(fused(plain.jsd, student, teacher).sum(), student.weight)
    assert torch.equal(*got, *expected)


def test_refuses_what_does_not_belong_together():
    student, teacher = pair()
    with pytest.raises(LimbeckError, match=r"no fused form is known for .*soft_cross_entropy_probs"):
        fused(plain.soft_cross_entropy_probs, student, teacher)
    with pytest.raises(LimbeckError, match="7 positions and the teacher 6"):
        fused(plain.jsd, student, teacher._replace(hidden=teacher.hidden[1:]))
    with pytest.raises(LimbeckError, match=r"has 23 entries and the teacher's 22.*same tokenizer"):
        fused(plain.jsd, student, logits(teacher)[:, 1:])
    with pytest.raises(LimbeckError, match=r"shape \(7, 22\) where \(7, 23\)"):
        fused(plain.jsd, student, lambda rows: logits(teacher)[rows, 1:])
    for wrong, message in ((0.0, "must be positive"), (torch.zeros(7), "positive"), (torch.ones(6), "6 temperatures")):
        with pytest.raises(LimbeckError, match=message):
            fused(plain.jsd, student, teacher, wrong)
    with pytest.raises(LimbeckError, match="no gradient"):
        fused(plain.jsd, student, teacher, torch.ones((), requires_grad=True))
    with pytest.raises(LimbeckError, match=r"lie in \[0, 1\]"):
        fused(partial(plain.jsd, beta=1.5), student, teacher)
    with pytest.raises(LimbeckError, match="one candidate"):
        fused(plain.jsd, *pair(tokens=1))


def test_closed_forms_are_found_by_function_and_settings():
    assert closed_form(plain.jsd) is FORMS[plain.jsd]
    nested = closed_form(partial(partial(plain.jsd, beta=0.1), beta=0.3))
    assert nested.keywords == {"beta": 0.3}
    for other in (plain.forward_kl_probs, partial(plain.jsd, temperature=2.0), lambda s, t, degrees: s.sum(-1)):
        assert closed_form(other) is None
