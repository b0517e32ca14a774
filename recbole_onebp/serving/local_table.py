"""The local term: what each item of a user's history adds to the scores of single other items.

The towers do not know what is specific to a pair of items.  The local term adds

    local(u, j) = weight * sum of r_i W[i, j] over the items i of the user's history.

W is sparse: each item has entries for the items that often occur with it.  r_i is the recency of item i, see
:func:`recbole_onebp.recency.recency_weights`, times the weight of the interaction if it has one, divided by the mean of
that over the history; 1 without both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

__all__ = ["LOCAL_FILES", "LocalTable", "row_blocks"]

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
        n_items, n = len(self), len(self.item)
        if (int(self.start[0]), int(self.start[-1])) != (0, n) or bool((self.start[1:] < self.start[:-1]).any()):
            return LOCAL_FILES[0], f"expected numbers that ascend from 0 to {n}, the length of {LOCAL_FILES[1]}"
        count = np.diff(self.start)
        if count.max(initial=0) >= max(n_items, 1):
            return LOCAL_FILES[0], f"expected fewer than {n_items} entries for each item"
        for rows, entries in row_blocks(self.start):
            owner = np.repeat(np.arange(rows.start, rows.stop), count[rows])
            item = self.item[entries].astype(np.int64)
            if len(item) and not (item.min() >= 0 and item.max() < n_items):
                return LOCAL_FILES[1], f"expected rows of the {n_items} items"
            if bool((np.diff(owner * n_items + item) <= 0).any()) or bool((owner == item).any()):
                return LOCAL_FILES[1], "expected ascending items for each item, without the item itself"
            if not np.abs(self.value[entries]).max(initial=0) <= LARGEST:
                return LOCAL_FILES[2], f"expected values up to {LARGEST:g}"
        return None

    def shares(self, history: BundleRows, strength: Float64Array | None = None) -> tuple[BundleRows, Float64Array]:
        """The items of a history that have a row, each once, the earliest first, and the sum of r_i of each.

        Args:
            history: items in order, ``(n,)``.
            strength: weights of these interactions, ``(n,)``; 1 if None.
        """
        items, r = history, np.ones(len(history), np.float64) if strength is None else strength
        if self.recency:
            items = history[-LATEST:]  # older ones have weight 0
            r = self._by_age[: len(items)][::-1] * r[-LATEST:]
        if len(history) and (self.recency or strength is not None):
            r = r * (len(history) / r.sum())
        ascending = np.sort(items)
        if (ascending[1:] == ascending[:-1]).any():
            items, first, place = np.unique(items, return_index=True, return_inverse=True)
            order = np.argsort(first)
            items, r = items[order], np.asarray(np.bincount(place.reshape(-1), r)[order], np.float64)
        if len(ascending) and ascending[-1] >= len(self):
            has_row = items < len(self)
            items, r = items[has_row], r[has_row]
        return items, r

    @cached_property
    def _by_age(self) -> Float64Array:
        return recency_weights(np.arange(LATEST), self.recency)

    def __len__(self) -> int:
        return len(self.start) - 1

    def write_scores(self, history: BundleRows, out: Float64Array, strength: Float64Array | None = None) -> None:
        """Write the local scores of all items for a history to ``out``, ``(n,)``, n at least the number of rows.

        They depend on the history alone, to the last bit: what its items add is summed in float64, in order.
        """
        items, r = self.shares(history, strength)
        entry, count = self.entries(items)
        np.multiply(np.bincount(self.item[entry], self.value[entry] * np.repeat(r, count), len(out)), self.weight, out)

    def contributions(
        self, history: BundleRows, target: BundleRow, strength: Float64Array | None = None
    ) -> tuple[BundleRows, Float64Array]:
        """The items of a history that have a row, each once, and what each adds to the score of ``target``."""
        items, r = self.shares(history, strength)
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
