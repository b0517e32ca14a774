"""The fused engine's loops, compiled by numba.

A step is three sweeps, each parallel over what it writes, so that no two threads meet and the result does not depend on
their number: over the pairs (scores, loss, and the loss's derivative by each score), over the rows of a table that the
step touches (their gradient and, at once, the optimizer's step), and over the users (the moving aggregation).  A row
finds its places in the batch by a linked list: ``head[row]`` is the first, ``following[place]`` the next one, -1 ends.
Where all users move at once the train pairs are in users' order instead.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from recbole_onebp.util import simd
from recbole_onebp.util.compiled import njit

__all__ = [
    "LAST",
    "MEAN",
    "SEQUENTIAL",
    "gather",
    "gather_others",
    "link",
    "move_all_users",
    "move_users",
    "pair_scores",
    "share_of_rows",
    "shared_scores",
    "step_biases",
    "step_rows",
]

SEQUENTIAL, LAST, MEAN = 0, 1, 2

# No fastmath.  numba keeps a compiled loop more than once, each copy optimised anew, and a process that compiles runs
# another copy than one that loads the cache.  Where sums may be reordered and products fused, copies differ in the last
# bits; so they have one meaning, and what is summed in vector registers is in :mod:`recbole_onebp.util.simd`.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_ROWS_A_TASK, _BIASES_A_RUN = 32, 1024
_F = np.float32
_F0, _F1 = np.float32(0), np.float32(1)
_MASKED = np.float32(-np.inf)
_TINY = np.float32(1e-12)
"""What torch's ``normalize`` divides by at least."""


@njit(inline="always", **_OPTIONS)
def _exp(x):
    """e^x for x <= 0, within 2 units of the last place, in operations that vectorise (Cephes' expf)."""
    x = np.float32(-87) if x < np.float32(-87) else x  # NaN stays NaN
    n = np.float32(np.rint(x * np.float32(1.44269504088896341)))
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + _F1
    return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always", **_OPTIONS)
def _inverse_norm(row):
    return _F1 / max(np.float32(math.sqrt(simd.dot(row, row))), _TINY)


@njit(parallel=True, **_OPTIONS)
def gather(ids, table, cosine, out):
    """``out[b] = table[ids[b]]``, at unit length with ``cosine``."""
    for b in prange(len(ids)):
        row = table[ids[b]]
        scale = _inverse_norm(row) if cosine else _F1
        for k in range(len(row)):
            out[b, k] = scale * row[k]


@njit(parallel=True, **_OPTIONS)
def gather_others(user, item, start, user_table, item_table, share, cosine, out):
    """``out[b]``: a user without one of its items, see :meth:`recbole_onebp.model.OneBP.users_of`.

    Args:
        start, share: as of :func:`move_all_users`.
        item_table: as it was when the users were made of it.
    """
    for b in prange(len(user)):
        row, own, others = user_table[user[b]], item_table[item[b]], out[b]
        n_others = np.float32(start[user[b] + 1] - start[user[b]] - 1)
        part = _F1 / n_others if n_others > 0 else _F0
        grown, taken = (n_others + _F1) * part, share[item[b]] * part
        for k in range(len(row)):
            others[k] = grown * row[k] - taken * own[k]
        if cosine:
            inverse = _inverse_norm(others)
            for k in range(len(row)):
                others[k] *= inverse


@njit(parallel=True, **_OPTIONS)
def pair_scores(
    item,
    negative,
    user_e,
    item_table,
    shift,
    inverse_temperature,
    cosine,
    n_step,
    ids,
    coefficient,
    loss,
    user_gradient,
):
    """Softmax loss of each pair against its own negatives.

    Args:
        item, negative: ``(B,)`` and ``(B, N)``.
        user_e: ``(B, d)``, unit length with ``cosine``.
        shift: added to an item's logit, ``(n_items,)``, or empty.
        n_step: pairs of the step, which the mean is over: B, or more where these are one rank's.
        ids: filled with item and negatives, ``(B, 1 + N)``.
        coefficient: filled with the derivative of the mean loss by each score, ``(B, 1 + N)``.
        loss: filled, ``(B,)``.
        user_gradient: filled with the derivative by ``user_e``, ``(B, d)``, or empty.
    """
    n_pairs, n_negatives = negative.shape
    size = user_e.shape[1]
    scale = np.float32(inverse_temperature / n_step)
    for task in prange((n_pairs + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        start, end = task * _ROWS_A_TASK, min(n_pairs, (task + 1) * _ROWS_A_TASK)
        for b in range(start, end):
            ids[b, 0] = item[b]
            for n in range(n_negatives):
                ids[b, 1 + n] = negative[b, n]
        # Products alone, then the rest: so the loads of many rows are under way at once.
        for b in range(start, end):
            user = user_e[b]
            for n in range(1 + n_negatives):
                row = item_table[ids[b, n]]
                scale_of_row = _inverse_norm(row) if cosine else _F1
                coefficient[b, n] = simd.dot(user, row) * scale_of_row * inverse_temperature
        for b in range(start, end):
            logit = coefficient[b]
            if len(shift):
                for n in range(1 + n_negatives):
                    logit[n] += shift[ids[b, n]]
            first, highest, total = logit[0], logit[0], _F0
            for n in range(1, 1 + n_negatives):
                highest = max(highest, logit[n])
            for n in range(1 + n_negatives):
                logit[n] = _exp(logit[n] - highest)
                total += logit[n]
            loss[b] = np.float32(math.log(total)) + highest - first
            share = scale / total
            for n in range(1 + n_negatives):
                logit[n] *= share
            logit[0] -= scale
        for b in range(start, min(end, len(user_gradient))):
            gradient = user_gradient[b]
            for k in range(size):
                gradient[k] = 0
            for n in range(1 + n_negatives):
                row = item_table[ids[b, n]]
                weight = coefficient[b, n] * (_inverse_norm(row) if cosine else _F1)
                for k in range(size):
                    gradient[k] += weight * row[k]


@njit(parallel=True, **_OPTIONS)
def shared_scores(
    user, item, negative, start, history, head, following, scores, user_e, item_e, shift, inverse_temperature,
    n_step, loss, coefficient,
):  # fmt: skip
    """Softmax loss of each pair against the step's shared negatives; those that its user has taken do not count.

    Args:
        user, item, negative: ``(B,)``, ``(B,)`` and ``(M,)``.
        start, history: the items of user u are ``history[start[u] : start[u + 1]]``.
        head, following: links of the negatives, see :func:`link`.
        scores: of users and negatives, ``(B, M)``; overwritten with the derivative of the mean loss by each.
        user_e, item_e: ``(B, d)``, unit length with ``cosine``.
        shift: added to an item's logit, ``(n_items,)``, or empty.
        n_step: pairs of the step, which the mean is over: B, or more where these are one rank's.
        loss: filled, ``(B,)``.
        coefficient: filled with the derivative of the mean loss by the positive's score, ``(B,)``.
    """
    n_pairs, n_negatives = scores.shape
    scale = np.float32(inverse_temperature / n_step)
    negative_shift = np.zeros(n_negatives, dtype=np.float32)
    if len(shift):
        for n in range(n_negatives):
            negative_shift[n] = shift[negative[n]]
    for b in prange(n_pairs):
        first = simd.dot(user_e[b], item_e[b]) * inverse_temperature
        if len(shift):
            first += shift[item[b]]
        row = scores[b]
        for n in range(n_negatives):
            row[n] = row[n] * inverse_temperature + negative_shift[n]
        for at in range(start[user[b]], start[user[b] + 1]):
            place = head[history[at]]
            while place >= 0:
                row[place] = _MASKED
                place = following[place]
        highest = max(first, simd.highest(row))
        positive = _exp(first - highest)
        for n in range(n_negatives):
            row[n] = _F0 if row[n] == _MASKED else _exp(row[n] - highest)
        total = positive + simd.total(row)
        loss[b] = np.float32(math.log(total)) + highest - first
        share = scale / total
        for n in range(n_negatives):
            row[n] *= share
        coefficient[b] = scale * (positive / total - _F1)


@njit(**_OPTIONS)
def link(ids, head, following, rows):
    """Link the places of each id, in batch order.

    Args:
        ids: ``(P,)``.
        head: ``(n_rows,)``, -1 everywhere; filled.
        following: ``(P,)``; filled.
        rows: filled with the ids that occur.

    Returns:
        How many occur.
    """
    count = 0
    for place in range(len(ids) - 1, -1, -1):
        row = ids[place]
        if head[row] < 0:
            rows[count] = row
            count += 1
        following[place] = head[row]
        head[row] = place
    return count


@njit(inline="always", **_OPTIONS)
def _adam(gradient, value, first, second, scale, epsilon, beta1, beta2):
    for k in range(len(value)):
        g = gradient[k]
        m = beta1 * first[k] + (_F1 - beta1) * g
        v = beta2 * second[k] + (_F1 - beta2) * g * g
        first[k] = m
        second[k] = v
        value[k] -= scale * m / (np.float32(math.sqrt(v)) + epsilon)


@njit(inline="always", **_OPTIONS)
def _add_parts(shared, m, part, total):
    """Add ``(shared[0, m] + shared[2, m] + ...)``, then ``(shared[1, m] + shared[3, m] + ...)``."""
    for half in range(2):
        for k in range(len(total)):
            part[k] = shared[half, m, k]
        for other in range(half + 2, len(shared), 2):
            for k in range(len(total)):
                part[k] += shared[other, m, k]
        for k in range(len(total)):
            total[k] += part[k]


@njit(parallel=True, **_OPTIONS)
def step_rows(
    rows, head, following, coefficient, group, source, shared, cosine, unlink,
    table, first, second, scale, epsilon, beta1, beta2, decay,
):  # fmt: skip
    """Gradient of each row, and Adam's step on it.

    The gradient of row r is a sum over its places p: ``coefficient[p] * source[p // group]``, and for places past the
    last coefficient the parts of ``shared``; with ``cosine`` it is taken through the row's normalisation.

    Args:
        rows: which rows to step, each once; one without a place has no gradient.
        head, following: links of :func:`link`; with ``unlink`` they are undone.
        shared: ``(parts, M, d)``, of which part t and part t + 2 are added up first; M may be 0.
        table, first, second: the parameter and Adam's two moments, ``(n_rows, d)``.
        scale, epsilon: ``table -= scale * first / (sqrt(second) + epsilon)``.
        decay: weight decay.
    """
    size = table.shape[1]
    for task in prange((len(rows) + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        gradient, total, part = np.empty(size, _F), np.empty(size, _F), np.empty(size, _F)
        for at in range(task * _ROWS_A_TASK, min(len(rows), (task + 1) * _ROWS_A_TASK)):
            row = rows[at]
            value = table[row]
            for k in range(size):
                gradient[k] = decay * value[k]
            place = head[row]
            if place >= 0:
                if unlink:
                    head[row] = -1
                for k in range(size):
                    total[k] = 0
                while place >= 0:
                    if place < len(coefficient):
                        weight, origin = coefficient[place], source[place // group]
                        for k in range(size):
                            total[k] += weight * origin[k]
                    else:
                        _add_parts(shared, place - len(coefficient), part, total)
                    place = following[place]
                if cosine:  # through the normalisation: the part along the row is lost, the rest is scaled
                    inverse = _inverse_norm(value)
                    along = simd.dot(total, value) * inverse * inverse
                    for k in range(size):
                        total[k] = inverse * (total[k] - along * value[k])
                for k in range(size):
                    gradient[k] += total[k]
            _adam(gradient, value, first[row], second[row], scale, epsilon, beta1, beta2)


@njit(parallel=True, **_OPTIONS)
def step_biases(
    touched, start, end, lazy, head, following, coefficient, weight, shared, gradient,
    table, first, second, scale, epsilon, beta1, beta2, decay,
):  # fmt: skip
    """The same of items' biases, whose gradient is ``weight`` times the sum of ``coefficient[p]`` and ``shared``.

    Args:
        touched: rows that have places, each once; none others.
        start, end: step all rows from and to these.
        lazy: step all of ``touched`` and no other row, wherever they are.
        shared: ``(parts, M, 1)``.
        gradient: zeros, ``(n_rows,)``; left as such.
        table, first, second: ``(n_rows, 1)``.
    """
    value, mean, square = table.reshape(table.size), first.reshape(table.size), second.reshape(table.size)
    part = np.empty(1, _F)
    for at in range(len(touched)):
        row = touched[at]
        if not lazy and not start <= row < end:
            continue
        place = head[row]
        while place >= 0:
            if place < len(coefficient):
                gradient[row] += coefficient[place]
            else:
                _add_parts(shared, place - len(coefficient), part, gradient[row : row + 1])
            place = following[place]
        gradient[row] *= weight
    n_runs = len(touched) if lazy else (end - start + _BIASES_A_RUN - 1) // _BIASES_A_RUN
    for run in prange(n_runs):
        low, high = start + run * _BIASES_A_RUN, min(end, start + (run + 1) * _BIASES_A_RUN)
        if lazy:
            low, high = touched[run], touched[run] + 1
        for row in range(low, high):
            gradient[row] += decay * value[row]
        _adam(gradient[low:high], value[low:high], mean[low:high], square[low:high], scale, epsilon, beta1, beta2)
        gradient[low:high] = 0


@njit(parallel=True, **_OPTIONS)
def move_users(users, head, following, item, item_table, item_weight, cosine, user_table, beta, rule):
    """The moving aggregation of a batch, see :func:`recbole_onebp.functional.moving_aggregate_`.

    Args:
        users: the users that occur, each once.
        head, following: links of :func:`link`; ``head`` is left at -1 for these users.
        item: of each pair, ``(B,)``.
        item_weight: what an item weighs, ``(n_items,)``, or empty.
        rule: SEQUENTIAL, LAST or MEAN.
    """
    size = user_table.shape[1]
    keep, take = np.float32(beta), np.float32(1 - beta)
    for task in prange((len(users) + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        total = np.empty(size, dtype=np.float32)
        for at in range(task * _ROWS_A_TASK, min(len(users), (task + 1) * _ROWS_A_TASK)):
            moved = user_table[users[at]]
            place = head[users[at]]
            head[users[at]] = -1
            for k in range(size):
                total[k] = 0
            count = 0
            while place >= 0:
                if rule != LAST or following[place] < 0:
                    row = item_table[item[place]]
                    weight = _inverse_norm(row) if cosine else _F1
                    if len(item_weight):
                        weight *= item_weight[item[place]]
                    if rule == MEAN:
                        count += 1
                        for k in range(size):
                            total[k] += weight * row[k]
                    else:
                        weight *= take
                        for k in range(size):
                            moved[k] = keep * moved[k] + weight * row[k]
                place = following[place]
            if rule == MEAN:
                weight = take / np.float32(count)
                for k in range(size):
                    moved[k] = keep * moved[k] + weight * total[k]


@njit(parallel=True, **_OPTIONS)
def share_of_rows(item_table, item_weight, cosine, share):
    """What each row of the items is multiplied by in an aggregation, ``(n_items,)``: its weight, over its length."""
    for i in prange(len(item_table)):
        weight = _inverse_norm(item_table[i]) if cosine else _F1
        share[i] = weight * item_weight[i] if len(item_weight) else weight


@njit(parallel=True, **_OPTIONS)
def move_all_users(start, item, item_table, share, user_table, beta):
    """Move every user that has items towards their mean.

    Args:
        start, item: the items of user u are ``item[start[u] : start[u + 1]]``.
        share: of :func:`share_of_rows`.
    """
    n_users, size = user_table.shape
    keep, take = np.float32(beta), np.float32(1 - beta)
    for task in prange((n_users + _ROWS_A_TASK - 1) // _ROWS_A_TASK):
        total = np.empty(size, dtype=np.float32)
        for user in range(task * _ROWS_A_TASK, min(n_users, (task + 1) * _ROWS_A_TASK)):
            moved = user_table[user]
            if start[user] == start[user + 1]:
                continue
            for k in range(size):
                total[k] = 0
            for place in range(start[user], start[user + 1]):
                row, weight = item_table[item[place]], share[item[place]]
                for k in range(size):
                    total[k] += weight * row[k]
            weight = take / np.float32(start[user + 1] - start[user])
            for k in range(size):
                moved[k] = keep * moved[k] + weight * total[k]
