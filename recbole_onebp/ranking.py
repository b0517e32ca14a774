"""The best scored items of a block of users, found without working out most of the scores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from recbole_onebp.errors import UserError

__all__ = ["BoundedProducts", "ProductScores", "top_items"]

_Floats = npt.NDArray[np.float32]


# -------------------------------------------------------------------------------------------------------------- scores


class BoundedProducts(TorchFunctionMode):
    """While active, a wide product of users and items on the CPU is bounded first, and worked out where it must be.

    Most models score by a matrix product of users (B, d) and items (d, n), and of the n scores a metric wants the k
    best.  Cauchy and Schwarz bound a score from a quarter of the dimensions and the lengths of the rest,

        <u, i>  <=  <u', i'> + |u''| |i''|,

    and with the dimensions turned to the items' principal axes the bound of most items of a trained model is below the
    worst of the best.  So a table of items that comes again is turned, products with it are :class:`ProductScores`,
    and :func:`top_items` works out the few scores that can matter.  Activate it for one evaluation: a table that is
    trained meanwhile would be taken for the old one.

    Assignments by index are numpy's here: RecBole hides the items that a block's users have taken, so little work that
    torch's threads would spin for longer, in the way of all others.
    """

    _WIDE = 8192
    """Items from which on this pays."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: Tensor | None = None
        self._version = 0
        self._table: _Table | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS and not kwargs and self._is_wide(*args):
            return self._product(*args)
        if func is Tensor.__setitem__ and type(args[0]) is Tensor and _is_plain(args[0]):
            return _assign(*args)
        return func(*args, **(kwargs or {}))

    def _is_wide(self, users: Any, items: Any) -> bool:
        return (
            all(_is_plain(matrix) and matrix.ndim == 2 for matrix in (users, items))
            and items.shape[1] >= self._WIDE
            and not (torch.is_grad_enabled() and (users.requires_grad or items.requires_grad))
        )

    def _product(self, users: Tensor, items: Tensor) -> Tensor:
        seen = self._seen
        if seen is None or _place(seen) != _place(items) or self._version != items._version:
            # Kept, so that no other table can come to lie in its place.
            self._seen, self._version, self._table = items.detach(), items._version, None
            return _product(users, items)
        if self._table is None:
            self._table = _Table(items)
        return ProductScores.of(users, self._table) if self._table.pays else _product(users, items)


_PRODUCTS = {torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__}


def _is_plain(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and not tensor.is_inference()  # such a tensor does not tell whether it has been changed
    )


def _assign(tensor: Tensor, index: Any, value: Any) -> None:
    """``tensor[index] = value``, by numpy where the index is lists of rows and columns and the value a number."""
    lists = isinstance(index, tuple) and all(isinstance(ids, Tensor) and ids.dtype == torch.int64 for ids in index)
    if lists and isinstance(value, float):
        tensor.detach().numpy()[tuple(ids.numpy() for ids in index)] = value
    else:
        tensor[index] = value


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


class _Table:
    """Items of a product, turned to their principal axes so that few of these bound a score.

    Attributes:
        items: ``(d, n)``, as in the product.
        rows: the same, an item a row.
        pays: whether bounds have spared most scores so far.
    """

    def __init__(self, items: Tensor) -> None:
        self.items = items.detach()
        self.rows: _Floats = np.ascontiguousarray(self.items.numpy().T)
        gram = self.rows.T @ self.rows
        self.pays = len(gram) >= 16 and bool(np.isfinite(gram).all())
        # Lengths are taken for longer by so much that rounding, a few d * eps of their product, breaks no bound.
        self._slack = np.float32(np.sqrt(2 * len(gram) * np.finfo(np.float32).eps))
        if self.pays:
            self._axes: _Floats = np.linalg.eigh(gram)[1][:, ::-1]  # the longest first
            self.turned = torch.from_numpy(self.turn(self.rows)).T

    def turn(self, rows: _Floats) -> _Floats:
        """A quarter of the dimensions and the length of the rest, whose products bound those of the rows."""
        turned = rows @ self._axes
        kept = turned.shape[1] // 4
        rest = np.linalg.norm(turned[:, kept:], axis=1) + self._slack * np.linalg.norm(rows, axis=1)
        return np.column_stack((turned[:, :kept], rest))


class ProductScores(Tensor):
    """Scores of a block of users and all items, of which only upper bounds are known until somebody reads a score.

    A view, and the hiding of items (the assignment of minus infinity), leave it at that.
    """

    _block: _Block

    @classmethod
    def of(cls, users: Tensor, table: _Table) -> ProductScores:
        """Scores of users ``(B, d)``, shape ``(B, n)``."""
        block = _Block(users.detach(), table)
        return cls._view(block, block.bounds)

    @classmethod
    def _view(cls, block: _Block, bounds: Tensor) -> ProductScores:
        view = bounds.as_subclass(cls)
        view._block = block
        return view

    @property
    def pending(self) -> _Block | None:
        """The users, the items and the bounds, as long as nobody has read a score."""
        return self._block if self._block.scores is None else None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(args[0], cls) and (block := args[0].pending) is not None:
            with torch._C.DisableTorchFunctionSubclass():
                if func in _DESCRIPTIONS:
                    return func(*args, **kwargs)
                if func in (Tensor.view, Tensor.reshape):
                    return cls._view(block, func(*args, **kwargs))
                if func is Tensor.__setitem__ and isinstance(args[2], float) and args[2] == -np.inf:
                    return _assign(args[0].as_subclass(Tensor), *args[1:])
        args, kwargs = tree_map_only(cls, cls._worked_out, (args, kwargs))
        return func(*args, **kwargs)

    def _worked_out(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self._block.work_out().view(self.shape)


_DESCRIPTIONS = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim")}
_DESCRIPTIONS |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__}


class _Block:
    """A product of users ``(B, d)`` with a table of items: bounds of the scores, and the scores once worked out."""

    def __init__(self, users: Tensor, table: _Table) -> None:
        self.users, self.table = users, table
        self.bounds = _product(torch.from_numpy(table.turn(users.numpy())), table.turned)
        self.scores: Tensor | None = None

    def work_out(self) -> Tensor:
        """All scores, minus infinity where that was assigned."""
        if self.scores is None:
            self.scores = _product(self.users, self.table.items)
            self.scores[self.bounds == -torch.inf] = -torch.inf
        return self.scores

    def top_items(self, items: Tensor, is_nan: Tensor) -> None:
        """What :func:`_scan` does, with the scores that can matter worked out."""
        n_worked_out = torch.empty(len(items), dtype=torch.int64)
        rows = self.table.rows
        _in_threads(
            lambda *share: _scan_bounds(*share, rows), self.bounds, self.users.contiguous(), items, is_nan, n_worked_out
        )
        self.table.pays = int(n_worked_out.sum()) < self.bounds.numel() / 16


def _product(users: Tensor, items: Tensor) -> Tensor:
    """``users @ items``, by numpy; each thread makes a share of the columns with a BLAS of its own.

    For users (B, d) and items (d, n), n in the tens of thousands, torch's oneMKL picks a kernel on AMD processors that
    takes twice the time of numpy's OpenBLAS.
    """
    scores = torch.empty(users.shape[0], items.shape[1])
    left = users.detach().numpy()
    with _blas().limit(limits=1, user_api="blas"):
        _in_threads(lambda columns, out: np.matmul(left, columns.T, out=out.T), items.T, scores.T)
    return scores


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    # These sleep when they have nothing to do; a second pool of OpenMP's would spin beside torch's.
    return ThreadPoolExecutor(thread_name_prefix="ranking")


if hasattr(os, "register_at_fork"):  # a fork has the pool, but none of its threads, and would wait for them
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _in_threads(function: Callable[..., Any], *tensors: Tensor) -> None:
    """Call the function once for each of torch's threads, with that share of the tensors' rows, as arrays."""
    shares = [tensor.detach().tensor_split(torch.get_num_threads()) for tensor in tensors]
    list(_threads().map(lambda *share: function(*(rows.numpy() for rows in share)), *shares))


# --------------------------------------------------------------------------------------------------------------- top-k


def top_items(scores: Tensor, k: int) -> Tensor:
    """The k best scored columns of each row, best first: ``torch.topk(scores, k)[1]``, faster.

    Equal scores fall as they do there, so that metrics agree with RecBole's for models that score many items alike
    too.  On the CPU, with n >= 64 k, torch calls C++'s ``std::partial_sort``; its heap is repeated here step by step
    (libstdc++'s: where torch is built with another C++ library, ties may differ), and what lies between the steps is
    vectorised.  Everywhere else torch itself is asked.

    Args:
        scores: ``(B, n)``, floating point.
        k: at most n.

    Returns:
        Columns, ``(B, k)``, int64, on the device of the scores.

    Raises:
        UserError: for scores that are NaN, which torch would rank first.
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64) and 64 * k <= scores.shape[1]:
        items = torch.empty(len(scores), k, dtype=torch.int64)
        is_nan = torch.zeros(len(scores), dtype=torch.bool)
        if isinstance(scores, ProductScores) and (block := scores.pending) is not None:
            block.top_items(items, is_nan)
        else:
            _in_threads(_scan, scores.contiguous(), items, is_nan)
    else:
        values, items = torch.topk(scores, k)
        is_nan = values[:, 0].isnan()
    if is_nan.any():
        raise UserError(
            f"evaluation: {int(is_nan.sum())} of {len(scores)} users have scores that are not a number; the model has "
            "diverged, a lower learning_rate may help"
        )
    return items


_STRIDE = 128
"""Scores that are compared with the worst of the best at once."""


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _scan(scores: Any, items: Any, is_nan: Any) -> None:
    """Fill in the best columns of each row of scores, best first, and whether the row holds a NaN."""
    k = items.shape[1]
    for r in range(len(scores)):
        row, item, best = scores[r], items[r], scores[r, :k].copy()
        is_nan[r] = np.isnan(best).any()
        _make_heap(best, item)
        for start in range(k, len(row), _STRIDE):
            ahead = row[start : start + _STRIDE]
            if _any_above(ahead, best[0]):
                for i in range(len(ahead)):
                    if ahead[i] > best[0]:
                        _sift(best, item, 0, k, ahead[i], start + i)
                    elif np.isnan(ahead[i]):
                        is_nan[r] = True
        _sort_heap(best, item)


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _scan_bounds(bounds: Any, users: Any, items: Any, is_nan: Any, n_worked_out: Any, rows: Any) -> None:
    """The same where rows hold upper bounds of the scores, or minus infinity; and how many scores were worked out."""
    k = items.shape[1]
    best = np.empty(k, dtype=bounds.dtype)
    for r in range(len(bounds)):
        row, item, user = bounds[r], items[r], users[r]
        for i in range(k):
            best[i] = row[i] if row[i] == -np.inf else _dot(user, rows[i])
        is_nan[r] = np.isnan(best).any()
        n_worked_out[r] = k
        _make_heap(best, item)
        for start in range(k, len(row), _STRIDE):
            ahead = row[start : start + _STRIDE]
            if _any_above(ahead, best[0]):
                for i in range(len(ahead)):
                    if ahead[i] > best[0]:
                        n_worked_out[r] += 1
                        score = _dot(user, rows[start + i])
                        if score > best[0]:
                            _sift(best, item, 0, k, score, start + i)
                    elif np.isnan(ahead[i]):
                        is_nan[r] = True
        _sort_heap(best, item)


@njit(cache=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _dot(left: Any, right: Any) -> Any:
    total = np.float32(0)
    for i in range(len(left)):
        total += left[i] * right[i]
    return total


@njit(cache=True)  # type: ignore[untyped-decorator]
def _any_above(scores: Any, threshold: Any) -> Any:
    """Whether a score is above the threshold, or NaN."""
    # Of bytes LLVM makes vector instructions; of booleans and wider numbers it does not, or slower ones.
    above = np.uint8(0)
    for i in range(len(scores)):
        above |= np.uint8(not (scores[i] <= threshold))
    return above != 0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _make_heap(score: Any, item: Any) -> None:
    """Number the first columns and put them into a heap, worst on top: libstdc++'s ``make_heap``."""
    for i in range(len(item)):
        item[i] = i
    for parent in range((len(item) - 2) // 2, -1, -1):
        _sift(score, item, parent, len(item), score[parent], item[parent])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sort_heap(score: Any, item: Any) -> None:
    """Best first: libstdc++'s ``sort_heap``."""
    for last in range(len(item) - 1, 0, -1):
        worst, column = score[0], item[0]
        _sift(score, item, 0, last, score[last], item[last])
        score[last], item[last] = worst, column


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sift(score: Any, item: Any, hole: int, size: int, new_score: Any, new_item: int) -> None:
    """Put an entry in the place of another into a heap: the moves of libstdc++'s ``__adjust_heap``."""
    top = child = hole
    while child < (size - 1) // 2:  # sink the hole to the bottom, along the worse children
        child = 2 * (child + 1)
        if score[child] > score[child - 1]:
            child -= 1
        score[hole], item[hole] = score[child], item[child]
        hole = child
    if size % 2 == 0 and child == (size - 2) // 2:
        child = 2 * child + 1
        score[hole], item[hole] = score[child], item[child]
        hole = child
    while hole > top and score[(hole - 1) // 2] > new_score:  # and let the entry rise from there
        score[hole], item[hole] = score[(hole - 1) // 2], item[(hole - 1) // 2]
        hole = (hole - 1) // 2
    score[hole], item[hole] = new_score, new_item
