"""The best items of users by exact scores, which no block size, thread or BLAS changes.

A float32 matrix product is fast, and its last bits depend on its shape.  So it only chooses candidates, with a margin
as wide as its rounding can be; these are scored again pair by pair in float64, where the product of two float32 numbers
is exact, and those scores decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, starmap

import numpy as np
import numpy.typing as npt

__all__ = [
    "DEFAULT_MEMORY_MB",
    "TINY",
    "Encodings",
    "Hidden",
    "ItemTable",
    "Ranked",
    "best_items",
    "best_of_pairs",
    "dots",
    "unit_rows",
]

_Floats = npt.NDArray[np.float32]
_Index = npt.NDArray[np.int64]
_NONE: _Index = np.empty(0, np.int64)

DEFAULT_MEMORY_MB = 30
"""For the scores of a block of users: in reach of the last-level cache."""

TINY = 1e-12
"""Encodings are divided by no less, as by torch's normalize."""

_GROUP = 32
"""Scores of which only the greatest is looked at first."""
_BLOCK_ROWS = 1 << 16
"""Encodings that are widened, or pairs that are scored in float64, at a time."""


class Encodings:
    """Rows that may be float16 and lie in a file: handed out as float32, a block at a time; more can be appended."""

    def __init__(self, base: npt.NDArray[np.floating]) -> None:
        self._base = base
        self._added: _Floats = np.empty((0, base.shape[1]), np.float32)

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    @property
    def size(self) -> int:
        """Dimension d."""
        return int(self._base.shape[1])

    def rows(self, index: _Index) -> _Floats:
        """The rows of an index ``(m,)``, shape ``(m, d)``."""
        if not len(self._added):
            return self._base[index].astype(np.float32, copy=False)
        rows = np.empty((len(index), self.size), np.float32)
        old = index < len(self._base)
        rows[old] = self._base[index[old]]
        rows[~old] = self._added[index[~old] - len(self._base)]
        return rows

    def blocks(self) -> Iterator[tuple[int, _Floats]]:
        """Number of the first row, and the rows, of one block after the other."""
        # float32 is handed out as it lies: only what must be widened is cut up.
        step = len(self._base) if self._base.dtype == np.float32 else _BLOCK_ROWS
        for start in range(0, len(self._base), step):
            yield start, self._base[start : start + step].astype(np.float32, copy=False)
        if len(self._added):
            yield len(self._base), self._added

    def append(self, rows: _Floats) -> None:
        self._added = np.concatenate((self._added, rows))


def dots(left: _Floats, right: _Floats) -> npt.NDArray[np.float64]:
    """Dot products of the rows of two ``(m, d)`` arrays, in float64; a row's does not depend on the others."""
    # numpy adds up the last axis of each row in the same order, however many rows there are.
    return (left.astype(np.float64) * right).sum(axis=1)


def unit_rows(rows: npt.NDArray[np.floating]) -> _Floats:
    """Rows of unit length; a row of zeros stays."""
    wide = rows.astype(np.float64)
    length = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return (wide / np.maximum(length, TINY)).astype(np.float32)


class ItemTable:
    """Items as they are scored: ``<u, e_i> + bias_i``."""

    def __init__(self, encodings: Encodings, bias: _Floats | None) -> None:
        """Take over the encodings ``(n, d)`` and what is added to each item's score ``(n,)``."""
        self.encodings = encodings
        self.bias = bias
        longest = max(
            (float(np.square(block).sum(axis=1).max(initial=0)) for _, block in encodings.blocks()), default=0
        )
        self.longest = longest**0.5
        """Length of the longest encoding."""
        self.greatest_bias = 0.0 if bias is None else float(np.abs(bias).max(initial=0))

    def __len__(self) -> int:
        return len(self.encodings)

    def subset(self, item: _Index) -> ItemTable:
        """The table of some items alone."""
        return ItemTable(Encodings(self.encodings.rows(item)), None if self.bias is None else self.bias[item])

    def score_all(self, user_e: _Floats, out: _Floats) -> None:
        """Scores of users ``(B, d)`` and all items into ``out`` ``(B, n)``, by a matrix product."""
        for start, block in self.encodings.blocks():
            np.matmul(user_e, block.T, out=out[:, start : start + len(block)])
        if self.bias is not None:
            out += self.bias

    def margin(self, user_e: _Floats) -> _Floats:
        """By how much the matrix product's score may at most be off, for each user ``(B,)``.

        A sum of d products rounds by at most ``d u / (1 - d u)`` times the sum of their absolute values, u = 2 ** -24,
        in whichever order and with or without fused operations (Higham, Accuracy and Stability of Numerical Algorithms,
        3.1); the bias is one term more.  Twice that, for the lengths are rounded too.
        """
        length = np.sqrt(np.square(user_e, dtype=np.float64).sum(axis=1))
        terms = (self.encodings.size + 2) * 2.0**-24
        return (2 * terms * (length * self.longest + self.greatest_bias)).astype(np.float32)

    def score_pairs(self, user_e: _Floats, row: _Index, item: _Index) -> npt.NDArray[np.float64]:
        """Exact scores of pairs of a row of ``user_e`` and an item, ``(m,)`` each."""
        found = np.empty(len(item))
        for start in range(0, len(item), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            found[part] = dots(user_e[row[part]], self.encodings.rows(item[part]))
        return found if self.bias is None else found + self.bias[item]


@dataclass(frozen=True)
class Hidden:
    """Items that must not be found: some for all users, and a list for each."""

    for_all: _Index
    """(m,)"""
    start: _Index
    """(n_users + 1,): those of user b alone are ``item[start[b] : start[b + 1]]``."""
    item: _Index

    @classmethod
    def of(cls, seen: Sequence[_Index], for_all: _Index = _NONE) -> Hidden:
        """What each user has seen, and what is hidden from all."""
        ends = np.cumsum([len(items) for items in seen], dtype=np.int64)
        return cls(for_all, np.concatenate(([0], ends)), np.concatenate([_NONE, *seen]))

    def pairs(self, first: int, last: int) -> tuple[_Index, _Index]:
        """Row, counted from ``first``, and item of what is hidden from the users ``first`` to ``last``, excluded."""
        counts = np.diff(self.start[first : last + 1])
        return np.repeat(np.arange(last - first), counts), self.item[self.start[first] : self.start[last]]

    def within(self, pool: _Index) -> Hidden:
        """The same in positions of ``pool``, ascending item indices ``(p,)``."""
        place = np.searchsorted(pool, self.item).clip(max=len(pool) - 1)
        kept = pool[place] == self.item
        start = np.concatenate(([0], np.cumsum(kept)))[self.start]
        return Hidden(np.flatnonzero(np.isin(pool, self.for_all)), start, place[kept])


@dataclass(frozen=True)
class Ranked:
    """The best items of users, the best first; of equal ones the one with the lower index."""

    start: _Index
    """(n_users + 1,): those of user b are ``item[start[b] : start[b + 1]]``."""
    item: _Index
    score: npt.NDArray[np.float64]


def best_items(user_e: _Floats, items: ItemTable, k: int, hidden: Hidden, memory_mb: float, threads: int) -> Ranked:
    """The exact k best items of each user.

    Args:
        user_e: encodings of users, ``(B, d)``, as they are scored.
        items: what to choose from.
        k: how many, at least 1; a user has fewer where fewer are left.
        hidden: what not to find.
        memory_mb: bounds the scores that are held at a time, except that one user's always fit.
        threads: blocks of users that are worked on at a time.
    """
    width = _GROUP * -(-len(items) // _GROUP)
    at_a_time = max(1, int(memory_mb * 2**20 / (4 * width * threads)))
    block = max(1, min(at_a_time, -(-len(user_e) // threads)))

    def work(first: int) -> tuple[_Index, _Index, npt.NDArray[np.float64]]:
        last = min(first + block, len(user_e))
        return _best_of_block(user_e[first:last], items, k, hidden.for_all, *hidden.pairs(first, last))

    firsts = range(0, len(user_e), block)
    if threads == 1 or len(firsts) == 1:
        parts = list(map(work, firsts))
    else:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(work, firsts))
    if not parts:
        return Ranked(np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0))
    count, item, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranked(np.concatenate(([0], np.cumsum(count))), item, score)


def _best_of_block(
    user_e: _Floats, items: ItemTable, k: int, hidden_for_all: _Index, hidden_row: _Index, hidden_item: _Index
) -> tuple[_Index, _Index, npt.NDArray[np.float64]]:
    """How many items each user has, and the items and scores of one user after the other."""
    # An item is in group item % n_groups; k groups at least, so that the k best of their greatest scores bound the
    # k best scores from below.
    depth = max(1, min(_GROUP, len(items) // (4 * k)))
    n_groups = -(-len(items) // depth)
    scores = np.empty((len(user_e), depth * n_groups), np.float32)
    scores[:, len(items) :] = -np.inf
    items.score_all(user_e, scores[:, : len(items)])
    scores[:, hidden_for_all] = -np.inf
    scores[hidden_row, hidden_item] = -np.inf

    groups = scores.reshape(len(user_e), depth, n_groups)
    greatest = groups.max(axis=1)
    if k < n_groups:
        bound = np.partition(greatest, n_groups - k, axis=1)[:, n_groups - k]
    else:
        bound = np.full(len(user_e), -np.inf, np.float32)
    bound -= 2 * items.margin(user_e)  # one of the two is the bound's own
    bound = np.maximum(bound, np.finfo(np.float32).min)  # what is hidden stays below

    worth = greatest >= bound[:, None]
    parts = [
        _best_of_groups(user_e[rows], items, k, groups[rows], worth[rows], bound[rows])
        for rows in _row_slices(np.count_nonzero(worth, axis=1) * depth)
    ]
    count, item, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    return count, item, score


def _row_slices(candidates: _Index) -> Iterator[slice]:
    """Rows with about a million candidates at a time: where all scores are alike, all items are candidates."""
    part = (np.cumsum(candidates) - 1) // 2**20
    yield from starmap(slice, pairwise([0, *(np.flatnonzero(np.diff(part)) + 1), len(part)]))


def _best_of_groups(
    user_e: _Floats,
    items: ItemTable,
    k: int,
    groups: _Floats,
    worth: npt.NDArray[np.bool_],
    bound: _Floats,
) -> tuple[_Index, _Index, npt.NDArray[np.float64]]:
    row, group = np.nonzero(worth)
    found, depth = np.nonzero(groups[row, :, group] >= bound[row, None])
    row, item = row[found], depth * groups.shape[2] + group[found]
    return best_of_pairs(user_e, items, k, row, item)


def best_of_pairs(
    user_e: _Floats, items: ItemTable, k: int, row: _Index, item: _Index
) -> tuple[_Index, _Index, npt.NDArray[np.float64]]:
    """The k best of some pairs of a row of ``user_e`` and an item, ``(m,)`` each, by exact scores.

    Returns:
        How many items each row has, at most k, and the items and scores of one row after the other.
    """
    score = items.score_pairs(user_e, row, item)
    order = np.lexsort((item, -score, row))
    row, item, score = row[order], item[order], score[order]
    count = np.bincount(row, minlength=len(user_e))
    place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    kept = place < k
    return np.minimum(count, k), item[kept], score[kept]
