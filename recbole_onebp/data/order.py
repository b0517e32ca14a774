"""Whether interactions are in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.data.interactions import Table, row_of
from recbole_onebp.util.errors import UserError

__all__ = ["are_in_order", "check_times", "has_times"]

_ALLOWED = 0.01
"""Share of the users whose parts may overlap in time: clocks and ties are not perfect."""


def has_times(dataset: Any) -> bool:
    """Whether interactions have a time, RecBole's ``TIME_FIELD``."""
    return dataset.time_field in dataset.inter_feat


def check_times(table: Table, frame: pd.DataFrame | None, field: str) -> None:
    """Check the times of a file before RecBole fills in the mean for those that are missing.

    Raises:
        UserError: names the file and the row.
    """
    if frame is None or field not in frame or not pd.api.types.is_numeric_dtype(frame[field]):
        return
    if len(wrong := np.flatnonzero(~np.isfinite(frame[field].to_numpy(np.float64)))):
        raise UserError(
            f"{table.path}, {row_of(table, wrong[0])}: no {field}; RecBole would take the mean of all: fill it in, or "
            "leave out the row, or the column by load_col"
        )


def are_in_order(parts: Sequence[Any]) -> bool:
    """Whether each user's train interactions come before those of validation, and these before those of test.

    Where nobody has two different times there is no order.

    Args:
        parts: data sets, the earliest first.  Empty ones are passed over.
    """
    parts = [part for part in parts if len(part)]
    if not parts or not all(map(has_times, parts)):
        return False
    n_users = parts[0].user_num
    spans = [_spans(part, n_users) for part in parts]
    if not (np.max([last for _, last in spans], axis=0) > np.min([first for first, _ in spans], axis=0)).any():
        return False  # nobody has two times
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
