"""The k best items of each user from vectors of users and items, without a matrix of scores.

Full-sort evaluation needs the k largest of n scores <u, i> per user.  Users (B, d) are multiplied by a tile of items
(d, t) at a time, and the products are read while they are in the cache.  On processors with 8-bit multiply instructions
the vectors are rounded to 8 bits, which makes the product four times as fast.  Let u', i' be the vectors that are
multiplied.  The Cauchy-Schwarz inequality gives an upper bound,

    <u, i>  <=  <u', i'> + |u - u'| |i| + |u'| |i - i'|.

For most items the bound is below the k-th best score found so far, so the item cannot be among the k best.  Only the
other scores are computed, in float32 and in a fixed order.  The result is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from recbole_onebp.evaluation.topk import top_items
from recbole_onebp.local import ItemScores, LocalScores
from recbole_onebp.util import simd
from recbole_onebp.util.compiled import njit

__all__ = ["Product", "RoundedItems", "ranking_threads"]

_Floats = npt.NDArray[np.float32]
_Ids = npt.NDArray[np.int64]

MIN_ITEMS = 8192
"""With fewer items all scores at once are faster."""
_TILE = 2048
"""Items per product: the bounds of a thread's users must stay in the second-level cache until they are read."""
_STRIDE = 64
"""Number of bounds that are compared together, in vector registers."""
_MOST_COMPUTED = 1 / 16
"""If more than this share of the scores must be computed in float32, the bounds save no time."""


@lru_cache(maxsize=1)
def multiplies_int8() -> bool:
    """Whether the processor has 8-bit multiply instructions.  Without them torch's 8-bit product is slow."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions of torch
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


@contextmanager
def ranking_threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each of which runs torch in one thread."""

    def run_alone() -> None:
        torch.get_num_threads()  # torch sets its number of threads at the first call in a thread: do this first
        ThreadpoolController().limit(limits=1, user_api="openmp")

    with ThreadPoolExecutor(torch.get_num_threads(), initializer=run_alone) as pool:
        yield pool


class RoundedItems:
    """Item vectors, and the form in which they are multiplied.

    Args:
        items: ``(n, d)``, float32, on the CPU.

    Attributes:
        rows: the vectors, ``(n, d)``.
        tiles: for each range of items: its slice, its rounded vectors ``(d, tile)`` and their scales ``(tile,)``.
        error, length: ``(n,)``: distance between an item's vector and its rounded form, and length of the vector.
        uses_bounds: whether bounds are valid for these vectors and have saved most scores so far.
    """

    def __init__(self, items: Tensor) -> None:
        items = items.detach().contiguous()
        self.rows: _Floats = items.numpy()
        self.uses_bounds = len(items) >= MIN_ITEMS and items.shape[1] >= 16 and _is_of_common_size(items)
        if self.uses_bounds:
            rounded, scale, self.error = _rounded(items)
            self.length = torch.linalg.vector_norm(items, dim=1)
            parts = (slice(start, start + _TILE) for start in range(0, len(items), _TILE))
            self.tiles = [(part, rounded[part].T.contiguous(), scale[part].numpy()) for part in parts]


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors ``(n, d)`` rounded to int8, the scale of each ``(n,)``, and its rounding error ``(n,)`` as a distance.

    Without 8-bit multiply instructions they stay as they are.
    """
    if not multiplies_int8():
        return rows, torch.ones(len(rows)), torch.zeros(len(rows))
    largest = rows.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, 1.0).unsqueeze(1)
    rounded = (rows / scale).round()
    return rounded.to(torch.int8), scale.squeeze(1), torch.linalg.vector_norm(rows - rounded * scale, dim=1)


def _is_of_common_size(rows: Tensor) -> bool:
    """Whether products of these vectors neither overflow nor underflow, and contain no NaN."""
    largest = rows.abs().amax(dim=1)
    return bool(((largest == 0) | ((largest > 1e-12) & (largest < 1e12))).all())


def _no_scores(n_users: int) -> ItemScores:
    return ItemScores(np.zeros(n_users + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


class Product:
    """Scores of a block of users for all items, kept as the two factors and the local term.

    Args:
        users: ``(B, d)``.
        table: the items.
        hidden: rows and items that must not be ranked, ``(h,)`` each.  Item 0, the padding, never is.
        pool: see :func:`ranking_threads`.
        local: returns for rows ``(b,)`` what the local term adds to the products; None without it.
    """

    def __init__(
        self,
        users: Tensor,
        table: RoundedItems,
        hidden: tuple[Tensor, Tensor],
        pool: ThreadPoolExecutor,
        local: Callable[[_Ids], LocalScores] | None = None,
    ) -> None:
        self.users, self.table, self._pool = users.detach().contiguous(), table, pool
        self.shape = torch.Size((len(users), len(table.rows)))
        self._hidden, self._local = hidden, local

    def scores(self, rows: _Ids | None = None, local_factor: float = 1.0) -> Tensor:
        """The scores of all or some of the users, ``(b, n)``; minus infinity where hidden.

        Args:
            rows: the users, ``(b,)``.
            local_factor: what the local term is multiplied by.
        """
        return next(self._all_scores(np.arange(len(self.users)) if rows is None else rows, [local_factor]))

    def _all_scores(self, picked: _Ids, local_factors: Sequence[float]) -> Iterator[Tensor]:
        """:meth:`scores` with the local term times each factor."""
        towers = self.users[torch.from_numpy(picked)] @ torch.from_numpy(self.table.rows).T
        place = torch.full((len(self.users),), -1)
        place[torch.from_numpy(picked)] = torch.arange(len(picked))
        row, item = place[self._hidden[0]], self._hidden[1]
        towers[:, 0] = -torch.inf
        towers[row[row >= 0], item[row >= 0]] = -torch.inf
        parts = self._parts(len(picked))
        local = [] if self._local is None else [*self._pool.map(self._found, (picked[part] for part in parts))]
        for factor in local_factors:
            scores = towers if len(local_factors) == 1 else towers.clone()
            for found, part in zip(local, parts, strict=False):
                found.add_to(scores[part], factor)
            yield scores

    def _found(self, rows: _Ids) -> ItemScores:
        """What the local term adds to the products of some users, by their rows ``(b,)``."""
        assert self._local is not None
        return self._local(rows).found()

    @staticmethod
    def _parts(n_users: int) -> list[slice]:
        """The users in as many parts as there are threads."""
        cuts = np.linspace(0, n_users, min(torch.get_num_threads(), n_users) + 1).astype(int)
        return [slice(*cut) for cut in pairwise(cuts)]

    def top_items(self, k: int, local_factors: Sequence[float] = (1.0,)) -> Tensor:
        """The k best items of each user, best first, with the local term times each factor, ``(B, W, k)``.

        If these are powers of two, the lists have the scores of a local term of that many times the weight, to the bit.
        """
        n_users, n_items = self.shape
        if not (self.table.uses_bounds and _is_of_common_size(self.users)):
            every = self._all_scores(np.arange(n_users), local_factors)
            return torch.stack([top_items(scores, k) for scores in every], dim=1)
        shape = n_users, len(local_factors), k + 1
        best, items = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int64)
        done = np.zeros((n_users, n_items), np.bool_)
        done[:, 0] = True
        done[self._hidden[0].numpy(), self._hidden[1].numpy()] = True
        factors = np.array(local_factors, np.float32)
        computed = self._pool.map(lambda s: self._scan(s, factors, done[s], best[s], items[s]), self._parts(n_users))
        if sum(computed) > n_users * n_items * _MOST_COMPUTED:
            self.table.uses_bounds = False
        ranked = torch.from_numpy(items[:, :, :k])
        # torch.topk decides ties, as in RecBole.  Users with fewer than k items left are tied at minus infinity.
        is_tied = (best[:, :, 1:] == best[:, :, :-1]).any(axis=2)
        for n, factor in enumerate(local_factors):
            if len(tied := np.flatnonzero(is_tied[:, n])):
                ranked[tied, n] = top_items(self.scores(tied, factor), k)
        return ranked

    def _scan(self, part: slice, factors: _Floats, done: npt.NDArray[np.bool_], best: _Floats, items: _Ids) -> int:
        """Fill in the best scores and items of some users; return how many scores were computed."""
        users, table = self.users[part], self.table
        local = _no_scores(len(users))
        if self._local is not None:
            local = self._local(np.arange(part.start, part.stop)).found(_TILE)
        unread = local.start[:-1].copy()
        rounded, scale, error = _rounded(users)
        length = torch.linalg.vector_norm(users, dim=1) + error  # at least the length of the rounded vector
        # A factor of |i| that covers the other two terms for all these users, and the rounding of float32 sums.
        most = float((error / length).nan_to_num().max()) + 2 * (users.shape[1] + 4) * np.finfo(np.float32).eps
        slack = (table.error + most * table.length).numpy()
        of_users = users.numpy(), scale.numpy(), (length / scale).numpy()
        multiply: Any
        multiply, kind = (torch._int_mm, torch.int32) if rounded.dtype == torch.int8 else (torch.mm, torch.float32)
        memory = torch.empty(len(users) * _TILE, dtype=kind)  # one allocation for all tiles
        n_computed = 0
        for tile, columns, column_scale in table.tiles:
            products = memory[: len(users) * len(column_scale)].view(len(users), -1)
            multiply(rounded, columns, out=products)
            bounds = products.numpy(), column_scale, slack[tile]
            lists = done, best, items
            n_computed += _scan_tile(bounds, of_users, local, unread, factors, tile.start, table.rows, *lists)
        return n_computed


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _bound(product: Any, scale: Any, slack: Any, user_scale: Any, length: Any) -> Any:
    """Upper bound of a product, see :func:`_scan_tile`."""
    return user_scale * (np.float32(product) * scale + length * slack)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _scan_tile(
    bounds: Any,
    of_users: Any,
    local: Any,
    unread: Any,
    factors: Any,
    first: int,
    table: Any,
    done: Any,
    best: Any,
    items: Any,
) -> Any:
    """Insert the items of a tile into the sorted lists of the best, and return how many scores were computed.

    Args:
        bounds: products ``(B, tile)``, int32 or float32, scale and slack ``(tile,)`` of the items.
        of_users: vectors ``(B, d)``, scale and scaled length ``(B,)`` of the users.  The product of row r and column i
            is at most ``user_scale[r] * (products[r, i] * scale[i] + user_length[r] * slack[i])``.
        local: what is added to the products.
        unread: where that of this tile begins, ``(B,)``; moved to the next tile.
        factors: of each list, what that is multiplied by, ``(W,)``.
        first: the item of the tile's first column.
        table: all item vectors.
        done: items of each user that must not be inserted, ``(B, n_items)``.
        best: the best scores so far, descending, ``(B, W, k + 1)``.
        items: their items.
    """
    products, scale, slack = bounds
    users, user_scale, user_length = of_users
    start, local_item, local_score = local
    width, n_computed = products.shape[1], 0
    has_local = np.zeros(width, np.bool_)
    for r in range(len(products)):
        row, user, factor, length, least = products[r], users[r], user_scale[r], user_length[r], best[r, :, -1]
        # Few items have a local score, so they are looked at one by one.  They raise what the others must exceed.
        begin = place = unread[r]
        while place < start[r + 1] and local_item[place] < first + width:
            item, added = local_item[place], local_score[place]
            i = item - first
            has_local[i] = True
            if _is_above(_bound(row[i], scale[i], slack[i], factor, length), added, factors, least):
                n_computed += 1
                if not done[r, item]:
                    _insert_each(best[r], items[r], simd.dot(user, table[item]), added, factors, item)
            place += 1
        unread[r] = place
        threshold = _least(least)
        # Scales of users are positive, so the highest bound stays the highest.
        for stride in range(0, width, _STRIDE):
            here = slice(stride, stride + _STRIDE)
            if factor * simd.highest_bound(row[here], scale[here], slack[here], length) > threshold:
                for i in range(stride, min(stride + _STRIDE, width)):
                    if _bound(row[i], scale[i], slack[i], factor, length) > threshold:
                        n_computed += 1
                        if not has_local[i] and not done[r, first + i]:
                            product = simd.dot(user, table[first + i])
                            _insert_each(best[r], items[r], product, np.float32(0), factors, first + i)
                            threshold = _least(least)
        for place in range(begin, unread[r]):
            has_local[local_item[place] - first] = False
    return n_computed


@njit(cache=True)  # type: ignore[untyped-decorator]
def _least(values: Any) -> Any:
    least = values[0]  # numba's min() would take as long as the rest of the loop
    for n in range(1, len(values)):
        least = min(least, values[n])
    return least


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_above(bound: Any, added: Any, factors: Any, least: Any) -> Any:
    above = False
    for n in range(len(factors)):
        above |= bound + factors[n] * added > least[n]
    return above


@njit(cache=True)  # type: ignore[untyped-decorator]
def _insert_each(best: Any, items: Any, product: Any, added: Any, factors: Any, item: int) -> None:
    for n in range(len(factors)):
        new = product + factors[n] * added
        if new > best[n, -1]:
            _insert(best[n], items[n], new, item)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _insert(score: Any, item: Any, new_score: Any, new_item: int) -> None:
    """Insert into a descending list, whose last entry is dropped."""
    at = len(score) - 1
    while at > 0 and score[at - 1] < new_score:
        score[at], item[at] = score[at - 1], item[at - 1]
        at -= 1
    score[at], item[at] = new_score, new_item
