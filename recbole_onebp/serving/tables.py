"""Embedding tables in numpy: rows on demand, dot products in float64, and items with the bounds that search needs."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = [
    "LARGEST",
    "NO_ROWS",
    "TINY",
    "Embeddings",
    "Float32Array",
    "Float64Array",
    "IntArray",
    "ItemTable",
    "dots",
    "unit_rows",
]

Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
"""Counts, offsets and positions.  Rows of users and items are ``BundleRows``."""

LARGEST = 1e12
"""Largest absolute value of an embedding, a bias or a value of the local term: scores of larger ones could overflow
float32."""

TINY = 1e-12
"""Smallest length that an embedding is divided by, as in torch's ``normalize``."""

NO_ROWS: BundleRows = np.empty(0, np.int64)

_BLOCK_ROWS = 1 << 16
"""Embeddings converted to float32, or pairs scored in float64, at a time."""


class Embeddings:
    """A table of embeddings: a base, rows that replace some of it, and rows that were added.  It never changes.

    The base may be float16 and may be a memory-mapped file.  Rows are returned as float32.
    """

    def __init__(
        self, base: npt.NDArray[np.floating], changed: BundleRows = NO_ROWS, values: Float32Array | None = None
    ) -> None:
        """Wrap a table.

        Args:
            base: ``(n, d)``.
            changed: rows that are not those of the base, ascending, ``(m,)``; those from n on are the added ones.
            values: their embeddings, ``(m, d)``.
        """
        self._base, self._changed = base, changed
        self._values: Float32Array = np.empty((0, base.shape[1]), np.float32) if values is None else values
        self._n = len(base) + int((changed >= len(base)).sum())

    def __len__(self) -> int:
        return self._n

    @property
    def size(self) -> int:
        """Dimension d."""
        return int(self._base.shape[1])

    def rows(self, index: BundleRows) -> Float32Array:
        """The embeddings of rows ``(m,)``, shape ``(m, d)``."""
        if not len(self._changed):
            return self._base[index].astype(np.float32, copy=False)
        place = np.searchsorted(self._changed, index).clip(max=len(self._changed) - 1)
        is_changed = self._changed[place] == index
        rows = np.empty((len(index), self.size), np.float32)
        rows[is_changed] = self._values[place[is_changed]]
        rows[~is_changed] = self._base[index[~is_changed]]
        return rows

    def blocks(self) -> Iterator[tuple[BundleRow, Float32Array]]:
        """The base in blocks: the number of the first row, and the rows."""
        # float32 is returned without a copy, so only float16 has to be cut into blocks.
        step = len(self._base) if self._base.dtype == np.float32 else _BLOCK_ROWS
        for start in range(0, len(self._base), step):
            yield start, self._base[start : start + step].astype(np.float32, copy=False)

    @property
    def changed(self) -> tuple[BundleRows, Float32Array]:
        """The rows that are not those of the base, ascending, ``(m,)``, and their embeddings, ``(m, d)``."""
        return self._changed, self._values

    def with_rows(self, index: BundleRows, values: Float32Array) -> Embeddings:
        """The same table with these rows ``(m,)``, each once, as given, ``(m, d)``; rows beyond the end are added."""
        if len(self._changed):
            place = np.searchsorted(self._changed, index).clip(max=len(self._changed) - 1)
            if (self._changed[place] == index).all():
                replaced = self._values.copy()
                replaced[place] = values
                return Embeddings(self._base, self._changed, replaced)
        kept = ~np.isin(self._changed, index)
        changed = np.concatenate((self._changed[kept], index))
        order = np.argsort(changed)
        return Embeddings(self._base, changed[order], np.concatenate((self._values[kept], values))[order])


def dots(left: Float32Array, right: Float32Array) -> Float64Array:
    """Dot products of the rows of two ``(m, d)`` arrays, in float64; each depends on its own two rows only."""
    # numpy adds up the last axis of each row in the same order, however many rows there are.
    return (left.astype(np.float64) * right).sum(axis=1)


def unit_rows(rows: npt.NDArray[np.floating]) -> Float32Array:
    """Rows scaled to unit length.  A row of zeros stays zero."""
    wide = rows.astype(np.float64)
    length = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return (wide / np.maximum(length, TINY)).astype(np.float32)


class ItemTable:
    """Items as they are scored: ``<user, item> + bias``.  It never changes.

    Attributes:
        embeddings: ``(n, d)``.
        bias: added to the score of each item, ``(n,)``; None if there is none.
        hidden: rows of items that are in no list, ascending.
        longest: at least the length of the longest embedding.
        greatest_bias: largest absolute value of a bias.
    """

    def __init__(self, embeddings: Embeddings, bias: Float32Array | None, hidden: BundleRows = NO_ROWS) -> None:
        self.embeddings, self.bias, self.hidden = embeddings, bias, hidden
        self._longest_of_base = max((_longest(block) for _, block in embeddings.blocks()), default=0.0)
        self._measure()

    def _measure(self) -> None:
        self.longest = max(self._longest_of_base, _longest(self.embeddings.changed[1]))
        self.greatest_bias = 0.0 if self.bias is None else float(np.abs(self.bias).max(initial=0))

    def __len__(self) -> int:
        return len(self.embeddings)

    def with_items(self, index: BundleRows, embeddings: Float32Array, bias: Float32Array) -> ItemTable:
        """The same table with these rows ``(m,)``, each once, as given; rows beyond the end are added, in order."""
        table = copy(self)
        table.__dict__.pop("_unit", None)
        table.embeddings = self.embeddings.with_rows(index, embeddings)
        if self.bias is not None:
            table.bias = np.concatenate((self.bias, np.zeros(len(table) - len(self), np.float32)))
            table.bias[index] = bias
        table._measure()
        return table

    def with_hidden(self, hidden: BundleRows) -> ItemTable:
        """The same table with these items hidden, and no others."""
        table = copy(self)
        table.hidden = np.sort(hidden)
        return table

    def directions(self, cosine: bool) -> ItemTable:
        """The items with unit length and without bias; ``cosine``: they have unit length already."""
        table = copy(self if cosine else self._unit)
        table.bias, table.greatest_bias, table.hidden = None, 0.0, self.hidden
        return table

    @cached_property
    def _unit(self) -> ItemTable:
        base = np.concatenate([unit_rows(block) for _, block in self.embeddings.blocks()])
        changed, values = self.embeddings.changed
        return ItemTable(Embeddings(base, changed, unit_rows(values)), None)

    def subset(self, items: BundleRows) -> ItemTable:
        """A table of these items only."""
        return ItemTable(Embeddings(self.embeddings.rows(items)), None if self.bias is None else self.bias[items])

    def score_all(self, user_e: Float32Array, out: Float32Array) -> None:
        """Write the scores of users ``(B, d)`` and all items to ``out`` ``(B, n)``, by float32 matrix products."""
        for start, block in self.embeddings.blocks():
            np.matmul(user_e, block.T, out=out[:, start : start + len(block)])
        changed, values = self.embeddings.changed
        if len(changed):
            out[:, changed] = user_e @ values.T
        if self.bias is not None:
            out += self.bias

    def margin(self, user_e: Float32Array, greatest_added: Float64Array | None = None) -> Float32Array:
        """Upper bound of the rounding error of :meth:`score_all`, for each user ``(B,)``.

        ``greatest_added``, ``(B,)``, is the largest absolute value of another term that is added to a user's scores.

        A sum of d products has a rounding error of at most ``d u / (1 - d u)`` times the sum of their absolute values,
        u = 2 ** -24, in any order and with or without fused operations (Higham, Accuracy and Stability of Numerical
        Algorithms, 3.1).  The bias and the added value are one more term each.  The bound is doubled because
        the lengths are rounded too.
        """
        length = np.sqrt(np.square(user_e, dtype=np.float64).sum(axis=1))
        terms = (self.embeddings.size + 3) * 2.0**-24
        largest = length * self.longest + self.greatest_bias + (0 if greatest_added is None else greatest_added)
        return (2 * terms * largest).astype(np.float32)

    def score_pairs(self, user_e: Float32Array, row: IntArray, item: BundleRows) -> Float64Array:
        """Exact scores of pairs of a row of ``user_e`` and an item, ``(m,)`` each."""
        scores = np.empty(len(item))
        for start in range(0, len(item), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            scores[part] = dots(user_e[row[part]], self.embeddings.rows(item[part]))
        return scores if self.bias is None else scores + self.bias[item]


def _longest(rows: Float32Array) -> float:
    """Length of the longest row."""
    return float(np.square(rows).sum(axis=1).max(initial=0)) ** 0.5
