"""The train items of all users: in which order they came, and how much each counts in its user."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_onebp.recency import recency_weights

__all__ = ["LEAST_REST", "WINDOW", "History"]

WINDOW = 50
"""Items before a pair that make its user in the loss.  Older ones count little, and each costs time."""
LEAST_REST = 1e-5
"""Share of a user's weight below which nothing is left after an item is left out: it would be rounding errors."""


class History(nn.Module):
    """The train items of all users.  It has no parameters, and checkpoints leave it out: it comes from the data.

    Attributes:
        start: the items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``.
        item: the earliest first if times are known, otherwise by id; ``(n,)``.
        strength: weight of each interaction, ``(n,)``; None if interactions have none.
        weight: of each item in its user, by strength and recency, ``(n,)``; None if all count the same.
        total: the sum of the weights of each user, ``(n_users,)``; None if all count the same.
        earlier_weight: in the user of a pair, weight of the item just before it, of the one before that, ...;
            ``(window,)``.
    """

    start: Tensor
    item: Tensor
    strength: Tensor | None
    weight: Tensor | None
    total: Tensor | None
    earlier_weight: Tensor

    def __init__(
        self,
        user: Tensor,
        item: Tensor,
        n_users: int,
        n_items: int,
        time: Tensor | None = None,
        recency: float = 0.0,
        earlier_recency: float = 0.0,
        strength: Tensor | None = None,
    ) -> None:
        """Sort the pairs.

        Args:
            user: internal ids of the pairs, ``(n,)``.
            item: ``(n,)``.
            n_users: number of users, padding included.
            n_items: number of items, padding included.
            time: of each pair, ``(n,)``; pairs of the same time keep their order.  None if it is not known.
            recency: see :func:`recbole_onebp.recency.recency_weights`.
            earlier_recency: the same for :meth:`earlier`.
            strength: of each pair, ``(n,)``; see the attribute.
        """
        super().__init__()
        self._n_items = n_items
        self.is_ordered: bool = time is not None
        key = user.long() * n_items + item.long()
        if time is None:
            key, order = key.sort(stable=True)
        else:
            by_time = time.argsort(stable=True)
            order = by_time[user[by_time].argsort(stable=True)]
            key = key[order]
        self.register_buffer("strength", None if strength is None else strength[order], persistent=False)
        del order  # as large as the history
        owner = key // n_items
        start = torch.searchsorted(owner, torch.arange(n_users + 1))
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("item", key % n_items, persistent=False)
        weight = total = None
        if recency:
            weight = _weights(start[owner + 1] - 1 - torch.arange(len(key)), recency)
        if self.strength is not None:
            weight = self.strength if weight is None else weight * self.strength
        if weight is not None:
            total = torch.zeros(n_users, dtype=torch.double).index_add_(0, owner, weight.double()).float()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("total", total, persistent=False)
        self.register_buffer("earlier_weight", _weights(torch.arange(WINDOW), earlier_recency), persistent=False)
        self._sorted: tuple[Tensor, Tensor] | None = None

    def _places(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Where pairs ``user * n_items + item`` are in the history, and whether they are there; shape of ``key``."""
        if self._sorted is None or self._sorted[0].device != key.device:
            owner = torch.repeat_interleave(torch.arange(len(self.start) - 1, device=key.device), self.start.diff())
            self._sorted = (owner * self._n_items + self.item).sort(stable=True)
        keys, order = self._sorted
        found = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
        return order[found], keys[found] == key

    @cached_property
    def arrays(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """``start``, ``item`` and ``strength`` as arrays, wherever the tensors are; the last is empty for None."""
        strength = self.item.new_empty(0, dtype=torch.float32) if self.strength is None else self.strength
        return self.start.cpu().numpy(), self.item.cpu().numpy(), strength.cpu().numpy()

    def place(self, user: Tensor, item: Tensor) -> Tensor:
        """Where train pairs are in the history; the first place of a pair that occurs more than once.

        Args:
            user: ``(B,)``.
            item: ``(B,)``.
        """
        return self._places(user * self._n_items + item)[0]

    def strength_of(self, user: Tensor, item: Tensor) -> Tensor | None:
        """The weights of train pairs, ``(B,)``; None if interactions have none."""
        return None if self.strength is None else self.strength[self.place(user, item)]

    def n_earlier(self, user: Tensor, item: Tensor) -> Tensor:
        """Number of the user's items before those of train pairs, ``(B,)``.

        Args:
            user: ``(B,)``.
            item: ``(B,)``.
        """
        return self.place(user, item) - self.start[user]

    def has(self, user: Tensor, item: Tensor) -> Tensor:
        """Whether users ``(B,)`` have interacted with items ``(M,)``; ``(B, M)``."""
        return self._places(user.unsqueeze(1) * self._n_items + item)[1]

    def mean(self, shares: Tensor) -> Tensor:
        """The (weighted) mean of each user's items, ``(n_users, d)``; zero for users without items.

        Args:
            shares: what each item adds, ``(n_items, d)``.
        """
        if self.weight is None or self.total is None:
            return F.embedding_bag(self.item, shares, self.start, mode="mean", include_last_offset=True)
        total = F.embedding_bag(
            self.item, shares, self.start, mode="sum", include_last_offset=True, per_sample_weights=self.weight
        )
        return total / self.total.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)

    def without(self, user: Tensor, item: Tensor, mean: Tensor, share: Tensor) -> Tensor:
        """The mean of the user's other items, ``(B, d)``; zero where they weigh next to nothing, or there is none.

        Args:
            user: users of B train pairs.
            item: items of these pairs.
            mean: of all the user's items, ``(B, d)``.
            share: what the item of the pair has added to it, ``(B, d)``.
        """
        count = (self.start[user + 1] - self.start[user]).unsqueeze(1)
        if self.weight is None or self.total is None:
            others = (count * mean - share) / (count - 1)
        else:
            weight, total = self.weight[self.place(user, item)].unsqueeze(1), self.total[user].unsqueeze(1)
            others = (total * mean - weight * share) / (total - weight)
            count = torch.where(total - weight > LEAST_REST * total, count, 0)
        return torch.where(count > 1, others, 0.0)

    def earlier(self, user: Tensor, item: Tensor, shares: Tensor) -> Tensor:
        """The weighted mean of the items before those of train pairs, ``(B, d)``; zero where there is none.

        Args:
            user: users of B train pairs.
            item: items of these pairs.
            shares: what each item adds, ``(n_items, d)``.
        """
        place = self.place(user, item).unsqueeze(1) - 1 - torch.arange(len(self.earlier_weight), device=user.device)
        weight, inside = self.earlier_weight, place.clamp(min=0)
        if self.strength is not None:
            weight = weight * self.strength[inside]
        weight = torch.where(place >= self.start[user].unsqueeze(1), weight, 0.0)
        total = (weight.unsqueeze(1) @ shares[self.item[inside]]).squeeze(1)
        return total / weight.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _weights(age: Tensor, recency: float) -> Tensor:
    return torch.from_numpy(recency_weights(age.numpy(), recency)).float()
