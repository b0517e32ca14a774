"""The fast engine for the CPU: the gradient written out, and the optimizer's step taken where the gradient is made.

Same mathematics as :class:`~recbole_onebp.model.OneBP` under autograd and torch's Adam or SparseAdam, whose state it
uses, so that RecBole's checkpoints hold what they always hold.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.engine import kernels
from recbole_onebp.engine.plan import Batch, Ids, Plan, Progress
from recbole_onebp.model import OneBP

__all__ = ["Floats", "FusedEngine", "Links", "state_of"]

Floats = npt.NDArray[np.float32]
_LEAST_ROWS = 16
"""Of a product's first factor: for 1 to 3, BLAS sums in another order."""
_BLOCK = 512
"""Shared negatives whose gradients are one product: what processes share out.  Smaller ones cost one process time."""
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
        self._sparse = isinstance(optimizer, torch.optim.SparseAdam)
        self.table: Floats = parameter.detach().numpy()
        self._moments: tuple[Floats, Floats] = (self._state["exp_avg"].numpy(), self._state["exp_avg_sq"].numpy())
        self._part, self._parts = part, parts
        self._all = np.array_split(np.arange(1, len(self.table), dtype=np.int32), parts)[part]

    def step(
        self, touched: Ids, links: Links, coefficient: Floats, group: int, source: Floats, cosine: bool, unlink: bool
    ) -> None:
        """Adam's step: on every row (``adam``; the padding row excepted), or on those touched (``sparse_adam``)."""
        self._state["step"] += 1
        number, (beta1, beta2) = int(self._state["step"]), self._group["betas"]
        root = math.sqrt(1 - beta2**number)
        kernels.step_rows(
            touched[self._part :: self._parts] if self._sparse else self._all,
            links.head, links.following, coefficient, group, source, cosine,
            self.table, *self._moments,
            np.float32(self._group["lr"] * root / (1 - beta1**number)),
            np.float32(self._group["eps"] * (1 if self._sparse else root)),
            np.float32(beta1), np.float32(beta2), np.float32(self._group.get("weight_decay", 0)), unlink,
        )  # fmt: skip


class FusedEngine:
    """Trains a model on the CPU, an epoch a call.

    Args:
        model: its tables are changed in place.
        optimizer: torch's Adam or SparseAdam over the model's parameters; its state is changed as its own step would.
        plan: the steps.
    """

    _part = (0, 1)
    """Which part of the items' rows this process steps, and of how many."""

    def __init__(self, model: OneBP, optimizer: torch.optim.Optimizer, plan: Plan) -> None:
        self.model, self.optimizer, self.plan = model, optimizer, plan
        self.hyper = hyper = model.hyper
        self._cosine, self._inverse_temperature = hyper.score == "cosine", np.float32(1 / hyper.temperature)
        n_pairs, n_shared = min(hyper.positives_a_step, len(plan.user)), hyper.n_shared_negatives
        n_pairs = max(n_pairs, _LEAST_ROWS)
        if hyper.negatives == "shared":
            self._score, n_places, n_origins = self._score_shared, n_pairs + n_shared, n_pairs + n_shared
            self._negative_links = Links(len(model.item_table), n_shared)
            self._scores, self._negative_e = torch.empty(n_pairs, n_shared), torch.empty(n_shared, hyper.embedding_size)
        else:
            self._score, n_places, n_origins = self._score_pairs, n_pairs * (1 + hyper.repeats), n_pairs
        # The gradient of an item's row is a sum of rows of _source, weighted by the coefficients of its places.
        self._source = torch.empty(n_origins, hyper.embedding_size)
        self._bias_source = torch.empty(n_origins, 1)
        self._coefficient = np.empty(n_places, dtype=np.float32)
        self._places = np.empty(n_places, dtype=np.int32)
        self._user_gradient = torch.empty(n_pairs * (hyper.backprop == "two"), hyper.embedding_size)
        self._item_e = torch.empty(n_pairs, hyper.embedding_size)
        self._loss = np.empty(n_pairs, dtype=np.float32)
        self._item_links = Links(len(model.item_table), n_places)
        self._user_links = Links(len(model.user_table), n_pairs)
        self._log_q = plan.log_q() if hyper.logq_correction else None
        self.loss = 0.0
        weight = model.item_weight
        self._item_weight: Floats = np.empty(0, dtype=np.float32) if weight is None else weight.squeeze(1).numpy()
        # Of the last aggregation of all users: what item rows were multiplied by, and with leave_one_out the rows.
        self._share = np.empty(len(model.item_table), dtype=np.float32)
        self._aggregated = np.empty_like(model.item_table.detach().numpy()) if hyper.leave_one_out else None

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
        model, two = self.model, self.hyper.backprop == "two"
        self._items = _Trained(model.item_table, self.optimizer, *self._part)
        self._bias = None if model.item_bias is None else _Trained(model.item_bias, self.optimizer, *self._part)
        self._users = _Trained(model.user_table, self.optimizer) if two else None
        self._user_table: Floats = model.user_table.detach().numpy()
        if self.hyper.leave_one_out:  # a checkpoint does not hold what its users were made of
            self._aggregate()
        self.loss = loss
        for number, batch in enumerate(progress(self.plan.batches(epoch, done)), start=done):
            self.loss += self._step(batch)
            if self.plan.aggregates_after(number):
                self._aggregate()
        return self.loss

    def _step(self, batch: Batch) -> float:
        n_pairs = len(batch.user)
        self._gather_users(batch, self._source[:n_pairs].numpy())
        n_places, group = self._score(batch)
        self._train_items(batch, n_places, group)
        if self._users is not None:
            touched, ones = self._user_links.link(batch.user), np.ones(n_pairs, dtype=np.float32)
            gradient = self._user_gradient.numpy()
            self._users.step(touched, self._user_links, ones, 1, gradient, self._cosine, unlink=True)
        elif self.hyper.aggregation == "step":
            self._move(batch)
        return float(self._loss[:n_pairs].sum(dtype=np.float64) / batch.n_pairs)

    def _train_items(self, batch: Batch, n_places: int, group: int) -> None:
        """The optimizer's step on the items, from places, coefficients and sources."""
        sources = self._source.numpy(), self._bias_source.numpy()
        self._step_items(self._places[:n_places], self._coefficient[:n_places], group, *sources)

    def _step_items(self, places: Ids, coefficient: Floats, group: int, source: Floats, bias_source: Floats) -> Ids:
        """The same from any; returns the rows that occur."""
        links = self._item_links
        touched = links.link(places)
        if self._bias is not None:
            self._bias.step(touched, links, coefficient, group, bias_source, cosine=False, unlink=False)
        self._items.step(touched, links, coefficient, group, source, self._cosine, unlink=True)
        return touched

    def _gather_users(self, batch: Batch, out: Floats) -> None:
        if self._aggregated is None:
            kernels.gather(batch.user, self._user_table, self._cosine, out)
            return
        start = self.model.history_start.numpy()
        kernels.gather_others(
            batch.user, batch.item, start, self._user_table, self._aggregated, self._share, self._cosine, out
        )

    def _score_pairs(self, batch: Batch) -> tuple[int, int]:
        """Fill in places, coefficients and loss; return the number of places, and how many share an origin."""
        n_pairs, group = len(batch.user), 1 + batch.negative.shape[1]
        n_places = n_pairs * group
        self._bias_source.fill_(self.hyper.temperature)  # which divides scores, but not biases
        kernels.pair_scores(
            batch.item, batch.negative, self._source.numpy(), self._items.table, self._shift(),
            self._inverse_temperature, self._cosine, batch.n_pairs, self._places[:n_places].reshape(n_pairs, group),
            self._coefficient[:n_places].reshape(n_pairs, group), self._loss, self._user_gradient.numpy(),
        )  # fmt: skip
        return n_places, group

    def _score_shared(self, batch: Batch) -> tuple[int, int]:
        n_pairs, n_places = len(batch.user), len(batch.user) + len(batch.negative)
        user_e, item_e, negative_e = self._source[:n_pairs], self._item_e[:n_pairs], self._negative_e
        kernels.gather(batch.item, self._items.table, self._cosine, item_e.numpy())
        kernels.gather(batch.negative, self._items.table, self._cosine, negative_e.numpy())
        rows = max(n_pairs, _LEAST_ROWS)  # what is in those past the last pair does not matter
        scores = torch.mm(self._source[:rows], negative_e.T, out=self._scores[:rows])[:n_pairs]
        self._coefficient[n_pairs:n_places] = 1
        self._places[:n_pairs], self._places[n_pairs:n_places] = batch.item, batch.negative
        links, start, history = self._negative_links, self.model.history_start.numpy(), self.model.history_item.numpy()
        links.link(batch.negative)
        kernels.shared_scores(
            batch.user, batch.item, batch.negative, start, history, links.head, links.following, scores.numpy(),
            user_e.numpy(), item_e.numpy(), self._shift(), self._inverse_temperature, batch.n_pairs,
            self._loss, self._coefficient, *self._copies(batch),
        )  # fmt: skip
        links.head[batch.negative] = -1
        if self._users is not None:
            positive = torch.from_numpy(self._coefficient[:rows]).unsqueeze(1) * self._item_e[:rows]
            torch.addmm(positive, self._scores[:rows], negative_e, out=self._user_gradient[:rows])
        self._bias_source[:n_pairs] = self.hyper.temperature
        self._sum_negatives(scores)
        return n_places, 1

    def _copies(self, _batch: Batch) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Where the derivatives by the scores of shared negatives are put too: nowhere."""
        return np.empty((0, 0), dtype=np.float32), np.empty(0, dtype=np.int64)

    def _sum_negatives(self, scores: Tensor) -> None:
        """Put the gradients of shared negatives behind the pairs' sources."""
        self._sum_blocks(scores, self._source, self._bias_source)

    def _sum_blocks(self, scores: Tensor, source: Tensor, bias_source: Tensor, part: int = 0, parts: int = 1) -> None:
        """The same from any scores' derivatives, ``(B, M)``, and sources; one part of the blocks of negatives."""
        n_pairs, n_shared = scores.shape
        for start in range(part * _BLOCK, n_shared, parts * _BLOCK):
            block = slice(start, min(start + _BLOCK, n_shared))
            behind = slice(n_pairs + block.start, n_pairs + block.stop)
            torch.mm(scores[:, block].T, source[:n_pairs], out=source[behind])
            if self._bias is not None:
                bias_source[behind, 0] = scores[:, block].sum(dim=0) * self.hyper.temperature

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
            self._user_table, self.hyper.beta, _RULES[self.hyper.duplicates],
        )  # fmt: skip

    def _aggregate(self) -> None:
        """Move all users."""
        start, item = self.model.history_start.numpy(), self.model.history_item.numpy()
        kernels.share_of_rows(self._items.table, self._item_weight, self._cosine, self._share)
        kernels.move_all_users(start, item, self._items.table, self._share, self._user_table, self.hyper.beta)
        if self._aggregated is not None:
            np.copyto(self._aggregated, self._items.table)
