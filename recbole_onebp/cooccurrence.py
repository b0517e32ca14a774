"""The ridge regression of each item on its neighbours, for the local term.

G counts the users that two items have in common; where interactions have weights, a user counts as the product of the
two.  For item j and its K neighbours N, those of the largest cosine,

    w_j = (G[N, N] + reg I)^-1 G[N, j]

G has a row and a column for each item, so it is never made as a whole.  For one item at a time its row is counted, and
then the counts of its neighbours among each other.  Items are independent of one another, so the result depends
neither on the number of threads nor on how items are divided between processes.
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

_COUNTED = 4096
"""The counts of pairs of this many items, the most popular ones, are kept in memory: 64 MB, with weights 128."""
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
    n_users, n_items = len(data.start) - 1, len(data.start_of_item) - 1
    popularity = np.diff(data.start_of_item)
    popular = np.full(n_items, -1, np.int32)
    most = np.argsort(-popularity, kind="stable")[: min(_COUNTED, n_items)].astype(np.int32)
    popular[most] = np.arange(len(most), dtype=np.int32)
    n_threads = numba.get_num_threads()
    is_weighted = len(data.weight) > 0
    counts = np.zeros((len(most), len(most)), np.float64 if is_weighted else np.int32)
    own = np.bincount(data.item, data.weight**2, n_items) if is_weighted else popularity
    _count_popular(data, most, popular, counts, n_threads)
    item = np.full((len(target), n_neighbors), -1, np.int32)
    weight = np.zeros((len(target), n_neighbors), np.float32)
    with threadpool_limits(1, user_api="blas"):  # each thread of ours solves one system
        _fit(data, own, n_users, target, float(reg), popular, counts, item, weight, n_threads)
    return Neighbors(target, item, without_smallest(weight))


def without_smallest(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The weights of each item, ``(m, K)``, with zeros in place of those that are next to nothing.

    Example:
        >>> without_smallest(np.array([[0.5, -1e-6]])).tolist()
        [[0.5, 0.0]]
    """
    size = np.abs(weight)
    return np.where(size < _LEAST * size.max(axis=1, initial=0, keepdims=True), 0, weight)


@njit(inline="always", **OPTIONS)
def _weight(weights, place):
    return weights[place] if len(weights) else 1


@njit(parallel=True, **OPTIONS)
def _count_popular(data, most, popular, counts, n_threads):
    """Fill in how many users the most popular items have in common, ``(m, m)``."""
    for thread in prange(n_threads):
        for row in range(thread, len(most), n_threads):
            i = most[row]
            for p in range(data.start_of_item[i], data.start_of_item[i + 1]):
                u, weight = data.user[p], _weight(data.weight_by_item, p)
                for q in range(data.start[u], data.start[u + 1]):
                    column = popular[data.item[q]]
                    if column >= 0:
                        counts[row, column] += weight * _weight(data.weight, q)


@njit(parallel=True, **OPTIONS)
def _fit(data, own, n_users, target, reg, popular, counts, item, weight, n_threads):
    """Fill in the neighbours of each target and their weights."""
    n_items = len(popular)
    for thread in prange(n_threads):
        count, seen = np.zeros(n_items, counts.dtype), np.empty(n_items, np.int32)
        column = np.full(n_items, -1, np.int32)
        head = np.full(n_users, -1, np.int32)
        links, link_weight = np.empty((1024, 2), np.int32), np.empty(1024, counts.dtype)
        for row in range(thread, len(target), n_threads):
            neighbors, shared = _neighbors(data, own, target[row], item.shape[1], count, seen)
            if len(neighbors):
                gram, links, link_weight = _gram(
                    data, own, neighbors, popular, counts, column, head, links, link_weight
                )
                item[row, : len(neighbors)] = neighbors
                weight[row, : len(neighbors)] = _solve(gram, shared, reg)


@njit(**OPTIONS)
def _neighbors(data, own, j, k, count, seen):
    """The k items with the largest cosine to item j, ascending, and the count of the users that each shares with it.

    Of equal cosines the lower ids count.

    The scratch ``count`` is zero before and after; ``count`` and ``seen`` are ``(n_items,)``.
    """
    n = 0
    for p in range(data.start_of_item[j], data.start_of_item[j + 1]):
        u, weight = data.user[p], _weight(data.weight_by_item, p)
        for q in range(data.start[u], data.start[u + 1]):
            i = data.item[q]
            if count[i] == 0:
                seen[n] = i
                n += 1
            count[i] += weight * _weight(data.weight, q)
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
    shared = np.empty(len(kept), np.float64)
    for place, i in enumerate(kept):
        shared[place] = count[i]
    count[seen[:n]] = 0
    return kept, shared


@njit(**OPTIONS)
def _gram(data, own, items, popular, counts, column, head, links, link_weight):
    """The counts of the users that each pair of items has in common, the lower triangle, ``(K, K)``; and the scratch
    ``links`` and ``link_weight``.

    Pairs of popular items are looked up.  The users of all other items are linked: a user's list holds the items that
    it has among them.  A popular item then meets the others in the lists of its users, or in the histories of the users
    that have a list, whichever are fewer.

    The scratch ``column``, ``(n_items,)``, and ``head``, ``(n_users,)``, is -1 before and after.  A row of ``links`` is
    a user's next link, and the item of this one as an index into ``items``; ``link_weight`` is its weight.
    """
    k = len(items)
    gram = np.zeros((k, k), counts.dtype)
    n_rare, n_popular = 0, 0
    for i in items:
        size = data.start_of_item[i + 1] - data.start_of_item[i]
        if popular[i] >= 0:
            n_popular += size
        else:
            n_rare += size
    if len(links) < n_rare:
        links, link_weight = np.empty((2 * n_rare, 2), np.int32), np.empty(2 * n_rare, counts.dtype)
    n, in_histories = 0, 0
    for a in range(k):
        i = items[a]
        if popular[i] >= 0:
            column[i] = a
            for b in range(a + 1):
                other = popular[items[b]]
                if other >= 0:
                    gram[a, b] = counts[popular[i], other]
            continue
        row = gram[a]
        for p in range(data.start_of_item[i], data.start_of_item[i + 1]):
            u, weight = data.user[p], _weight(data.weight_by_item, p)
            link = head[u]
            if link < 0:
                in_histories += data.start[u + 1] - data.start[u]
            links[n, 0], links[n, 1], link_weight[n] = link, a, weight
            head[u] = n
            n += 1
            while link >= 0:
                row[links[link, 1]] += weight * link_weight[link]
                link = links[link, 0]
        row[a] = own[i]
    through_histories = in_histories < n_popular
    for a in range(k):
        i = items[a]
        if popular[i] >= 0 and not through_histories:
            for p in range(data.start_of_item[i], data.start_of_item[i + 1]):
                _meet(gram, a, _weight(data.weight_by_item, p), head[data.user[p]], links, link_weight)
        elif popular[i] < 0:
            for p in range(data.start_of_item[i], data.start_of_item[i + 1]):
                u = data.user[p]
                if through_histories and head[u] >= 0:
                    for q in range(data.start[u], data.start[u + 1]):
                        if column[data.item[q]] >= 0:
                            weight = _weight(data.weight, q)
                            _meet(gram, column[data.item[q]], weight, head[u], links, link_weight)
                    head[u] = -1
    for i in items:
        column[i] = -1
        if popular[i] < 0:
            head[data.user[data.start_of_item[i] : data.start_of_item[i + 1]]] = -1
    return gram, links, link_weight


@njit(inline="always", **OPTIONS)
def _meet(gram, a, weight, link, links, link_weight):
    """Count item a, which has this weight in the user, with each item of the user's list."""
    while link >= 0:
        b = links[link, 1]
        gram[max(a, b), min(a, b)] += weight * link_weight[link]
        link = links[link, 0]


@njit(**OPTIONS)
def _solve(gram, shared, reg):
    """``(gram + reg I)^-1 shared`` by Cholesky's decomposition, ``(K,)``."""
    k = len(shared)
    full = np.empty((k, k), np.float64)
    for a in range(k):
        for b in range(a):
            full[a, b] = full[b, a] = gram[a, b]
        full[a, a] = gram[a, a] + reg
    lower, x = np.linalg.cholesky(full), shared.copy()
    for a in range(k):
        x[a] = (x[a] - np.dot(lower[a, :a], x[:a])) / lower[a, a]
    for a in range(k - 1, -1, -1):
        x[a] /= lower[a, a]
        x[:a] -= x[a] * lower[a, :a]
    return x
