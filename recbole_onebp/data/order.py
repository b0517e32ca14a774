"""Whether interactions are in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["are_in_order", "has_times"]

_ALLOWED = 0.01
"""Share of the users whose parts may overlap in time: clocks and ties are not perfect."""


def has_times(dataset: Any) -> bool:
    """Whether interactions have a time, RecBole's ``TIME_FIELD``."""
    return dataset.time_field in dataset.inter_feat


def are_in_order(parts: Sequence[Any]) -> bool:
    """Whether each user's train interactions come before those of validation, and these before those of test.

    Args:
        parts: data sets, the earliest first.  Empty ones are passed over.
    """
    parts = [part for part in parts if len(part)]
    if not parts or not all(map(has_times, parts)):
        return False
    n_users = parts[0].user_num
    spans = [_spans(part, n_users) for part in parts]
    for (_, last), (first, _) in combinations(spans, 2):
        in_both = np.isfinite(last) & np.isfinite(first)
        if in_both.any() and (last > first)[in_both].mean() > _ALLOWED:
            return False
    return True


def _spans(part: Any, n_users: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each user's first and last time, ``(n_users,)``; infinite for users without interactions."""
    user, time = (part.inter_feat[field].numpy() for field in (part.uid_field, part.time_field))
    first, last = np.full(n_users, np.inf), np.full(n_users, -np.inf)
    np.minimum.at(first, user, time)
    np.maximum.at(last, user, time)
    return first, last
