"""The loops of the fast CPU engine, compiled by numba.

A step has three loops: over the pairs (scores, loss, and derivative of the loss by each score), over the touched rows
of a table (gradient and optimizer step), and over the users (moving aggregation).  Each loop is parallel over the rows
that it writes.  So no two threads write the same row, and the result does not depend on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from recbole_onebp.engine.adam import AHEAD, adam_step, current_row, make_missed_steps, prefetch_row
from recbole_onebp.history import LEAST_REST
from recbole_onebp.util import simd
from recbole_onebp.util.compiled import OPTIONS, ROWS_PER_TASK, njit

__all__ = [
    "LAST",
    "MEAN",
    "SEQUENTIAL",
    "GradientTerms",
    "History",
    "Links",
    "Logits",
    "gather",
    "gather_earlier",
    "gather_items",
    "gather_others",
    "link",
    "move_all_users",
    "move_users",
    "pair_scores",
    "shared_scores",
    "step_biases",
    "step_rows",
    "sum_columns",
    "sum_terms",
    "weigh_items",
]

SEQUENTIAL, LAST, MEAN = 0, 1, 2

_BIASES_PER_RUN = 1024
_COLUMNS_PER_TASK = 128
_F = np.float32
_F0, _F1 = np.float32(0), np.float32(1)
_MASKED = np.float32(-np.inf)
_LEAST_REST = np.float32(LEAST_REST)
_TINY = np.float32(1e-12)
"""Smallest divisor in torch's ``normalize``."""


class Links(NamedTuple):
    """The places of each row in a batch, as linked lists; -1 ends a list."""

    head: Any
    """First place of each row, ``(n_rows,)``, int32."""
    following: Any
    """Next place of the same row, ``(n_places,)``, int32."""


class History(NamedTuple):
    """The items of user u are ``item[start[u] : start[u + 1]]``; see :class:`recbole_onebp.history.History`."""

    start: Any
    """``(n_users + 1,)``."""
    item: Any
    weight: Any
    """Of each item in its user, or empty."""
    total: Any
    """Sum of the weights of each user, or empty."""
    strength: Any
    """Weight of each interaction, or empty."""


class Logits(NamedTuple):
    """How scores become logits: ``score * inverse_temperature + shift[item]``."""

    shift: Any
    """``(n_items,)``, or empty."""
    inverse_temperature: Any
    n_pairs: int
    """Number of pairs that the loss is averaged over: those of the step, on all ranks."""
    negative_weight: Any
    """0 for InfoNCE; otherwise see :func:`recbole_onebp.functional.bilateral_softmax`."""


class GradientTerms(NamedTuple):
    """The gradient of a row is the sum over its places p of ``coefficient[p] * source[p // group]``.

    For places past the last coefficient the terms are the sums of ``shared``.
    """

    coefficient: Any
    """``(P,)``."""
    source: Any
    """``(P / group, d)``."""
    group: int
    shared: Any
    """``(parts, M, d)``; M may be 0.  Even parts are summed, then odd parts, then both."""


@njit(inline="always", **OPTIONS)
def _exp(x):
    """e^x for x <= 0, within 2 units of the last place, in operations that LLVM vectorises (Cephes' expf)."""
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


@njit(inline="always", **OPTIONS)
def _inverse_norm(row):
    return _F1 / max(np.float32(math.sqrt(simd.dot(row, row))), _TINY)


@njit(inline="always", **OPTIONS)
def _score(user, row, cosine):
    return simd.dot(user, row) * (_inverse_norm(row) if cosine else _F1)


@njit(parallel=True, **OPTIONS)
def gather(ids, table, cosine, out):
    """``out[b] = table[ids[b]]``, scaled to unit length if ``cosine``."""
    for b in prange(len(ids)):
        if b + AHEAD < len(ids):
            simd.prefetch(table, ids[b + AHEAD])
        row = table[ids[b]]
        scale = _inverse_norm(row) if cosine else _F1
        for k in range(len(row)):
            out[b, k] = scale * row[k]


@njit(parallel=True, **OPTIONS)
def gather_items(ids, items, cosine, out):
    """:func:`gather` for rows that may have missed steps of ``items``, an :class:`~recbole_onebp.engine.adam.Adam`."""
    for b in prange(len(ids)):
        if b + AHEAD < len(ids):
            prefetch_row(items, ids[b + AHEAD])
        row = current_row(items, ids[b], out[b])
        scale = _inverse_norm(row) if cosine else _F1
        for k in range(len(row)):
            out[b, k] = scale * row[k]


@njit(parallel=True, **OPTIONS)
def gather_others(user, item, place, history, user_table, shares, cosine, out):
    """``out[b]``: a user without one of its items, see :meth:`recbole_onebp.model.OneBP.users_of`.

    Args:
        user, item: ``(B,)``.
        place: of each pair in the history, ``(B,)``; not read if all items of a user count the same.
        history: the train items of all users.
        shares: see :func:`weigh_items`, at the last aggregation of all users.
    """
    start, weight, total = history.start, history.weight, history.total
    for b in prange(len(user)):
        row, own, others = user_table[user[b]], shares[item[b]], out[b]
        n_others = np.float32(start[user[b] + 1] - start[user[b]] - 1)
        rest, whole, own_weight = n_others, n_others + _F1, _F1
        if len(weight):
            whole, own_weight = total[user[b]], weight[place[b]]
            rest = whole - own_weight
        part = _F1 / rest if n_others > 0 and rest > _LEAST_REST * whole else _F0
        row_weight, own_weight = whole * part, own_weight * part
        for k in range(len(row)):
            others[k] = row_weight * row[k] - own_weight * own[k]
        if cosine:
            inverse = _inverse_norm(others)
            for k in range(len(row)):
                others[k] *= inverse


@njit(parallel=True, **OPTIONS)
def gather_earlier(user, place, history, decay, shares, cosine, out):
    """``out[b]``: the weighted mean of the items before a pair, see :meth:`recbole_onebp.history.History.earlier`.

    Args:
        user: ``(B,)``.
        place: of each pair in the history, ``(B,)``.
        history: the train items of all users, the earliest first.
        decay: weight of the item just before the pair, of the one before that, ...; ``(window,)``.
        shares: see :func:`weigh_items`, at the last aggregation of all users.
        cosine: whether the result is scaled to unit length.
    """
    start, items, strength = history.start, history.item, history.strength
    for b in prange(len(user)):
        mean, total = out[b], _F0
        for k in range(len(mean)):
            mean[k] = 0
        n_earlier = min(len(decay), place[b] - start[user[b]])
        for back in range(n_earlier):
            at = place[b] - 1 - back
            if back + AHEAD < n_earlier:
                simd.prefetch(shares, items[at - AHEAD])
            row, weight = shares[items[at]], decay[back]
            if len(strength):
                weight *= strength[at]
            total += weight
            for k in range(len(mean)):
                mean[k] += weight * row[k]
        scale = _inverse_norm(mean) if cosine else (_F1 / total if total > 0 else _F0)
        for k in range(len(mean)):
            mean[k] *= scale


@njit(parallel=True, **OPTIONS)
def pair_scores(item, negative, user_e, items, cosine, logits, pair_weight, ids, coefficient, loss, user_gradient):
    """Softmax loss of each pair against its own negatives.

    Args:
        item, negative: ``(B,)`` and ``(B, N)``.
        user_e: ``(B, d)``, of unit length if ``cosine``.
        items: the item rows and the steps that they have missed, an :class:`~recbole_onebp.engine.adam.Adam`.
        cosine: whether item rows are scaled to unit length.
        logits: see :class:`Logits`.
        pair_weight: factor of each pair's loss, ``(B,)``, or empty.
        ids: filled with item and negatives, ``(B, 1 + N)``.
        coefficient: filled with the derivative of the mean loss by each score, ``(B, 1 + N)``.
        loss: filled, ``(B,)``.
        user_gradient: filled with the derivative by ``user_e``, ``(B, d)``, unless it is empty.
    """
    shift, inverse_temperature, n_step, negative_weight = logits
    table, misses_steps = items.table, len(items.stepped) > 0
    n_pairs, n_negatives = negative.shape
    size = user_e.shape[1]
    whole = np.float32(inverse_temperature / n_step)
    for task in prange((n_pairs + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        start, end = task * ROWS_PER_TASK, min(n_pairs, (task + 1) * ROWS_PER_TASK)
        memory = np.empty(size, _F)
        for b in range(start, end):
            ids[b, 0] = item[b]
            for n in range(n_negatives):
                ids[b, 1 + n] = negative[b, n]
        # All products first: then the processor can load many rows from memory at the same time.
        for b in range(start, end):
            user = user_e[b]
            for n in range(1 + n_negatives):
                if b + 1 < end:
                    prefetch_row(items, ids[b + 1, n])
                # Two calls: one on a row that is chosen first would be slower where no row misses steps.
                if misses_steps:
                    score = _score(user, current_row(items, ids[b, n], memory), cosine)
                else:
                    score = _score(user, table[ids[b, n]], cosine)
                coefficient[b, n] = score * inverse_temperature
        for b in range(start, end):
            logit, weight = coefficient[b], pair_weight[b] if len(pair_weight) else _F1
            scale = weight * whole
            if len(shift):
                for n in range(1 + n_negatives):
                    logit[n] += shift[ids[b, n]]
            lowest = 0 if negative_weight == 0 else 1  # where the sum begins
            factor = _F1 if negative_weight == 0 else negative_weight
            first, highest, total = logit[0], logit[lowest], _F0
            for n in range(1, 1 + n_negatives):
                highest = max(highest, logit[n])
            for n in range(lowest, 1 + n_negatives):
                logit[n] = _exp(logit[n] - highest)
                total += logit[n]
            loss[b] = weight * (factor * (np.float32(math.log(total)) + highest) - first)
            share = factor * scale / total
            for n in range(lowest, 1 + n_negatives):
                logit[n] *= share
            logit[0] = logit[0] - scale if negative_weight == 0 else -scale
        for b in range(start, min(end, len(user_gradient))):
            gradient = user_gradient[b]
            for k in range(size):
                gradient[k] = 0
            for n in range(1 + n_negatives):
                row = current_row(items, ids[b, n], memory)
                weight = coefficient[b, n] * (_inverse_norm(row) if cosine else _F1)
                for k in range(size):
                    gradient[k] += weight * row[k]


@njit(parallel=True, **OPTIONS)
def shared_scores(user, item, negative, history, links, scores, user_e, item_e, logits, pair_weight, loss, coefficient):
    """Softmax loss of each pair against the step's shared negatives, without those the user has interacted with.

    Args:
        user, item, negative: ``(B,)``, ``(B,)`` and ``(M,)``.
        history: the train items of all users.
        links: places of each item in ``negative``; ``head`` is -1 for these items afterwards.
        scores: of users and negatives, ``(B, M)``; overwritten with the derivative of the mean loss by each score.
        user_e, item_e: ``(B, d)``, of unit length where scores are cosines.
        logits: see :class:`Logits`.
        pair_weight: factor of each pair's loss, ``(B,)``, or empty.
        loss: filled, ``(B,)``.
        coefficient: filled with the derivative of the mean loss by the positive's score, ``(B,)``.
    """
    start, history_item = history.start, history.item
    head, following = links
    shift, inverse_temperature, n_step, negative_weight = logits
    n_pairs, n_negatives = scores.shape
    whole = np.float32(inverse_temperature / n_step)
    negative_shift = np.zeros(n_negatives, dtype=np.float32)
    if len(shift):
        for n in range(n_negatives):
            negative_shift[n] = shift[negative[n]]
    for b in prange(n_pairs):
        weight = pair_weight[b] if len(pair_weight) else _F1
        scale = weight * whole
        first = simd.dot(user_e[b], item_e[b]) * inverse_temperature
        if len(shift):
            first += shift[item[b]]
        row = scores[b]
        for n in range(n_negatives):
            row[n] = row[n] * inverse_temperature + negative_shift[n]
        for at in range(start[user[b]], start[user[b] + 1]):
            place = head[history_item[at]]
            while place >= 0:
                row[place] = _MASKED
                place = following[place]
        highest = max(first, simd.highest(row)) if negative_weight == 0 else simd.highest(row)
        positive = _exp(first - highest) if negative_weight == 0 else _F0
        for n in range(n_negatives):
            row[n] = _F0 if row[n] == _MASKED else _exp(row[n] - highest)
        total = positive + simd.total(row)
        if negative_weight == 0:
            loss[b] = weight * (np.float32(math.log(total)) + highest - first)
            share = scale / total
        elif total > 0:
            loss[b] = weight * (negative_weight * (np.float32(math.log(total)) + highest) - first)
            share = negative_weight * scale / total
        else:  # all negatives are masked
            loss[b], share = -weight * first, _F0
        for n in range(n_negatives):
            row[n] *= share
        coefficient[b] = scale * (positive / total - _F1) if negative_weight == 0 else -scale
    for n in range(n_negatives):
        head[negative[n]] = -1


@njit(parallel=True, **OPTIONS)
def sum_columns(scores, bounds, part_of_group, sums):
    """Sum scores over the pairs of a step: first over each group of users, then over the groups of a part.

    Args:
        scores: ``(B, M)``.
        bounds: where the pairs of each group begin, and the end of the last, ``(groups + 1,)``.
        part_of_group: ``(groups,)``.
        sums: the rows of these parts are filled, ``(parts, M)``.
    """
    n_columns = scores.shape[1]
    for task in prange((n_columns + _COLUMNS_PER_TASK - 1) // _COLUMNS_PER_TASK):
        low, high = task * _COLUMNS_PER_TASK, min(n_columns, (task + 1) * _COLUMNS_PER_TASK)
        of_group = np.empty(high - low, _F)
        for group in range(len(part_of_group)):
            sums[part_of_group[group], low:high] = 0
        for group in range(len(part_of_group)):
            of_group[:] = 0
            for b in range(bounds[group], bounds[group + 1]):
                for k in range(high - low):
                    of_group[k] += scores[b, low + k]
            total = sums[part_of_group[group], low:high]
            for k in range(high - low):
                total[k] += of_group[k]


@njit(**OPTIONS)
def link(ids, links, rows):
    """Link the places of each id, in batch order.

    Args:
        ids: ``(P,)``.
        links: filled; ``head`` must be -1 everywhere.
        rows: filled with the distinct ids.

    Returns:
        The number of distinct ids.
    """
    head, following = links
    count = 0
    for place in range(len(ids) - 1, -1, -1):
        row = ids[place]
        if head[row] < 0:
            rows[count] = row
            count += 1
        following[place] = head[row]
        head[row] = place
    return count


@njit(inline="always", **OPTIONS)
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


@njit(inline="always", **OPTIONS)
def sum_terms(place, following, terms, value, cosine, part, total):
    """``total``: the gradient of a row from its places, the first of which is ``place``.

    Args:
        place, following: see :class:`Links`.
        terms: see :class:`GradientTerms`.
        value: the row, ``(d,)``.
        cosine: whether it was scaled to unit length; the gradient then passes through the normalisation.
        part: memory for a sum, ``(d,)``.
        total: filled, ``(d,)``.
    """
    coefficient, source, group, shared = terms
    size = len(total)
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
    if cosine:  # the normalisation removes the component along the row and scales the rest
        inverse = _inverse_norm(value)
        along = simd.dot(total, value) * inverse * inverse
        for k in range(size):
            total[k] = inverse * (total[k] - along * value[k])


@njit(parallel=True, **OPTIONS)
def step_rows(rows, links, terms, cosine, adam):
    """Compute the gradient of each row and apply Adam's step to it.

    Args:
        rows: the rows to step, each once; rows without a place have no gradient apart from weight decay.
        links: places of each row; undone for these rows: their ``head`` is -1 afterwards.
        terms: see :class:`GradientTerms`.
        cosine: whether rows were scaled to unit length; the gradient then passes through the normalisation.
        adam: the parameter and the step.
    """
    head, following = links
    table, exp_avg, exp_avg_sq, step_size, eps, beta1, beta2, weight_decay, stepped, now, drift, left1, left2 = adam
    size = table.shape[1]
    for task in prange((len(rows) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        gradient, total, part = np.empty(size, _F), np.empty(size, _F), np.empty(size, _F)
        for at in range(task * ROWS_PER_TASK, min(len(rows), (task + 1) * ROWS_PER_TASK)):
            row = rows[at]
            value = table[row]
            if len(stepped) > 0:
                if at + AHEAD < len(rows):
                    prefetch_row(adam, rows[at + AHEAD])
                n = now - stepped[row]
                if n > 0:
                    make_missed_steps(value, exp_avg[row], exp_avg_sq[row], drift[n], left1[n], left2[n], eps)
                stepped[row] = now + 1
            for k in range(size):
                gradient[k] = weight_decay * value[k]
            place = head[row]
            if place >= 0:
                head[row] = -1
                sum_terms(place, following, terms, value, cosine, part, total)
                for k in range(size):
                    gradient[k] += total[k]
            adam_step(gradient, value, exp_avg[row], exp_avg_sq[row], step_size, eps, beta1, beta2)


@njit(parallel=True, **OPTIONS)
def step_biases(touched, span, lazy, links, coefficient, shared, weight, gradient, adam):
    """:func:`step_rows` for item biases: the gradient is ``weight`` times the sum of ``coefficient[p]`` and ``shared``.

    Args:
        touched: the rows that have places, each once.
        span: first row to step, and the end.
        lazy: step all of ``touched`` and no other row; ``span`` is then ignored.
        links: places of each row; left as they are.
        coefficient: ``(P,)``.
        shared: ``(parts, M, 1)``.
        weight: derivative of a score by its bias.
        gradient: zeros, ``(n_rows,)``; zeros again afterwards.
        adam: the parameter, ``(n_rows, 1)``, and the step.
    """
    head, following = links
    table, exp_avg, exp_avg_sq, step_size, eps, beta1, beta2, weight_decay = adam[:8]
    start, end = span
    value, mean, square = table.reshape(table.size), exp_avg.reshape(table.size), exp_avg_sq.reshape(table.size)
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
    n_runs = len(touched) if lazy else (end - start + _BIASES_PER_RUN - 1) // _BIASES_PER_RUN
    for run in prange(n_runs):
        low, high = start + run * _BIASES_PER_RUN, min(end, start + (run + 1) * _BIASES_PER_RUN)
        if lazy:
            low, high = touched[run], touched[run] + 1
        for row in range(low, high):
            gradient[row] += weight_decay * value[row]
        adam_step(gradient[low:high], value[low:high], mean[low:high], square[low:high], step_size, eps, beta1, beta2)
        gradient[low:high] = 0


@njit(parallel=True, **OPTIONS)
def move_users(users, links, item, item_table, item_weight, cosine, user_table, beta, rule):
    """The moving aggregation of a batch, see :func:`recbole_onebp.functional.moving_aggregate_`.

    Args:
        users: the batch's users, each once.
        links: places of each user; ``head`` is -1 for these users afterwards.
        item: the item of each pair, ``(B,)``.
        item_table: ``(n_items, d)``.
        item_weight: weight of each item in the aggregation, ``(n_items,)``, or empty.
        cosine: whether item rows are scaled to unit length.
        user_table: ``(n_users, d)``; changed in place.
        beta: weight of the user's old row.
        rule: SEQUENTIAL, LAST or MEAN.
    """
    head, following = links
    size = user_table.shape[1]
    old_weight, new_weight = np.float32(beta), np.float32(1 - beta)
    for task in prange((len(users) + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        total = np.empty(size, dtype=np.float32)
        for at in range(task * ROWS_PER_TASK, min(len(users), (task + 1) * ROWS_PER_TASK)):
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
                        weight *= new_weight
                        for k in range(size):
                            moved[k] = old_weight * moved[k] + weight * row[k]
                place = following[place]
            if rule == MEAN:
                weight = new_weight / np.float32(count)
                for k in range(size):
                    moved[k] = old_weight * moved[k] + weight * total[k]


@njit(parallel=True, **OPTIONS)
def weigh_items(item_table, item_weight, cosine, shares):
    """What each item adds to its users: its row, of unit length if ``cosine``, times its weight; ``(n_items, d)``."""
    for i in prange(len(item_table)):
        row = item_table[i]
        weight = _inverse_norm(row) if cosine else _F1
        if len(item_weight):
            weight *= item_weight[i]
        for k in range(len(row)):
            shares[i, k] = weight * row[k]


@njit(parallel=True, **OPTIONS)
def move_all_users(history, shares, user_table, beta):
    """Move every user with items towards the (weighted) mean of its items.

    Args:
        history: the train items of all users.
        shares: see :func:`weigh_items`.
        user_table: ``(n_users, d)``; changed in place.
        beta: weight of the user's old row.
    """
    start, item, weight_in_user, totals, _ = history
    n_users, size = user_table.shape
    old_weight, new_weight = np.float32(beta), np.float32(1 - beta)
    for task in prange((n_users + ROWS_PER_TASK - 1) // ROWS_PER_TASK):
        total = np.empty(size, dtype=np.float32)
        for user in range(task * ROWS_PER_TASK, min(n_users, (task + 1) * ROWS_PER_TASK)):
            moved = user_table[user]
            if start[user] == start[user + 1]:
                continue
            for k in range(size):
                total[k] = 0
            for place in range(start[user], start[user + 1]):
                row, weight = shares[item[place]], weight_in_user[place] if len(weight_in_user) else _F1
                for k in range(size):
                    total[k] += weight * row[k]
            whole = totals[user] if len(totals) else np.float32(start[user + 1] - start[user])
            weight = new_weight / whole
            for k in range(size):
                moved[k] = old_weight * moved[k] + weight * total[k]
