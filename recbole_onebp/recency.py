"""How much an item counts in its user, by the number of items that came after it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["LATEST", "recency_weights"]

LATEST = 1000
"""Items of a user that count where recent ones count more.  Older ones would add little, and make updates slow."""


def recency_weights(age: npt.NDArray[np.int64], recency: float) -> npt.NDArray[np.float64]:
    """Weights ``(age + 1) ** -recency``; 0 from the age of 1,000 on.

    Args:
        age: number of later items in the user's history, ``(n,)``.
        recency: 0 gives all items the same weight; the larger, the more the latest count.

    Returns:
        The weights, ``(n,)``.

    Example:
        >>> recency_weights(np.array([3, 1, 0]), 1.0).tolist()
        [0.25, 0.5, 1.0]
    """
    return np.where(age < LATEST, (age + 1.0) ** -recency, 0.0)
