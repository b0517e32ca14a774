"""The scores of users and items: those of the towers, and of the local term where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from recbole_onebp.serving.local_table import LocalTable
from recbole_onebp.serving.tables import Float32Array, Float64Array, IntArray, ItemTable
from recbole_onebp.util.ids import BundleRows

__all__ = ["Scorer"]


class Scorer:
    """Some users, and the items that they score: ``<user, item> + bias + local``.

    Attributes:
        user_e: embeddings of the users, ``(B, d)``; unit length where scores are cosines.
        items: the items.
    """

    def __init__(
        self,
        items: ItemTable,
        user_e: Float32Array,
        local: LocalTable | None = None,
        histories: Sequence[BundleRows] = (),
        pool: BundleRows | None = None,
        strengths: Sequence[Float64Array | None] = (),
    ) -> None:
        """Combine users and items.

        Args:
            items: the items.
            user_e: embeddings of the users, ``(B, d)``.
            local: the local term; None if there is none.
            histories: the items of each user, in order, for the local term.
            pool: the rows of ``items`` in the bundle, ascending, ``(n,)``; all if None.
            strengths: weights of the interactions of each history, if they have some.
        """
        self._strengths = strengths or [None] * len(histories)
        self.items, self.user_e = items, user_e
        self._local_table, self._histories, self._pool = local, histories, pool

    def __len__(self) -> int:
        return len(self.user_e)

    @property
    def bytes_per_score(self) -> int:
        """Memory for the score of a user and an item: float32, and float64 for the local score."""
        return 4 if self._local_table is None else 12

    def part(self, users: slice) -> Scorer:
        """Some of the users."""
        return Scorer(
            self.items,
            self.user_e[users],
            self._local_table,
            histories=self._histories[users],
            pool=self._pool,
            strengths=self._strengths[users],
        )

    def within(self, pool: BundleRows) -> Scorer:
        """The same users with some of the items, ascending ``(n,)``."""
        return Scorer(
            self.items.subset(pool),
            self.user_e,
            self._local_table,
            histories=self._histories,
            pool=pool,
            strengths=self._strengths,
        )

    @cached_property
    def local_scores(self) -> Float64Array | None:
        """The local scores of all users and items, ``(B, n)``; None without a local term."""
        if self._local_table is None:
            return None
        scores = np.empty((len(self), len(self.items)))
        of_all = None if self._pool is None else np.empty(max(len(self._local_table), int(self._pool[-1]) + 1))
        for row, history, strength in zip(scores, self._histories, self._strengths, strict=True):
            self._local_table.write_scores(history, row if of_all is None else of_all, strength)
            if of_all is not None:
                row[:] = of_all[self._pool]
        return scores

    def write_all(self, out: Float32Array) -> None:
        """Write all scores to ``out``, ``(B, n)``, in float32: each is within :meth:`margin` of the exact score."""
        self.items.score_all(self.user_e, out)
        if self.local_scores is not None:
            out += self.local_scores

    def margin(self) -> Float32Array:
        """See :meth:`~recbole_onebp.serving.tables.ItemTable.margin`; ``(B,)``."""
        if self.local_scores is None:
            return self.items.margin(self.user_e)
        greatest = np.maximum(self.local_scores.max(axis=1, initial=0), -self.local_scores.min(axis=1, initial=0))
        return self.items.margin(self.user_e, greatest)

    def pairs(self, row: IntArray, item: IntArray) -> Float64Array:
        """Exact scores of pairs of a user and an item, ``(m,)`` each.  They do not depend on the other pairs."""
        towers = self.items.score_pairs(self.user_e, row, item)
        return towers if self.local_scores is None else towers + self.local_scores[row, item]
