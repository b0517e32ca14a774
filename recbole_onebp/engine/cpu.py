"""The fast engine for the CPU: explicit gradients in compiled loops that also apply the optimizer's step.

The mathematics is that of :class:`~recbole_onebp.model.OneBP` under autograd and torch's Adam or SparseAdam.  The
optimizer state is torch's own, so the format of RecBole's checkpoints does not change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.engine import adam, ema, kernels
from recbole_onebp.engine.schedule import Batch, Ids, Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["Floats", "FusedEngine", "Trained", "state_of"]

Floats = npt.NDArray[np.float32]
_LEAST_ROWS = 16
"""Fewest rows of the left factor of a matrix product.  With 1 to 3 rows, BLAS sums in another order."""
_NONE = np.empty((0, 0, 0), dtype=np.float32)
_NO_IDS = np.empty(0, dtype=np.int32)
_RULES = {"sequential": kernels.SEQUENTIAL, "last": kernels.LAST, "mean": kernels.MEAN}


class _Linker:
    """Finds the places of each row of a table in a batch, see :class:`kernels.Links`."""

    def __init__(self, n_rows: int, n_places: int) -> None:
        self.links = kernels.Links(np.full(n_rows, -1, dtype=np.int32), np.empty(n_places, dtype=np.int32))
        self._rows = np.empty(min(n_rows, n_places), dtype=np.int32)

    def link(self, ids: Ids) -> Ids:
        """Link the places of ``ids`` and return the distinct ids."""
        return self._rows[: kernels.link(ids, self.links, self._rows)]

    def unlink(self, ids: Ids) -> None:
        """Forget the places of ``ids``."""
        self.links.head[ids] = -1


def state_of(parameter: Tensor, optimizer: torch.optim.Optimizer, averaged: bool) -> dict[str, Any]:
    """The state of torch's Adam or SparseAdam for a parameter; created here if torch has not created it yet.

    With ``averaged`` it has the parameter's average too, see :mod:`recbole_onebp.engine.ema`.
    """
    state: dict[str, Any] = optimizer.state[parameter]
    if not state:
        state["step"] = 0 if isinstance(optimizer, torch.optim.SparseAdam) else torch.tensor(0.0)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    if averaged and ema.KEY not in state:
        state[ema.KEY] = parameter.detach().clone()
    return state


def history_of(model: OneBP) -> kernels.History:
    """The model's history as arrays."""
    history, none = model.history, np.empty(0, dtype=np.float32)
    weights = (history.weight, history.total, history.strength)
    of_items = (none if part is None else part.numpy() for part in weights)
    return kernels.History(history.start.numpy(), history.item.numpy(), *of_items)


def _multiply(left: Floats, right: Floats, out: Floats) -> None:
    """``out = left @ right`` by torch, whose BLAS has the threads of the loops."""
    torch.mm(torch.from_numpy(left), torch.from_numpy(right), out=torch.from_numpy(out))


def _take_torchs_threads() -> None:
    """Let numba use as many threads as torch.

    When numba starts its threads, it also changes the number that torch uses, because both use the same OpenMP.  Where
    other processes need the cores, threads that nobody asked for make every step ten times slower.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)


class Trained:
    """A parameter and Adam's moments during one epoch, as arrays that share the tensors' memory.

    Args:
        parameter: ``(n_rows, d)``.
        optimizer: torch's Adam or SparseAdam over the parameter.
        averaged: whether the parameter has an average, see :mod:`recbole_onebp.engine.ema`.
        part, parts: this process steps part ``part`` of ``parts`` equal parts of the rows.
        stepped: memory for the number of the last step of each row, ``(n_rows,)``, that all processes of a host share.
            Rows may then miss steps if the optimizer is Adam without weight decay; the reader has to mind it.
    """

    def __init__(
        self,
        parameter: Tensor,
        optimizer: torch.optim.Optimizer,
        averaged: bool,
        part: int = 0,
        parts: int = 1,
        stepped: Ids = _NO_IDS,
    ) -> None:
        self._state, self._group = state_of(parameter, optimizer, averaged), optimizer.param_groups[0]
        self._number = int(self._state["step"])
        self._number_in_state = np.asarray(self._state["step"])  # torch's Adam has a tensor
        self.sparse = isinstance(optimizer, torch.optim.SparseAdam)
        self.table: Floats = parameter.detach().numpy()
        self._part, self._parts = part, parts
        self._all = np.array_split(np.arange(1, len(self.table), dtype=np.int32), parts)[part]
        self.span = (int(self._all[0]), int(self._all[-1]) + 1) if len(self._all) else (0, 0)
        own = slice(len(self.table) * part // parts, len(self.table) * (part + 1) // parts)
        self._table_and_average = (self.table[own], self._state[ema.KEY].numpy()[own]) if averaged else None
        self.misses_steps = len(stepped) > 0 and not self.sparse and not self._group["weight_decay"]
        if self.misses_steps:
            stepped[slice(*self.span)] = self._number
        missed, (beta1, beta2) = np.arange(adam.MOST_MISSED + 1), self._group["betas"]
        self._drift, self._per_step = np.zeros(len(missed)), (beta1 / math.sqrt(beta2)) ** missed[1:]
        self.rows_now = adam.Adam(
            self.table,
            self._state["exp_avg"].numpy(),
            self._state["exp_avg_sq"].numpy(),
            step_size=np.float32(0),
            eps=np.float32(0),
            beta1=np.float32(beta1),
            beta2=np.float32(beta2),
            weight_decay=np.float32(self._group.get("weight_decay", 0)),
            stepped=stepped if self.misses_steps else _NO_IDS,
            now=self._number,
            drift=np.float32(self._drift),
            left1=np.float32(beta1**missed),
            left2=np.float32(beta2**missed),
        )
        self.rows_now = self._now()

    def rows(self, touched: Ids) -> Ids:
        """The rows that a step changes: the touched ones, or all but the padding row if none may miss a step.

        They are in order, in which memory is read fastest.
        """
        return np.sort(touched)[self._part :: self._parts] if self.sparse or self.misses_steps else self._all

    def next_step(self) -> adam.Adam:
        """Count a step of Adam and return it."""
        step = self.rows_now
        self._number += 1
        if self.sparse:
            self._state["step"] = self._number
        else:
            self._number_in_state[...] = self._number
        if self.misses_steps:
            self._drift[1:] = self._drift[:-1] + float(step.step_size) * self._per_step
        self.rows_now = self._now()
        return step

    def settle(self) -> None:
        """Let this process's rows make the steps that they have missed."""
        if self.misses_steps:
            adam.settle_rows(self._all, self.rows_now)

    def average(self, kept: float) -> None:
        """Move the average of this process's rows towards them; ``kept`` is the share of the old average."""
        if self._table_and_average:
            table, average = self._table_and_average
            adam.average_numbers(table.reshape(-1), average.reshape(-1), np.float32(kept))

    def change_places(self) -> None:
        """Let this process's rows change places with their average."""
        if self._table_and_average:
            table, average = self._table_and_average
            table[:], average[:] = average.copy(), table.copy()

    def _now(self) -> adam.Adam:
        """The rows as they are now, and the next step; the learning rate is the same for an epoch."""
        beta1, beta2 = self._group["betas"]
        root = math.sqrt(1 - beta2 ** (self._number + 1))
        return self.rows_now._replace(
            step_size=np.float32(self._group["lr"] * root / (1 - beta1 ** (self._number + 1))),
            eps=np.float32(self._group["eps"] * (1.0 if self.sparse else root)),
            now=self._number,
            drift=self._drift.astype(np.float32) if self.misses_steps else self.rows_now.drift,
        )


class FusedEngine:
    """Trains a model on the CPU, one epoch per call.

    Args:
        model: its tables are changed in place.
        optimizer: torch's Adam or SparseAdam over the model's parameters; its state changes as in its own ``step``.
        schedule: the steps.
    """

    _part = (0, 1)
    """The part of the item rows that this process steps, and the number of parts."""
    _settles_first = True
    """Whether the items of a step make the steps that they have missed before the loss is computed."""

    def __init__(self, model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.config = config = model.config
        self._averaged = config.ema_decay > 0
        self._cosine, self._inverse_temperature = config.score == "cosine", np.float32(1 / config.temperature)
        n_pairs, size = max(min(config.positives_a_step, schedule.n_pairs), _LEAST_ROWS), config.embedding_size
        self._n_shared = schedule.n_shared
        self._group = 1 if self._n_shared else 1 + config.repeats
        # The next five hold the pairs of a step of all processes; those of this process begin at _first.  The gradient
        # of an item row is made from them, see kernels.GradientTerms.
        self._first = 0
        self._source: Floats = self._tensor((n_pairs + _LEAST_ROWS, size)).numpy()
        self._coefficient = self._tensor((n_pairs * self._group + _LEAST_ROWS,)).numpy()
        self._places = self._tensor((n_pairs * self._group + self._n_shared,), torch.int32).numpy()
        self._negative_gradient: Floats = self._tensor((schedule.n_parts, self._n_shared, size)).numpy()
        self._negative_bias_gradient: Floats = self._tensor((schedule.n_parts, self._n_shared, 1)).numpy()
        if self._n_shared:
            self._negative_linker = _Linker(len(model.item_table), self._n_shared)
            self._scores = np.empty((n_pairs, self._n_shared), dtype=np.float32)
            self._of_groups = np.empty((schedule.groups_a_part, self._n_shared, size), dtype=np.float32)
        self._bias_gradient = np.zeros(len(model.item_table), dtype=np.float32)
        self._user_gradient = np.empty((n_pairs * (config.backprop == "two"), size), dtype=np.float32)
        # Rows of the shared negatives, then of the items.
        self._item_e = np.empty((self._n_shared + n_pairs, size), dtype=np.float32)
        self._loss = np.empty(n_pairs, dtype=np.float32)
        self._item_linker = _Linker(len(model.item_table), len(self._places))
        self._user_linker = _Linker(len(model.user_table), n_pairs)
        self._log_q = schedule.log_q() if config.logq_correction else None
        self.loss = 0.0
        weight = model.item_weight
        self._item_weight: Floats = np.empty(0, dtype=np.float32) if weight is None else weight.squeeze(1).numpy()
        if config.aggregation != "step":
            shares = torch.empty_like(model.item_table) if model.weighted_items is None else model.weighted_items
            self._shares: Floats = shares.detach().numpy()
        n_rows = len(model.item_table)
        lazy_rows_are_faster = len(self._places) * adam.ROWS_A_PLACE <= n_rows
        self._stepped = self._tensor((n_rows,), torch.int32).numpy() if lazy_rows_are_faster else _NO_IDS
        self._place, self._decay = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        pairs = [torch.from_numpy(ids).long() for ids in (schedule.user, schedule.item)]
        weights = model.pair_weight(*pairs)
        self._pair_weight: Floats = np.empty(0, dtype=np.float32) if weights is None else weights.numpy()
        if model.users_from_earlier_items or (model.leaves_one_out and model.history.weight is not None):
            self._place = model.history.place(*pairs).numpy()
        if model.users_from_earlier_items:
            self._decay = model.history.earlier_weight.numpy()

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once, see :meth:`recbole_onebp.engine.Engine.train_epoch`."""
        _take_torchs_threads()
        # Created anew in each epoch, because loading a checkpoint replaces the optimizer's tensors.
        model, two = self.model, self.config.backprop == "two"
        self._take_items()
        self._item_table: Floats = model.item_table.detach().numpy()
        self._users = Trained(model.user_table, self.optimizer, self._averaged) if two else None
        if done == 0:
            self._change_places()
        self._user_table: Floats = model.user_table.detach().numpy()
        if self.config.aggregation != "step" or self._n_shared:
            self._history = history_of(model)
        if model.weighted_items is not None:  # a checkpoint does not contain the items of the last aggregation
            self._aggregate(moves_users=done == 0 or self.config.beta == 0)  # else they have moved by a part already
        self.loss, last = loss, len(self.schedule) - 1
        for number, batch in enumerate(progress(self._batches(epoch, done)), start=done):
            self.loss += self._step(batch)
            if self.schedule.settles_after(number):
                self._settle()
            if (kept := self.schedule.ema_share(epoch, number)) is not None:
                for trained in self._all_trained():
                    trained.average(kept)
            if number == last:
                self._change_places()
            if self.schedule.aggregates_after(number):
                # Users of pairs that are made of earlier items do not need the others, which start anew at each move.
                self._aggregate(number == last or not model.users_from_earlier_items or self.config.beta > 0)
        return self.loss

    def _trained(self) -> dict[str, tuple[Tensor, torch.optim.Optimizer]]:
        """The parameters of the items, by names of ours, and their optimizers."""
        found = {"table": self.model.item_table, "bias": self.model.item_bias}
        return {name: (table, self.optimizer) for name, table in found.items() if table is not None}

    def _take_items(self) -> None:
        """Take the rows and biases of the items, and their optimizer's state."""
        trained = self._trained()
        self._items = Trained(*trained["table"], self._averaged, *self._part, self._stepped)
        self._bias = Trained(*trained["bias"], self._averaged, *self._part) if "bias" in trained else None
        self._wait()  # until all ranks have said which step their rows are at
        self._bias_in_loss: Floats | None = None if self._bias is None else self._bias.table[:, 0]

    def _all_trained(self) -> list[Trained]:
        return [trained for trained in (self._items, self._bias, self._users) if trained is not None]

    def _change_places(self) -> None:
        """Let the tables change places with their averages; nothing in the first epoch, when both are the same."""
        for trained in self._all_trained():
            trained.change_places()
        self._wait()  # until all ranks have done so

    def _settle(self) -> None:
        """Let all items make the steps that they have missed."""
        self._items.settle()
        self._wait()  # until all ranks have done so

    def _rows_in_loss(self, batch: Batch) -> adam.Adam:
        """The rows of items that the loss is made of, and the steps that they have missed.

        In one process the rows of this step make these first; then there are none.
        """
        rows = self._items.rows_now
        if not self._items.misses_steps or not self._settles_first:
            return rows
        touched = self._item_linker.link(np.concatenate((batch.item, batch.negative.reshape(-1))))
        self._item_linker.unlink(touched)
        adam.settle_rows(np.sort(touched), rows)
        return rows._replace(stepped=_NO_IDS)

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        return self.schedule.batches(epoch, done)

    def _tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros in memory that all processes of a host share; here there is one process."""
        return torch.zeros(shape, dtype=dtype)

    def _wait(self) -> None:
        """Wait until all processes of a host have come here."""

    def _step(self, batch: Batch) -> float:
        n_pairs = len(batch.user)
        source = self._source[self._first : self._first + n_pairs]
        self._gather_users(batch, source)
        (self._score_shared if self._n_shared else self._score_pairs)(batch, source)
        self._train_items(batch)
        if self._users is not None:
            ones = np.ones(n_pairs, dtype=np.float32)
            terms = kernels.GradientTerms(ones, self._user_gradient, 1, _NONE)
            touched = self._user_linker.link(batch.user)
            kernels.step_rows(
                self._users.rows(touched), self._user_linker.links, terms, self._cosine, self._users.next_step()
            )
        elif self.config.aggregation == "step":
            self._move(batch)
        return float(self._loss[:n_pairs].astype(np.float64).sum() / batch.n_pairs)

    def _train_items(self, batch: Batch) -> Ids:
        """The optimizer's step on the items, from the pairs of all processes; returns the items that occur."""
        linker, n_paired = self._item_linker, batch.n_pairs * self._group
        coefficient = self._coefficient[:n_paired]
        touched = linker.link(self._places[: n_paired + self._n_shared])
        if self._bias is not None:
            lazy = self._bias.sparse
            kernels.step_biases(
                self._bias.rows(touched) if lazy else touched, self._bias.span, lazy, linker.links,
                coefficient, self._negative_bias_gradient, np.float32(self.config.temperature),
                self._bias_gradient, self._bias.next_step(),
            )  # fmt: skip
        terms = kernels.GradientTerms(coefficient, self._source, self._group, self._negative_gradient)
        kernels.step_rows(self._items.rows(touched), linker.links, terms, self._cosine, self._items.next_step())
        return touched

    def _gather_users(self, batch: Batch, out: Floats) -> None:
        place = self._place[batch.pair] if len(self._place) else self._place
        if len(self._decay):
            kernels.gather_earlier(batch.user, place, self._history, self._decay, self._shares, self._cosine, out)
        elif not self.model.leaves_one_out:
            kernels.gather(batch.user, self._user_table, self._cosine, out)
        else:
            kernels.gather_others(
                batch.user, batch.item, place, self._history, self._user_table, self._shares, self._cosine, out
            )

    def _score_pairs(self, batch: Batch, user_e: Floats) -> None:
        """Fill places, coefficients and loss."""
        n_pairs, group = len(batch.user), self._group
        own = slice(self._first * group, (self._first + n_pairs) * group)
        kernels.pair_scores(
            batch.item, batch.negative, user_e, self._rows_in_loss(batch), self._cosine, self._logits(batch),
            self._weight_of(batch), self._places[own].reshape(n_pairs, group),
            self._coefficient[own].reshape(n_pairs, group), self._loss, self._user_gradient,
        )  # fmt: skip

    def _score_shared(self, batch: Batch, user_e: Floats) -> None:
        """Fill places, coefficients and loss, and this process's parts of the gradients of shared negatives."""
        n_pairs, own = len(batch.user), slice(self._first, self._first + len(batch.user))
        ids = np.concatenate((batch.negative, batch.item))
        kernels.gather_items(ids, self._rows_in_loss(batch), self._cosine, self._item_e)
        negative_e, item_e = self._item_e[: self._n_shared], self._item_e[self._n_shared :]
        rows = max(n_pairs, _LEAST_ROWS)  # rows past the last pair have arbitrary content, which nobody reads
        _multiply(self._source[self._first : self._first + rows], negative_e.T, self._scores[:rows])
        scores = self._scores[:n_pairs]
        self._places[own], self._places[batch.n_pairs : batch.n_pairs + self._n_shared] = batch.item, batch.negative
        self._negative_linker.link(batch.negative)
        kernels.shared_scores(
            batch.user, batch.item, batch.negative, self._history, self._negative_linker.links, scores,
            user_e, item_e, self._logits(batch), self._weight_of(batch), self._loss,
            self._coefficient[own],
        )  # fmt: skip
        if self._users is not None:
            _multiply(self._scores[:rows], negative_e, self._user_gradient[:rows])
            self._user_gradient[:n_pairs] += self._coefficient[own, None] * item_e[:n_pairs]
        self._sum_shared(scores, user_e, batch)

    def _sum_shared(self, scores: Floats, user_e: Floats, batch: Batch) -> None:
        """Fill this process's parts of the gradients of shared negatives: sums over its groups of users.

        Args:
            scores: derivatives of the loss by the scores, ``(B, M)``.
            user_e: ``(B, d)``.
            batch: the step.
        """
        if self._bias_in_loss is not None:
            sums = self._negative_bias_gradient[:, :, 0]
            kernels.sum_columns(scores, batch.bounds, self.schedule.part_of_group, sums)
        for part, groups in self.schedule.own_parts(batch).items():
            # Not directly into the part: the order in which BLAS sums may depend on the address of the result.
            for number, pairs in enumerate(groups):
                _multiply(scores[pairs].T, user_e[pairs], self._of_groups[number])
            np.sum(self._of_groups[: len(groups)], axis=0, out=self._negative_gradient[part])

    def _logits(self, batch: Batch) -> kernels.Logits:
        shift = np.empty(0, dtype=np.float32) if self._bias_in_loss is None else self._bias_in_loss
        if self._log_q is not None:
            shift = shift - self._log_q if len(shift) else -self._log_q
        return kernels.Logits(shift, self._inverse_temperature, batch.n_pairs, np.float32(self.config.negative_weight))

    def _weight_of(self, batch: Batch) -> Floats:
        return self._pair_weight[batch.pair] if len(self._pair_weight) else self._pair_weight

    def _move(self, batch: Batch) -> None:
        """Move the users of a step."""
        users = self._user_linker.link(batch.user)
        kernels.move_users(
            users, self._user_linker.links, batch.item, self._item_table, self._item_weight, self._cosine,
            self._user_table, self.config.beta, _RULES[self.config.duplicates],
        )  # fmt: skip

    def _aggregate(self, moves_users: bool) -> None:
        """Take the items of now as those that users are made of."""
        kernels.weigh_items(self._item_table, self._item_weight, self._cosine, self._shares)
        if moves_users:
            kernels.move_all_users(self._history, self._shares, self._user_table, self.config.beta)
