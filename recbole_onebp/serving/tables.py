"""Embedding tables in numpy: rows on demand, dot products in float64, and items with the bounds that search needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = [
    "LARGEST",
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

_BLOCK_ROWS = 1 << 16
"""Embeddings converted to float32, or pairs scored in float64, at a time."""


class Embeddings:
    """A table of embeddings that can grow.

    The base may be float16 and may be a memory-mapped file.  Rows are returned as float32.
    """

    def __init__(self, base: npt.NDArray[np.floating]) -> None:
        self._base = base
        self._added: Float32Array = np.empty((0, base.shape[1]), np.float32)

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    @property
    def size(self) -> int:
        """Dimension d."""
        return int(self._base.shape[1])

    def rows(self, index: BundleRows) -> Float32Array:
        """The embeddings of rows ``(m,)``, shape ``(m, d)``."""
        if not len(self._added):
            return self._base[index].astype(np.float32, copy=False)
        rows = np.empty((len(index), self.size), np.float32)
        old = index < len(self._base)
        rows[old] = self._base[index[old]]
        rows[~old] = self._added[index[~old] - len(self._base)]
        return rows

    def blocks(self) -> Iterator[tuple[BundleRow, Float32Array]]:
        """The whole table in blocks: the number of the first row, and the rows."""
        # float32 is returned without a copy, so only float16 has to be cut into blocks.
        step = len(self._base) if self._base.dtype == np.float32 else _BLOCK_ROWS
        for start in range(0, len(self._base), step):
            yield start, self._base[start : start + step].astype(np.float32, copy=False)
        if len(self._added):
            yield len(self._base), self._added

    def append(self, rows: Float32Array) -> None:
        """Add rows ``(m, d)`` at the end."""
        self._added = np.concatenate((self._added, rows))


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
    """Items as they are scored: ``<user, item> + bias``.

    Attributes:
        embeddings: ``(n, d)``.
        bias: added to the score of each item, ``(n,)``; None if there is none.
        longest: length of the longest embedding.
        greatest_bias: largest absolute value of a bias.
    """

    def __init__(self, embeddings: Embeddings, bias: Float32Array | None) -> None:
        self.embeddings = embeddings
        self.bias = bias
        longest = max(
            (float(np.square(block).sum(axis=1).max(initial=0)) for _, block in embeddings.blocks()), default=0
        )
        self.longest = longest**0.5
        self.greatest_bias = 0.0 if bias is None else float(np.abs(bias).max(initial=0))

    def __len__(self) -> int:
        return len(self.embeddings)

    def subset(self, items: BundleRows) -> ItemTable:
        """A table of these items only."""
        return ItemTable(Embeddings(self.embeddings.rows(items)), None if self.bias is None else self.bias[items])

    def score_all(self, user_e: Float32Array, out: Float32Array) -> None:
        """Write the scores of users ``(B, d)`` and all items to ``out`` ``(B, n)``, by float32 matrix products."""
        for start, block in self.embeddings.blocks():
            np.matmul(user_e, block.T, out=out[:, start : start + len(block)])
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
