"""Mixtures: shares, resuming, and weights that change on the way."""

from collections import Counter
from itertools import islice

import pytest
import torch

from limbeck.core.batch import IGNORE
from limbeck.core.check import LimbeckError
from limbeck.data.mixture import Blend, Mixture, tempered
from limbeck.data.stream import Batches


class Letters:
    """A finite stream without a state."""

    def __init__(self, letters):
        self.letters = letters

    def __iter__(self):
        return iter(self.letters)


def take(stream, count):
    return list(islice(stream, count))


def test_temperature_flattens_the_shares():
    assert tempered({"a": 100, "b": 1}) == {"a": 100, "b": 1}
    assert tempered({"a": 100, "b": 1}, 2.0) == {"a": 10, "b": 1}
    assert tempered({"a": 100, "b": 1}, float("inf")) == {"a": 1, "b": 1}
    with pytest.raises(LimbeckError, match="the temperature must be above 0, but is 0"):
        tempered({"a": 1}, 0)


def test_items_come_in_proportion_to_the_weights():
    mix = Mixture({"a": Letters("a"), "b": Letters("b")}, {"a": 3, "b": 1})
    assert mix.weights == {"a": 0.75, "b": 0.25}
    counts = Counter(take(mix, 4000))
    assert abs(counts["a"] / 4000 - 0.75) < 0.03
    assert mix.drawn == dict(counts)


def test_a_stream_of_weight_zero_is_never_drawn():
    mix = Mixture({"a": Letters("a"), "b": Letters("b"), "c": Letters("c")}, {"a": 0, "b": 1, "c": 0})
    assert set(take(mix, 300)) == {"b"}


def test_every_stream_keeps_its_own_order_and_starts_again():
    items = take(Mixture({"a": Letters("abc"), "x": Letters("xy")}, seed=1), 60)
    mine = [item for item in items if item in "abc"]
    assert mine == list("abc" * 30)[: len(mine)]
    others = [item for item in items if item in "xy"]
    assert others == list("xy" * 30)[: len(others)]


def test_weights_act_on_the_next_draw():
    mix = Mixture({"a": Letters("a"), "b": Letters("b")})
    take(mix, 10)
    mix.weights = {"a": 0, "b": 5}
    assert set(take(mix, 50)) == {"b"}


def test_resuming_gives_what_would_have_come():
    def make():
        rows = Batches(list(range(7)), lambda rows: tuple(rows), 2, seed=4)
        return Mixture({"rows": rows, "letters": Letters("abcde")}, seed=9)

    mix = make()
    take(mix, 13)
    mix.weights = {"rows": 1, "letters": 3}
    take(mix, 4)
    again = make()
    again.load_state_dict(mix.state_dict())
    assert again.weights == mix.weights
    assert take(again, 30) == take(mix, 30)
    assert again.state_dict() == mix.state_dict()


def test_the_seed_decides():
    draws = [take(Mixture({"a": Letters("a"), "b": Letters("b")}, seed=seed), 40) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture({}), "the mixture has no streams"),
        (lambda: Mixture({"a": "x"}, {"b": 1}), r"the weights name \['b'\], but the mixture's streams are \['a'\]"),
        (lambda: Mixture({"a": "x", "b": "y"}, {"a": -1, "b": 2}), "weights must be finite, at least 0 and not all 0"),
        (lambda: Mixture({"a": "x"}, {"a": 0}), "weights must be finite, at least 0 and not all 0"),
        (lambda: Mixture({"a": "x"}, {"a": float("nan")}), "weights must be finite"),
        (lambda: take(Mixture({"a": Letters("")}), 1), "the stream 'a' of the mixture gave nothing"),
        (lambda: Mixture({"a": "x"}).load_state_dict(Mixture({"b": "x"}).state_dict()), r"had the streams \['b'\]"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(LimbeckError, match=message):
        make()


def windows(value, rows, width, **more):
    """A stream whose rows are full of ``value``."""

    def collate(items):
        ids = torch.full((len(items), width), value)
        return {"ids": ids, "targets": ids.clone(), "mask": ids > 0, "row": torch.tensor(items), **more}

    return Batches(list(range(rows)), collate, 4)


def blend(**settings):
    return Blend({"a": windows(1, 7, 3), "b": windows(2, 5, 2)}, 4, **settings)


def test_a_blend_draws_every_row_by_itself_and_pads():
    stream = blend(weights={"a": 3, "b": 1}, seed=1)
    batches = take(stream, 200)
    first = torch.cat([batch["ids"][:, 0] for batch in batches])
    assert len(first) == 800
    assert abs((first == 1).float().mean() - 0.75) < 0.05
    assert stream.drawn == {"a": int((first == 1).sum()), "b": int((first == 2).sum())}
    assert sum(len(set(batch["ids"][:, 0].tolist())) == 2 for batch in batches) > 100, "batches hold both"
    mixed = next(b for b in batches if set(b["ids"][:, 0].tolist()) == {1, 2})
    short = mixed["ids"][:, 0] == 2
    assert (mixed["ids"][short, 2] == 0).all()
    assert (mixed["targets"][short, 2] == IGNORE).all()
    assert not mixed["mask"][short, 2].any()
    assert mixed["mask"].dtype == torch.bool


def test_a_blend_gives_each_streams_rows_in_its_own_order():
    rows = [(int(ids[0]), int(row)) for b in take(blend(), 30) for ids, row in zip(b["ids"], b["row"], strict=True)]
    mine = [row for value, row in rows if value == 1]
    alone = [int(batch["row"][0]) for batch in Batches(list(range(7)), windows(1, 7, 3).collate, 1).take(len(mine))]
    assert mine == alone


def test_a_blend_resumes_with_the_weights_it_had():
    straight, stopped = blend(), blend()
    for stream in (straight, stopped):
        take(stream, 5)
        stream.weights = {"a": 1, "b": 4}
        take(stream, 3)
    again = blend()
    again.load_state_dict(stopped.state_dict())
    assert again.weights == straight.weights == {"a": 0.2, "b": 0.8}
    for one, other in zip(take(straight, 20), take(again, 20), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_rows_of_two_kinds_do_not_blend():
    kinds = Blend({"a": windows(1, 7, 3), "b": windows(2, 5, 2, labels=torch.zeros(1))}, 4)
    with pytest.raises(LimbeckError, match="cannot share a batch; write all domains in one way"):
        take(kinds, 20)
    with pytest.raises(LimbeckError, match="at least one row, but batch is 0"):
        Blend({"a": windows(1, 7, 3)}, 0)
