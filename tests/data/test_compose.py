"""Streams made of streams."""

import torch

from limbeck.data.compose import Beside, Mapped, carried
from limbeck.data.samples import Sample, batch_of
from limbeck.data.stream import Batches


def plain(start: int, seed: int) -> Batches:
    return Batches([Sample([start + i], [i]) for i in range(6)], batch_of, 2, seed)


def ids(batches) -> list:
    return [{name: value.tolist() for name, value in batch.items()} for batch in batches]


def take(stream, number: int) -> list:
    batches = iter(stream)
    return [next(batches) for _ in range(number)]


def make():
    return Mapped(Beside(plain(0, 1), plain(50, 2)), lambda batch: batch | {"sum": batch["ids"] + batch["text_ids"]})


def test_one_batch_carries_the_other_and_passes_the_function():
    for batch, one, two in zip(take(make(), 7), plain(0, 1).take(7), plain(50, 2).take(7), strict=True):
        assert torch.equal(batch["ids"], one["ids"])
        assert ids([carried(batch)]) == ids([two])
        assert torch.equal(batch["sum"], one["ids"] + two["ids"])


def test_both_are_resumed():
    first = make()
    begun = take(first, 4)
    second = make()
    second.load_state_dict(first.state_dict())
    assert ids(begun + take(second, 5)) == ids(take(make(), 9))
