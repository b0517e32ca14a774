"""The fast engine for the CPU: the gradient written out, and the optimizer's step taken where the gradient is made.

Same mathematics as :class:`~recbole_onebp.model.OneBP` under autograd and torch's Adam or SparseAdam, whose state it
uses, so that RecBole's checkpoints hold what they always hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.engine import kernels
from recbole_onebp.engine.schedule import Batch, Ids, Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["Floats", "FusedEngine", "Links", "state_of"]

Floats = npt.NDArray[np.float32]
_LEAST_ROWS = 16
"""Of a product's first factor: for 1 to 3, BLAS sums in another order."""
_NONE = np.empty((0, 0, 0), dtype=np.float32)
_RULES = {"sequential": kernels.SEQUENTIAL, "last": kernels.LAST, "mean": kernels.MEAN}


class Links:
    """Where in a batch each row of a table occurs, see :func:`kernels.link`."""

    def __init__(self, n_rows: int, n_places: int) -> None:
        self.head = np.full(n_rows, -1, dtype=np.int32)
        self.following = np.empty(n_places, dtype=np.int32)
        self._rows = np.empty(min(n_rows, n_places), dtype=np.int32)

    def link(self, ids: Ids) -> Ids:
        """Link the places of ``ids`` and return the rows that occur."""
        return self._rows[: kernels.link(ids, self.head, self.following, self._rows)]


def state_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of torch's Adam or SparseAdam for a parameter, made as torch makes it at the first step."""
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = 0 if isinstance(optimizer, torch.optim.SparseAdam) else torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    return state


class _Trained:
    """A parameter and Adam's moments as arrays over the tensors' own memory, for one epoch.

    Args:
        part, parts: which part of the rows this process steps, and of how many.
    """

    def __init__(self, parameter: Tensor, optimizer: torch.optim.Optimizer, part: int = 0, parts: int = 1) -> None:
        self._state, self._group = state_of(parameter, optimizer), optimizer.param_groups[0]
        self.sparse = isinstance(optimizer, torch.optim.SparseAdam)
        self.table: Floats = parameter.detach().numpy()
        self._moments: tuple[Floats, Floats] = (self._state["exp_avg"].numpy(), self._state["exp_avg_sq"].numpy())
        self._part, self._parts = part, parts
        self._all = np.array_split(np.arange(1, len(self.table), dtype=np.int32), parts)[part]
        self.range = (int(self._all[0]), int(self._all[-1]) + 1) if len(self._all) else (0, 0)

    def rows(self, touched: Ids) -> Ids:
        """Those that a step changes: all (``adam``; the padding row excepted), or those touched (``sparse_adam``)."""
        return touched[self._part :: self._parts] if self.sparse else self._all

    def next_step(self) -> tuple[Any, ...]:
        """Count a step of Adam; return what the kernels need for it: the arrays and the step's numbers."""
        self._state["step"] += 1
        number, (beta1, beta2) = int(self._state["step"]), self._group["betas"]
        root = math.sqrt(1 - beta2**number)
        return (
            self.table, *self._moments,
            np.float32(self._group["lr"] * root / (1 - beta1**number)),
            np.float32(self._group["eps"] * (1 if self.sparse else root)),
            np.float32(beta1), np.float32(beta2), np.float32(self._group.get("weight_decay", 0)),
        )  # fmt: skip


class FusedEngine:
    """Trains a model on the CPU, an epoch a call.

    Args:
        model: its tables are changed in place.
        optimizer: torch's Adam or SparseAdam over the model's parameters; its state is changed as its own step would.
        schedule: the steps.
    """

    _part = (0, 1)
    """Which part of the items' rows this process steps, and of how many."""

    def __init__(self, model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.config = config = model.config
        self._cosine, self._inverse_temperature = config.score == "cosine", np.float32(1 / config.temperature)
        n_pairs, size = max(min(config.positives_a_step, schedule.n_pairs), _LEAST_ROWS), config.embedding_size
        self._n_shared = config.n_shared_negatives if config.negatives == "shared" else 0
        self._group = 1 if self._n_shared else 1 + config.repeats
        # A step's pairs, of all processes; this one's begin at _first.  The gradient of an item's row is a sum of rows
        # of _source, weighted by the coefficients of its places, and for shared negatives of _negative_gradient.
        self._first = 0
        self._source = self._tensor((n_pairs + _LEAST_ROWS, size))
        self._coefficient = self._tensor((n_pairs * self._group + _LEAST_ROWS,)).numpy()
        self._places = self._tensor((n_pairs * self._group + self._n_shared,), torch.int32).numpy()
        self._negative_gradient = self._tensor((schedule.n_parts, self._n_shared, size))
        self._negative_bias_gradient = self._tensor((schedule.n_parts, self._n_shared, 1))
        if self._n_shared:
            self._negative_links = Links(len(model.item_table), self._n_shared)
            self._scores, self._negative_e = torch.empty(n_pairs, self._n_shared), torch.empty(self._n_shared, size)
            self._of_group = torch.zeros(self._n_shared, size), torch.zeros(self._n_shared)
        self._bias_gradient = np.zeros(len(model.item_table), dtype=np.float32)
        self._user_gradient = torch.empty(n_pairs * (config.backprop == "two"), size)
        self._item_e = torch.empty(n_pairs, size)
        self._loss = np.empty(n_pairs, dtype=np.float32)
        self._item_links = Links(len(model.item_table), len(self._places))
        self._user_links = Links(len(model.user_table), n_pairs)
        self._log_q = schedule.log_q() if config.logq_correction else None
        self.loss = 0.0
        weight = model.item_weight
        self._item_weight: Floats = np.empty(0, dtype=np.float32) if weight is None else weight.squeeze(1).numpy()
        # Of the last aggregation of all users: what item rows were multiplied by, and with leave_one_out the rows.
        self._share = np.empty(len(model.item_table), dtype=np.float32)
        self._aggregated = np.empty_like(model.item_table.detach().numpy()) if config.leave_one_out else None

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once.

        Args:
            epoch: its number, on which order and negatives depend.
            progress: wraps the steps, to show how far they are.
            done: steps that were taken before, of an epoch that goes on.
            loss: the sum of their losses.

        Returns:
            The sum of the steps' mean losses, as RecBole's trainer counts it.
        """
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
        # Anew each epoch: whoever loads a checkpoint replaces the optimizer's tensors.
        model, two = self.model, self.config.backprop == "two"
        self._items = _Trained(model.item_table, self.optimizer, *self._part)
        self._bias = None if model.item_bias is None else _Trained(model.item_bias, self.optimizer, *self._part)
        self._users = _Trained(model.user_table, self.optimizer) if two else None
        self._user_table: Floats = model.user_table.detach().numpy()
        if self.config.leave_one_out:  # a checkpoint does not hold what its users were made of
            self._aggregate()
        self.loss = loss
        for number, batch in enumerate(progress(self._batches(epoch, done)), start=done):
            self.loss += self._step(batch)
            if self.schedule.aggregates_after(number):
                self._aggregate()
        return self.loss

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        return self.schedule.batches(epoch, done)

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for what all processes of a host bring together."""
        return torch.zeros(shape, dtype=dtype)

    def _step(self, batch: Batch) -> float:
        n_pairs = len(batch.user)
        source = self._source[self._first : self._first + n_pairs]
        self._gather_users(batch, source.numpy())
        (self._score_shared if self._n_shared else self._score_pairs)(batch, source)
        self._train_items(batch)
        if self._users is not None:
            users, links, ones = self._users, self._user_links, np.ones(n_pairs, dtype=np.float32)
            touched, gradient = links.link(batch.user), self._user_gradient.numpy()
            kernels.step_rows(
                users.rows(touched), links.head, links.following, ones, 1, gradient, _NONE, self._cosine, True,
                *users.next_step(),
            )  # fmt: skip
        elif self.config.aggregation == "step":
            self._move(batch)
        return float(self._loss[:n_pairs].sum(dtype=np.float64) / batch.n_pairs)

    def _train_items(self, batch: Batch) -> Ids:
        """The optimizer's step on the items, from all that was brought together; returns the rows that occur."""
        links, n_paired = self._item_links, batch.n_pairs * self._group
        coefficient = self._coefficient[:n_paired]
        touched = links.link(self._places[: n_paired + self._n_shared])
        if self._bias is not None:
            lazy = self._bias.sparse
            kernels.step_biases(
                self._bias.rows(touched) if lazy else touched, *self._bias.range, lazy, links.head, links.following,
                coefficient, np.float32(self.config.temperature), self._negative_bias_gradient.numpy(),
                self._bias_gradient, *self._bias.next_step(),
            )  # fmt: skip
        kernels.step_rows(
            self._items.rows(touched), links.head, links.following, coefficient, self._group, self._source.numpy(),
            self._negative_gradient.numpy(), self._cosine, True, *self._items.next_step(),
        )  # fmt: skip
        return touched

    def _gather_users(self, batch: Batch, out: Floats) -> None:
        if self._aggregated is None:
            kernels.gather(batch.user, self._user_table, self._cosine, out)
            return
        start = self.model.history_start.numpy()
        kernels.gather_others(
            batch.user, batch.item, start, self._user_table, self._aggregated, self._share, self._cosine, out
        )

    def _score_pairs(self, batch: Batch, user_e: Tensor) -> None:
        """Fill in places, coefficients and loss."""
        n_pairs, group = len(batch.user), self._group
        own = slice(self._first * group, (self._first + n_pairs) * group)
        kernels.pair_scores(
            batch.item, batch.negative, user_e.numpy(), self._items.table, self._shift(), self._inverse_temperature,
            self._cosine, batch.n_pairs, self._places[own].reshape(n_pairs, group),
            self._coefficient[own].reshape(n_pairs, group), self._loss, self._user_gradient.numpy(),
        )  # fmt: skip

    def _score_shared(self, batch: Batch, user_e: Tensor) -> None:
        """The same, and the own parts of the gradients of shared negatives."""
        n_pairs, own = len(batch.user), slice(self._first, self._first + len(batch.user))
        item_e, negative_e = self._item_e[:n_pairs], self._negative_e
        kernels.gather(batch.item, self._items.table, self._cosine, item_e.numpy())
        kernels.gather(batch.negative, self._items.table, self._cosine, negative_e.numpy())
        rows = max(n_pairs, _LEAST_ROWS)  # what is in those past the last pair does not matter
        sources = self._source[self._first : self._first + rows]
        scores = torch.mm(sources, negative_e.T, out=self._scores[:rows])[:n_pairs]
        self._places[own], self._places[batch.n_pairs : batch.n_pairs + self._n_shared] = batch.item, batch.negative
        links, start, history = self._negative_links, self.model.history_start.numpy(), self.model.history_item.numpy()
        links.link(batch.negative)
        kernels.shared_scores(
            batch.user, batch.item, batch.negative, start, history, links.head, links.following, scores.numpy(),
            user_e.numpy(), item_e.numpy(), self._shift(), self._inverse_temperature, batch.n_pairs,
            self._loss, self._coefficient[own],
        )  # fmt: skip
        links.head[batch.negative] = -1
        if self._users is not None:
            coefficient = torch.from_numpy(self._coefficient[self._first : self._first + rows])
            positive = coefficient.unsqueeze(1) * self._item_e[:rows]
            torch.addmm(positive, self._scores[:rows], negative_e, out=self._user_gradient[:rows])
        for part, groups in self.schedule.own_parts(batch).items():
            self._sum_shared(scores, user_e, part, groups)

    def _sum_shared(self, scores: Tensor, user_e: Tensor, part: int, groups: Sequence[slice]) -> None:
        """A part of the gradients of shared negatives, from the derivatives by their scores: the sum of its groups'."""
        sums = self._negative_gradient[part], self._negative_bias_gradient[part, :, 0]
        for number, pairs in enumerate(groups):
            gradient, bias_gradient = self._of_group  # not at once into a part: how BLAS sums may hang on where it lies
            torch.mm(scores[pairs].T, user_e[pairs], out=gradient)
            if self._bias is not None:
                torch.sum(scores[pairs], dim=0, out=bias_gradient)
            for total, addend in zip(sums, self._of_group, strict=True):
                total.copy_(addend) if number == 0 else total.add_(addend)

    def _shift(self) -> Floats:
        """What is added to an item's logit, ``(n_items,)``; empty where nothing is."""
        shift = np.empty(0, dtype=np.float32) if self._bias is None else self._bias.table[:, 0]
        if self._log_q is not None:
            shift = shift - self._log_q if len(shift) else -self._log_q
        return shift

    def _move(self, batch: Batch) -> None:
        """Move the users of a step."""
        users, links = self._user_links.link(batch.user), self._user_links
        kernels.move_users(
            users, links.head, links.following, batch.item, self._items.table, self._item_weight, self._cosine,
            self._user_table, self.config.beta, _RULES[self.config.duplicates],
        )  # fmt: skip

    def _aggregate(self) -> None:
        """Move all users."""
        start, item = self.model.history_start.numpy(), self.model.history_item.numpy()
        kernels.share_of_rows(self._items.table, self._item_weight, self._cosine, self._share)
        kernels.move_all_users(start, item, self._items.table, self._share, self._user_table, self.config.beta)
        if self._aggregated is not None:
            np.copyto(self._aggregated, self._items.table)
