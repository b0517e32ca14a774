"""Which pairs make up a step, in which order, with which negatives: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recbole_onebp.config import OneBPConfig
from recbole_onebp.sampling import NegativeSampler

__all__ = ["Batch", "Plan", "Progress"]

Ids = npt.NDArray[np.int32]


class Batch(NamedTuple):
    """A step's pairs and negatives."""

    user: Ids
    """Internal ids, ``(B,)``."""
    item: Ids
    """``(B,)``."""
    negative: Ids
    """``(B, N)``, or ``(M,)`` with ``negatives: shared``."""


Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps what is iterated over, to show how far it is."""


class Plan:
    """The steps of every epoch, a function of the seed and the epoch's number alone.

    Args:
        user: internal user ids of the train pairs, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``.
        n_users: number of users, the padding row included.
        n_items: number of items, the padding row included.
        hyper: how many pairs a step has, and what negatives they get.
        seed: of the order and the negatives.
        shuffle: RecBole's key; without it the pairs keep their order.

    Raises:
        UserError: if some user has no negative left.
    """

    def __init__(
        self, user: Ids, item: Ids, n_users: int, n_items: int, hyper: OneBPConfig, seed: int, shuffle: bool = True
    ) -> None:
        self.user = np.ascontiguousarray(user, dtype=np.int32)
        self.item = np.ascontiguousarray(item, dtype=np.int32)
        self.hyper, self.seed, self.shuffle = hyper, seed, shuffle
        args = hyper.train_neg_sample_args
        self.sampler = NegativeSampler(self.user, self.item, n_users, n_items, seed, args.distribution, args.alpha)

    def __len__(self) -> int:
        """Steps an epoch; the last one may be smaller."""
        return -(-len(self.user) // self.hyper.positives_a_step)

    def aggregates_after(self, step: int) -> bool:
        """Whether all users are moved after this step, from 0, of an epoch."""
        if self.hyper.aggregation == "step":
            return False
        interval = self.hyper.aggregation_interval if self.hyper.aggregation == "interval" else len(self)
        return (step + 1) % interval == 0 or step + 1 == len(self)

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """The pairs' numbers in the order of this epoch, shape ``(n,)``."""
        numbers = np.arange(len(self.user), dtype=np.int32)
        if self.shuffle:
            np.random.Generator(np.random.Philox(key=[self.seed, epoch])).shuffle(numbers)
        return numbers

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The steps of an epoch."""
        order, size = self.order(epoch), self.hyper.positives_a_step
        for step in range(len(self)):
            pair = order[step * size : (step + 1) * size]
            user = self.user[pair]
            yield Batch(user, self.item[pair], self._negatives(user, pair, step, epoch))

    def shared_negatives(self, step: int, epoch: int) -> Ids:
        """The items that all pairs of a step share as negatives, shape ``(M,)``."""
        return self.sampler.draw_shared(self.hyper.n_shared_negatives, step, epoch)

    def log_q(self) -> npt.NDArray[np.float32]:
        """Logarithm of each item's share in the shared draws, ``(n_items,)``; 0 for what is never drawn, nor taken."""
        log_q = self.sampler.log_probability()
        return np.where(np.isfinite(log_q), log_q, np.float32(0))

    def _negatives(self, user: Ids, pair: Ids, step: int, epoch: int) -> Ids:
        if self.hyper.negatives == "shared":
            return self.shared_negatives(step, epoch)
        return self.sampler.draw(user, self.hyper.train_neg_sample_args.sample_num, pair, epoch)
