"""Split interactions into train, validation and test by RecBole's rules, without a loop over users."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["by_order", "by_ratio", "by_time", "cold_items", "leave_one_out"]

_Parts = npt.NDArray[np.int64]


def _rank(user: npt.NDArray[np.int64], order: npt.NDArray[np.float64]) -> tuple[_Parts, _Parts]:
    """Each row's place among its user's rows (n,), from 0, by ``order`` (n,), and how many those are (n,)."""
    by_user = np.lexsort((order, user))
    counts = np.bincount(user)
    first = np.cumsum(counts) - counts
    place = np.empty(len(user), dtype=np.int64)
    place[by_user] = np.arange(len(user)) - first[user[by_user]]
    return place, counts[user]


def by_ratio(user: pd.Series, ratios: Sequence[float], seed: int) -> _Parts:
    """Split each user's rows at random by ``ratios``; see :func:`by_order`.

    Args:
        user: (n,) user of each row.
        ratios: share of each part; need not sum to 1.
        seed: random seed; the same rows in the same order give the same parts on every machine.

    Returns:
        (n,) number of the part of each row.
    """
    # numpy guarantees the stream of RandomState for all versions, but not that of its newer generators.
    return by_order(user, np.random.RandomState(seed).random_sample(len(user)), ratios)


def by_order(user: pd.Series, order: npt.NDArray[np.float64], ratios: Sequence[float]) -> _Parts:
    """Split each user's rows by ``ratios``, the first ones to part 0.

    The counts are those of RecBole's ``RS`` split: of a user's n rows part k > 0 gets ``floor(n * ratio)``, but one
    where that share lies between 0 and 1, the last part first, as long as part 0 keeps one; part 0 gets the rest.

    Args:
        user: (n,) user of each row.
        order: (n,) orders the rows of a user, ties in the order of rows.
        ratios: share of each part; need not sum to 1.

    Returns:
        (n,) number of the part of each row.
    """
    place, n = _rank(pd.factorize(user)[0], order)
    shares = np.asarray(ratios, dtype=np.float64) / sum(ratios)
    sizes = [(n * share).astype(np.int64) for share in shares]
    sizes[0] = n - sum(sizes[1:])
    for part in range(len(sizes) - 1, 0, -1):
        short = (sizes[0] > 1) & (n * shares[part] > 0) & (n * shares[part] < 1)
        sizes[part] = sizes[part] + short
        sizes[0] = sizes[0] - short
    return np.sum([place >= bound for bound in np.cumsum(sizes[:-1], axis=0)], axis=0, dtype=np.int64)


def leave_one_out(user: pd.Series, time: pd.Series | None, seed: int) -> _Parts:
    """Each user's last row to test (2), the one before to validation (1), the others to train (0).

    As with RecBole's ``LS``, a user with two rows has none in validation, and one with a single row only that in train.

    Args:
        user: (n,) user of each row.
        time: (n,) orders the rows, ties in the order of rows; without it the order is random.
        seed: random seed of that order.

    Returns:
        (n,) number of the part of each row.
    """
    codes = pd.factorize(user)[0]
    order = np.random.RandomState(seed).random_sample(len(codes)) if time is None else time.to_numpy(np.float64)
    place, n = _rank(codes, order)
    from_end = n - 1 - place
    part = np.where(from_end == 0, 2, np.where(from_end == 1, 1, 0))
    return np.where(place == 0, 0, part)


def by_time(time: pd.Series, ratios: Sequence[float]) -> _Parts:
    """The earliest rows to train, the next to validation, the latest to test, regardless of the user.

    Args:
        time: (n,) time of each row; rows of the same time stay together, in the earlier part.
        ratios: share of each part.

    Returns:
        (n,) number of the part of each row.
    """
    if time.empty:
        return np.empty(0, dtype=np.int64)
    shares = np.cumsum(np.asarray(ratios, dtype=np.float64) / sum(ratios))[:-1]
    last = np.rint(shares * len(time)).astype(np.int64) - 1  # of the rows in order, the last that is still in the part
    bounds = np.sort(time.to_numpy(np.float64))[np.maximum(last, 0)]
    return np.sum([time.to_numpy() > bound for bound in bounds], axis=0, dtype=np.int64)


def cold_items(user: pd.Series, item: pd.Series, ratios: Sequence[float], seed: int) -> _Parts:
    """All rows of some items to validation, those of others to test; the rows of the rest by :func:`by_ratio`.

    Args:
        user: (n,) user of each row.
        item: (n,) item of each row.
        ratios: share of each part: of the items, and of each user's rows of the items that have rows in train.
        seed: random seed.

    Returns:
        (n,) number of the part of each row.
    """
    codes, items = pd.factorize(item)
    shares = np.cumsum(np.asarray(ratios, dtype=np.float64)[::-1] / sum(ratios))
    n_test, n_held = np.rint(shares[:2] * len(items)).astype(np.int64)
    drawn = np.random.RandomState(seed).permutation(len(items))
    part_of_item = np.zeros(len(items), dtype=np.int64)
    part_of_item[drawn[:n_held]] = 1
    part_of_item[drawn[:n_test]] = 2
    part = part_of_item[codes]
    warm = part == 0
    part[warm] = by_ratio(user[warm], ratios, seed)
    return part
