"""Sums in vector registers: the very bits of the order that is written down."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from recbole_onebp.util import simd


@njit
def folded(left, right):
    return simd.dot(left, right), simd.total(left), simd.highest(left)


@njit
def bound(product, scale, slack, length):
    return simd.highest_bound(product, scale, slack, length)


def in_order(values, join, first):
    """Sixteen lanes, joined half by half; then what is left over, in turn."""
    whole = len(values) - len(values) % 16
    lane = reduce(join, values[:whole].reshape(-1, 16), np.full(16, first, dtype=np.float32))
    while len(lane) > 1:
        lane = join(*np.split(lane, 2))
    return reduce(join, values[whole:], lane[0])


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 40, 64, 100, 1024])
def test_they_fold_in_their_order(size):
    left, right = np.random.default_rng(size).normal(size=(2, size)).astype(np.float32)
    assert folded(left, right) == (
        in_order(left * right, np.add, 0),
        in_order(left, np.add, 0),
        in_order(left, np.maximum, -np.inf),
    )


def test_nan_is_in_sums_and_not_the_highest():
    values = np.arange(40, dtype=np.float32)
    values[[3, 39]] = np.nan
    dot, total, highest = folded(values, np.ones_like(values))
    assert np.isnan(dot)
    assert np.isnan(total)
    assert highest == 38


@pytest.mark.parametrize("kind", [np.int32, np.float32])
@pytest.mark.parametrize("size", [0, 1, 16, 40, 128])
def test_the_highest_bound_is_the_highest_of_all(kind, size):
    random = np.random.default_rng(size)
    product, length = random.integers(-9000, 9000, size).astype(kind), np.float32(0.7)
    scale, slack = random.random((2, size), dtype=np.float32)
    bounds = product.astype(np.float32) * scale + length * slack
    assert bound(product, scale, slack, length) == max(bounds, default=-np.inf)


def test_bounds_that_are_not_numbers_are_not_the_highest():
    product = np.full(40, -3, dtype=np.float32)
    product[[5, 38]] = np.nan
    ones = np.ones_like(product)
    assert bound(product, ones, ones, np.float32(1)) == -2


@pytest.mark.parametrize("kind", [np.float64, np.uint8, np.int64])
def test_arrays_of_other_types_are_refused(kind):
    row = np.ones(4, dtype=np.float32)
    with pytest.raises(TypingError, match="highest_bound"):
        bound(row.astype(kind), row, row, np.float32(1))


def test_a_number_is_not_an_array():
    with pytest.raises(TypingError, match="dot"):
        folded(np.float32(1), np.float32(1))


def test_arrays_with_gaps_are_refused():
    with pytest.raises(TypingError, match="dot"):
        folded(np.ones((4, 2), dtype=np.float32)[:, 0], np.ones(4, dtype=np.float32))
