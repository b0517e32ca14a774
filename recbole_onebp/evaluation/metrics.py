"""Metrics of recommended lists that this package computes itself; all others are RecBole's."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

__all__ = ["coverage", "diversity", "gini", "hits", "novelty", "recall_and_ndcg"]

Array = npt.NDArray[Any]
_BLOCK = 1000
"""Lists per block in :func:`diversity`."""


def recall_and_ndcg(row: Array, place: Array, hit: Array, n_relevant: Array, k: int) -> tuple[Array, Array]:
    """Recall@k and NDCG@k of each list, ``(n,)`` each; the definitions are RecBole's.

    The m recommended items of all lists stand one after the other; lists may be shorter than k.

    Args:
        row: the list of each item, ``(m,)``, from 0.
        place: its position in the list, ``(m,)``, from 0.
        hit: whether it is relevant, ``(m,)``.
        n_relevant: number of relevant items of each list, ``(n,)``, at least 1.
        k: length of the lists.

    Example:
        >>> recall_and_ndcg(np.array([0, 0]), np.array([0, 1]), np.array([True, False]), np.array([2]), k=2)
        (array([0.5]), array([0.61314719]))
    """
    gain = 1 / np.log2(np.arange(k) + 2)
    ideal = np.cumsum(gain)[np.minimum(n_relevant, k) - 1]
    recall = np.bincount(row, weights=hit, minlength=len(n_relevant)) / n_relevant
    return recall, np.bincount(row, weights=hit * gain[place], minlength=len(n_relevant)) / ideal


def coverage(lists: Array, n_items: int) -> float:
    """Share of all ``n_items`` items that occur in at least one of the lists ``(n, k)``."""
    return len(np.unique(lists)) / n_items


def gini(lists: Array, n_items: int) -> float:
    """Gini index of how often each of ``n_items`` items is recommended: 0 if all are equal, near 1 if few dominate."""
    counts = np.unique(lists, return_counts=True)[1]
    counts = np.sort(np.concatenate((np.zeros(n_items - len(counts), counts.dtype), counts)))
    rank = np.arange(1, n_items + 1)
    return float(((2 * rank - n_items - 1) * counts).sum() / (n_items * counts.sum()))


def novelty(lists: Array, popularity: Array, n_users: int) -> Array:
    """Mean self-information of each list's items in bits, ``(n,)``: ``-log2(share of users with the item)``.

    Castells, Hurley, Vargas, Novelty and diversity in recommender systems, 2015.  Items without train interactions
    count as if one user had interacted with them.

    Args:
        lists: internal item ids, ``(n, k)``.
        popularity: number of users who interacted with each item, ``(n_items,)``.
        n_users: number of users.
    """
    return -np.log2(np.maximum(popularity, 1) / n_users)[lists].mean(axis=1)


def diversity(lists: Array, taken: sp.csr_array) -> Array:
    """Mean pairwise distance of the items of each list, ``(n,)``: 1 minus the cosine of their columns of users.

    Ziegler et al., Improving recommendation lists through topic diversification, 2005, with co-occurrence in train
    instead of topics.  An item without interactions is at distance 1 from every other.

    Args:
        lists: internal item ids, ``(n, k)``, k at least 2.
        taken: the interactions, ``(n_users, n_items)``.
    """
    k = lists.shape[1]
    length = np.sqrt(np.asarray(taken.multiply(taken).sum(axis=0)).ravel())
    unit = sp.csr_array(taken.T.multiply(1 / np.maximum(length, 1e-12)[:, np.newaxis]))
    squares = (length > 0).astype(float)
    distances = []
    for start in range(0, len(lists), _BLOCK):
        block = lists[start : start + _BLOCK]
        row = np.repeat(np.arange(len(block)), k)
        picked = sp.csr_array((np.ones(row.size), (row, block.ravel())), shape=(len(block), taken.shape[1]))
        total = picked @ unit
        # |sum of x|^2 = sum of |x|^2 + twice the cosines of all pairs
        cosines = (np.asarray(total.multiply(total).sum(axis=1)).ravel() - squares[block].sum(axis=1)) / 2
        distances.append(1 - cosines / (k * (k - 1) / 2))
    return np.concatenate(distances)


def hits(users: Array, lists: Array, relevant: sp.csr_array) -> Array:
    """How many of the lists ``(n, k)`` contain each item correctly, ``(n_items,)``.

    Args:
        users: the user of each list, ``(n,)``.
        lists: internal item ids, ``(n, k)``.
        relevant: the interactions of the test part, ``(n_users, n_items)``.
    """
    row = np.repeat(users, lists.shape[1])
    is_hit = np.asarray(relevant[row, lists.ravel()]).ravel() > 0
    return np.bincount(lists.ravel()[is_hit], minlength=relevant.shape[1])
