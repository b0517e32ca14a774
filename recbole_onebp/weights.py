"""What the weight of an interaction, such as a number of plays, becomes in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["ALLOWED", "LARGEST", "LEAST", "Transform", "are_allowed", "transformed"]

Transform = Literal["raw", "log1p", "sqrt", "rank"]
"""How much more a larger weight counts, from proportionally to hardly.

- ``raw``: as given.
- ``sqrt``: the square root.
- ``log1p``: the logarithm of 1 + the weight.
- ``rank``: the share of the user's interactions whose weight is not larger, from 1 / n to 1.
"""

LEAST, LARGEST = float(np.float32(1e-9)), 1e9
"""Bounds of a weight: within them nothing that is made of weights overflows."""
ALLOWED = f"a number from {LEAST:g} to {LARGEST:g}"


def are_allowed(weight: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each of the weights is a number within the bounds; NaN is not."""
    return np.asarray((weight >= LEAST) & (weight <= LARGEST), np.bool_)


def transformed(weight: npt.NDArray[Any], owner: npt.NDArray[np.integer], by: Transform) -> npt.NDArray[np.float64]:
    """The weights of interactions as the model uses them, up to a common factor.

    Args:
        weight: as given, ``(n,)``, all allowed.
        owner: the user of each interaction, ``(n,)``.
        by: see :data:`Transform`.

    Returns:
        ``(n,)``, all above 0.

    Example:
        >>> transformed(np.array([9.0, 4.0, 4.0, 1.0]), np.array([1, 1, 1, 2]), "rank").round(2).tolist()
        [1.0, 0.67, 0.67, 1.0]
    """
    weight = weight.astype(np.float64)
    if by == "rank":
        return _ranks(weight, owner)
    functions: dict[Transform, Callable[[Any], Any]] = {"raw": np.asarray, "log1p": np.log1p, "sqrt": np.sqrt}
    return np.asarray(functions[by](weight), np.float64)


def _ranks(weight: npt.NDArray[np.float64], owner: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    order = np.lexsort((weight, owner))
    users, values = owner[order], weight[order]
    is_first = np.ones((2, len(order) + 1), np.bool_)  # of a user; of equal weights of a user
    is_first[0, 1:-1] = users[1:] != users[:-1]
    is_first[1, 1:-1] = is_first[0, 1:-1] | (values[1:] != values[:-1])
    (start, end), place = (np.flatnonzero(row) for row in is_first), np.cumsum(is_first[:, :-1], axis=1) - 1
    ranks = np.empty(len(order))
    ranks[order] = (end[place[1] + 1] - start[place[0]]) / np.diff(start)[place[0]]
    return ranks
