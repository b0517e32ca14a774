"""Exact top-k search.  Results do not depend on block size, number of threads or BLAS, to the last bit.

A float32 matrix product is fast, but its last bits depend on its shape.  So it only selects candidates: all items
within the largest possible rounding error of the k-th best.  The candidates are scored again pair by pair in float64,
where the product of two float32 numbers is exact, and these scores decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, starmap

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.tables import NO_ROWS, Float32Array, Float64Array, IntArray
from recbole_onebp.util.ids import BundleRows

__all__ = ["DEFAULT_MEMORY_MB", "Excluded", "Ranked", "best_items", "best_of_pairs"]

DEFAULT_MEMORY_MB = 30
"""Memory for the scores of a block of users: small enough for the last-level cache."""

_GROUP = 32
"""Items of a group.  Only groups whose greatest score is high enough are searched further."""


@dataclass(frozen=True)
class Excluded:
    """Items that must not be recommended: some to no user, and a list for each user."""

    for_all: BundleRows
    """(m,)"""
    start: IntArray
    """(n_users + 1,): the list of user b is ``item[start[b] : start[b + 1]]``."""
    item: BundleRows

    @classmethod
    def of(cls, seen: Sequence[BundleRows], for_all: BundleRows = NO_ROWS) -> Excluded:
        """From a list of items for each user, and the items excluded for all."""
        ends = np.cumsum([len(items) for items in seen], dtype=np.int64)
        return cls(for_all, np.concatenate(([0], ends)), np.concatenate([NO_ROWS, *seen]))

    def pairs(self, first: int, last: int) -> tuple[IntArray, BundleRows]:
        """The lists of users ``first`` to ``last - 1`` as pairs of a user, counted from ``first``, and an item."""
        counts = np.diff(self.start[first : last + 1])
        return np.repeat(np.arange(last - first), counts), self.item[self.start[first] : self.start[last]]

    def within(self, pool: BundleRows) -> Excluded:
        """The same as positions in ``pool``, ascending items ``(p,)``; items outside it are dropped."""
        place = np.searchsorted(pool, self.item).clip(max=len(pool) - 1)
        kept = pool[place] == self.item
        start = np.concatenate(([0], np.cumsum(kept)))[self.start]
        return Excluded(np.flatnonzero(np.isin(pool, self.for_all)), start, place[kept])


@dataclass(frozen=True)
class Ranked:
    """The best items of each user, best first.  Of equal scores the lower row comes first."""

    start: IntArray
    """(n_users + 1,): the items of user b are ``item[start[b] : start[b + 1]]``."""
    item: BundleRows
    score: Float64Array

    def above(self, least: float) -> Ranked:
        """The items with a higher score than ``least``."""
        kept = self.score > least
        return Ranked(np.concatenate(([0], np.cumsum(kept)))[self.start], self.item[kept], self.score[kept])


def best_items(scorer: Scorer, k: int, excluded: Excluded, memory_mb: float, threads: int) -> Ranked:
    """The exact k best items of each user.

    Args:
        scorer: the users, and the items to choose from.
        k: length of the lists, at least 1.  A list is shorter where fewer items are left.
        excluded: the items to leave out.
        memory_mb: memory for scores, in MiB.  The scores of one user are always held.
        threads: blocks of users that are searched at the same time.
    """

    def work(users: slice) -> tuple[IntArray, BundleRows, Float64Array]:
        pairs = excluded.pairs(users.start, users.stop)
        return _best_of_block(scorer.part(users), k, excluded.for_all, *pairs)

    width = _GROUP * -(-len(scorer.items) // _GROUP)
    at_a_time = max(1, int(memory_mb * 2**20 / (scorer.bytes_per_score * width * threads)))
    block = max(1, min(at_a_time, -(-len(scorer) // threads)))
    blocks = [slice(first, min(first + block, len(scorer))) for first in range(0, len(scorer), block)]
    if threads == 1 or len(blocks) == 1:
        parts = list(map(work, blocks))
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, blocks))
    if not parts:
        return Ranked(np.zeros(1, np.int64), NO_ROWS, np.empty(0))
    count, item, score = _joined(parts)
    return Ranked(np.concatenate(([0], np.cumsum(count))), item, score)


def _best_of_block(
    scorer: Scorer, k: int, excluded_for_all: BundleRows, excluded_row: IntArray, excluded_item: BundleRows
) -> tuple[IntArray, BundleRows, Float64Array]:
    """Length of each list, and the items and scores of all lists, one after the other."""
    # Item i is in group i % n_groups.  There are at least k groups, so that the k-th greatest of the groups' maxima is
    # a lower bound of the k-th best score.
    n_users, n_items = len(scorer), len(scorer.items)
    depth = max(1, min(_GROUP, n_items // (4 * k)))
    n_groups = -(-n_items // depth)
    scores = np.empty((n_users, depth * n_groups), np.float32)
    scores[:, n_items:] = -np.inf
    scorer.write_all(scores[:, :n_items])
    scores[:, excluded_for_all] = -np.inf
    scores[excluded_row, excluded_item] = -np.inf

    groups = scores.reshape(n_users, depth, n_groups)
    greatest = groups.max(axis=1)
    if k < n_groups:
        bound = np.partition(greatest, n_groups - k, axis=1)[:, n_groups - k]
    else:
        bound = np.full(n_users, -np.inf, np.float32)
    bound -= 2 * scorer.margin()  # once for the bound's own error, once for that of the candidate
    bound = np.maximum(bound, np.finfo(np.float32).min)  # excluded items are at -inf and stay below

    promising = greatest >= bound[:, None]
    parts = [
        _best_of_groups(scorer, rows, k, groups[rows], promising[rows], bound[rows])
        for rows in _row_slices(np.count_nonzero(promising, axis=1) * depth)
    ]
    return _joined(parts)


def _joined(
    parts: Sequence[tuple[IntArray, BundleRows, Float64Array]],
) -> tuple[IntArray, BundleRows, Float64Array]:
    if len(parts) == 1:
        return parts[0]
    count, item, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return count, item, score


def _row_slices(candidates: IntArray) -> Iterator[slice]:
    """Slices of rows with about a million candidates each.  If all scores are equal, all items are candidates."""
    if candidates.sum() <= 2**20:
        yield slice(0, len(candidates))
        return
    part = (np.cumsum(candidates) - 1) // 2**20
    yield from starmap(slice, pairwise([0, *(np.flatnonzero(np.diff(part)) + 1), len(part)]))


def _best_of_groups(
    scorer: Scorer,
    users: slice,
    k: int,
    groups: Float32Array,
    promising: npt.NDArray[np.bool_],
    bound: Float32Array,
) -> tuple[IntArray, BundleRows, Float64Array]:
    row, group = np.nonzero(promising)
    found, depth = np.nonzero(groups[row, :, group] >= bound[row, None])
    row, item = row[found], depth * groups.shape[2] + group[found]
    return best_of_pairs(users.stop - users.start, k, row, item, scorer.pairs(users.start + row, item))


def best_of_pairs(
    n_users: int, k: int, row: IntArray, item: BundleRows, score: Float64Array
) -> tuple[IntArray, BundleRows, Float64Array]:
    """The k best of given pairs of a user and an item, ``(m,)`` each, by their exact scores.

    Returns:
        Number of items of each user, at most k, and the items and scores of all users, one after the other.
    """
    order = np.lexsort((item, -score, row))
    row, item, score = row[order], item[order], score[order]
    count = np.bincount(row, minlength=n_users)
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    kept = place < k
    return np.minimum(count, k), item[kept], score[kept]
