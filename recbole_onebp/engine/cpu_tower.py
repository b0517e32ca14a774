"""The fast engine for the CPU where items have features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recbole_onebp.engine import adam, kernels, tower_kernels
from recbole_onebp.engine.cpu import Floats, FusedEngine, Trained
from recbole_onebp.engine.cpu_sharded import ShardedEngine
from recbole_onebp.engine.schedule import Batch, Ids, Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["ShardedTowerEngine", "TowerEngine"]


class TowerEngine(FusedEngine):
    """:class:`FusedEngine` for items whose rows a :class:`~recbole_onebp.tower.Tower` makes.

    Before a step the rows of its items are made of ids and values, some without the id; afterwards their gradients go
    back to these.  Users are made of the rows with ids, as of the last aggregation.

    Args:
        model: with a tower; its tables are changed in place.
        optimizer: torch's Adam or SparseAdam over the parameters that are not of values.
        schedule: the steps.
        value_optimizer: torch's SparseAdam over the rows and biases of values.
    """

    def __init__(
        self, model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule, value_optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(model, optimizer, schedule)
        assert model.tower is not None
        self._value_optimizer = value_optimizer
        self._tower = tower = model.tower
        self._features = tower_kernels.Features(
            tower.start.numpy(), tower.value.numpy().astype(np.int32), tower.weight.numpy()
        )
        n_items, (n_values, size) = len(tower.id_table), tower.value_table.shape
        self._every, self._whole = np.arange(n_items, dtype=np.int32), np.ones(n_items, dtype=bool)
        self._made = np.zeros((n_items, size), dtype=np.float32), np.zeros((n_items, 1), dtype=np.float32)
        self._own_slot, self._value_slot = (np.full(n, -1, dtype=np.int32) for n in (n_items, n_values))
        self._values = np.empty(n_values, dtype=np.int32)
        self._ones = np.ones((len(self._source), 1), dtype=np.float32)
        n_touched = min(n_items, len(self._places))
        self._gradients = [self._tensor((n_touched, width)).numpy() for width in (size, 1)]
        self._value_gradients = [np.empty((n_values, width), dtype=np.float32) for width in (size, 1)]

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once; see :meth:`FusedEngine.train_epoch`."""
        self._epoch, self._number = epoch, done
        return super().train_epoch(epoch, progress, done, loss)

    def _trained(self) -> dict[str, tuple[Tensor, torch.optim.Optimizer]]:
        tower = self._tower
        found: dict[str, tuple[Tensor, torch.optim.Optimizer]] = {
            "ids": (tower.id_table, self.optimizer),
            "values": (tower.value_table, self._value_optimizer),
        }
        if tower.id_bias is not None and tower.value_bias is not None:
            found |= {"id biases": (tower.id_bias, self.optimizer)}
            found |= {"value biases": (tower.value_bias, self._value_optimizer)}
        return found

    def _take_items(self) -> None:
        taken = [Trained(*trained, self._averaged, *self._part) for trained in self._trained().values()]
        self._parts = [*zip(taken[::2], taken[1::2], strict=True)]
        self._bias_in_loss = self._made[1][:, 0] if len(self._parts) == 2 else None

    def _all_trained(self) -> list[Trained]:
        return [trained for part in self._parts for trained in part]

    def _settle(self) -> None:
        """Nothing: the rows of ids make every step."""

    def _rows_in_loss(self, batch: Batch) -> adam.Adam:
        ids = self._parts[0][0].rows_now
        return ids._replace(table=self._made[0])

    def _make(self, rows: Ids) -> None:
        """Make the rows and biases of items as this step has them."""
        for (ids, values), table in zip(self._parts, self._made, strict=False):
            tower_kernels.compose(rows, self._kept, self._features, ids.table, values.table, table)

    def _step(self, batch: Batch) -> float:
        self._kept = self.schedule.kept_ids(self._number, self._epoch)
        self._number += 1
        rows = self._item_linker.link(np.concatenate((batch.item, batch.negative)))
        self._make(rows)
        self._item_linker.unlink(rows)
        return super()._step(batch)

    def _train_items(self, batch: Batch) -> Ids:
        touched = self._item_linker.link(self._places[: batch.n_pairs + self._n_shared])
        part, parts = self._part
        self._sum_gradients(batch, touched, slice(len(touched) * part // parts, len(touched) * (part + 1) // parts))
        self._item_linker.unlink(touched)
        self._wait()  # until all gradients are summed and no rank reads the rows of ids and values any more
        for trained, gradient, of_values in zip(self._parts, self._gradients, self._value_gradients, strict=False):
            self._train_part(*trained, touched, gradient, of_values)
        return touched

    def _sum_gradients(self, batch: Batch, touched: Ids, own: slice) -> None:
        """Fill this process's part of the gradients of the rows and biases of the items in ``touched``."""
        coefficient, links = self._coefficient[: batch.n_pairs], self._item_linker.links
        terms = [
            kernels.GradientTerms(coefficient, self._source, 1, self._negative_gradient),
            kernels.GradientTerms(coefficient, self._ones, 1, self._negative_bias_gradient),
        ]
        for number in range(len(self._parts)):
            gradient = self._gradients[number][own]
            tower_kernels.gradient_rows(
                touched[own], links, terms[number], self._cosine and number == 0, self._made[number], gradient
            )
            if number == 1:
                gradient *= np.float32(self.config.temperature)

    def _train_part(self, ids: Trained, values: Trained, touched: Ids, gradient: Floats, of_values: Floats) -> None:
        """The optimizer's step on this process's part of the ids and values of items with these gradients."""
        n_values = tower_kernels.spread(
            touched, gradient, self._features, self._part, self._value_slot, self._values, of_values
        )
        stepped = self._values[:n_values]
        tower_kernels.step_given(stepped, self._value_slot, of_values, values.next_step())
        self._value_slot[stepped] = -1
        own = self._kept[touched]
        self._own_slot[touched[own]] = np.flatnonzero(own)
        tower_kernels.step_given(ids.rows(touched), self._own_slot, gradient, ids.next_step())
        self._own_slot[touched] = -1

    def _aggregate(self, moves_users: bool) -> None:
        part, parts = self._part
        tables = [self.model.item_table.numpy()]
        if self.model.item_bias is not None:
            tables.append(self.model.item_bias.numpy())
        # Each process makes all biases, because evaluation changes its own copy of them.
        rows = np.array_split(self._every, parts)[part], self._every
        for (ids, values), own, table in zip(self._parts, rows, tables, strict=False):
            tower_kernels.compose(own, self._whole, self._features, ids.table, values.table, table)
        self._wait()  # until all items are made
        super()._aggregate(moves_users)


class ShardedTowerEngine(ShardedEngine, TowerEngine):
    """:class:`TowerEngine` in several processes, see :class:`ShardedEngine`.

    Each rank makes the rows of its own pairs, sums the gradients of a part of the items of all ranks, and steps a part
    of the ids and values.
    """

    def _share_items(self) -> None:
        super()._share_items()
        self.model.item_table.data = self._in_host("items", self.model.item_table.data)

    def _sum_gradients(self, batch: Batch, touched: Ids, own: slice) -> None:
        self._make(touched[own])  # some of them are of other ranks
        super()._sum_gradients(batch, touched, own)
