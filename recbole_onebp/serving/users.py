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
    """Weighted means that events move: ``w <- keep w + 1``, ``e <- e + (e_i - e) / w``.

    With ``w = 1 / (1 - beta)`` and ``keep = beta``, which leaves w as it is, that is the model's own
    ``e <- beta e + (1 - beta) e_i``.  With ``w = 0`` it starts a user from nothing: then e is the mean of the items,
    the latest with weight 1, the one before with weight keep, then keep ** 2, ...

    Attributes:
        rows: the means e, ``(m, d)``.
        weight: w, ``(m,)``.
        keep: ``(m,)``.
    """

    def __init__(self, size: int) -> None:
        self.rows: _Floats = np.empty((0, size), np.float32)
        self.weight = np.empty(0)
        self.keep = np.empty(0)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, rows: _Floats, weight: float, keep: float) -> None:
        """Append means, with room for as many again where there was none."""
        first, last = self._count, self._count + len(rows)
        if last > len(self.rows):
            room = max(last, 2 * len(self.rows)) - len(self.rows)
            self.rows = np.concatenate((self.rows, np.empty((room, self.rows.shape[1]), np.float32)))
            self.weight, self.keep = (np.concatenate((old, np.empty(room))) for old in (self.weight, self.keep))
        self.rows[first:last], self.weight[first:last], self.keep[first:last] = rows, weight, keep
        self._count = last

    def move(self, slot: _Index, item: _Index, items: Encodings) -> None:
        """Apply events in order.

        The same operations as event by event, for the j-th events of all users at once: so the outcome does not
        depend, to the last bit, on how events are cut into calls.

        Args:
            slot: whom an event moves, ``(n,)``.
            item: towards which item, ``(n,)``.
            items: encodings of the items, which are aggregated as they are.
        """
        for start in range(0, len(slot), _EVENTS):
            self._move(slot[start : start + _EVENTS], item[start : start + _EVENTS], items)

    def _move(self, slot: _Index, item: _Index, items: Encodings) -> None:
        order = np.argsort(slot, kind="stable")
        slot, item = slot[order], item[order]
        first = np.flatnonzero(np.concatenate(([True], slot[1:] != slot[:-1])))
        count = np.diff(np.concatenate((first, [len(slot)])))
        turn = np.arange(len(slot)) - np.repeat(first, count)  # 0 for a user's first event, 1 for its second, ...
        order = np.argsort(turn, kind="stable")
        slot, item = slot[order], item[order]
        end = np.cumsum(np.bincount(turn))
        for begin, stop in zip(np.concatenate(([0], end[:-1])), end, strict=True):
            who = slot[begin:stop]
            weight = self.weight[who] * self.keep[who] + 1
            rows = self.rows[who]
            step = items.rows(item[begin:stop]) - rows
            step /= weight.astype(np.float32)[:, None]
            rows += step
            self.rows[who], self.weight[who] = rows, weight


def fold_in(histories: Sequence[_Index], items: Encodings, keep: float) -> _Floats:
    """Encodings of users never seen, from the items that they took, in order; zero without any.  Shape ``(B, d)``."""
    means = Aggregation(items.size)
    means.add(np.zeros((len(histories), items.size), np.float32), 0.0, keep)
    count = np.array([len(history) for history in histories], np.int64)
    means.move(np.repeat(np.arange(len(histories)), count), np.concatenate([np.empty(0, np.int64), *histories]), items)
    return means.rows[: len(histories)]


class Users:
    """Encodings and histories of the bundle's users, which stay as they are, and of what has moved or come since.

    Users are numbered: the bundle's as in the bundle, then new ones as they come.
    """

    def __init__(
        self, base: npt.NDArray[np.floating], start: _Index, item: npt.NDArray[np.integer], beta: float, keep: float
    ) -> None:
        """Take over the bundle's users.

        Args:
            base: encodings, ``(n_users, d)``.
            start: the train items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``.
            item: ``(n_train,)``.
            beta: what a trained user keeps of itself when it is moved.
            keep: what the items of a user that came since keep of their weight at every event.
        """
        self._base, self._start, self._item = Encodings(base), start, item
        self._beta, self._keep = beta, keep
        self._moved = Aggregation(base.shape[1])
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

    def move(self, user: _Index, item: _Index, items: Encodings) -> None:
        """Apply events ``(n,)`` in order; see :meth:`Aggregation.move`."""
        who, inverse = np.unique(user, return_inverse=True)
        trained = who < len(self._base)
        weight = np.inf if self._beta == 1 else 1 / (1 - self._beta)
        for group, start_weight, keep in ((who[trained], weight, self._beta), (who[~trained], 0.0, self._keep)):
            fresh = np.array([number for number in group.tolist() if number not in self._slot], np.int64)
            self._slot.update(zip(fresh.tolist(), range(len(self._moved), len(self._moved) + len(fresh)), strict=True))
            rows = self._base.rows(fresh) if start_weight else np.zeros((len(fresh), self._base.size), np.float32)
            self._moved.add(rows, start_weight, keep)
        slot = np.array([self._slot[number] for number in who.tolist()], np.int64)
        self._moved.move(slot[inverse.reshape(-1)], item, items)
        for number, taken in zip(user.tolist(), item.tolist(), strict=True):
            self._taken[number].append(taken)

    def weights(self, user: int) -> tuple[float, npt.NDArray[np.float64]]:
        """What a user is made of: ``e = share * (what the bundle has) + sum_j weight_j e_j`` over :meth:`taken_items`.

        Returns:
            The share, and the weights ``(n,)``.
        """
        age = np.arange(len(self._taken.get(user, ())), dtype=float)[::-1]
        if self.is_trained(user):
            return float(self._beta ** len(age)), (1 - self._beta) * self._beta**age
        weight = self._keep**age
        return 0.0, weight / weight.sum()
