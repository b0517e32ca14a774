"""The fast engine for the CPU where items have features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from recbole_onebp.engine import kernels, tower_kernels
from recbole_onebp.engine.cpu import Floats, FusedEngine, Trained
from recbole_onebp.engine.schedule import Batch, Ids, Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["TowerEngine"]


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
        self._gradients = [np.empty((n_touched, width), dtype=np.float32) for width in (size, 1)]
        self._value_gradients = [np.empty((n_values, width), dtype=np.float32) for width in (size, 1)]

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once; see :meth:`FusedEngine.train_epoch`."""
        self._epoch, self._number = epoch, done
        return super().train_epoch(epoch, progress, done, loss)

    def _take_items(self) -> None:
        tower = self._tower
        pairs = [(tower.id_table, tower.value_table)]
        if tower.id_bias is not None and tower.value_bias is not None:
            pairs.append((tower.id_bias, tower.value_bias))
        self._parts = [(Trained(ids, self.optimizer), Trained(values, self._value_optimizer)) for ids, values in pairs]
        self._rows_in_loss = self._made[0]
        self._bias_in_loss = self._made[1][:, 0] if len(pairs) == 2 else None

    def _make(self, rows: Ids, kept: npt.NDArray[np.bool_], out: list[Floats]) -> None:
        for (ids, values), table in zip(self._parts, out, strict=False):
            tower_kernels.compose(rows, kept, self._features, ids.table, values.table, table)

    def _step(self, batch: Batch) -> float:
        self._kept = self.schedule.kept_ids(self._number, self._epoch)
        self._number += 1
        self._touched = self._item_linker.link(np.concatenate((batch.item, batch.negative)))  # as in _places
        self._make(self._touched, self._kept, [*self._made])
        return super()._step(batch)

    def _train_items(self, batch: Batch) -> Ids:
        touched, links = self._touched, self._item_linker.links
        coefficient = self._coefficient[: batch.n_pairs]
        terms = [
            kernels.GradientTerms(coefficient, self._source.numpy(), 1, self._negative_gradient.numpy()),
            kernels.GradientTerms(coefficient, self._ones, 1, self._negative_bias_gradient.numpy()),
        ]
        gradients = [gradient[: len(touched)] for gradient in self._gradients]
        for number, (part, gradient) in enumerate(zip(self._parts, gradients, strict=False)):
            tower_kernels.gradient_rows(
                touched, links, terms[number], self._cosine and number == 0, self._made[number], gradient
            )
            if number == 1:
                gradient *= np.float32(self.config.temperature)
            self._train_part(*part, touched, gradient, self._value_gradients[number])
        self._item_linker.unlink(touched)
        return touched

    def _train_part(self, ids: Trained, values: Trained, touched: Ids, gradient: Floats, of_values: Floats) -> None:
        """The optimizer's step on the ids and values of items with these gradients."""
        n_values = tower_kernels.spread(touched, gradient, self._features, self._value_slot, self._values, of_values)
        stepped = self._values[:n_values]
        tower_kernels.step_given(stepped, self._value_slot, of_values, values.next_step())
        self._value_slot[stepped] = -1
        own = self._kept[touched]
        self._own_slot[touched[own]] = np.flatnonzero(own)
        tower_kernels.step_given(ids.rows(touched), self._own_slot, gradient, ids.next_step())
        self._own_slot[touched] = -1

    def _aggregate(self) -> None:
        out = [self.model.item_table.numpy()]
        if self.model.item_bias is not None:
            out.append(self.model.item_bias.numpy())
        self._make(self._every, self._whole, out)
        super()._aggregate()
