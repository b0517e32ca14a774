"""The users of a recommender: their embeddings and histories, and how events and histories change them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from recbole_onebp.recency import LATEST, recency_weights
from recbole_onebp.serving.tables import NO_ROWS, Embeddings, Float32Array, Float64Array, IntArray
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, BundleRows
from recbole_onebp.weights import Transform, transformed

__all__ = [
    "DEFAULT_RULE",
    "RECENT_DECAY",
    "Aggregation",
    "Rule",
    "RunningMeans",
    "Users",
    "check_rule",
    "fold_in",
]

Rule = Literal["alike", "trained", "recent"]
"""How a history becomes a user.

- ``alike``: the mean of the items, all with the same weight.  With ``aggregation: step`` the items are aggregated one
  after the other, starting from nothing: the latest has weight 1, the one before beta, then beta squared, ...
- ``trained``: the same, with each item weighted as in training (``aggregation_alpha``).
- ``recent``: a weighted mean: the latest has weight 1, the one before 0.8, then 0.8 squared, ...  This needs histories
  in order of time.

Where users were trained with ``recency``, histories are taken to be in order: with ``alike`` and ``trained`` an item
followed by n later items weighs ``(n + 1) ** -recency`` times as much as the latest, as in training.

``benchmarks/fold_in.py`` compares them.
"""

DEFAULT_RULE: Rule = "alike"

RECENT_DECAY = 0.8

_EVENTS = 1 << 18
"""Events that are sorted at a time."""


class Aggregation(NamedTuple):
    """How items become a user."""

    decay: float = 1.0
    """See :class:`RunningMeans`."""
    trained_weight: float | None = None
    """w of the bundle's users in :class:`RunningMeans`; the number of their train items if None."""
    recency: float = 0.0
    """Above 0: an item followed by n later items weighs ``(n + 1) ** -recency``, and each event recomputes the mean."""
    transform: Transform | None = None
    """What is made of the weights of interactions, and each event recomputes the mean; None if they have none."""

    @classmethod
    def of(cls, written: Mapping[str, Any] | None) -> Aggregation:
        """From ``aggregation`` in a bundle's manifest."""
        if written is None or written["rule"] == "mean":
            return cls(recency=(written or {}).get("recency", 0.0))
        beta = written["beta"]
        return cls(beta, np.inf if beta == 1 else 1 / (1 - beta))

    @property
    def recomputes_from_history(self) -> bool:
        """Whether each event recomputes the mean from the whole history."""
        return bool(self.recency) or self.transform is not None

    def strengths(self, given: Float64Array | None) -> Float64Array | None:
        """What is made of the weights of a user's interactions, ``(n,)``; None if they have none."""
        if self.transform is None or given is None:
            return None
        return transformed(given, np.zeros(len(given), np.int64), self.transform)

    def weights(self, n: int, given: Float64Array | None = None) -> Float64Array:
        """Weight of each of n items in order, up to a factor, ``(n,)``.

        Args:
            n: number of items.
            given: the weights of the interactions, ``(n,)``; None if they have none.
        """
        age, strength = np.arange(n)[::-1], self.strengths(given)
        by_age = recency_weights(age, self.recency) if self.recency else self.decay ** age.astype(float)
        return by_age if strength is None else by_age * strength

    def mean(
        self,
        items: BundleRows,
        embeddings: Embeddings,
        item_weight: Float32Array | None,
        given: Float64Array | None = None,
    ) -> Float32Array:
        """The weighted mean of items in order, ``(d,)``; zero if there are none.  For ``given`` see :meth:`weights`."""
        n_used = min(len(items), LATEST) if self.recency else len(items)
        if not n_used:
            return np.zeros(embeddings.size, np.float32)
        latest, weights = items[-n_used:], self.weights(len(items), given)[-n_used:]
        weights = weights / weights.sum()
        if item_weight is not None:
            weights = weights * item_weight[latest]
        # Rows are added one after the other, so that the result does not depend on BLAS.
        mean: Float32Array = (weights[:, None] * embeddings.rows(latest)).sum(axis=0).astype(np.float32)
        return mean


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
    histories: Sequence[BundleRows],
    embeddings: Embeddings,
    item_weight: Float32Array | None,
    aggregation: Aggregation,
    given: Sequence[Float64Array | None] = (),
) -> Float32Array:
    """Embeddings of new users from their histories, ``(B, d)``; zero for an empty history.

    Args:
        histories: the items of each user, in order.
        embeddings: of all items.
        item_weight: weight of each item, ``(n_items,)``; 1 if None.
        aggregation: how items become a user.
        given: the weights of the interactions of each user, if they have some.
    """
    n_users = len(histories)
    if aggregation.recomputes_from_history:
        pairs = zip(histories, given or [None] * n_users, strict=True)
        rows = [aggregation.mean(history, embeddings, item_weight, weights) for history, weights in pairs]
        return np.stack(rows) if rows else np.zeros((0, embeddings.size), np.float32)
    means = RunningMeans(np.zeros((n_users, embeddings.size), np.float32), np.zeros(n_users), aggregation.decay)
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
    given: Float64Array | None = None
    """Weights of the events, ``(n,)``; None if interactions have none."""


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
        aggregation: Aggregation,
        given: npt.NDArray[np.float32] | None = None,
    ) -> None:
        """Wrap the bundle's arrays.

        Args:
            base: embeddings, ``(n_users, d)``.
            start: the train items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``.
            item: ``(n_train,)``.
            aggregation: how items become a user.
            given: weights of the train interactions, ``(n_train,)``; None if they have none.
        """
        self._given = given
        self._base, self._start, self._item = Embeddings(base), start, item
        self._aggregation = aggregation
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

    def given(self, user: BundleRow) -> Float64Array | None:
        """The weights of :meth:`items`, ``(n,)``, as they came; None if interactions have none."""
        if self._given is None:
            return None
        trained = self._given[self._start[user] : self._start[user + 1]] if self.is_trained(user) else ()
        moved = self._moved.get(user)
        return np.concatenate((trained, () if moved is None or moved.given is None else moved.given)).astype(np.float64)

    def strengths(self, user: BundleRow) -> Float64Array | None:
        """What the model makes of :meth:`given`."""
        return self._aggregation.strengths(self.given(user))

    def update(
        self,
        user: BundleRows,
        item: BundleRows,
        embeddings: Embeddings,
        item_weight: Float32Array | None,
        given: Float64Array | None = None,
    ) -> None:
        """Apply events ``(n,)`` in order.  A reader sees all events of a user or none.

        Args:
            user: the user of each event.
            item: the item of each event.
            embeddings: of all items.
            item_weight: weight of each item, ``(n_items,)``; 1 if None.
            given: the weight of each event, ``(n,)``, where interactions have one.
        """
        who, inverse = np.unique(user, return_inverse=True)
        slot = inverse.reshape(-1)
        if self._aggregation.recomputes_from_history:
            self._recompute(who, slot, item, embeddings, item_weight, given)
            return
        before = [self._moved.get(row) for row in who.tolist()]
        fresh = np.array([moved is None for moved in before], bool)
        rows, weight = np.zeros((len(who), self._base.size), np.float32), np.zeros(len(who))
        trained = fresh & (who < len(self._base))
        rows[trained], weight[trained] = self._base.rows(who[trained]), self._weight_in_bundle(who[trained])
        for number, moved in enumerate(before):
            if moved is not None:
                rows[number], weight[number] = moved.row, moved.weight
        means = RunningMeans(rows, weight, self._aggregation.decay)
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

    def _recompute(
        self,
        who: BundleRows,
        slot: IntArray,
        item: BundleRows,
        embeddings: Embeddings,
        item_weight: Float32Array | None,
        given: Float64Array | None,
    ) -> None:
        """Apply events where items count differently: from the whole history of each user."""
        order = np.argsort(slot, kind="stable")
        by_user, weights = item[order], None if given is None else given[order]
        cuts = np.cumsum(np.bincount(slot, minlength=len(who))).tolist()
        for row, (first, last) in zip(who.tolist(), pairwise([0, *cuts]), strict=True):
            items, of_events, all_given = np.concatenate((self.new_items(row), by_user[first:last])), None, None
            if weights is not None:
                before = self.given(row)
                assert before is not None
                all_given = np.concatenate((before, weights[first:last]))
                of_events = all_given[-len(items) :]
            of_user = item_weight if self.is_trained(row) else None
            history = np.concatenate((self.trained_items(row), items))
            mean = self._aggregation.mean(history, embeddings, of_user, all_given)
            self._moved[row] = Moved(mean, 0.0, items, of_events)

    def weights(self, user: BundleRow) -> tuple[Float64Array, Float64Array]:
        """How a user is composed: ``e = sum_j weights_j x_j`` over :meth:`trained_items`, then :meth:`new_items`.

        Without recency and weights of interactions, the train items share equally what is left of the user's row in the
        bundle.

        Returns:
            The weights of the train items, and those of the new items.
        """
        n_trained, n_new = len(self.trained_items(user)), len(self.new_items(user))
        if self._aggregation.recomputes_from_history:
            weights = self._aggregation.weights(n_trained + n_new, self.given(user))
            weights /= weights.sum()
            return weights[:n_trained], weights[n_trained:]
        start = float(self._weight_in_bundle(np.array([user]))[0]) if self.is_trained(user) else 0.0
        if start == np.inf:
            share, new = 1.0, np.zeros(n_new)
        else:
            old, new = start * self._aggregation.decay**n_new, self._aggregation.weights(n_new)
            total = old + new.sum()
            share, new = old / total, new / total
        return np.full(n_trained, share / max(n_trained, 1)), new

    def _weight_in_bundle(self, user: BundleRows) -> Float64Array:
        counts = self._start[user + 1] - self._start[user]
        weight = self._aggregation.trained_weight
        return counts.astype(float) if weight is None else np.full(len(user), weight)
