"""Items without train interactions follow the users who take them.

A user is an aggregate of items.  Likewise an item that no training knows is an aggregate of its users, and of what it
was made of before it had any.  With n users in the directions q_u, the direction of the item is that of

    PRIOR * p + sum of q_u,

where p is the direction made of its features; its length and bias move from those of the features to the means of the
trained items with about n users.  So features count first, and users more and more.

This follows from the histories of the users alone, to the last bit, whichever event came first: q_u is the user as it
is now without its untrained items, and the sum is one of whole numbers.  The idea, that each side keeps an average of
the other, is that of CS3's cross-tower synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.new_items import ItemEstimate, ItemEstimator
from recbole_onebp.serving.tables import TINY, Float32Array, Float64Array, IntArray, unit_rows
from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = ["BIAS_PRIOR", "PRIOR", "Mirror"]

PRIOR = 4.0
"""Users whose directions weigh as much as that of the features."""
BIAS_PRIOR = 10.0
"""Users whose number says as much of the bias as the features."""

_ONE = 1 << 32
"""What stands for 1 in sums of directions."""


@dataclass
class _Followed:
    """An item, the sum of the directions of its users, in units of 1 / _ONE, ``(d,)``, and their number."""

    prior: ItemEstimate | None
    directions: IntArray
    n_users: int = 0


def _length(vector: npt.NDArray[np.floating]) -> float:
    return float(np.sqrt(np.square(vector, dtype=np.float64).sum()))


class Mirror:
    """The items that follow their users."""

    def __init__(self, estimator: ItemEstimator) -> None:
        self._estimator = estimator
        self._items: dict[BundleRow, _Followed] = {}
        self._users: dict[BundleRow, tuple[IntArray, BundleRows]] = {}
        """The direction of each user who has taken such items, ``(d,)``, and the items."""

    def begin(self, item: BundleRow, prior: ItemEstimate | None) -> ItemEstimate | None:
        """Begin with an item, or give it another prior; what it is now, None if it has neither prior nor users.

        Args:
            item: the item.
            prior: what it is made of; None if of its users alone.
        """
        if item in self._items:
            self._items[item].prior = prior
        else:
            self._items[item] = _Followed(prior, np.zeros(self._estimator.size, np.int64))
        return self.estimate(item)

    def __contains__(self, item: BundleRow) -> bool:
        return item in self._items

    def knows_user(self, user: BundleRow) -> bool:
        """Whether the user has taken an item that follows its users."""
        return user in self._users

    def follow(self, user: BundleRow, embedding: Float32Array, items: BundleRows) -> None:
        """Let items follow a user who has moved or has taken more of them.

        Args:
            user: the user.
            embedding: the user without items that follow, ``(d,)``.
            items: the items of the user that follow, each once; ``(n,)``.
        """
        direction = np.rint(unit_rows(embedding[None])[0].astype(np.float64) * _ONE).astype(np.int64)
        before, known = self._users.get(user, (0, items[:0]))
        for item in known.tolist():
            self._items[item].directions -= before
        for item in items.tolist():
            self._items[item].directions += direction
        for item in np.setdiff1d(items, known).tolist():
            self._items[item].n_users += 1
        self._users[user] = direction, items

    def estimate(self, item: BundleRow) -> ItemEstimate | None:
        """What an item is now; None if it has neither prior nor users."""
        followed = self._items[item]
        prior, n = followed.prior, followed.n_users
        if not n:
            return prior
        direction, length = self._direction(followed)
        like = self._estimator.alike(n)
        bias = like.bias if prior is None else (BIAS_PRIOR * prior.bias + n * like.bias) / (BIAS_PRIOR + n)
        return ItemEstimate(unit_rows(direction[None]) * np.float32(length), bias, like.weight, prior is None)

    def _direction(self, followed: _Followed) -> tuple[Float64Array, float]:
        """A vector in the direction of an item, ``(d,)``, and the item's length."""
        direction, like = followed.directions / _ONE, self._estimator.alike(followed.n_users)
        if followed.prior is None:
            return direction, like.length
        (own,), n = followed.prior.embedding, followed.n_users
        length = (PRIOR * _length(own) + n * like.length) / (PRIOR + n)
        return direction + PRIOR * unit_rows(own[None])[0], length

    def share_of_features(self, item: BundleRow) -> float:
        """The embedding of an item is this number times what its features make of it, and the rest is of its users."""
        followed = self._items.get(item)
        if followed is None or not followed.n_users:
            return 1.0
        if followed.prior is None:
            return 0.0
        direction, length = self._direction(followed)
        return length * PRIOR / max(_length(direction) * _length(followed.prior.embedding), TINY)
