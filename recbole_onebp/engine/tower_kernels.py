"""The loops of the fast CPU engine for items with features: rows are made of values, and gradients go back to these."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from recbole_onebp.engine.adam import adam_step
from recbole_onebp.engine.kernels import sum_terms
from recbole_onebp.util.compiled import OPTIONS, ROWS_PER_TASK, njit

__all__ = ["Features", "compose", "gradient_rows", "spread", "step_given"]

_F = np.float32


class Features(NamedTuple):
    """The values of item i are ``value[start[i] : start[i + 1]]``."""

    start: Any
    """``(n_items + 1,)``."""
    value: Any
    weight: Any
    """Of each value in its item."""


@njit(parallel=True, **OPTIONS)
def compose(rows, kept, features, id_table, value_table, out):
    """``out[i] = id_table[i] + sum of weight * value_table[value]`` for the items in ``rows``.

    Args:
        rows: items, ``(m,)``.
        kept: whether each item has the row of its id, ``(n_items,)``.
        features: of all items.
        id_table: ``(n_items, d)``.
        value_table: ``(n_values, d)``.
        out: ``(n_items, d)``; only ``rows`` are written.
    """
    start, values, weights = features
    size = id_table.shape[1]
    for task in prange((len(rows) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        for at in range(task * ROWS_PER_TASK, min(len(rows), (task + 1) * ROWS_PER_TASK)):
            item = rows[at]
            row, own = out[item], id_table[item]
            for k in range(size):
                row[k] = own[k] if kept[item] else 0
            for place in range(start[item], start[item + 1]):
                weight, value = weights[place], value_table[values[place]]
                for k in range(size):
                    row[k] += weight * value[k]


@njit(parallel=True, **OPTIONS)
def gradient_rows(rows, links, terms, cosine, table, out):
    """``out[n]``: the gradient of row ``rows[n]`` of ``table``; as in :func:`kernels.step_rows`, without a step."""
    head, following = links
    for task in prange((len(rows) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        part = np.empty(table.shape[1], _F)
        for at in range(task * ROWS_PER_TASK, min(len(rows), (task + 1) * ROWS_PER_TASK)):
            sum_terms(head[rows[at]], following, terms, table[rows[at]], cosine, part, out[at])


@njit(**OPTIONS)
def spread(rows, gradient, features, part, slot, touched, out):
    """The gradients of the values of the items in ``rows``, from those of the items.

    Args:
        rows: items, ``(m,)``.
        gradient: of their rows, ``(m, d)``.
        features: of all items.
        part: (p, n): of the values p, p + n, p + 2n, ... only.
        slot: -1 everywhere, ``(n_values,)``; filled with the place of each value in ``touched``.
        touched: filled with the values.
        out: filled with their gradients, in this order.

    Returns:
        The number of values.
    """
    start, values, weights = features
    count = 0
    for at in range(len(rows)):
        own = gradient[at]
        for place in range(start[rows[at]], start[rows[at] + 1]):
            value, weight = values[place], weights[place]
            if value % part[1] != part[0]:
                continue
            to = slot[value]
            if to < 0:
                slot[value] = to = count
                touched[count] = value
                count += 1
                for k in range(len(own)):
                    out[to, k] = 0
            total = out[to]
            for k in range(len(own)):
                total[k] += weight * own[k]
    return count


@njit(parallel=True, **OPTIONS)
def step_given(rows, slot, gradient, adam):
    """Apply Adam's step to rows whose gradients are given.

    Args:
        rows: the rows to step, each once.
        slot: place of each row in ``gradient``, ``(n_rows,)``; -1: its gradient is zero.
        gradient: ``(m, d)``.
        adam: the parameter and the step.
    """
    table, exp_avg, exp_avg_sq, step_size, eps, beta1, beta2, weight_decay = adam[:8]
    size = table.shape[1]
    for task in prange((len(rows) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        total = np.empty(size, _F)
        for at in range(task * ROWS_PER_TASK, min(len(rows), (task + 1) * ROWS_PER_TASK)):
            row = rows[at]
            value, place = table[row], slot[row]
            for k in range(size):
                total[k] = weight_decay * value[k]
            if place >= 0:
                for k in range(size):
                    total[k] += gradient[place, k]
            adam_step(total, value, exp_avg[row], exp_avg_sq[row], step_size, eps, beta1, beta2)
