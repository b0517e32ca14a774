"""The fast engine for CUDA: explicit gradients in tensor operations of fixed shapes.

The order and the negatives of an epoch are on the device too, and the host does not wait for the device before the end
of the epoch.  The code runs on any of torch's devices, so tests on the CPU compare it with the other engines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.engine import ema
from recbole_onebp.engine.schedule import Progress, Schedule
from recbole_onebp.model import OneBP
from recbole_onebp.sampling import DeviceSampler

__all__ = ["DeviceEngine", "IntArray", "count_step"]

IntArray = npt.NDArray[np.int64]

_STEPS_A_DRAW = 64
"""Negatives are sampled for this many steps at once, because each call launches dozens of small kernels."""


class _Recorded:
    """A step as a CUDA graph: one launch instead of dozens, which take longer than the kernels themselves."""

    def __init__(self, step: Callable[..., None], parts: tuple[Tensor, ...]) -> None:
        self._parts = [part.clone() for part in parts]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step(*self._parts)

    def __call__(self, parts: tuple[Tensor, ...]) -> None:
        for own, part in zip(self._parts, parts, strict=True):
            own.copy_(part)
        self._graph.replay()


class DeviceEngine:
    """Trains a model on its device, one epoch per call.

    Args:
        model: its tables are changed in place.
        optimizer: torch's Adam, whose ``step`` is called (fused on CUDA), or SparseAdam, whose state changes as in its
            own ``step``.
        schedule: the steps.
        ranks: the processes; users are divided between them, each has all items, and item gradients are summed.
    """

    def __init__(
        self, model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule, ranks: Ranks | None = None
    ) -> None:
        self._ranks = ranks or Ranks()
        self.model, self.optimizer, self.schedule, self.config = model, optimizer, schedule, model.config
        self._device = model.item_table.device
        self._user, self._item = (
            torch.from_numpy(ids).to(self._device, torch.long) for ids in (schedule.user, schedule.item)
        )
        self._sampler = DeviceSampler(schedule.sampler, self._device)
        self._log_q = torch.from_numpy(schedule.log_q()).to(self._device) if self.config.logq_correction else None
        self._two = self.config.backprop == "two"
        self._sparse = isinstance(optimizer, torch.optim.SparseAdam)
        self._optimizers = [optimizer]
        self.loss = torch.zeros((), dtype=torch.float64)
        # A CUDA graph can contain neither the step counter of SparseAdam, which is on the host, nor the all-reduce.
        self._uses_cuda_graph = self._device.type == "cuda" and not self._sparse and not self._ranks.is_distributed
        if self._device.type == "cuda" and not self._sparse:
            for group in optimizer.param_groups:
                group["fused"], group["foreach"] = True, False

    @torch.no_grad()
    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once, see :meth:`recbole_onebp.engine.Engine.train_epoch`."""
        self._order, starts = self.schedule.own_order(epoch)
        order = torch.from_numpy(self._order).to(self._device, torch.long)
        number = torch.from_numpy(self.schedule.numbers(self._order)).to(self._device, torch.long)
        users, items = self._user[order], self._item[order]
        self.loss = torch.tensor(loss, dtype=torch.float64, device=self._device)
        if done == 0:
            ema.change_places(self._optimizers)
        if self.model.weighted_items is not None:  # a checkpoint does not contain the items of the last aggregation
            if done == 0 or self.config.beta == 0:
                self.model.move_all_users()
            else:  # the users have moved by a part already
                self.model.weigh_items()
        drawn: Iterator[tuple[Any, ...]] = iter(())
        recorded: _Recorded | None = None
        for step in progress(range(done, len(self.schedule))):
            if (step - done) % _STEPS_A_DRAW == 0:
                drawn = self._draw(users, number, starts, step, epoch)
            here = slice(starts[step], starts[step + 1])
            parts = users[here], items[here], *next(drawn)
            self._n_pairs = self.schedule.pairs_of_step(step)
            if not self._uses_cuda_graph or step == done or self._n_pairs < self.config.positives_a_step:
                self._step(*parts)
            else:
                recorded = recorded or self._record(parts)
                recorded(parts)
            if (kept := self.schedule.ema_share(epoch, step)) is not None:
                ema.average(self._optimizers, kept)
            if step == len(self.schedule) - 1:
                ema.change_places(self._optimizers)
            if self.schedule.aggregates_after(step):
                self.model.move_all_users()
        return float(self._ranks.all_reduce(self.loss))

    def _step(self, user: Tensor, item: Tensor, negative: Tensor, *_: Any) -> None:
        self.loss += (self._shared if self.config.negatives == "shared" else self._pairs)(user, item, negative)
        if not self._two and self.config.aggregation == "step":
            self.model.move(user, item)

    def _record(self, parts: tuple[Tensor, ...]) -> _Recorded:
        """Record a full step of this epoch.  The learning rate is part of the recording."""
        groups = self.optimizer.param_groups
        before = [group["capturable"] for group in groups]
        try:
            for group in groups:
                group["capturable"] = True  # true of fused Adam, and torch requires the flag
            return _Recorded(self._step, parts)
        finally:
            for group, value in zip(groups, before, strict=True):
                group["capturable"] = value

    def _draw(
        self, users: Tensor, number: Tensor, starts: IntArray, step: int, epoch: int
    ) -> Iterator[tuple[Any, ...]]:
        """Sample what the next steps need beside their pairs: the negatives."""
        steps = range(step, min(step + _STEPS_A_DRAW, len(self.schedule)))
        if self.config.negatives == "shared":
            shared = np.stack([self.schedule.shared_negatives(number, epoch) for number in steps])
            on_device = torch.from_numpy(shared)
            if self._device.type == "cuda":
                on_device = on_device.pin_memory()  # otherwise the copy would wait for the previous steps
            on_device = on_device.to(self._device, non_blocking=True).long()
            parts = (self._beside(shared[at], starts, number, epoch) for at, number in enumerate(steps))
            return ((negative, *more) for negative, more in zip(on_device, parts, strict=True))
        here = slice(starts[steps.start], starts[steps.stop])
        n = self.config.train_neg_sample_args.sample_num
        drawn = self._sampler.draw(users[here], n, number[here], epoch)
        return zip(torch.split(drawn, np.diff(starts[steps.start : steps.stop + 1]).tolist()), strict=True)

    def _beside(self, _negative: npt.NDArray[np.int32], _starts: IntArray, _step: int, _epoch: int) -> tuple[Any, ...]:
        """What a step needs beside its pairs and its shared negatives ``(M,)``."""
        return ()

    # ------------------------------------------------------------------------------------------------------- gradients

    def _unit(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as used in scores, and the inverse of their lengths; 1 with ``score: dot``."""
        if self.config.score == "dot":
            return rows, rows.new_ones(rows.shape[:-1])
        inverse = 1 / rows.norm(dim=-1).clamp(min=1e-12)
        return rows * inverse.unsqueeze(-1), inverse

    def _through(self, gradient: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
        """The gradient by rows, from the gradient by their unit rows."""
        if self.config.score == "dot":
            return gradient
        return (gradient - (gradient * unit).sum(dim=-1, keepdim=True) * unit) * inverse.unsqueeze(-1)

    def _rows(self, item: Tensor) -> Tensor:
        """The rows of items as the loss has them."""
        return self.model.item_table[item]

    def _biases(self, item: Tensor) -> Tensor:
        """The biases of items as the loss has them, ``(..., 1)``."""
        assert self.model.item_bias is not None
        return self.model.item_bias[item]

    def _shift(self, item: Tensor) -> Tensor | float:
        shift = 0.0 if self.model.item_bias is None else self._biases(item).squeeze(-1)
        return shift if self._log_q is None else shift - self._log_q[item]

    def _loss(self, logits: Tensor, pair_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean loss, and its derivative by the logits ``(B, 1 + N)``, of which the first are the positives'."""
        weight = self.config.negative_weight
        if not weight:
            by_logit = logits.softmax(dim=1)
            loss = logits.logsumexp(dim=1) - logits[:, 0]
            by_logit[:, 0] -= 1
        else:  # the gradient of functional.bilateral_softmax
            negative = logits[:, 1:]
            some = negative.isfinite().any(dim=1)
            by_logit = torch.empty_like(logits)
            by_logit[:, 0] = -1
            by_logit[:, 1:] = torch.where(some.unsqueeze(1), weight * negative.softmax(dim=1), 0.0)
            loss = weight * torch.where(some, negative.logsumexp(dim=1), 0.0) - logits[:, 0]
        if pair_weight is not None:
            loss, by_logit = pair_weight * loss, pair_weight.unsqueeze(1) * by_logit
        return loss.sum() / self._n_pairs, by_logit / self._n_pairs

    def _pairs(self, user: Tensor, item: Tensor, negative: Tensor) -> Tensor:
        ids = torch.cat([item.unsqueeze(1), negative], dim=1)  # (B, 1 + N)
        user_e, user_inverse = self._unit(self.model.users_of(user, item))  # (B, d)
        item_e, inverse = self._unit(self._rows(ids))  # (B, 1 + N, d)
        logits = (item_e @ user_e.unsqueeze(-1)).squeeze(-1) / self.config.temperature + self._shift(ids)
        loss, by_logit = self._loss(logits, self.model.pair_weight(user, item))
        by_score = (by_logit / self.config.temperature).unsqueeze(-1)
        gradient = self._through(by_score * user_e.unsqueeze(1), item_e, inverse)
        of_users = self._through((by_score * item_e).sum(dim=1), user_e, user_inverse) if self._two else None
        self._update(ids.reshape(-1), gradient.flatten(0, 1), by_logit.reshape(-1), user, of_users)
        return loss

    def _shared(self, user: Tensor, item: Tensor, negative: Tensor) -> Tensor:
        user_e, user_inverse = self._unit(self.model.users_of(user, item))  # (B, d)
        ids = torch.cat([item, negative])  # (B + M,)
        rows, inverse = self._unit(self._rows(ids))
        item_e, negative_e = rows[: len(user)], rows[len(user) :]
        shift = self._shift(ids) + torch.zeros(len(ids), device=self._device)
        first = (user_e * item_e).sum(dim=1) / self.config.temperature + shift[: len(user)]
        others = user_e @ negative_e.T / self.config.temperature + shift[len(user) :]
        others.masked_fill_(self.model.history.has(user, negative), -torch.inf)
        logits = torch.cat([first.unsqueeze(1), others], dim=1)  # (B, 1 + M)
        loss, by_logit = self._loss(logits, self.model.pair_weight(user, item))
        by_score = by_logit / self.config.temperature
        gradient = torch.cat([by_score[:, :1] * user_e, by_score[:, 1:].T @ user_e])
        gradient = self._through(gradient, rows, inverse)
        of_users = None
        if self._two:
            of_users = by_score[:, :1] * item_e + by_score[:, 1:] @ negative_e
            of_users = self._through(of_users, user_e, user_inverse)
        self._update(ids, gradient, torch.cat([by_logit[:, 0], by_logit[:, 1:].sum(dim=0)]), user, of_users)
        return loss

    # ------------------------------------------------------------------------------------------------------- optimizer

    def _update(self, item: Tensor, by_item: Tensor, by_bias: Tensor, user: Tensor, by_user: Tensor | None) -> None:
        """One optimizer step on all trained tables, from gradients by row; gradients of repeated rows are summed."""
        model = self.model
        gradients: list[tuple[Tensor, Tensor, Tensor]] = [(model.item_table, item, by_item)]
        if model.item_bias is not None:
            gradients.append((model.item_bias, item, by_bias.unsqueeze(1)))
        if by_user is not None:
            gradients.append((model.user_table, user, by_user))
        for parameter, rows, values in gradients:
            self._step_rows(parameter, rows, values)
        if not self._sparse:
            self.optimizer.step()

    def _step_rows(self, parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        """Take the step of these rows with SparseAdam, or let ``optimizer.step`` take it."""
        if self._sparse:
            self._lazy_adam(parameter, rows, values)
            return
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.zero_().index_add_(0, rows, values)
        if parameter is not self.model.user_table:
            self._ranks.all_reduce(parameter.grad)

    def _lazy_adam(self, parameter: Tensor, rows: Tensor, values: Tensor) -> None:
        """SparseAdam's step, without reading the number of touched rows from the device."""
        exp_avg, exp_avg_sq, scale, eps, (beta1, beta2) = count_step(parameter, self.optimizer)
        rows, order = rows.sort(stable=True)
        slot = torch.cat([rows.new_zeros(1), (rows[1:] != rows[:-1]).long()]).cumsum(0)
        gradient = torch.zeros_like(values).index_add_(0, slot, values[order])  # one slot per touched row
        # Unused slots are zero and point to the padding row, which stays unchanged.
        row = torch.zeros_like(rows).index_copy_(0, slot, rows)
        first = exp_avg[row].lerp_(gradient, 1 - beta1)
        second = exp_avg_sq[row].lerp_(gradient.square(), 1 - beta2)
        exp_avg.index_copy_(0, row, first)
        exp_avg_sq.index_copy_(0, row, second)
        moved = parameter[row] - scale * first / (second.sqrt() + eps)
        parameter.index_copy_(0, row, moved)


def count_step(
    parameter: Tensor, optimizer: torch.optim.Optimizer
) -> tuple[Tensor, Tensor, float, float, tuple[float, float]]:
    """Count a step of SparseAdam; its two moments, the size of the step, epsilon and the betas."""
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
    state["step"] += 1
    beta1, beta2 = group["betas"]
    scale = group["lr"] * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
    return state["exp_avg"], state["exp_avg_sq"], scale, group["eps"], (beta1, beta2)
