"""Ranks, reciprocal ranks and recall, by hand."""

import pytest
import torch

from limbeck.core.check import LimbeckError
from limbeck.evaluation.retrieval import found, ranks


def test_places_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 6.0], [0.0, 1.0, 0.5]])
    places = ranks(scores)
    assert places.tolist() == [1, 3, 2]
    assert found(places, (1, 2)) == pytest.approx(
        {"mrr": (1 + 1 / 3 + 1 / 2) / 3, "recall_1": 1 / 3, "recall_2": 2 / 3}
    )


def test_vectors_that_are_all_alike_find_nothing():
    assert ranks(torch.ones(4, 4)).tolist() == [4, 4, 4, 4]


def test_what_is_no_square_of_numbers_is_refused():
    with pytest.raises(LimbeckError, match=r"scores are to be n n, not \(2, 3\)"):
        ranks(torch.zeros(2, 3))
    with pytest.raises(LimbeckError, match="NaN or infinity"):
        ranks(torch.full((2, 2), torch.nan))
