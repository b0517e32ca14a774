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

import numpy as np

from recbole_onebp.serving.new_items import ItemEstimate, ItemEstimator
from recbole_onebp.serving.tables import TINY, Float32Array, Float64Array, IntArray, dots, unit_rows
from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = ["BIAS_PRIOR", "PRIOR", "Mirror"]

PRIOR = 4.0
"""Users whose directions weigh as much as that of the features."""
BIAS_PRIOR = 10.0
"""Users whose number says as much of the bias as the features."""

_ONE = 1 << 32
"""What stands for 1 in sums of directions."""


class Mirror:
    """The items that follow their users."""

    def __init__(self, estimator: ItemEstimator) -> None:
        self._estimator = estimator
        self._place: dict[BundleRow, int] = {}
        """The place of each item in the arrays below, which are longer than needed."""
        self._directions = np.zeros((0, estimator.size), np.int64)
        """Sums of the directions of users, in units of 1 / _ONE."""
        self._n_users = np.zeros(0, np.int64)
        self._prior = np.zeros((0, estimator.size), np.float32)
        """What the features make of items; zero for items that are made of users alone."""
        self._prior_bias = np.zeros(0)
        self._has_prior = np.zeros(0, bool)
        self._users: dict[BundleRow, tuple[IntArray, BundleRows]] = {}
        """The direction of each user who has taken such items, ``(d,)``, and the items."""

    def begin(self, item: BundleRow, prior: ItemEstimate | None) -> bool:
        """Begin with an item, or give it another prior; whether it has users already.

        Args:
            item: the item.
            prior: what its features make of it; None if it is made of its users alone.
        """
        place = self._place.get(item, len(self._place))
        if place == len(self._n_users):
            more = max(16, place)
            for name in ("_directions", "_n_users", "_prior", "_prior_bias", "_has_prior"):
                old = getattr(self, name)
                setattr(self, name, np.concatenate((old, np.zeros((more, *old.shape[1:]), old.dtype))))
        self._place[item] = place  # only now, because other threads may ask for the item's share
        self._has_prior[place] = prior is not None
        self._prior[place], self._prior_bias[place] = (0, 0) if prior is None else (prior.embedding[0], prior.bias)
        return bool(self._n_users[place])

    def __contains__(self, item: BundleRow) -> bool:
        return item in self._place

    def knows_user(self, user: BundleRow) -> bool:
        """Whether the user has taken an item that follows its users."""
        return user in self._users

    def n_users(self, item: BundleRow) -> int:
        """Number of users who have taken an item."""
        return int(self._n_users[self._place[item]]) if item in self._place else 0

    def follow(self, user: BundleRow, embedding: Float32Array, items: BundleRows) -> None:
        """Let items follow a user who has moved or has taken more of them.

        Args:
            user: the user.
            embedding: the user without items that follow, ``(d,)``.
            items: the items of the user that follow, each once; ``(n,)``.
        """
        direction = np.rint(unit_rows(embedding[None])[0].astype(np.float64) * _ONE).astype(np.int64)
        before, known = self._users.get(user, (direction, items[:0]))
        self._directions[self._places(known)] -= before
        self._directions[self._places(items)] += direction
        self._n_users[self._places(np.setdiff1d(items, known))] += 1
        self._users[user] = direction, items

    def _places(self, items: BundleRows) -> IntArray:
        return np.array([self._place[item] for item in items.tolist()], np.int64)

    def estimates(self, items: BundleRows) -> tuple[Float32Array, Float64Array, Float64Array]:
        """Embeddings ``(n, d)``, biases and weights ``(n,)`` of items that have users, as they are now."""
        place = self._places(items)
        n, has_prior = self._n_users[place], self._has_prior[place]
        length, like_bias, weight = np.array([self._estimator.alike(one) for one in n.tolist()]).reshape(-1, 3).T
        prior = np.where(has_prior, BIAS_PRIOR, 0.0)
        bias = (prior * self._prior_bias[place] + n * like_bias) / (prior + n)
        directions, lengths = self._vectors(place, length)
        return unit_rows(directions) * lengths.astype(np.float32)[:, None], bias, weight

    def _vectors(self, place: IntArray, length: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Vectors in the directions of items, ``(n, d)``, and the items' lengths; ``length`` is that of their like."""
        n, own = self._n_users[place], self._prior[place]
        prior = np.where(self._has_prior[place], PRIOR, 0.0)
        lengths = (prior * np.sqrt(dots(own, own)) + n * length) / (prior + n)
        return self._directions[place] / _ONE + prior[:, None] * unit_rows(own), lengths

    def share_of_features(self, item: BundleRow) -> float:
        """The embedding of an item is this number times what its features make of it, and the rest is of its users."""
        if not self.n_users(item):
            return 1.0
        place = self._places(np.array([item]))
        if not self._has_prior[place[0]]:
            return 0.0
        (direction,), (length,) = self._vectors(place, np.array([self._estimator.alike(self.n_users(item)).length]))
        lengths = np.linalg.norm(direction) * np.linalg.norm(self._prior[place[0]].astype(np.float64))
        return float(length * PRIOR / max(lengths, TINY))
