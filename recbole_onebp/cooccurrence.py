"""The ridge regression of each item on its neighbours, for the local term.

G counts the users that two items have in common; where interactions have weights, a user counts as the product of the
two.  For item j and its K neighbours N, those of the largest cosine,

    w_j = (G[N, N] + reg I)^-1 G[N, j]

G has a row and a column for each item, so it is never made as a whole.  For some targets at a time their rows are
counted, which gives the neighbours, and then the rows of all these neighbours, each once: what the targets need of a
row is copied.  Targets are independent of one another, so the result depends neither on the number of threads nor on
how targets are divided between processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import prange
from threadpoolctl import threadpool_limits

from recbole_onebp.util.compiled import OPTIONS, njit

__all__ = ["Interactions", "Neighbors", "latest", "ridge_on_neighbors", "without_smallest"]

_Ids = npt.NDArray[np.int32]
_Places = npt.NDArray[np.int64]
_Weights = npt.NDArray[np.float64] | npt.NDArray[np.int8]

_LEAST_BYTES = 1 << 27
"""The counts of as many targets are kept at a time as fit into this memory, or into twice that of the interactions."""
_LEAST = 1e-5
"""Smaller entries are dropped, as a share of the largest entry of their item."""


class Interactions(NamedTuple):
    """Distinct pairs of users and items, by user and by item; ids ascend within a row."""

    start: _Places
    """The items of user u are ``item[start[u] : start[u + 1]]``; ``(n_users + 1,)``."""
    item: _Ids
    start_of_item: _Places
    """The users of item i are ``user[start_of_item[i] : start_of_item[i + 1]]``; ``(n_items + 1,)``."""
    user: _Ids
    weight: _Weights
    """Of each interaction, in the order of ``item``.  If all count the same: empty, of integers like the counts."""
    weight_by_item: _Weights
    """The same in the order of ``user``."""

    @classmethod
    def of(
        cls,
        user: npt.NDArray[Any],
        item: npt.NDArray[Any],
        n_users: int,
        n_items: int,
        weight: npt.NDArray[np.floating] | None = None,
    ) -> Interactions:
        """From pairs ``(n,)`` in any order; a pair may occur more than once, unless they have weights."""
        values = np.ones(len(user), np.int8) if weight is None else weight.astype(np.float64)
        by_user = sp.coo_array((values, (user, item)), shape=(n_users, n_items)).tocsr()
        by_item = by_user.tocsc()
        parts = (by_user.indptr, by_user.indices, by_item.indptr, by_item.indices)
        types = (np.int64, np.int32) * 2
        ids = (part.astype(kind, copy=False) for part, kind in zip(parts, types, strict=True))
        weights = (part.data[: 0 if weight is None else None] for part in (by_user, by_item))
        return cls(*ids, *weights)


def latest(start: _Places, n: int, in_order: bool) -> npt.NDArray[np.bool_]:
    """Which interactions count where long histories are cut to n items.

    Args:
        start: the interactions of user u are those from ``start[u]`` to ``start[u + 1]``; ``(n_users + 1,)``.
        n: items of a user that count.
        in_order: whether a user's interactions are in order of time.  Then the latest n count, otherwise n of them at
            equal distances.

    Returns:
        A mask, ``(start[-1],)``.

    Example:
        >>> latest(np.array([0, 1, 5]), 2, in_order=True).tolist()
        [True, False, False, True, True]
    """
    size = np.diff(start)
    owner_size = np.repeat(size, size)
    place = np.arange(start[-1]) - np.repeat(start[:-1], size)
    if in_order:
        return place >= owner_size - n
    kept: npt.NDArray[np.bool_] = (place + 1) * n // np.maximum(owner_size, n) > place * n // np.maximum(owner_size, n)
    return kept | (owner_size <= n)


class Neighbors(NamedTuple):
    """Weights of the neighbours of some items: row r belongs to ``target[r]``, its unused end is -1."""

    target: _Ids
    """``(m,)``."""
    item: _Ids
    """``(m, K)``."""
    weight: npt.NDArray[np.float32]
    """``(m, K)``."""


def ridge_on_neighbors(data: Interactions, targets: Sequence[int] | _Ids, n_neighbors: int, reg: float) -> Neighbors:
    """Solve the ridge regression of each target.

    The result of an item depends neither on the other targets nor on the number of threads.

    Args:
        data: all interactions.
        targets: items, ``(m,)``.
        n_neighbors: K.
        reg: added to the diagonal of the counts.

    Returns:
        The weights; fewer than K where an item has fewer neighbours.

    Example:
        >>> data = Interactions.of(np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]), n_users=3, n_items=3)
        >>> ridge_on_neighbors(data, [1], n_neighbors=2, reg=2.0).weight.tolist()  # item 2: 2 / (2 + 2)
        [[0.5, 0.0]]
    """
    target = np.asarray(targets, np.int32)
    n_items, is_weighted = len(data.start_of_item) - 1, len(data.weight) > 0
    own = np.bincount(data.item, data.weight**2, n_items) if is_weighted else np.diff(data.start_of_item)
    kind = np.dtype(np.float64 if is_weighted else np.int32)
    item = np.full((len(target), n_neighbors), -1, np.int32)
    weight = np.zeros((len(target), n_neighbors), np.float32)
    n_counts, n_threads = n_neighbors * (n_neighbors - 1) // 2, numba.get_num_threads()
    memory = max(_LEAST_BYTES, 2 * (data.item.nbytes + data.user.nbytes))
    step = max(1, memory // max(1, n_counts * kind.itemsize))
    with threadpool_limits(1, user_api="blas"):  # each thread of ours solves one system
        for at in range(0, len(target), step):
            rows = slice(at, at + step)
            shared = np.zeros(item[rows].shape, kind)
            _find_neighbors(data, own, target[rows], item[rows], shared, n_threads)
            counts = np.empty((len(shared), n_counts), kind)
            _fill_counts(data, item[rows], _by_neighbor(item[rows], n_items), counts, n_threads)
            _solve(counts, own, item[rows], shared, float(reg), weight[rows], n_threads)
    return Neighbors(target, item, without_smallest(weight))


def without_smallest(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The weights of each item, ``(m, K)``, with zeros in place of those that are next to nothing.

    Example:
        >>> without_smallest(np.array([[0.5, -1e-6]])).tolist()
        [[0.5, 0.0]]
    """
    size = np.abs(weight)
    return np.where(size < _LEAST * size.max(axis=1, initial=0, keepdims=True), 0, weight)


class _ByNeighbor(NamedTuple):
    """Item i is neighbour ``place[p]`` of target ``row[p]``, for p from ``start[i]`` to ``start[i + 1]``."""

    start: npt.NDArray[np.signedinteger]
    row: npt.NDArray[np.signedinteger]
    place: _Ids


def _by_neighbor(item: _Ids, n_items: int) -> _ByNeighbor:
    """Sort the places of neighbours ``(m, K)`` by item."""
    used = item >= 0
    place = np.broadcast_to(np.arange(item.shape[1], dtype=np.int32), item.shape)[used]
    start = np.append(0, np.cumsum(used.sum(axis=1)))
    found = sp.csr_array((place, item[used], start), shape=(len(item), n_items)).tocsc()
    return _ByNeighbor(found.indptr, found.indices, found.data)


@njit(inline="always", **OPTIONS)
def _weight(weights, place):
    return weights[place] if len(weights) else 1


@njit(**OPTIONS)
def _count(data, i, end, count, seen):
    """Add to ``count`` the users that item i shares with each item below ``end``; fill ``seen`` with these items.

    Returns:
        Their number.
    """
    n, first = 0, data.start_of_item[i]
    users = data.user[first : data.start_of_item[i + 1]]
    # The first items of all users before the others: then the processor loads many histories from memory at a time.
    start, least = np.empty(len(users), np.int64), np.empty(len(users), np.int32)
    for p in range(len(users)):
        start[p] = data.start[users[p]]
        least[p] = data.item[start[p]]
    for p in range(len(users)):
        if least[p] >= end:
            continue
        weight = _weight(data.weight_by_item, first + p)
        for q in range(start[p], data.start[users[p] + 1]):
            other = data.item[q]
            if other >= end:
                break
            if count[other] == 0:
                seen[n] = other
                n += 1
            count[other] += weight * _weight(data.weight, q)
    return n


@njit(parallel=True, **OPTIONS)
def _find_neighbors(data, own, target, item, shared, n_threads):
    """Fill in the items with the largest cosine to each target, ascending, and the count of the users that each shares
    with it, ``(m, K)``.

    Of equal cosines the lower ids count.
    """
    n_items, k = len(own), item.shape[1]
    for thread in prange(n_threads):
        count, seen = np.zeros(n_items, shared.dtype), np.empty(n_items, np.int32)
        for row in range(thread, len(target), n_threads):
            j = target[row]
            n = _count(data, j, n_items, count, seen)
            cosine = np.empty(n, np.float64)  # times a factor that is the same for all
            for place in range(n):
                i = seen[place]
                cosine[place] = -1.0 if i == j else count[i] / np.sqrt(float(own[i]))
            least = -1.0
            if n - 1 > k:
                least = np.partition(cosine, n - k)[n - k]
            above = 0
            for place in range(n):
                above += cosine[place] > least
            tied = seen[:n][cosine == least]
            tied.sort()
            missing = k - above if least > 0 else 0
            kept = np.concatenate((seen[:n][cosine > least], tied[:missing]))
            kept.sort()
            for place, i in enumerate(kept):
                item[row, place] = i
                shared[row, place] = count[i]
            count[seen[:n]] = 0


@njit(parallel=True, **OPTIONS)
def _fill_counts(data, item, by_neighbor, counts, n_threads):
    """Fill in how many users each two neighbours of a target share, ``(m, K (K - 1) / 2)``: below the diagonal, by row.

    Each item's counts are made once, for all targets that have it as a neighbour.
    """
    start, row_of, place_of = by_neighbor
    n_items = len(start) - 1
    for thread in prange(n_threads):
        count, seen = np.zeros(n_items, counts.dtype), np.empty(n_items, np.int32)
        for i in range(thread, n_items, n_threads):
            if start[i] == start[i + 1]:
                continue
            n = _count(data, i, i, count, seen)
            for p in range(start[i], start[i + 1]):
                others, a = item[row_of[p]], place_of[p]
                of_row = counts[row_of[p], a * (a - 1) // 2 :]
                for b in range(a):
                    of_row[b] = count[others[b]]
            for place in range(n):
                count[seen[place]] = 0


@njit(parallel=True, **OPTIONS)
def _solve(counts, own, item, shared, reg, weight, n_threads):
    """Fill in ``(G + reg I)^-1 shared`` of each target by Cholesky's decomposition, ``(m, K)``."""
    for thread in prange(n_threads):
        for row in range(thread, len(item), n_threads):
            k = np.sum(item[row] >= 0)
            full = np.empty((k, k), np.float64)
            for a in range(k):
                for b in range(a):
                    full[a, b] = full[b, a] = counts[row, a * (a - 1) // 2 + b]
                full[a, a] = own[item[row, a]] + reg
            lower, x = np.linalg.cholesky(full), shared[row, :k].astype(np.float64)
            for a in range(k):
                x[a] = (x[a] - np.dot(lower[a, :a], x[:a])) / lower[a, a]
            for a in range(k - 1, -1, -1):
                x[a] /= lower[a, a]
                x[:a] -= x[a] * lower[a, :a]
            weight[row, :k] = x
