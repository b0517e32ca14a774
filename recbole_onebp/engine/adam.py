"""Adam's step for rows of a table, and how a row makes up for the steps that it has missed, compiled by numba.

Adam moves every row at every step: after its last gradient a row goes on in the direction of its first moment.  To do
so at once for all rows, each step would read and write the whole table and both moments.  But without a gradient the
moments shrink by constant factors, so many such steps have a closed form.  If step s gave a row the moments m and v,
and steps s + 1 to t have no gradient for it, then they move it by

    - sum_j step_size_j beta1^(j-s) m / (beta2^((j-s)/2) sqrt(v) + eps)  =  - drift * m / (sqrt(v) + eps)

with ``drift = sum_j step_size_j (beta1 / sqrt(beta2))^(j-s)``.  (eps is taken as the same multiple of the second
moment's root at all steps.  It is 1e-8 and plays no role unless gradients are about as small.)  So a row may miss steps
and is brought up to date when it is needed.  With weight decay every row has a gradient at every step, so none may miss
one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from recbole_onebp.util import simd
from recbole_onebp.util.compiled import OPTIONS, ROWS_PER_TASK, njit

__all__ = [
    "AHEAD",
    "MOST_MISSED",
    "ROWS_A_PLACE",
    "Adam",
    "adam_step",
    "average_numbers",
    "current_row",
    "make_missed_steps",
    "prefetch_row",
    "settle_rows",
]

AHEAD = 4
"""So many rows before it is needed a row is fetched from memory."""
MOST_MISSED = 50
"""A row misses at most this many steps in a row."""
ROWS_A_PLACE = 3
"""Rows may miss steps if the table has at least this many for each place of a step.  With fewer, one pass over all rows
in order is faster than two over the touched ones: a row first makes the steps that it has missed, then its own.  (Found
with one process.)"""

_F1 = np.float32(1)
_NUMBERS_PER_TASK = 4096


class Adam(NamedTuple):
    """A parameter and one step of Adam: ``table -= step_size * exp_avg / (sqrt(exp_avg_sq) + eps)``."""

    table: Any
    """``(n_rows, d)``, like the two moments."""
    exp_avg: Any
    exp_avg_sq: Any
    step_size: Any
    eps: Any
    beta1: Any
    beta2: Any
    weight_decay: Any
    stepped: Any
    """Number of the last step that each row has made, ``(n_rows,)``; empty if no row misses steps."""
    now: Any
    """Number of steps before this one."""
    drift: Any
    """By the number of missed steps, up to ``MOST_MISSED``; see above."""
    left1: Any
    """What missed steps leave of the first moment, likewise."""
    left2: Any
    """Of the second moment."""


@njit(inline="always", **OPTIONS)
def current_row(adam, row, memory):
    """The row with the steps that it has missed, ``(d,)``; in ``memory`` if there are any."""
    value = adam.table[row]
    if len(adam.stepped) > 0 and adam.stepped[row] != adam.now:
        drift = adam.drift[adam.now - adam.stepped[row]]
        value = _moved(value, adam.exp_avg[row], adam.exp_avg_sq[row], drift, adam.eps, memory)
    return value


@njit(inline="always", **OPTIONS)
def prefetch_row(adam, row):
    """Begin to load what :func:`current_row` and a step of the row read."""
    simd.prefetch(adam.table, row)
    if len(adam.stepped) > 0:
        simd.prefetch(adam.exp_avg, row)
        simd.prefetch(adam.exp_avg_sq, row)


# The next two are functions of rows, not of an Adam: a call with so many arrays costs more than the work on a row.
@njit(**OPTIONS)
def _moved(value, exp_avg, exp_avg_sq, drift, eps, out):
    """Fill ``out`` with the row after missed steps, and return it."""
    for k in range(len(value)):
        out[k] = value[k] - drift * exp_avg[k] / (np.float32(math.sqrt(exp_avg_sq[k])) + eps)
    return out


@njit(**OPTIONS)
def make_missed_steps(value, exp_avg, exp_avg_sq, drift, left1, left2, eps):
    """Let a row and its moments make the steps that they have missed."""
    for k in range(len(value)):  # not _moved: where its two rows are one, LLVM's code takes the numbers one by one
        value[k] -= drift * exp_avg[k] / (np.float32(math.sqrt(exp_avg_sq[k])) + eps)
        exp_avg[k] *= left1
        exp_avg_sq[k] *= left2


@njit(parallel=True, **OPTIONS)
def settle_rows(rows, adam):
    """Let each of the rows make the steps that it has missed."""
    table, exp_avg, exp_avg_sq, _, eps, _, _, _, stepped, now, drift, left1, left2 = adam
    for task in prange((len(rows) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        for at in range(task * ROWS_PER_TASK, min(len(rows), (task + 1) * ROWS_PER_TASK)):
            if at + AHEAD < len(rows):
                prefetch_row(adam, rows[at + AHEAD])
            row = rows[at]
            n = now - stepped[row]
            if n > 0:
                make_missed_steps(table[row], exp_avg[row], exp_avg_sq[row], drift[n], left1[n], left2[n], eps)
                stepped[row] = now


@njit(parallel=True, **OPTIONS)
def average_numbers(numbers, average, kept):
    """Move an average towards the numbers, ``(n,)`` each; ``kept`` is the share of the old average."""
    for task in prange((len(numbers) + _NUMBERS_PER_TASK - 1) // _NUMBERS_PER_TASK):
        for n in range(task * _NUMBERS_PER_TASK, min(len(numbers), (task + 1) * _NUMBERS_PER_TASK)):
            average[n] = numbers[n] + kept * (average[n] - numbers[n])


@njit(inline="always", **OPTIONS)
def adam_step(gradient, value, exp_avg, exp_avg_sq, step_size, eps, beta1, beta2):
    """One step of :class:`Adam` for a row, ``(d,)`` each."""
    for k in range(len(value)):
        g = gradient[k]
        m = beta1 * exp_avg[k] + (_F1 - beta1) * g
        v = beta2 * exp_avg_sq[k] + (_F1 - beta2) * g * g
        exp_avg[k] = m
        exp_avg_sq[k] = v
        value[k] -= step_size * m / (np.float32(math.sqrt(v)) + eps)
