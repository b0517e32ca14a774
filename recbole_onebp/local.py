"""The local term: what two towers miss of single pairs of items.

Two towers describe a user by one vector, which cannot hold that two items belong together and to nothing else.  The
local term holds it for each item and the items that it co-occurs with most.  It has a closed form and no gradient.  A
user's score of item j gains

    weight * sum_i r_i w_j[i]

over the user's items i.  w_j are the weights of :mod:`recbole_onebp.cooccurrence`, and r weights of mean 1, by recency
and by the weights of the interactions.  An item without interactions that has features is explained by the items that
are most like it: w_j are its cosines with them, scaled to the sum 1.

Sources: Ning and Karypis, "SLIM" (ICDM 2011), whose fsSLIM takes neighbours by cosine; Steck, "Embarrassingly Shallow
Autoencoders for Sparse Data" (WWW 2019) for the closed form over all items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from sklearn.preprocessing import normalize
from torch import Tensor

from recbole_onebp.cooccurrence import Interactions, Neighbors, ridge_on_neighbors
from recbole_onebp.cooccurrence_cuda import ridge_on_neighbors_batched
from recbole_onebp.distributed.ranks import current
from recbole_onebp.recency import recency_weights
from recbole_onebp.util.compiled import OPTIONS, njit

__all__ = ["ItemScores", "LocalScores", "LocalTerm"]

_Ids = npt.NDArray[np.int32]
_Places = npt.NDArray[np.int64]

_NONE = np.empty(0, np.float32)
_COSINES_AT_ONCE = 1 << 24
"""Cosines of items without interactions that are in memory at a time, if none of them is zero."""


class ItemScores(NamedTuple):
    """Scores of some items for each of B users."""

    start: _Places
    """Those of user b lie from ``start[b]`` to ``start[b + 1]``; ``(B + 1,)``."""
    item: npt.NDArray[np.int64]
    score: npt.NDArray[np.float32]

    def add_to(self, scores: Tensor, factor: float = 1.0) -> None:
        """Add these, times a factor, to the scores of the B users for all items, ``(B, n_items)``, in place."""
        if scores.device.type == "cpu":
            _add(*self, np.float32(factor), scores.detach().numpy())
            return
        row = np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))
        rows, items, added = (torch.from_numpy(part).to(scores.device) for part in (row, self.item, self.score))
        scores[rows, items] += factor * added


@dataclass(frozen=True)
class LocalScores:
    """What the local term adds to the scores of B users.

    Attributes:
        csr: ``indptr``, ``indices`` and ``values`` of the term.
        start: the items of user b are ``item[start[b] : start[b + 1]]``; ``(B + 1,)``.
        item: ``(n,)``.
        share: what the row of each is multiplied by, ``(n,)``.
    """

    csr: tuple[_Places, _Ids, npt.NDArray[np.float32]]
    start: _Places
    item: npt.NDArray[np.int64]
    share: npt.NDArray[np.float32]

    def found(self, tile: int | None = None) -> ItemScores:
        """The sums; for all items that are not named they are 0.

        Those of a user are in the order of ranges of ``tile`` items, 0 to ``tile - 1`` first; of any order if None.
        """
        n_items = len(self.csr[0]) - 1
        bound = _most_scores(self.csr[0], self.start, self.item)
        found = np.zeros_like(self.start), np.empty(bound, np.int64), np.empty(bound, np.float32)
        end = _add_up(self.csr, self.start, self.item, self.share, tile or n_items, *found)
        return ItemScores(found[0], found[1][:end], found[2][:end])


@dataclass(frozen=True)
class LocalTerm:
    """The fitted term: row i of a sparse matrix in CSR form has what item i of a history adds to other items' scores.

    Attributes:
        indptr: ``(n_items + 1,)``.
        indices: the other items, ascending in a row, ``(nnz,)``.
        values: ``(nnz,)``.
        weight: of the term, relative to the towers.
        recency: exponent of the recency weights, see :func:`recbole_onebp.recency.recency_weights`.
        n_neighbors, reg: what it was fitted with.
    """

    indptr: _Places
    indices: _Ids
    values: npt.NDArray[np.float32]
    weight: float
    recency: float
    n_neighbors: int
    reg: float

    @classmethod
    def fitted(
        cls,
        data: Interactions,
        recency: float,
        n_neighbors: int,
        reg: float,
        features: sp.csr_array | None = None,
        device: torch.device | None = None,
    ) -> LocalTerm:
        """Fit the term, with weight 1.  In several processes, each one solves a share of the items.

        Args:
            data: the interactions of all users.
            recency: see above.
            n_neighbors: see :func:`~recbole_onebp.cooccurrence.ridge_on_neighbors`.
            reg: likewise.
            features: of the items, ``(n_items, n_values)``; None without.
            device: where to solve it: on a GPU, unless the interactions have weights, and otherwise on the CPU.
        """
        ranks, n_items = current(), len(data.start_of_item) - 1
        targets = np.arange(ranks.rank, n_items, ranks.world_size, dtype=np.int32)
        if device is not None and device.type == "cuda" and not len(data.weight):
            own = ridge_on_neighbors_batched(data, targets, n_neighbors, reg, device)
        else:
            own = ridge_on_neighbors(data, targets, n_neighbors, reg)
        if features is not None:
            _explain_by_content(own, np.diff(data.start_of_item) > 0, normalize(features))
        found = Neighbors(*(np.concatenate(ranks.gather(torch.from_numpy(part))) for part in own))
        used = found.weight != 0
        columns = np.repeat(found.target, used.sum(axis=1))
        csr = sp.coo_array((found.weight[used], (found.item[used], columns)), shape=(n_items, n_items)).tocsr()
        csr.sort_indices()
        indptr, indices = csr.indptr.astype(np.int64), csr.indices.astype(np.int32)
        return cls(indptr, indices, csr.data, 1.0, recency, n_neighbors, reg)

    def summary(self) -> dict[str, float]:
        """The numbers that describe the term, for results."""
        return {"weight": self.weight, "recency": self.recency, "neighbors": self.n_neighbors, "reg": self.reg}

    def by_age(self, longest: int) -> npt.NDArray[np.float32]:
        """Recency weights of the ages 0 to ``longest - 1``, not yet scaled to mean 1."""
        return recency_weights(np.arange(longest), self.recency).astype(np.float32)

    def scores(
        self,
        user: npt.NDArray[np.int64],
        start: _Places,
        item: npt.NDArray[np.int64],
        strength: npt.NDArray[np.float32] = _NONE,
    ) -> LocalScores:
        """What the term adds to the scores of users.

        Args:
            user: ids of B users.
            start: the items of user u are ``item[start[u] : start[u + 1]]``, the earliest first; ``(n_users + 1,)``.
            item: ``(n,)``.
            strength: weights of the interactions, ``(n,)``; all the same if empty.
        """
        ends = np.concatenate(([0], np.cumsum(start[user + 1] - start[user])))
        own, share = np.empty(ends[-1], np.int64), np.empty(ends[-1], np.float32)
        by_age = self.by_age(int(np.diff(ends).max(initial=0)))
        _shares(np.float32(self.weight), by_age, user, start, item, strength, ends, own, share)
        return LocalScores(self._csr, ends, own, share)

    def pairs(
        self,
        user: npt.NDArray[np.int64],
        target: npt.NDArray[np.int64],
        start: _Places,
        item: npt.NDArray[np.int64],
        strength: npt.NDArray[np.float32] = _NONE,
    ) -> npt.NDArray[np.float32]:
        """What the term adds to the scores of pairs of users and items, ``(B,)``; arguments as in :meth:`scores`."""
        by_age = self.by_age(int((start[user + 1] - start[user]).max(initial=0)))
        score = np.zeros(len(user), np.float32)
        _pair_scores(self._csr, np.float32(self.weight), by_age, user, target, start, item, strength, score)
        return score

    @property
    def _csr(self) -> tuple[_Places, _Ids, npt.NDArray[np.float32]]:
        return self.indptr, self.indices, self.values


@njit(inline="always", **OPTIONS)
def _factor(weight, by_age, n, strength):
    """What the weights of a history of n items are multiplied by, for mean 1 and the weight of the term."""
    total = np.float64(0)
    for age in range(n):
        total += by_age[age] * strength[n - 1 - age] if len(strength) else by_age[age]
    return np.float32(weight * n / total)


def _explain_by_content(found: Neighbors, has_pairs: npt.NDArray[np.bool_], features: sp.csr_array) -> None:
    """Fill in the neighbours of targets without interactions: those with interactions of the largest positive cosine.

    Of equal cosines the lower ids count.  The weights are the cosines, scaled to the mean 1 / n of n neighbours.  Where
    fewer items than that are alike, the weights add up to less than 1: one item that shares a value says little.

    Args:
        found: changed in place.
        has_pairs: whether each item has interactions, ``(n_items,)``.
        features: rows of length 1, ``(n_items, n_values)``.
    """
    known, rows = np.flatnonzero(has_pairs), np.flatnonzero(~has_pairs[found.target])
    of_known, n_neighbors = sp.csc_array(features[known].T), min(found.item.shape[1], len(known))
    for block in np.array_split(rows, 1 + len(rows) * len(known) // _COSINES_AT_ONCE):
        cosines = sp.csr_array(features[found.target[block]] @ of_known)
        cosines.sort_indices()
        for row, start, end in zip(block, cosines.indptr, cosines.indptr[1:], strict=False):
            cosine = cosines.data[start:end]
            best = np.argsort(-cosine, kind="stable")[:n_neighbors]
            best = best[cosine[best] > 0]
            found.item[row, : len(best)] = known[cosines.indices[start:end][best]]
            found.weight[row, : len(best)] = cosine[best] / cosine[best].sum() * (len(best) / n_neighbors)


# These loops are not parallel: a block of users is divided between threads by the caller, and a process that was forked
# may run them.
@njit(**OPTIONS)
def _shares(weight, by_age, user, start, item, strength, ends, own, share):
    """Write the items of each user, and what the row of each is multiplied by."""
    for b in range(len(user)):
        first, n = start[user[b]], ends[b + 1] - ends[b]
        factor = _factor(weight, by_age, n, strength[first : first + n])
        for p in range(n):
            r = factor * by_age[n - 1 - p]
            if len(strength):
                r *= strength[first + p]
            own[ends[b] + p], share[ends[b] + p] = item[first + p], r


@njit(**OPTIONS)
def _most_scores(indptr, start, item):
    """At least as many as the items that the users have scores for."""
    n_items, most = len(indptr) - 1, 0
    for b in range(len(start) - 1):
        n = 0
        for i in item[start[b] : start[b + 1]]:
            n += indptr[i + 1] - indptr[i]
        most += min(n, n_items)
    return most


@njit(**OPTIONS)
def _add_up(csr, start, item, share, tile, ends, target, added):
    """Write the scores of each user after those of the one before; return where the last ones end."""
    indptr, indices, values = csr
    n_items, stop = len(indptr) - 1, 0
    score, seen = np.zeros(n_items, np.float32), np.zeros(n_items, np.uint8)
    # The items of a tile that have a score stand at the tile's own places, with one more for the next item.
    n_tiles = -(-n_items // tile)
    first = np.arange(n_tiles) * (tile + 1)
    found, place = np.empty(n_tiles * (tile + 1), np.int32), first.copy()
    for b in range(len(start) - 1):
        for p in range(start[b], start[b + 1]):
            r = share[p]
            for q in range(indptr[item[p]], indptr[item[p] + 1]):
                j = np.uint32(indices[q])
                range_of_j = j // np.uint32(tile)
                found[place[range_of_j]] = j  # written anyway: a branch would often be predicted wrongly
                place[range_of_j] += 1 - np.int64(seen[j])
                seen[j] = 1
                score[j] += r * values[q]
        for t in range(n_tiles):
            for n in range(first[t], place[t]):
                j = np.uint32(found[n])
                target[stop], added[stop] = j, score[j]
                score[j], seen[j] = 0, 0
                stop += 1
            place[t] = first[t]
        ends[b + 1] = stop
    return stop


@njit(**OPTIONS)
def _add(start, item, score, factor, scores):
    for b in range(len(start) - 1):
        for place in range(start[b], start[b + 1]):
            scores[b, item[place]] += factor * score[place]


@njit(**OPTIONS)
def _pair_scores(csr, weight, by_age, user, target, start, item, strength, score):
    for b in range(len(user)):
        own = slice(start[user[b]], start[user[b] + 1])
        score[b] = _pair_score(csr, weight, by_age, item[own], strength[own], target[b])


@njit(**OPTIONS)
def _pair_score(csr, weight, by_age, history, strength, target):
    indptr, indices, values = csr
    n, total = len(history), np.float32(0)
    factor = _factor(weight, by_age, n, strength)
    for p in range(n):
        row = indices[indptr[history[p]] : indptr[history[p] + 1]]
        place = np.searchsorted(row, target)
        if place < len(row) and row[place] == target:
            r = factor * by_age[n - 1 - p]
            if len(strength):
                r *= strength[p]
            total += r * values[indptr[history[p]] + place]
    return total
