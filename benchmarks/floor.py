"""The least time an epoch could take: the bytes it cannot avoid to move, or the products it cannot avoid to do.

Both are counted from the data and divided by rates measured on the same machine; ``docs/performance.md`` has the
reasoning.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch
from measure import timed
from numpy.typing import NDArray

Ids = NDArray[np.int64]
FLOAT = ID = 4  # bytes
TABLES_OF_ADAM = 3  # encodings and two moments


@dataclass(frozen=True)
class Touched:
    """Rows that an epoch's steps touch, summed over the steps."""

    steps: int
    pairs: int
    users: int
    """Distinct users of each step."""
    items: int
    """Distinct items of each step, positives and negatives."""


def touched_rows(
    user: Ids,
    item: Ids,
    n_items: int,
    positives: int,
    negatives: int,
    shared: bool,
    seed: int = 0,
) -> Touched:
    """Count them for one shuffled epoch; ``negatives`` are uniform ones a pair or, if ``shared``, a step."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(user))
    users = items = steps = 0
    for start in range(0, len(order), positives):
        batch = order[start : start + positives]
        drawn = rng.integers(1, n_items, size=negatives if shared else negatives * len(batch))
        users += len(np.unique(user[batch]))
        items += len(np.unique(np.concatenate([item[batch], drawn])))
        steps += 1
    return Touched(steps, len(user), users, items)


def bytes_of_epoch(touched: Touched, n_items: int, size: int, dense: bool) -> int:
    """Bytes that have to be read or written.

    An item row of a step: its encoding and both moments of Adam, each read and written. A user row: read and written.
    A pair: its two ids. Dense Adam moves every item at every step, a lazy one only those of the step.
    """
    rows = touched.steps * n_items if dense else touched.items
    return rows * TABLES_OF_ADAM * 2 * size * FLOAT + touched.users * 2 * size * FLOAT + touched.pairs * 2 * ID


def bytes_of_tables(n_users: int, n_items: int, size: int) -> int:
    """The user table, the item table and its two moments."""
    return (n_users + TABLES_OF_ADAM * n_items) * size * FLOAT


def bandwidth(n_bytes: int, repeats: int, device: str = "cpu") -> float:
    """Bytes a second, read and written in place, over an array of ``n_bytes``: the size of the tables, so that what a
    cache can keep for the epoch it keeps here too."""
    array = torch.ones(n_bytes // FLOAT, device=device)
    passes = max(1, 2**30 // n_bytes)

    def sweep() -> None:
        for _ in range(passes):
            array.mul_(1.0001)
        _wait(device)

    sweep()
    return statistics.median(2 * n_bytes * passes / timed(sweep)() for _ in range(repeats))


def products_of_step(positives: int, shared: int, size: int, repeats: int, device: str = "cpu") -> float:
    """Seconds of the two matrix products of a step with shared negatives: scores, and the gradient of the negatives.

    The third product of ordinary training, the gradient of the users, is what one backpropagation leaves out.
    """
    users = torch.randn(positives, size, device=device)
    items = torch.randn(shared, size, device=device)
    weights = torch.empty(positives, shared, device=device)
    gradient = torch.empty(shared, size, device=device)
    passes = 50

    def multiply() -> None:
        for _ in range(passes):
            torch.mm(users, items.T, out=weights)
            torch.mm(weights.T, users, out=gradient)
        _wait(device)

    multiply()
    return statistics.median(timed(multiply)() / passes for _ in range(repeats))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
