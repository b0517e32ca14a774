"""What the order of time says: how much an item counts in its user, and which items are on the rise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["LATEST", "recency_weights", "trends"]

LATEST = 1000
"""Items of a user that count where recent ones count more.  Older ones would add little, and make updates slow."""

_TREND_RECENCY = 0.25
"""How fast an interaction ceases to count as recent, where trends are concerned."""
_TREND_PRIOR = 10.0
"""Interactions without a trend that each item is given, so that few interactions say little."""
_FIXED_POINT = 2.0**20
"""Weights are sums of integers, which come out the same in any order, so for any number of processes."""


def recency_weights(age: npt.NDArray[np.int64], recency: float) -> npt.NDArray[np.float64]:
    """Weights ``(age + 1) ** -recency``, 0 from the age of 1,000 on; with ``recency`` 0 all are 1.

    Args:
        age: number of later items in the user's history, ``(n,)``.
        recency: 0 or above; the larger, the more the latest count.

    Returns:
        The weights, ``(n,)``.

    Example:
        >>> recency_weights(np.array([3, 1, 0]), 1.0).tolist()
        [0.25, 0.5, 1.0]
    """
    return np.where(age < LATEST, (age + 1.0) ** -recency, 0.0) if recency else np.ones(len(age))


def trends(
    item: npt.NDArray[np.int64],
    age: npt.NDArray[np.int64],
    n_items: int,
    summed: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = lambda part: part,
) -> npt.NDArray[np.float64]:
    """The logarithm of how much more often each item was taken recently than ever.

    An interaction counts as ``(age + 1) ** -0.25`` recent ones, scaled to mean 1, and as 1 ever; both counts begin at
    10.

    Args:
        item: of each interaction, ``(n,)``.
        age: number of later items in the user's history, ``(n,)``.
        n_items: number of items.
        summed: adds up arrays of several processes, each of which has a part of the interactions.

    Returns:
        ``(n_items,)``; 0 for items without interactions.

    Example:
        >>> trends(np.array([0, 1]), np.array([9, 0]), n_items=3).round(3).tolist()
        [-0.026, 0.025, 0.0]
    """
    weight = np.rint(_FIXED_POINT * recency_weights(age, _TREND_RECENCY))
    late, ever = summed(np.stack([np.bincount(item, each, n_items) for each in (weight, np.ones(len(item)))]))
    return np.log((late * (ever.sum() / max(late.sum(), 1.0)) + _TREND_PRIOR) / (ever + _TREND_PRIOR))
