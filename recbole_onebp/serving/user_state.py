"""Users that move: the moving aggregation as events come in, one after the other, in numpy alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.search import Encodings

__all__ = ["Aggregation", "Users", "fold_in"]

_Floats = npt.NDArray[np.float32]
_Index = npt.NDArray[np.int64]

_EVENTS = 1 << 18
"""Events that are sorted at a time."""


class Aggregation:
    """Weighted means that events move: ``w <- keep w + 1``, ``e <- e + (s_i - e) / w``, s_i the item's share, which is
    its encoding times what it weighs.

    With ``keep = beta`` and ``w = 1 / (1 - beta)``, which stays what it is, that is the model's own
    ``e <- beta e + (1 - beta) s_i``.  With ``w = 0`` it starts from nothing: then e is the mean of the shares, the
    latest with weight 1, the one before with weight keep, then keep ** 2, ...: the same rule, without the share of what
    was there before.  With ``keep = 1`` it is a plain mean, to which w items have gone.

    Attributes:
        rows: the means e, ``(m, d)``.
        weight: w, ``(m,)``.
    """

    def __init__(self, size: int, keep: float) -> None:
        self.rows: _Floats = np.empty((0, size), np.float32)
        self.weight = np.empty(0)
        self._keep = keep
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: _Floats, weight: npt.NDArray[np.float64]) -> None:
        """Append means, with room for as many again where there was none."""
        first, last = self._count, self._count + len(rows)
        if last > len(self.rows):
            room = max(last, 2 * len(self.rows)) - len(self.rows)
            self.rows = np.concatenate((self.rows, np.empty((room, self.rows.shape[1]), np.float32)))
            self.weight = np.concatenate((self.weight, np.empty(room)))
        self.rows[first:last], self.weight[first:last] = rows, weight
        self._count = last

    def move(self, slot: _Index, item: _Index, encodings: Encodings, item_weight: _Floats | None) -> None:
        """Apply events in order.

        The same operations as event by event, for the j-th events of all users at once: so the outcome does not
        depend, to the last bit, on how events are cut into calls.

        Args:
            slot: whom an event moves, ``(n,)``.
            item: towards which item, ``(n,)``.
            encodings: of the items.
            item_weight: what an event's item weighs, ``(n,)``; 1 if None.
        """
        for start in range(0, len(slot), _EVENTS):
            part = slice(start, start + _EVENTS)
            self._move(slot[part], item[part], encodings, None if item_weight is None else item_weight[part])

    def _move(self, slot: _Index, item: _Index, encodings: Encodings, item_weight: _Floats | None) -> None:
        order = np.argsort(slot, kind="stable")
        slot = slot[order]
        first = np.flatnonzero(np.concatenate(([True], slot[1:] != slot[:-1])))
        count = np.diff(np.concatenate((first, [len(slot)])))
        turn = np.arange(len(slot)) - np.repeat(first, count)  # 0 for a user's first event, 1 for its second, ...
        by_turn = np.argsort(turn, kind="stable")
        slot, order = slot[by_turn], order[by_turn]
        item, item_weight = item[order], None if item_weight is None else item_weight[order, None]
        end = np.cumsum(np.bincount(turn))
        for begin, stop in zip(np.concatenate(([0], end[:-1])), end, strict=True):
            who = slot[begin:stop]
            weight = self.weight[who] * self._keep + 1
            rows = self.rows[who]
            share = encodings.rows(item[begin:stop])
            if item_weight is not None:
                share = share * item_weight[begin:stop]
            step = share - rows
            step /= weight.astype(np.float32)[:, None]
            rows += step
            self.rows[who], self.weight[who] = rows, weight


def fold_in(histories: Sequence[_Index], encodings: Encodings, item_weight: _Floats | None, keep: float) -> _Floats:
    """Encodings of users never seen, from the items that they took, in order; zero without any.  Shape ``(B, d)``.

    Args:
        histories: their items.
        encodings: of all items.
        item_weight: what they weigh, ``(n_items,)``; all alike if None.
        keep: see :class:`Aggregation`.
    """
    means = Aggregation(encodings.size, keep)
    means.add(np.zeros((len(histories), encodings.size), np.float32), np.zeros(len(histories)))
    slot = np.repeat(np.arange(len(histories)), np.array([len(history) for history in histories], np.int64))
    item = np.concatenate([np.empty(0, np.int64), *histories])
    means.move(slot, item, encodings, None if item_weight is None else item_weight[item])
    return means.rows[: len(histories)]


class Users:
    """Encodings and histories of the bundle's users, which stay as they are, and of what has moved or come since.

    What items weigh counts for the bundle's users; for those that have come since all items weigh alike.  Users are
    numbered: the bundle's as in the bundle, then new ones as they come.
    """

    def __init__(
        self,
        base: npt.NDArray[np.floating],
        start: _Index,
        item: npt.NDArray[np.integer],
        keep: float,
        weight: float | None,
    ) -> None:
        """Take over the bundle's users.

        Args:
            base: encodings, ``(n_users, d)``.
            start: the train items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``.
            item: ``(n_train,)``.
            keep: see :class:`Aggregation`.
            weight: of a trained user; as many as it has train items if None.
        """
        self._base, self._start, self._item = Encodings(base), start, item
        self._keep, self._weight = keep, weight
        self._moved = Aggregation(base.shape[1], keep)
        self._slot: dict[int, int] = {}
        self._taken: defaultdict[int, list[int]] = defaultdict(list)

    def rows(self, user: _Index) -> _Floats:
        """Encodings of users ``(m,)``, shape ``(m, d)``."""
        slot = np.array([self._slot.get(number, -1) for number in user.tolist()], np.int64)
        if (slot < 0).all():
            return self._base.rows(user)
        rows = np.empty((len(user), self._base.size), np.float32)
        rows[slot < 0] = self._base.rows(user[slot < 0])
        rows[slot >= 0] = self._moved.rows[slot[slot >= 0]]
        return rows

    def is_trained(self, user: int) -> bool:
        """Whether the bundle has it; if not it has come since, and is a weighted mean of its items."""
        return user < len(self._base)

    def trained_items(self, user: int) -> _Index:
        """What a user had taken when the bundle was made."""
        if not self.is_trained(user):
            return np.empty(0, np.int64)
        return self._item[self._start[user] : self._start[user + 1]].astype(np.int64)

    def taken_items(self, user: int) -> _Index:
        """What a user has taken since, in order."""
        return np.array(self._taken.get(user, ()), np.int64)

    def items(self, user: int) -> _Index:
        """What a user has taken, both."""
        return np.concatenate((self.trained_items(user), self.taken_items(user)))

    def move(self, user: _Index, item: _Index, encodings: Encodings, item_weight: _Floats | None) -> None:
        """Apply events ``(n,)`` in order; see :meth:`Aggregation.move`, and for the items :func:`fold_in`."""
        who, inverse = np.unique(user, return_inverse=True)
        fresh = np.array([number for number in who.tolist() if number not in self._slot], np.int64)
        self._slot.update(zip(fresh.tolist(), range(len(self._moved), len(self._moved) + len(fresh)), strict=True))
        trained = fresh < len(self._base)
        rows, weight = np.zeros((len(fresh), self._base.size), np.float32), np.zeros(len(fresh))
        rows[trained], weight[trained] = self._base.rows(fresh[trained]), self._trained_weight(fresh[trained])
        self._moved.add(rows, weight)
        slot = np.array([self._slot[number] for number in who.tolist()], np.int64)
        if item_weight is not None:
            item_weight = np.where(user < len(self._base), item_weight[item], np.float32(1))
        self._moved.move(slot[inverse.reshape(-1)], item, encodings, item_weight)
        for number, taken in zip(user.tolist(), item.tolist(), strict=True):
            self._taken[number].append(taken)

    def weights(self, user: int) -> tuple[float, npt.NDArray[np.float64]]:
        """What a user is made of: ``e = kept * (what the bundle has) + sum_j weight_j s_j`` over :meth:`taken_items`.

        Returns:
            What is kept, and the weights ``(n,)``.
        """
        age = np.arange(len(self._taken.get(user, ())), dtype=float)[::-1]
        start = float(self._trained_weight(np.array([user]))[0]) if self.is_trained(user) else 0.0
        if start == np.inf:
            return 1.0, np.zeros(len(age))
        old, new = start * self._keep ** len(age), self._keep**age
        total = old + new.sum()
        return old / total, new / total

    def _trained_weight(self, user: _Index) -> npt.NDArray[np.float64]:
        counts = self._start[user + 1] - self._start[user]
        return counts.astype(float) if self._weight is None else np.full(len(user), self._weight)
