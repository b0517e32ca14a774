"""The ridge regression of each item on its neighbours, on a GPU: what :mod:`recbole_onebp.cooccurrence` does on a CPU.

All counts are whole numbers, so the order in which a GPU adds up changes nothing: the neighbours are the same, and the
weights agree up to rounding.  The counts of interactions with weights would not be whole, so they stay on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recbole_onebp.cooccurrence import Interactions, Neighbors, without_smallest

__all__ = ["ridge_on_neighbors_batched"]

_AT_ONCE = 1 << 27
"""Numbers in one tensor: the counts of some items with all others, what is counted at a time, and the interactions of
the neighbours of some items, with their zeros.  Four or eight bytes each, and a few such tensors: about 5 GB."""


def ridge_on_neighbors_batched(
    data: Interactions,
    targets: Sequence[int] | npt.NDArray[np.int32],
    n_neighbors: int,
    reg: float,
    device: torch.device,
    at_once: int = _AT_ONCE,
) -> Neighbors:
    """Solve the ridge regression of each target; see :func:`recbole_onebp.cooccurrence.ridge_on_neighbors`.

    Args:
        data: all interactions, without weights.
        targets: items, ``(m,)``.
        n_neighbors: K.
        reg: added to the diagonal of the counts.
        device: where to count and solve.
        at_once: numbers in one tensor.

    Returns:
        The weights; fewer than K where an item has fewer neighbours.

    Example:
        >>> data = Interactions.of(np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]), n_users=3, n_items=3)
        >>> ridge_on_neighbors_batched(data, [1], n_neighbors=2, reg=2.0, device=torch.device("cpu")).weight.tolist()
        [[0.5, 0.0]]
    """
    assert not len(data.weight), "interactions with weights are counted on the CPU"
    target, k = np.asarray(targets, np.int32), n_neighbors
    start, item, start_of_item, user = (torch.from_numpy(part).to(device).long() for part in data[:4])
    n_users, n_items = len(start) - 1, len(start_of_item) - 1
    # By numpy: torch's root on a CPU with MKL is not rounded as IEEE 754 says, so cosines that are equal would differ.
    root = torch.from_numpy(np.sqrt(np.diff(data.start_of_item))).to(device)
    found = np.full((len(target), k), -1, np.int32), np.zeros((len(target), k), np.float32)
    size = max(1, at_once // max(n_items, 1 + k * n_users))
    for first in range(0, len(target), size):
        block = slice(first, first + size)
        own = torch.from_numpy(target[block]).to(device).long()
        counts = torch.zeros(len(own) * n_items, dtype=torch.int64, device=device)
        row, by = _expanded(start_of_item, own)
        ends = (start.diff()[user[by]]).cumsum(0)
        for part in _parts(ends, at_once):
            pair, place = _expanded(start, user[by[part]])
            counts += torch.bincount(row[part][pair] * n_items + item[place], minlength=len(counts))
        neighbor, shared = _nearest(counts.view(len(own), n_items), own, root, k)
        weight = _solved(_gram(neighbor, start_of_item, user, n_users), shared, reg)
        found[0][block], found[1][block] = neighbor.cpu().numpy(), weight.float().cpu().numpy()
    return Neighbors(target, found[0], without_smallest(found[1]))


def _parts(ends: Tensor, at_once: int) -> Iterator[slice]:
    """Ranges of rows of at most ``at_once`` entries, or of one row; row r has the entries up to ``ends[r]``."""
    first, before = 0, 0
    while first < len(ends):
        after = int(torch.searchsorted(ends, before + at_once, right=True))
        after = max(after, first + 1)
        yield slice(first, after)
        first, before = after, int(ends[after - 1])


def _expanded(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Of all entries of these rows of a matrix in CSR form: the index into ``rows``, and the entry's place."""
    size = start[rows + 1] - start[rows]
    index = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), size)
    first = start[rows] - (size.cumsum(0) - size)
    return index, first[index] + torch.arange(len(index), device=rows.device)


def _nearest(counts: Tensor, own: Tensor, root: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k items with the largest cosine to each target, ascending, and the users that they share; -1 and 0 where
    there are fewer.  Of equal cosines the lower ids count.  ``root``: of the popularity of each item.
    """
    counts[torch.arange(len(own), device=own.device), own] = 0
    row, item = counts.nonzero(as_tuple=True)  # by row, and ascending in it
    cosine = counts[row, item] / root[item]  # times a factor that is the same for the row
    order = cosine.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    size = torch.bincount(row, minlength=len(own))
    first = size.cumsum(0) - size
    best = order[torch.arange(len(order), device=own.device) - first[row[order]] < k].sort().values
    row, item = row[best], item[best]
    kept = size.clamp(max=k)
    column = torch.arange(len(best), device=own.device) - (kept.cumsum(0) - kept)[row]
    neighbor, shared = torch.full((len(own), k), -1, device=own.device), torch.zeros((len(own), k), device=own.device)
    neighbor[row, column], shared[row, column] = item, counts[row, item].float()
    return neighbor, shared


def _gram(neighbor: Tensor, start_of_item: Tensor, user: Tensor, n_users: int) -> Tensor:
    """The counts of the users that each pair of the neighbours of an item has in common, ``(b, K, K)``."""
    b, k = neighbor.shape
    row, column = (neighbor >= 0).nonzero(as_tuple=True)
    index, place = _expanded(start_of_item, neighbor[row, column])
    taken = torch.zeros((b, k, n_users), device=neighbor.device)
    taken[row[index], column[index], user[place]] = 1  # sums of zeros and ones are exact up to 2^24 in float32
    return taken @ taken.mT


def _solved(gram: Tensor, shared: Tensor, reg: float) -> Tensor:
    """``(gram + reg I)^-1 shared`` by Cholesky's decomposition, ``(b, K)``."""
    lower = torch.linalg.cholesky(gram.double() + reg * torch.eye(gram.shape[1], device=gram.device))
    return torch.cholesky_solve(shared.double().unsqueeze(2), lower).squeeze(2)
