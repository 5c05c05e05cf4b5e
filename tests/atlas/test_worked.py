"""Tasks as running text."""

import pytest

from limbeck.atlas.kinds import KINDS
from limbeck.atlas.worked import worked
from limbeck.core.check import LimbeckError


@pytest.mark.parametrize("kind", KINDS)
def test_texts_hold_examples_and_depend_on_seed_and_number_alone(kind):
    texts = worked(kind, 4, seed=3, examples=5)
    assert texts[:2] == worked(kind, 2, seed=3, examples=5)
    assert texts != worked(kind, 4, seed=4, examples=5)
    assert len(set(texts)) == 4
    for text in texts:
        pairs = [part.split("\n") for part in text.split("\n\n\n")]
        assert 1 <= len(pairs) <= 5
        assert all(len(pair) == 2 and all(pair) for pair in pairs)


def test_an_unknown_kind_is_refused():
    with pytest.raises(LimbeckError, match="did you mean 'date'"):
        worked("dates")
