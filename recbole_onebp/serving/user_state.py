"""The users of a recommender: their embeddings and histories, and how events and histories change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.search import NO_ROWS
from recbole_onebp.serving.tables import Embeddings, Float32Array, Float64Array, IntArray
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = ["DEFAULT_RULE", "RECENT_DECAY", "Rule", "RunningMeans", "Users", "check_rule", "decay_and_weight", "fold_in"]

Rule = Literal["alike", "trained", "recent"]
"""How a history becomes a user.

- ``alike``: the mean of the items, all with the same weight.  With ``aggregation: step`` the items are aggregated one
  after the other, starting from nothing: the latest has weight 1, the one before beta, then beta squared, ...
- ``trained``: the same, with each item weighted as in training (``aggregation_alpha``).
- ``recent``: a weighted mean: the latest has weight 1, the one before 0.8, then 0.8 squared, ...  This needs histories
  in order of time.

``benchmarks/fold_in.py`` compares them.
"""

DEFAULT_RULE: Rule = "alike"

RECENT_DECAY = 0.8

_EVENTS = 1 << 18
"""Events that are sorted at a time."""


def decay_and_weight(aggregation: Mapping[str, Any] | None) -> tuple[float, float | None]:
    """The ``decay`` and ``trained_weight`` of :class:`Users`, from ``aggregation`` in a bundle's manifest."""
    if aggregation is None or aggregation["rule"] == "mean":
        return 1.0, None
    beta = aggregation["beta"]
    return beta, np.inf if beta == 1 else 1 / (1 - beta)


def check_rule(rule: str) -> None:
    """Raise :class:`UserError` for an unknown rule."""
    if rule not in get_args(Rule):
        raise UserError(f"rule: {rule!r} is not allowed; expected one of {', '.join(get_args(Rule))}")


class RunningMeans:
    """Weighted means that events update: ``w <- decay w + 1``, then ``e <- e + (x - e) / w``.

    x is the item's embedding times the item's weight.  Three cases are used:

    - ``w = 1 / (1 - beta)`` and ``decay = beta``: w is constant, and the update is that of training,
      ``e <- beta e + (1 - beta) x``.
    - ``w = 0`` and ``decay = beta``: the same rule without a start value.  e is the weighted mean of all x so far; the
      latest has weight 1, the one before beta, then beta ** 2, ...
    - ``decay = 1``: the plain mean, to which w items have contributed so far.

    Attributes:
        rows: the means e, ``(m, d)``.
        weight: w, ``(m,)``.
    """

    def __init__(self, rows: Float32Array, weight: Float64Array, decay: float) -> None:
        """Start from means ``(m, d)`` with their weights ``(m,)``, which are changed in place."""
        self.rows, self.weight = rows, weight
        self._decay = decay

    def update(
        self, slot: IntArray, item: BundleRows, embeddings: Embeddings, item_weight: Float32Array | None
    ) -> None:
        """Apply events in order.

        The j-th events of all users are computed together.  These are the same operations as one event at a time, so
        the result does not depend, to the last bit, on how events are divided into calls.

        Args:
            slot: the mean that each event updates, ``(n,)``.
            item: the item of each event, ``(n,)``.
            embeddings: of all items.
            item_weight: weight of each event's item, ``(n,)``; 1 if None.
        """
        for start in range(0, len(slot), _EVENTS):
            part = slice(start, start + _EVENTS)
            self._update(slot[part], item[part], embeddings, None if item_weight is None else item_weight[part])

    def _update(
        self, slot: IntArray, item: BundleRows, embeddings: Embeddings, item_weight: Float32Array | None
    ) -> None:
        order = np.argsort(slot, kind="stable")
        slot = slot[order]
        first = np.flatnonzero(np.concatenate(([True], slot[1:] != slot[:-1])))
        count = np.diff(np.concatenate((first, [len(slot)])))
        turn = np.arange(len(slot)) - np.repeat(first, count)  # 0 for a user's first event, 1 for the second, ...
        by_turn = np.argsort(turn, kind="stable")
        slot, order = slot[by_turn], order[by_turn]
        item, item_weight = item[order], None if item_weight is None else item_weight[order, None]
        end = np.cumsum(np.bincount(turn))
        for begin, stop in zip(np.concatenate(([0], end[:-1])), end, strict=True):
            active = slot[begin:stop]
            weight = self.weight[active] * self._decay + 1
            rows = self.rows[active]
            step = embeddings.rows(item[begin:stop])
            if item_weight is not None:
                step = step * item_weight[begin:stop]
            step = step - rows
            step /= weight.astype(np.float32)[:, None]
            rows += step
            self.rows[active], self.weight[active] = rows, weight


def fold_in(
    histories: Sequence[BundleRows], embeddings: Embeddings, item_weight: Float32Array | None, decay: float
) -> Float32Array:
    """Embeddings of new users from their histories, ``(B, d)``; zero for an empty history.

    Args:
        histories: the items of each user, in order.
        embeddings: of all items.
        item_weight: weight of each item, ``(n_items,)``; 1 if None.
        decay: see :class:`RunningMeans`.
    """
    n_users = len(histories)
    means = RunningMeans(np.zeros((n_users, embeddings.size), np.float32), np.zeros(n_users), decay)
    slot = np.repeat(np.arange(n_users), np.array([len(history) for history in histories], np.int64))
    item = np.concatenate([NO_ROWS, *histories])
    means.update(slot, item, embeddings, None if item_weight is None else item_weight[item])
    return means.rows


class Moved(NamedTuple):
    """A user whom events have moved. It is never changed: an event replaces it."""

    row: Float32Array
    """(d,)"""
    weight: float
    """w of :class:`RunningMeans`."""
    items: BundleRows
    """Items of the events, in order; ``(n,)``."""


class Users:
    """Embeddings and histories of all users.

    The bundle's arrays are read-only.  Users that have changed since, and new ones, are kept beside them.  New users
    have the rows after the bundle's, in the order in which they came.  Item weights apply to the bundle's users; for
    new users all items weigh 1.

    Threads may read while one thread updates.  To see a user's embedding and history of the same moment, read both from
    one :meth:`snapshot`.
    """

    def __init__(
        self,
        base: npt.NDArray[np.floating],
        start: IntArray,
        item: npt.NDArray[np.integer],
        decay: float,
        trained_weight: float | None,
    ) -> None:
        """Wrap the bundle's arrays.

        Args:
            base: embeddings, ``(n_users, d)``.
            start: the train items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``.
            item: ``(n_train,)``.
            decay: see :class:`RunningMeans`.
            trained_weight: w of the bundle's users; the number of their train items if None.
        """
        self._base, self._start, self._item = Embeddings(base), start, item
        self._decay, self._trained_weight = decay, trained_weight
        self._moved: dict[BundleRow, Moved] = {}

    def snapshot(self, user: BundleRows) -> Users:
        """These users as they are now; later events do not change the snapshot."""
        frozen = copy(self)
        found = ((row, self._moved.get(row)) for row in user.tolist())
        frozen._moved = {row: moved for row, moved in found if moved is not None}
        return frozen

    def rows(self, user: BundleRows) -> Float32Array:
        """Current embeddings of users ``(m,)``, shape ``(m, d)``."""
        moved = [self._moved.get(row) for row in user.tolist()]
        place = np.array([number for number, one in enumerate(moved) if one is not None], np.int64)
        if not len(place):
            return self._base.rows(user)
        rows = np.empty((len(user), self._base.size), np.float32)
        rows[place] = np.stack([one.row for one in moved if one is not None])
        rest = np.ones(len(user), bool)
        rest[place] = False
        rows[rest] = self._base.rows(user[rest])
        return rows

    def is_trained(self, user: BundleRow) -> bool:
        """Whether the user is in the bundle.  All others are weighted means of their items."""
        return user < len(self._base)

    def trained_items(self, user: BundleRow) -> BundleRows:
        """The user's history in the bundle."""
        if not self.is_trained(user):
            return NO_ROWS
        return self._item[self._start[user] : self._start[user + 1]].astype(np.int64)

    def new_items(self, user: BundleRow) -> BundleRows:
        """The items of the user's events, in order."""
        moved = self._moved.get(user)
        return NO_ROWS if moved is None else moved.items

    def items(self, user: BundleRow) -> BundleRows:
        """The whole history: that of the bundle, then the events."""
        return np.concatenate((self.trained_items(user), self.new_items(user)))

    def update(
        self, user: BundleRows, item: BundleRows, embeddings: Embeddings, item_weight: Float32Array | None
    ) -> None:
        """Apply events ``(n,)`` in order.  A reader sees all events of a user or none.

        Args:
            user: the user of each event.
            item: the item of each event.
            embeddings: of all items.
            item_weight: weight of each item, ``(n_items,)``; 1 if None.
        """
        who, inverse = np.unique(user, return_inverse=True)
        slot = inverse.reshape(-1)
        before = [self._moved.get(row) for row in who.tolist()]
        fresh = np.array([moved is None for moved in before], bool)
        rows, weight = np.zeros((len(who), self._base.size), np.float32), np.zeros(len(who))
        trained = fresh & (who < len(self._base))
        rows[trained], weight[trained] = self._base.rows(who[trained]), self._weight_in_bundle(who[trained])
        for number, moved in enumerate(before):
            if moved is not None:
                rows[number], weight[number], _ = moved
        means = RunningMeans(rows, weight, self._decay)
        of_event = None
        if item_weight is not None:
            of_event = np.where(user < len(self._base), item_weight[item], np.float32(1))
        means.update(slot, item, embeddings, of_event)
        by_user = item[np.argsort(slot, kind="stable")]
        ends = np.cumsum(np.bincount(slot, minlength=len(who))).tolist()
        first = 0
        for row, old, mean, w, last in zip(who.tolist(), before, rows, weight.tolist(), ends, strict=True):
            new = by_user[first:last]
            # Copies, because a view would keep the arrays of all users alive.
            items = new.copy() if old is None else np.concatenate((old.items, new))
            self._moved[row] = Moved(mean.copy(), w, items)
            first = last

    def weights(self, user: BundleRow) -> tuple[float, Float64Array]:
        """How a user is composed: ``e = share * (its row in the bundle) + sum_j weights_j x_j`` over :meth:`new_items`.

        Returns:
            The share of the bundle's row, and the weights ``(n,)``.
        """
        age = np.arange(len(self.new_items(user)), dtype=float)[::-1]
        start = float(self._weight_in_bundle(np.array([user]))[0]) if self.is_trained(user) else 0.0
        if start == np.inf:
            return 1.0, np.zeros(len(age))
        old, new = start * self._decay ** len(age), self._decay**age
        total = old + new.sum()
        return old / total, new / total

    def _weight_in_bundle(self, user: BundleRows) -> Float64Array:
        counts = self._start[user + 1] - self._start[user]
        return counts.astype(float) if self._trained_weight is None else np.full(len(user), self._trained_weight)
