"""The fast engine for the CPU in several processes: each has users of its own, and a share of the work on the items.

A rank scores its own users' pairs.  What the items' gradients are made of (the users' encodings, a coefficient a score,
and which items these are) all ranks put where one process would have put it: in memory that the ranks of a host share,
and a copy goes from host to host.  Then each rank sums the gradients and takes the optimizer's step for its share of
the rows of the host's item table, in the order of one process.  So the tables are those of one process, bit for bit.

With ``negatives: shared`` ranks of one host put the derivatives by all scores there as well, and share out the blocks
of negatives, whose gradients one process too sums block by block.  Between hosts that would be M numbers a pair: each
rank brings its part of the negatives' gradients instead, and sums differ in rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from recbole_onebp.distributed.host import Host
from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.engine.fused import Floats, FusedEngine, Links, state_of
from recbole_onebp.engine.plan import Batch, Ids, Plan, Progress
from recbole_onebp.model import OneBP

__all__ = ["ShardedEngine"]


@dataclass(frozen=True)
class _Share:
    """What a rank brings to a step."""

    position: npt.NDArray[Any]
    """Where its pairs stand among all, ``(n,)``."""
    source: Floats
    """Users' encodings, ``(n, d)``."""
    coefficient: Floats
    """Of each pair's scores, ``(n, group)``."""
    ids: Ids
    """Their items, ``(n, group)``."""
    partial: Floats
    """With shared negatives on several hosts, the rank's part of their gradients, ``(M, d)``."""
    bias: Floats
    """The same of their biases, ``(M, 1)``."""

    @classmethod
    def over(cls, words: Tensor, n: int, size: int, group: int, n_shared: int) -> _Share:
        """One whose arrays lie one after the other in ``words``, of 4 bytes each."""
        ends = np.cumsum(cls._lengths(n, size, group, n_shared))
        position, source, coefficient, ids, partial, bias = np.split(words.numpy(), ends[:-1])
        return cls(
            position.view(np.int32),
            source.reshape(n, size),
            coefficient.reshape(n, group),
            ids.view(np.int32).reshape(n, group),
            partial.reshape(n_shared, size),
            bias.reshape(n_shared, 1),
        )

    @classmethod
    def words(cls, n: int, size: int, group: int, n_shared: int) -> int:
        """How many it takes."""
        return sum(cls._lengths(n, size, group, n_shared))

    @staticmethod
    def _lengths(n: int, size: int, group: int, n_shared: int) -> tuple[int, ...]:
        """Of the arrays, in the order of the fields."""
        return n, n * size, n * group, n * group, n_shared * size, n_shared


class ShardedEngine(FusedEngine):
    """Trains one rank's part of a model; all ranks make and call it together.

    Args:
        model: of the rank's users and all items; these move to the memory of the host.
        optimizer: as of :class:`FusedEngine`; its state of the items moves too.
        plan: the rank's steps.
        ranks: all of them.

    Attributes:
        words_a_pair: what goes from host to host for a pair, of 4 bytes each.
    """

    def __init__(self, model: OneBP, optimizer: torch.optim.Optimizer, plan: Plan, ranks: Ranks) -> None:
        super().__init__(model, optimizer, plan)
        hyper, self._ranks, self._host = model.hyper, ranks, Host(ranks)
        self._part = ranks.local_rank, ranks.local_world
        shared = hyper.negatives == "shared"
        self._group = 1 if shared else 1 + hyper.repeats
        self._n_shared = hyper.n_shared_negatives if shared else 0
        n_pairs = min(hyper.positives_a_step, plan.n_pairs)
        self._n_behind = self._n_shared * (1 if ranks.peers is None else ranks.world)
        n_places = n_pairs * self._group + self._n_behind
        self._all_source = self._host.tensor((n_pairs + self._n_behind, hyper.embedding_size))
        self._all_bias_source = self._host.tensor((n_pairs + self._n_behind, 1))
        self._all_scores = self._host.tensor((n_pairs, self._n_shared)) if shared and ranks.peers is None else None
        self._all_coefficient = self._host.tensor((n_places,)).numpy()
        self._all_places = self._host.tensor((n_places,), torch.int32).numpy()
        self.words_a_pair = _Share.words(1, hyper.embedding_size, self._group, 0)
        self._item_links = Links(len(model.item_table), n_places)
        self._shared_tensors: dict[str, Tensor] = {}

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once; see :meth:`FusedEngine.train_epoch`."""
        self._share_items()
        self._step_number = done
        if self._ranks.peers is not None:
            starts = torch.from_numpy(self.plan.own_order(epoch)[2])
            self._counts = torch.stack(self._ranks.gather(starts.diff())).numpy()  # (world, steps)
        total = super().train_epoch(epoch, progress, done, loss)
        return float(self._ranks.total(torch.tensor([total], dtype=torch.float64)))

    def _share_items(self) -> None:
        """Have the items and their optimizer's state in the host's memory: anew each epoch, see the parent's."""
        trained = {"table": self.model.item_table}
        if self.model.item_bias is not None:
            trained["bias"] = self.model.item_bias
        for name, parameter in trained.items():
            parameter.data = self._in_host(name, parameter.data)
            state = state_of(parameter, self.optimizer)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = self._in_host(f"{name} {moment}", state[moment])

    def _in_host(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._shared_tensors:
            self._shared_tensors[name] = self._host.tensor(tuple(tensor.shape))
        shared = self._shared_tensors[name]
        if self._ranks.local_rank == 0 and shared.data_ptr() != tensor.data_ptr():
            shared.copy_(tensor)
        self._host.wait()
        return shared

    def _copies(self, batch: Batch) -> tuple[Floats, npt.NDArray[np.int64]]:
        if self._all_scores is None or batch.position is None:
            return super()._copies(batch)
        return self._all_scores.numpy(), batch.position

    def _sum_negatives(self, scores: Tensor) -> None:
        if self._all_scores is None:
            super()._sum_negatives(scores)

    def _train_items(self, batch: Batch, n_places: int, group: int) -> None:
        n, n_all = len(batch.user), batch.n_pairs
        own = _Share(
            np.asarray(batch.position),
            self._source[:n].numpy(),
            self._coefficient[: n * group].reshape(n, group),
            self._places[: n * group].reshape(n, group),
            self._source[n : n + self._n_shared].numpy(),
            self._bias_source[n : n + self._n_shared].numpy(),
        )
        self._put(own, batch, self._ranks.rank)
        if self._ranks.peers is not None:
            self._exchange(own, batch)
        self._host.wait()  # all that gradients are made of is there, and nobody reads items any more
        if self._all_scores is not None:
            self._sum_blocks(self._all_scores[:n_all], self._all_source, self._all_bias_source, *self._part)
            self._host.wait()  # those of shared negatives are there too
        end = n_all * group + self._n_behind
        sources = self._all_source.numpy(), self._all_bias_source.numpy()
        touched = self._step_items(self._all_places[:end], self._all_coefficient[:end], group, *sources)
        self._item_links.head[touched] = -1  # those of other ranks' rows
        self._step_number += 1
        self._host.wait()  # all items have stepped

    def _put(self, share: _Share, batch: Batch, rank: int) -> None:
        """Put what a rank brings where one process would have it; between hosts, its part of shared negatives too."""
        n_all, group = batch.n_pairs, self._group
        source, bias_source = self._all_source.numpy(), self._all_bias_source.numpy()
        source[share.position], bias_source[share.position] = share.source, self.hyper.temperature
        self._all_coefficient[: n_all * group].reshape(n_all, group)[share.position] = share.coefficient
        self._all_places[: n_all * group].reshape(n_all, group)[share.position] = share.ids
        if self._all_scores is not None:
            rank = 0  # the negatives are there once, and all ranks of the host write the same
        if self._n_shared:
            start = n_all + rank * self._n_shared
            behind = slice(start, start + self._n_shared)
            self._all_coefficient[behind], self._all_places[behind] = 1, batch.negative
            if self._all_scores is None:
                source[behind], bias_source[behind] = share.partial, share.bias

    def _exchange(self, own: _Share, batch: Batch) -> None:
        """Put what the ranks of other hosts bring: each rank hears from those with its local rank."""
        ranks = self._ranks
        counts = self._counts[ranks.local_rank :: ranks.local_world, self._step_number]
        sizes = int(counts.max()), self.hyper.embedding_size, self._group, self._n_shared
        sent, *received = torch.empty(1 + ranks.n_hosts, _Share.words(*sizes))
        packed = _Share.over(sent, *sizes)
        for name, values in vars(own).items():
            getattr(packed, name)[: len(values)] = values
        with ranks.together():
            dist.all_gather(received, sent, group=ranks.peers)
        for host, (words, n) in enumerate(zip(received, counts, strict=True)):
            if host != ranks.host:
                brought = _Share.over(words, *sizes)
                pairs = {name: getattr(brought, name)[:n] for name in ("position", "source", "coefficient", "ids")}
                self._put(replace(brought, **pairs), batch, host * ranks.local_world + ranks.local_rank)
