"""Metrics of recommended lists beyond accuracy: coverage, Gini index, novelty and diversity; and hits per item."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["coverage", "diversity", "gini", "hits", "novelty"]

Array = npt.NDArray[Any]
_BLOCK = 1000
"""Lists per block; limits the memory of :func:`diversity`."""


def coverage(lists: Array, n_items: int) -> float:
    """Share of ``n_items`` items that appear in at least one of the lists ``(n, k)``."""
    return len(np.unique(lists)) / n_items


def gini(lists: Array, n_items: int) -> float:
    """Gini index of how often each of ``n_items`` items is recommended: 0 if equally often, near 1 if only few are."""
    counts = np.unique(lists, return_counts=True)[1]
    counts = np.sort(np.concatenate((np.zeros(n_items - len(counts), counts.dtype), counts)))
    rank = np.arange(1, n_items + 1)
    return float(((2 * rank - n_items - 1) * counts).sum() / (n_items * counts.sum()))


def novelty(lists: Array, popularity: Array, n_users: int) -> Array:
    """Mean self-information of each list's items in bits ``(n,)``: ``-log2(share of users who interacted with it)``.

    Castells, Hurley, Vargas, Novelty and diversity in recommender systems, 2015.  An item without
    train interactions counts as if it had one.

    Args:
        lists: ``(n, k)`` internal ids.
        popularity: number of users who interacted with each item ``(n_items,)``.
        n_users: number of all users.
    """
    return -np.log2(np.maximum(popularity, 1) / n_users)[lists].mean(axis=1)


def diversity(lists: Array, interactions: sp.csr_array) -> Array:
    """Mean distance between the items of each list ``(n,)``: 1 minus the cosine of their users.

    Ziegler et al., Improving recommendation lists through topic diversification, 2005, with co-occurrence in train in
    place of topics.  An item without interactions is at distance 1 from every other.

    Args:
        lists: ``(n, k)`` internal ids, k at least 2.
        interactions: of train, 0 or 1, ``(n_users, n_items)``.
    """
    k = lists.shape[1]
    length = np.sqrt(np.asarray(interactions.multiply(interactions).sum(axis=0)).ravel())
    unit = sp.csr_array(interactions.T.multiply(1 / np.maximum(length, 1e-12)[:, np.newaxis]))
    squares = (length > 0).astype(float)
    distances = []
    for start in range(0, len(lists), _BLOCK):
        block = lists[start : start + _BLOCK]
        row = np.repeat(np.arange(len(block)), k)
        picked = sp.csr_array((np.ones(row.size), (row, block.ravel())), shape=(len(block), interactions.shape[1]))
        total = picked @ unit
        # |sum of x|^2 = sum of |x|^2 + twice the cosines of all pairs
        cosines = (np.asarray(total.multiply(total).sum(axis=1)).ravel() - squares[block].sum(axis=1)) / 2
        distances.append(1 - cosines / (k * (k - 1) / 2))
    return np.concatenate(distances)


def hits(users: Array, lists: Array, relevant: sp.csr_array) -> Array:
    """For each item, the number of lists ``(n, k)`` in which it is a hit ``(n_items,)``.

    Args:
        users: the user of each list ``(n,)``.
        lists: ``(n, k)`` internal ids.
        relevant: test interactions ``(n_users, n_items)``.
    """
    row = np.repeat(users, lists.shape[1])
    is_hit = np.asarray(relevant[row, lists.ravel()]).ravel() > 0
    return np.bincount(lists.ravel()[is_hit], minlength=relevant.shape[1])
