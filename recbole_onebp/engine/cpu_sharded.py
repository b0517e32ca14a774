"""The fast engine for the CPU in several processes.

Each rank scores the pairs of its own users.  The terms of the item gradients are the user embeddings, one coefficient
per score, the item ids, and the rank's parts of the sums for shared negatives.  All ranks write them to the same
positions as one process would: in memory that the ranks of a host share, with a copy sent from host to host.  Each rank
then sums the gradients and applies the optimizer's step for its part of the host's item table, in the order of one
process.

So 2 and 4 processes give the same tables as one, bit for bit.  Other numbers of processes group the users differently
and sum in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from recbole_onebp.distributed.host import Host
from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.engine import ema
from recbole_onebp.engine.cpu import Floats, FusedEngine, state_of
from recbole_onebp.engine.schedule import Batch, Ids, Progress, Schedule, even_first
from recbole_onebp.model import OneBP

__all__ = ["ShardedEngine"]


@dataclass(frozen=True)
class _Share:
    """A rank's terms of the item gradients of a step."""

    source: Floats
    """User embeddings, ``(n, d)``."""
    coefficient: Floats
    """Coefficients of each pair's scores, ``(n, group)``."""
    places: Ids
    """The items of these scores, ``(n, group)``."""
    negative_gradient: Floats
    """The rank's part of the gradients of shared negatives, ``(M, d)``."""
    negative_bias_gradient: Floats
    """The rank's part of the gradients of their biases, ``(M, 1)``."""

    @classmethod
    def over(cls, words: Tensor, n: int, size: int, group: int, n_shared: int) -> _Share:
        """A share whose arrays lie one after the other in ``words``, of 4 bytes each."""
        ends = np.cumsum(cls._lengths(n, size, group, n_shared))
        source, coefficient, places, gradient, bias_gradient = np.split(words.numpy(), ends[:-1])
        return cls(
            source.reshape(n, size),
            coefficient.reshape(n, group),
            places.view(np.int32).reshape(n, group),
            gradient.reshape(n_shared, size),
            bias_gradient.reshape(n_shared, 1),
        )

    @classmethod
    def words(cls, n: int, size: int, group: int, n_shared: int) -> int:
        """Number of words of such a share."""
        return sum(cls._lengths(n, size, group, n_shared))

    @staticmethod
    def _lengths(n: int, size: int, group: int, n_shared: int) -> tuple[int, ...]:
        """Lengths of the arrays, in the order of the fields."""
        return n * size, n * group, n * group, n_shared * size, n_shared


class ShardedEngine(FusedEngine):
    """Trains one rank's part of a model.  All ranks create it and call its methods together.

    Args:
        model: has the rank's users and all items; the item table moves to memory that the host's ranks share.
        optimizer: as in :class:`FusedEngine`; its state of the items moves to shared memory too.
        schedule: the rank's steps.
        ranks: the processes.
        more: further arguments of the class that comes after this one.

    Attributes:
        words_a_pair: words of 4 bytes that are sent between hosts per pair.
    """

    _settles_first = False  # other ranks of the host read the items then

    def __init__(
        self, model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule, ranks: Ranks, *more: Any
    ) -> None:
        self._ranks, self._host = ranks, Host(ranks)
        self._peers = ranks.group_across_hosts()
        super().__init__(model, optimizer, schedule, *more)
        self._part = ranks.local_rank, ranks.local_world_size
        self.words_a_pair = _Share.words(1, model.config.embedding_size, self._group, 0)
        self._shared_tensors: dict[str, Tensor] = {}

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return self._host.tensor(shape, dtype)

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once; see :meth:`FusedEngine.train_epoch`."""
        self._share_items()
        self._step_number = done
        total = super().train_epoch(epoch, progress, done, loss)
        return float(self._ranks.all_reduce(torch.tensor([total], dtype=torch.float64)))

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        ordered, order = self.schedule.own_order(epoch), even_first(self._ranks.world_size)
        self._counts = torch.stack(self._ranks.gather(torch.from_numpy(np.diff(ordered[1])))).numpy()  # (world, steps)
        self._firsts = np.empty_like(self._counts)  # position of each rank's first pair in a step
        self._firsts[order] = np.cumsum(self._counts[order], axis=0) - self._counts[order]
        return self.schedule.batches(epoch, done, ordered)

    def _share_items(self) -> None:
        """Put the items and their optimizer state into shared memory, in each epoch, as loading may replace them."""
        for name, (parameter, optimizer) in self._trained().items():
            parameter.data = self._in_host(name, parameter.data)
            state = state_of(parameter, optimizer, self._averaged)
            for moment in ("exp_avg", "exp_avg_sq", *([ema.KEY] if self._averaged else [])):
                state[moment] = self._in_host(f"{name} {moment}", state[moment])

    def _in_host(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._shared_tensors:
            self._shared_tensors[name] = self._host.tensor(tuple(tensor.shape))
        shared = self._shared_tensors[name]
        if self._ranks.local_rank == 0 and shared.data_ptr() != tensor.data_ptr():
            shared.copy_(tensor)
        self._wait()
        return shared

    def _wait(self) -> None:
        self._host.wait()

    def _step(self, batch: Batch) -> float:
        self._first = int(self._firsts[self._ranks.rank, self._step_number])
        loss = super()._step(batch)
        self._step_number += 1
        return loss

    def _train_items(self, batch: Batch) -> Ids:
        if self._peers is not None:
            self._exchange()
        self._wait()  # until all terms are written and no rank reads the items any more
        touched = super()._train_items(batch)
        self._item_linker.unlink(touched)  # step_rows unlinks only this rank's rows
        self._wait()  # until all items are updated
        return touched

    def _share_of(self, rank: int) -> _Share:
        """A rank's share, as views of this host's memory."""
        first, n = self._firsts[rank, self._step_number], self._counts[rank, self._step_number]
        places = slice(first * self._group, (first + n) * self._group)
        return _Share(
            self._source[first : first + n],
            self._coefficient[places].reshape(n, self._group),
            self._places[places].reshape(n, self._group),
            self._negative_gradient[rank],
            self._negative_bias_gradient[rank],
        )

    def _exchange(self) -> None:
        """Receive the shares of other hosts: each rank exchanges with the ranks of the same local rank."""
        ranks = self._ranks
        peers = range(ranks.local_rank, ranks.world_size, ranks.local_world_size)
        most = int(self._counts[peers, self._step_number].max())
        sizes = most, self.config.embedding_size, self._group, self._n_shared
        sent, *received = torch.empty(1 + ranks.n_hosts, _Share.words(*sizes))
        packed = _Share.over(sent, *sizes)
        for name, values in vars(self._share_of(ranks.rank)).items():
            getattr(packed, name)[: len(values)] = values
        with ranks.collective():
            dist.all_gather(received, sent, group=self._peers)
        for peer, words in zip(peers, received, strict=True):
            if peer != ranks.rank:
                share = _Share.over(words, *sizes)
                for name, own in vars(self._share_of(peer)).items():
                    own[:] = getattr(share, name)[: len(own)]
