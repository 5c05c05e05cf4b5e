"""Fields and unary codes come back as they were packed."""

import numpy as np
import pytest

from limbeck.data.store.bits import WIDEST, pack_fields, pack_unary, padded, read_fields, read_unary, rice_width


@pytest.mark.parametrize("seed", range(20))
def test_fields_of_any_width_come_back(seed):
    draw = np.random.default_rng(seed)
    widths = draw.integers(0, WIDEST + 1, draw.integers(0, 400))
    values = draw.integers(0, 1 << WIDEST, len(widths)) & ((1 << widths) - 1)
    data = pack_fields(values, widths)
    assert len(data) == -(-widths.sum() // 8)
    assert (read_fields(padded(data), widths) == values).all()
    skipped = len(widths) // 2
    assert (read_fields(padded(data), widths[skipped:], int(widths[:skipped].sum())) == values[skipped:]).all()


@pytest.mark.parametrize("seed", range(10))
def test_unary_codes_come_back(seed):
    draw = np.random.default_rng(seed)
    values = draw.geometric(draw.uniform(0.05, 1), draw.integers(0, 300)) - 1
    data = pack_unary(values)
    assert len(data) == -(-int((values + 1).sum()) // 8)
    assert (read_unary(data, len(values)) == values).all()


def test_the_lowest_bits_are_taken_and_bits_go_from_low_to_high():
    assert pack_fields(np.array([5, 0xFF]), np.array([3, 2])).tolist() == [0b11101]
    assert pack_unary(np.array([0, 2, 1])).tolist() == [0b101001]


def test_the_width_of_a_rice_code_fits_the_numbers():
    assert rice_width(np.zeros(10, int)) == 0
    assert rice_width(np.full(10, 1000)) in (8, 9)
