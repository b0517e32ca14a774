"""The training pairs of each step, their order and their negatives; all engines use the same schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.distributed.sharding import Shard
from recbole_onebp.engine import adam, ema
from recbole_onebp.sampling import NegativeSampler, coins

__all__ = ["Batch", "Progress", "Schedule", "even_first"]

Ids = npt.NDArray[np.int32]
_GROUPS = 4
"""Number of groups of users.  Sums over a step are made group by group, so 1, 2 and 4 processes give the same bits."""

_STEPS_AT_ONCE = 64
"""The pairs of this many steps are sorted at once: numpy takes longer to be called than to sort those of one."""


def even_first(count: int) -> list[int]:
    """0, 2, 4, ..., 1, 3, 5, ...: the order of the groups of users, and of the ranks that own them, in a step."""
    return [*range(0, count, 2), *range(1, count, 2)]


class Batch(NamedTuple):
    """The pairs and negatives of a step."""

    user: Ids
    """Internal ids, ``(B,)``."""
    item: Ids
    """``(B,)``."""
    negative: Ids
    """``(B, N)``, or ``(M,)`` with ``negatives: shared``."""
    bounds: npt.NDArray[np.int64]
    """Where the pairs of each of this process's groups begin, and the end of the last, ``(groups + 1,)``."""
    n_pairs: int
    """Number of pairs of all ranks in this step."""
    pair: Ids
    """Indices among this process's train pairs, ``(B,)``."""


Progress = Callable[[Iterable[Any]], Iterable[Any]]
"""Wraps an iterable to show progress."""


class Schedule:
    """The steps of every epoch.  They depend on the seed and the number of the epoch only.

    Args:
        user: internal user ids of the train pairs, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``.
        n_users: number of users, the padding row included.
        n_items: number of items, the padding row included.
        config: number of pairs in a step, and kind and number of negatives.
        seed: seed of the order and the negatives.
        shuffle: RecBole's key; if False, the pairs keep their order.
        shard: in several processes, this rank's shard; ``user`` then contains the rank's own numbers of users.
        pairs_need_items: whether the users of pairs are made of the items of the last aggregation.

    Attributes:
        n_parts: number of parts in a sum over all pairs of a step: the even parts are summed, then the odd parts, then
            both.
        n_shared: number of negatives that the pairs of a step share; 0 if each pair has its own.
        part_of_group: the part of a sum that each of this process's groups of users belongs to, in the order of
            ``Batch.bounds``.
        groups_a_part: the most groups of this process in a part.

    Raises:
        UserError: if a user has interacted with all items, so that there is no negative.
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
        pairs_need_items: bool = False,
    ) -> None:
        self.user = np.ascontiguousarray(user, dtype=np.int32)
        self.item = np.ascontiguousarray(item, dtype=np.int32)
        self.config, self.seed, self.shuffle = config, seed, shuffle
        args = config.train_neg_sample_args
        counts = None if shard is None else shard.item_count.numpy()
        per_user = config.negatives == "per_pair"
        distribution, alpha = args.distribution, args.alpha
        if config.item_features != "none" and distribution == "uniform":
            distribution, alpha = (
                "popularity",
                0.0,
            )  # uniform over items with pairs: others are not known to be disliked
        self.sampler = NegativeSampler(
            self.user, self.item, n_users, n_items, seed, distribution, alpha, counts, per_user
        )
        self._pairs_need_items = pairs_need_items
        self.shard, self.n_pairs = shard, len(self.user) if shard is None else shard.n_pairs
        self._rank, self._world = (0, 1) if shard is None else (shard.rank, shard.world_size)
        self._n_groups = _GROUPS if _GROUPS % self._world == 0 else self._world
        self._groups = [group for group in even_first(self._n_groups) if group % self._world == self._rank]
        self.n_parts, self.n_shared = max(2, self._world), config.shared_negatives(n_items)
        self.part_of_group = np.array(self._groups) % self.n_parts
        self.groups_a_part = int(np.bincount(self.part_of_group).max())
        number = (np.arange(n_users) - 1) * self._world + self._rank  # of each user among those of all ranks
        place = np.zeros(self._n_groups, dtype=np.uint8)
        place[self._groups] = np.arange(len(self._groups))
        self._group_of_user = place[number % self._n_groups]

    def __len__(self) -> int:
        """Number of steps in an epoch; the last one may be smaller."""
        return -(-self.n_pairs // self.config.positives_a_step)

    def aggregates_after(self, step: int) -> bool:
        """Whether users are made of the items as they are after this step of an epoch; steps count from 0."""
        if self.config.aggregation == "step":
            return False
        interval = self.config.aggregation_interval if self.config.aggregation == "interval" else len(self)
        return (step + 1) % interval == 0 or step + 1 == len(self)

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """The pairs of all ranks in the order of this epoch, as indices, shape ``(n,)``."""
        numbers = np.arange(self.n_pairs, dtype=np.int32)
        if self.shuffle:
            np.random.Generator(np.random.Philox(key=[self.seed, epoch])).shuffle(numbers)
        return numbers

    def own_order(self, epoch: int) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The pairs of this process in the order of this epoch.

        Returns:
            Indices of the pairs, ``(n,)``; and the start of each step among them, followed by the end of the last step,
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
        """Indices among the pairs of all ranks, from indices of own pairs.  The negatives depend on them."""
        return pair if self.shard is None else self.shard.number[pair]

    def pairs_of_step(self, step: int) -> int:
        """Number of pairs of all ranks in a step."""
        size = self.config.positives_a_step
        return min(size, self.n_pairs - step * size)

    def settles_after(self, step: int) -> bool:
        """Whether all items make the steps that they have missed after this step."""
        return self.aggregates_after(step) or (step + 1) % adam.MOST_MISSED == 0 or step + 1 == len(self)

    def ema_share(self, epoch: int, step: int) -> float | None:
        """What :func:`~recbole_onebp.engine.ema.share_after` says of this step of an epoch."""
        return ema.share_after(self.config.ema_decay, epoch, step, len(self))

    def can_stop_after(self, step: int) -> bool:
        """Whether the epoch can be resumed after this step, from the tables and the optimizer state alone.

        The items must have made all steps, and be those that the users of pairs are made of.
        """
        return self.settles_after(step) and (self.aggregates_after(step) or not self._pairs_need_items)

    def batches(
        self, epoch: int, done: int = 0, ordered: tuple[Ids, npt.NDArray[np.int64]] | None = None
    ) -> Iterator[Batch]:
        """The steps of an epoch; within a step, pairs are sorted by group of users.

        Args:
            epoch: number of the epoch, from 0.
            done: number of steps to skip.
            ordered: result of :meth:`own_order`, if already computed.
        """
        order, starts = ordered or self.own_order(epoch)
        n_groups = len(self._groups)
        for first in range(done, len(self), _STEPS_AT_ONCE):
            end = min(first + _STEPS_AT_ONCE, len(self))
            pair = order[starts[first] : starts[end]]
            of_step = np.repeat(np.arange(end - first, dtype=np.uint16), np.diff(starts[first : end + 1]))
            place = of_step * np.uint16(n_groups) + self._group_of_user[self.user[pair]]
            pair = pair[np.argsort(place, kind="stable")]
            user, item, number = self.user[pair], self.item[pair], self.numbers(pair)
            begins = np.concatenate(([0], np.cumsum(np.bincount(place, minlength=n_groups * (end - first)))))
            for step in range(first, end):
                bounds = begins[(step - first) * n_groups :][: n_groups + 1]
                here = slice(bounds[0], bounds[-1])
                negative = self._negatives(user[here], number[here], step, epoch)
                size = self.pairs_of_step(step)
                yield Batch(user[here], item[here], negative, bounds - bounds[0], size, pair[here])

    def own_parts(self, batch: Batch) -> dict[int, list[slice]]:
        """The parts of a sum over all pairs of a step that this process computes, with the pairs of each group."""
        parts: dict[int, list[slice]] = {}
        for part, bounds in zip(self.part_of_group.tolist(), pairwise(batch.bounds.tolist()), strict=True):
            parts.setdefault(part, []).append(slice(*bounds))
        return parts

    def shared_negatives(self, step: int, epoch: int) -> Ids:
        """The negatives that all pairs of a step share, shape ``(M,)``."""
        return self.sampler.draw_shared(self.n_shared, step, epoch)

    def kept_ids(self, step: int, epoch: int) -> npt.NDArray[np.bool_]:
        """Whether each item has the row of its id in a step, ``(n_items,)``; see ``id_dropout``."""
        return coins(self.sampler.n_items, 1 - self.config.id_dropout, self.seed, epoch, step)

    def log_q(self) -> npt.NDArray[np.float32]:
        """Log probability of each item in the shared draws, ``(n_items,)``; 0 for items that are never drawn."""
        log_q = self.sampler.log_probability()
        return np.where(np.isfinite(log_q), log_q, np.float32(0))

    def _negatives(self, user: Ids, pair: Ids, step: int, epoch: int) -> Ids:
        if self.n_shared:
            return self.shared_negatives(step, epoch)
        return self.sampler.draw(user, self.config.train_neg_sample_args.sample_num, pair, epoch)
