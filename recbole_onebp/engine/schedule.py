"""Which pairs make up a step, in which order, with which negatives: the same for every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.distributed.sharding import Shard
from recbole_onebp.sampling import NegativeSampler

__all__ = ["Batch", "Progress", "Schedule", "even_first"]

Ids = npt.NDArray[np.int32]
_GROUPS = 4
"""Of users.  A sum over all pairs of a step is made of the groups' sums: so 1, 2 and 4 processes sum alike."""


def even_first(count: int) -> list[int]:
    """0, 2, 4, ..., 1, 3, 5, ...: how groups of users, and the ranks that own them, stand in a step."""
    return [*range(0, count, 2), *range(1, count, 2)]


class Batch(NamedTuple):
    """A step's pairs and negatives."""

    user: Ids
    """Internal ids, ``(B,)``."""
    item: Ids
    """``(B,)``."""
    negative: Ids
    """``(B, N)``, or ``(M,)`` with ``negatives: shared``."""
    bounds: npt.NDArray[np.int64]
    """Where the pairs of each of this process's groups begin, and where the last ends, ``(groups + 1,)``."""
    n_pairs: int
    """Of all ranks."""


Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps what is iterated over, to show how far it is."""


class Schedule:
    """The steps of every epoch, a function of the seed and the epoch's number alone.

    Args:
        user: internal user ids of the train pairs, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``.
        n_users: number of users, the padding row included.
        n_items: number of items, the padding row included.
        config: how many pairs a step has, and what negatives they get.
        seed: of the order and the negatives.
        shuffle: RecBole's key; without it the pairs keep their order.
        shard: where these pairs are one rank's, with users numbered as it does.

    Attributes:
        n_parts: of a sum over all pairs of a step; the sum is that of the even ones plus that of the odd ones.

    Raises:
        UserError: if some user has no negative left.
    """

    def __init__(
        self,
        user: Ids,
        item: Ids,
        n_users: int,
        n_items: int,
        config: OneBPConfig,
        seed: int,
        shuffle: bool = True,
        shard: Shard | None = None,
    ) -> None:
        self.user = np.ascontiguousarray(user, dtype=np.int32)
        self.item = np.ascontiguousarray(item, dtype=np.int32)
        self.config, self.seed, self.shuffle = config, seed, shuffle
        args = config.train_neg_sample_args
        counts = None if shard is None else shard.item_count.numpy()
        per_user = config.negatives == "per_pair"
        self.sampler = NegativeSampler(
            self.user, self.item, n_users, n_items, seed, args.distribution, args.alpha, counts, per_user
        )
        self.shard, self.n_pairs = shard, len(self.user) if shard is None else shard.n_pairs
        self._rank, self._world = (0, 1) if shard is None else (shard.rank, shard.world_size)
        self._n_groups = _GROUPS if _GROUPS % self._world == 0 else self._world
        self._groups = [group for group in even_first(self._n_groups) if group % self._world == self._rank]
        self.n_parts = max(2, self._world)

    def __len__(self) -> int:
        """Steps an epoch; the last one may be smaller."""
        return -(-self.n_pairs // self.config.positives_a_step)

    def aggregates_after(self, step: int) -> bool:
        """Whether all users are moved after this step, from 0, of an epoch."""
        if self.config.aggregation == "step":
            return False
        interval = self.config.aggregation_interval if self.config.aggregation == "interval" else len(self)
        return (step + 1) % interval == 0 or step + 1 == len(self)

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """The numbers of all ranks' pairs in the order of this epoch, shape ``(n,)``."""
        numbers = np.arange(self.n_pairs, dtype=np.int32)
        if self.shuffle:
            np.random.Generator(np.random.Philox(key=[self.seed, epoch])).shuffle(numbers)
        return numbers

    def own_order(self, epoch: int) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The own pairs in the order of this epoch.

        Returns:
            Indices of the pairs, ``(n,)``; and the start of each step among them, with the end of the last,
            ``(steps + 1,)``.
        """
        order, starts = self.order(epoch), np.arange(len(self) + 1) * self.config.positives_a_step
        if self.shard is None:
            return order, np.minimum(starts, len(order))
        own = np.full(self.n_pairs, -1, dtype=np.int32)
        own[self.shard.number] = np.arange(len(self.user), dtype=np.int32)
        pair = own[order]
        place = np.flatnonzero(pair >= 0)
        return pair[place], np.searchsorted(place, starts)

    def numbers(self, pair: Ids) -> Ids:
        """The numbers among all ranks' pairs of own ones, which their negatives depend on."""
        return pair if self.shard is None else self.shard.number[pair]

    def pairs_of_step(self, step: int) -> int:
        """How many pairs all ranks have in a step."""
        size = self.config.positives_a_step
        return min(size, self.n_pairs - step * size)

    def suffices_after(self, step: int) -> bool:
        """Whether the tables and the optimizer are all that an epoch goes on from after this step, from 0.

        With ``leave_one_out`` that is so where the users have just been aggregated: what they were made of is there.
        """
        return not self.config.leave_one_out or self.aggregates_after(step)

    def batches(
        self, epoch: int, done: int = 0, ordered: tuple[Ids, npt.NDArray[np.int64]] | None = None
    ) -> Iterator[Batch]:
        """The steps of an epoch, from number ``done``; ``ordered`` is its :meth:`own_order`, if that was asked for.

        Within a step the pairs stand group by group.
        """
        order, starts = ordered or self.own_order(epoch)
        place = np.empty(self._n_groups, dtype=np.uint8)
        place[self._groups] = np.arange(len(self._groups))
        for step in range(done, len(self)):
            pair = order[starts[step] : starts[step + 1]]
            group = place[((self.user[pair] - 1) * self._world + self._rank) % self._n_groups]
            pair = pair[np.argsort(group, kind="stable")]
            bounds = np.cumsum([0, *np.bincount(group, minlength=len(self._groups))])
            user = self.user[pair]
            negative = self._negatives(user, self.numbers(pair), step, epoch)
            yield Batch(user, self.item[pair], negative, bounds, self.pairs_of_step(step))

    def own_parts(self, batch: Batch) -> dict[int, list[slice]]:
        """Which parts of a sum over all pairs of a step this process brings, and the pairs of the groups in each."""
        parts: dict[int, list[slice]] = {}
        for group, bounds in zip(self._groups, pairwise(batch.bounds), strict=True):
            parts.setdefault(group % self.n_parts, []).append(slice(*bounds))
        return parts

    def shared_negatives(self, step: int, epoch: int) -> Ids:
        """The items that all pairs of a step share as negatives, shape ``(M,)``."""
        return self.sampler.draw_shared(self.config.n_shared_negatives, step, epoch)

    def log_q(self) -> npt.NDArray[np.float32]:
        """Logarithm of each item's share in the shared draws, ``(n_items,)``; 0 for what is never drawn, nor taken."""
        log_q = self.sampler.log_probability()
        return np.where(np.isfinite(log_q), log_q, np.float32(0))

    def _negatives(self, user: Ids, pair: Ids, step: int, epoch: int) -> Ids:
        if self.config.negatives == "shared":
            return self.shared_negatives(step, epoch)
        return self.sampler.draw(user, self.config.train_neg_sample_args.sample_num, pair, epoch)
