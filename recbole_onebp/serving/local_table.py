"""The local term: what each item of a user's history adds to the scores of single other items.

The towers do not know what is specific to a pair of items.  The local term adds

    local(u, j) = weight * sum of r_i W[i, j] over the items i of the user's history.

W is sparse: each item has entries for the items that often occur with it.  r_i is the recency of item i, see
:func:`recbole_onebp.recency.recency_weights`, divided by its mean over the history; 1 without recency.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.recency import LATEST, recency_weights
from recbole_onebp.serving.tables import LARGEST, Float64Array, IntArray
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, BundleRows
from recbole_onebp.util.untrusted import map_array

__all__ = ["LOCAL_FILES", "LocalScores", "LocalTable", "row_blocks"]

LOCAL_FILES = ("local.indptr.npy", "local.indices.npy", "local.values.npy")

_BLOCK_ENTRIES = 1 << 20
"""Entries that are checked or renumbered at a time, or those of one row."""


@dataclass(frozen=True)
class LocalTable:
    """The sparse matrix W of the local term, with its weight and recency.

    Items beyond its rows, which were added after the export, have no entries.
    """

    start: IntArray
    """(n_items + 1,): the entries of item i are ``item[start[i] : start[i + 1]]``."""
    item: npt.NDArray[np.int32]
    """(n,), ascending in each row; never i itself."""
    value: npt.NDArray[np.float32]
    """(n,)"""
    weight: float
    recency: float

    @classmethod
    def read(cls, path: Path, manifest: Mapping[str, Any], n_items: int) -> LocalTable | None:
        """The local term of the bundle at ``path``; None if it has none.

        Raises:
            UserError: if its files are incomplete, or hold what no local term has.
        """
        about, listed = manifest.get("local"), [name for name in LOCAL_FILES if name in manifest["files"]]
        if about is None and listed:
            raise UserError(f"{path / 'manifest.json'}: lists {listed[0]}, but has no local; export the bundle again")
        if about is None:
            return None
        if len(listed) < len(LOCAL_FILES):
            raise UserError(
                f"{path}: incomplete: the manifest has local, but does not list all of {', '.join(LOCAL_FILES)}"
            )
        start = map_array(path / LOCAL_FILES[0], (n_items + 1,), np.int64)
        item = map_array(path / LOCAL_FILES[1], (-1,), np.int32)
        value = map_array(path / LOCAL_FILES[2], item.shape, np.float32)
        table = cls(start, item, value, float(about["weight"]), float(about["recency"]))
        fault = table.fault()
        if fault is not None:
            raise UserError(f"{path / fault[0]}: {fault[1]}; export the bundle again")
        return table

    def fault(self) -> tuple[str, str] | None:
        """The file that holds what no local term has, and what was expected; None if all is right."""
        n_items, n = len(self.start) - 1, len(self.item)
        if (int(self.start[0]), int(self.start[-1])) != (0, n) or bool((self.start[1:] < self.start[:-1]).any()):
            return LOCAL_FILES[0], f"expected numbers that ascend from 0 to {n}, the length of {LOCAL_FILES[1]}"
        for rows, entries in row_blocks(self.start):
            owner = np.repeat(np.arange(rows.start, rows.stop), np.diff(self.start[rows.start : rows.stop + 1]))
            item = self.item[entries].astype(np.int64)
            if len(item) and not (item.min() >= 0 and item.max() < n_items):
                return LOCAL_FILES[1], f"expected rows of the {n_items} items"
            if bool((np.diff(owner * n_items + item) <= 0).any()) or bool((owner == item).any()):
                return LOCAL_FILES[1], "expected ascending items for each item, without the item itself"
            if not np.abs(self.value[entries]).max(initial=0) <= LARGEST:
                return LOCAL_FILES[2], f"expected values up to {LARGEST:g}"
        return None

    def shares(self, history: BundleRows) -> tuple[BundleRows, Float64Array]:
        """The items of a history that have a row, each once, the earliest first, and the sum of r_i of each."""
        items, r = history, np.ones(len(history), np.float64)
        if self.recency and len(history):
            items = history[-LATEST:]  # older ones have weight 0
            r = self._by_age[: len(items)][::-1]
            r = r * (len(history) / r.sum())
        ascending = np.sort(items)
        if (ascending[1:] == ascending[:-1]).any():
            items, first, place = np.unique(items, return_index=True, return_inverse=True)
            order = np.argsort(first)
            items, r = items[order], np.asarray(np.bincount(place.reshape(-1), r)[order], np.float64)
        if len(ascending) and ascending[-1] >= len(self.start) - 1:
            has_row = items < len(self.start) - 1
            items, r = items[has_row], r[has_row]
        return items, r

    @cached_property
    def _by_age(self) -> Float64Array:
        return recency_weights(np.arange(LATEST), self.recency)

    def scores(self, history: BundleRows, pool: BundleRows | None = None) -> tuple[IntArray, Float64Array]:
        """The items with a local score for a history, ascending, and their scores; ``(n,)`` each.

        The scores depend on the history alone, to the last bit: what its items add is summed in float64, in order.

        Args:
            history: the items, in order.
            pool: find these items only, ascending; the answer has their places in the pool.  All items if None.
        """
        items, r = self.shares(history)
        entry, count = self.entries(items)
        n_items = len(self.start) - 1
        values = self.value[entry] * np.repeat(r, count)
        added = np.asarray(np.bincount(self.item[entry], values, n_items), np.float64)
        if pool is not None:
            added = added[pool[pool < n_items]]  # added items come last
        found = np.flatnonzero(added != 0)  # faster than of the numbers
        return found, self.weight * added[found]

    def most_scores(self, histories: Sequence[BundleRows]) -> IntArray:
        """Upper bound of the number of local scores of each history, ``(B,)``."""
        owner = np.repeat(np.arange(len(histories)), np.array([len(history) for history in histories], np.int64))
        item = np.concatenate([owner[:0], *histories])
        has_row = item < len(self.start) - 1
        count = self.start[item[has_row] + 1] - self.start[item[has_row]]
        total = np.bincount(owner[has_row], count, len(histories))
        return np.minimum(total, len(self.start) - 1).astype(np.int64)

    def contributions(self, history: BundleRows, target: BundleRow) -> tuple[BundleRows, Float64Array]:
        """The items of a history that have a row, each once, and what each adds to the score of ``target``."""
        items, r = self.shares(history)
        entry, count = self.entries(items)
        found = np.flatnonzero(self.item[entry] == target)
        added = np.zeros(len(items))
        added[np.repeat(np.arange(len(items)), count)[found]] = self.value[entry[found]]
        return items, self.weight * (r * added)

    def entries(self, items: BundleRows) -> tuple[IntArray, IntArray]:
        """The places of all entries of items, one item after the other, and the number of entries of each item."""
        begin = self.start[items]
        count = self.start[items + 1] - begin
        ends = np.cumsum(count)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(begin - ends + count, count), count


def row_blocks(start: IntArray) -> Iterator[tuple[slice, slice]]:
    """The rows of a sparse matrix in blocks of about a million entries: the rows, and their entries."""
    cuts = np.searchsorted(start, np.arange(0, int(start[-1]), _BLOCK_ENTRIES))
    for first, last in pairwise(np.unique([0, *cuts.tolist(), len(start) - 1]).tolist()):
        yield slice(first, last), slice(int(start[first]), int(start[last]))


@dataclass(frozen=True)
class LocalScores:
    """The local scores of some users that are not 0."""

    row: IntArray
    """The user of each score, ascending; ``(n,)``."""
    item: IntArray
    """Ascending for each user; ``(n,)``."""
    score: Float64Array
    """(n,)"""
    greatest: Float64Array
    """The greatest absolute score of each user, ``(B,)``."""

    @classmethod
    def of(cls, found: Sequence[tuple[IntArray, Float64Array]]) -> LocalScores:
        """From the items of each user and their scores."""
        row = np.repeat(np.arange(len(found)), np.array([len(items) for items, _ in found], np.int64))
        item, score = (np.concatenate(column) for column in zip((row[:0], np.empty(0)), *found, strict=True))
        return cls(row, item, score, np.array([np.abs(scores).max(initial=0) for _, scores in found]))

    def of_pairs(self, row: IntArray, item: IntArray) -> Float64Array:
        """The scores of pairs of a user and an item, ``(m,)`` each; 0 where there is none."""
        if not len(self.row):
            return np.zeros(len(row))
        wanted = (row << 32) + item
        place = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return np.where(self._keys[place] == wanted, self.score[place], 0.0)

    @cached_property
    def _keys(self) -> IntArray:
        return (self.row << 32) + self.item
