"""The fast engine for CUDA where items have features."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.engine.cuda import DeviceEngine, IntArray, count_step
from recbole_onebp.engine.schedule import Schedule
from recbole_onebp.model import OneBP
from recbole_onebp.tower import sums_of

__all__ = ["DeviceTowerEngine"]


class DeviceTowerEngine(DeviceEngine):
    """:class:`DeviceEngine` for items whose rows a :class:`~recbole_onebp.tower.Tower` makes.

    As in :class:`~recbole_onebp.engine.cpu_tower.TowerEngine`, the rows of a step's items are made of ids and values
    before the step, and afterwards their gradients go back to these.

    Args:
        model: with a tower; its tables are changed in place.
        optimizer: torch's Adam or SparseAdam over the parameters that are not of values.
        schedule: the steps.
        value_optimizer: torch's SparseAdam over the rows and biases of values; its state changes as by ``step``.
        ranks: see :class:`DeviceEngine`.
    """

    def __init__(
        self,
        model: OneBP,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        value_optimizer: torch.optim.Optimizer,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(model, optimizer, schedule, ranks)
        assert model.tower is not None
        self._tower = model.tower
        self._value_optimizer = value_optimizer
        self._optimizers = [optimizer, value_optimizer]
        self._uses_cuda_graph = False  # the items of each step have another number of values
        self._whole = torch.ones(model.n_items, dtype=torch.bool, device=self._device)
        self._counts: IntArray = np.diff(model.tower.start.cpu().numpy())

    def _beside(self, negative: npt.NDArray[np.int32], starts: IntArray, step: int, epoch: int) -> tuple[Any, ...]:
        """Which items have the rows of their ids, and how many values the items of the step have.

        They are counted on the host, which would otherwise wait for the device.
        """
        kept = self._whole
        if self.config.id_dropout > 0:
            kept = torch.from_numpy(self.schedule.kept_ids(step, epoch)).to(self._device)
        item = self.schedule.item[self._order[starts[step] : starts[step + 1]]]
        return kept, int(self._counts[item].sum() + self._counts[negative].sum())

    def _step(self, user: Tensor, item: Tensor, negative: Tensor, *of_tower: Any) -> None:
        kept, n_values = of_tower
        ids = torch.cat([item, negative])
        self._kept = kept[ids].unsqueeze(1)
        self._bags = self._tower.bags(ids, n_values)
        super()._step(user, item, negative)

    def _rows(self, item: Tensor) -> Tensor:
        return self._kept * self._tower.id_table[item] + sums_of(self._tower.value_table, *self._bags)

    def _biases(self, item: Tensor) -> Tensor:
        tower = self._tower
        assert tower.id_bias is not None
        assert tower.value_bias is not None
        return self._kept * tower.id_bias[item] + sums_of(tower.value_bias, *self._bags)

    def _update(self, item: Tensor, by_item: Tensor, by_bias: Tensor, user: Tensor, by_user: Tensor | None) -> None:
        """One step of both optimizers, from gradients by row of the items."""
        tower, (value, weight, start) = self._tower, self._bags
        of_ids, of_values = [(tower.id_table, by_item)], [(tower.value_table, by_item)]
        if tower.id_bias is not None and tower.value_bias is not None:
            of_ids.append((tower.id_bias, by_bias.unsqueeze(1)))
            of_values.append((tower.value_bias, by_bias.unsqueeze(1)))
        owner = torch.repeat_interleave(
            torch.arange(len(item), device=self._device), start[1:] - start[:-1], output_size=len(value)
        )
        touched = torch.zeros(len(tower.value_table), 1, device=self._device).index_fill_(0, value, 1)
        self._ranks.all_reduce(touched)
        for parameter, by_row in of_values:
            gradient = torch.zeros_like(parameter).index_add_(0, value, weight.unsqueeze(1) * by_row[owner])
            self._ranks.all_reduce(gradient)
            self._step_touched(parameter, touched > 0, gradient)
        for parameter, by_row in of_ids:
            self._step_rows(parameter, item, self._kept * by_row)
        if not self._sparse:
            self.optimizer.step()

    def _step_touched(self, parameter: Tensor, touched: Tensor, gradient: Tensor) -> None:
        """SparseAdam's step on the rows that are ``touched``, ``(n, 1)``."""
        first, second, scale, eps, (beta1, beta2) = count_step(parameter, self._value_optimizer)
        first.lerp_(gradient, (1 - beta1) * touched)
        second.lerp_(gradient.square(), (1 - beta2) * touched)
        parameter.sub_(scale * touched * first / (second.sqrt() + eps))
