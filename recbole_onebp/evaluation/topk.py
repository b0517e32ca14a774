"""The best scored items of a block of users, found without working out most of the scores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from threadpoolctl import ThreadpoolController
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from recbole_onebp.util import simd
from recbole_onebp.util.errors import UserError

__all__ = ["BoundedProducts", "ProductScores", "top_items"]

_Floats = npt.NDArray[np.float32]


# -------------------------------------------------------------------------------------------------------------- scores


class BoundedProducts(TorchFunctionMode):
    """While active, a wide product of users and items on the CPU is bounded first, and worked out where it must be.

    Most models score by a matrix product of users (B, d) and items (d, n), and of the n scores a metric wants the k
    best.  Rounded to 8 bits the product takes a quarter of the time on processors that have instructions for it, and
    with u', i' the rounded vectors, by Cauchy and Schwarz,

        <u, i>  <=  <u', i'> + |u - u'| |i| + |u'| |i - i'|,

    which for most items of most models is below the worst of the best.  So a table of items that comes again is
    rounded, products with it are :class:`ProductScores`, and :func:`top_items` works out the few scores that can
    matter.  Activate it for one evaluation: a table that is trained meanwhile would be taken for the old one.

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
        table = self._table
        return ProductScores.of(users, table) if table.pays and _is_of_common_size(users) else _product(users, items)


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
    """Items of a product, and the same rounded, whose products bound a score.

    Attributes:
        items: ``(d, n)``, as in the product.
        rows: the same, an item a row.
        tiles: the same, rounded to int8, in parts of columns: the part of the columns, ``(d, tile)``, and what to
            multiply each column by, ``(tile,)``.
        error, length: ``(n,)``, of an item: the distance of the rounded from the vector, and the vector's length.
        pays: whether bounds are quick, and have spared most scores so far.
    """

    TILE = 2048
    """Few enough for the bounds of a thread's users to stay in the second-level cache; ``k`` is at most as many."""

    def __init__(self, items: Tensor) -> None:
        self.items = items.detach()
        rows = self.items.T.contiguous()
        self.rows: _Floats = rows.numpy()
        rounded, scale, self.error = _rounded(rows)
        self.length = torch.linalg.vector_norm(rows, dim=1)
        parts = (slice(start, start + self.TILE) for start in range(0, len(rows), self.TILE))
        self.tiles = [(part, rounded[part].T.contiguous(), scale[part].numpy()) for part in parts]
        self.pays = len(items) >= 16 and _multiplies_int8() and _is_of_common_size(rows)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors ``(n, d)`` as int8, what to multiply each by ``(n,)``, and its distance then from the vector ``(n,)``."""
    largest = rows.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, 1.0).unsqueeze(1)
    rounded = (rows / scale).round()
    return rounded.to(torch.int8), scale.squeeze(1), torch.linalg.vector_norm(rows - rounded * scale, dim=1)


def _is_of_common_size(rows: Tensor) -> bool:
    """Whether products of these vectors neither overflow nor vanish, nor are NaN."""
    largest = rows.abs().amax(dim=1)
    return bool(((largest == 0) | ((largest > 1e-12) & (largest < 1e12))).all())


@lru_cache(maxsize=1)
def _multiplies_int8() -> bool:
    """Whether the processor has instructions for it, without which torch is slow; a torch that can't tell says no."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


class ProductScores(Tensor):
    """Scores of a block of users and all items, of which none is worked out until somebody reads one.

    A view, and the hiding of items (the assignment of minus infinity), leave it at that.
    """

    _block: _Block

    @classmethod
    def of(cls, users: Tensor, table: _Table) -> ProductScores:
        """Scores of users ``(B, d)``, shape ``(B, n)``."""
        block = _Block(users.detach().contiguous(), table)
        return cls._view(block, torch.empty(1).expand(block.shape))  # this shape, of no more memory than a number's

    @classmethod
    def _view(cls, block: _Block, shaped: Tensor) -> ProductScores:
        view = shaped.as_subclass(cls)
        view._block = block
        return view

    @property
    def pending(self) -> _Block | None:
        """The users and the items, as long as nobody has read a score."""
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
                if func is Tensor.__setitem__ and args[0].shape == block.shape and block.hide(*args[1:]):
                    return None
        args, kwargs = tree_map_only(cls, cls._worked_out, (args, kwargs))
        return func(*args, **kwargs)

    def _worked_out(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self._block.work_out().view(self.shape)


_DESCRIPTIONS = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "layout", "ndim")}
_DESCRIPTIONS |= {Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__}


class _Block:
    """A product of users ``(B, d)`` with a table of items.

    Attributes:
        scores: ``(B, n)``, once they have been worked out.
    """

    def __init__(self, users: Tensor, table: _Table) -> None:
        self.users, self.table = users, table
        self.shape = torch.Size((len(users), table.items.shape[1]))
        self.scores: Tensor | None = None
        self._hidden: list[tuple[Tensor, Tensor]] = []

    def hide(self, index: Any, value: Any) -> bool:
        """Take note of an assignment, if it is that of minus infinity to a column or to pairs of rows and columns."""
        if not isinstance(value, float) or value != -np.inf or not isinstance(index, tuple) or len(index) != 2:
            return False
        row, column = index
        if row == slice(None) and isinstance(column, int):
            row = torch.arange(self.shape[0])
            column = torch.full_like(row, column)
        if not all(isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.ndim == 1 for ids in (row, column)):
            return False
        self._hidden.append((row, column))
        return True

    def work_out(self) -> Tensor:
        """All scores, minus infinity where that was assigned."""
        if self.scores is None:
            self.scores = _product(self.users, self.table.items)
            for pairs in self._hidden:
                self.scores[pairs] = -torch.inf
        return self.scores

    def top_items(self, items: Tensor, is_nan: Tensor) -> Iterable[object]:
        """Start what :func:`_scan` does, with the scores that can matter worked out; it is done at the end of these."""
        n_users, n_items = self.shape
        hidden = [row.numpy() % n_users * n_items + column.numpy() % n_items for row, column in self._hidden]
        keys = np.sort(np.concatenate((np.empty(0, dtype=np.int64), *hidden)))
        start = np.searchsorted(keys, np.arange(n_users + 1) * n_items)
        span = torch.from_numpy(np.column_stack((start[:-1], start[1:])))
        return _in_threads(partial(self._top_items, keys % n_items), span, self.users, items, is_nan)

    def _top_items(self, hidden: Any, span: Tensor, users: Tensor, items: Tensor, is_nan: Tensor) -> None:
        """The same for some rows, in one thread: tile by tile, the best so far in a heap a row."""
        table = self.table
        rounded, scale, error = _rounded(users)
        length = torch.linalg.vector_norm(users, dim=1) + error  # at least that of the rounded vector
        # Of |i|, what bounds the other two terms together for all these users; and what is lost in sums of float32s.
        most = float((error / length).nan_to_num().max()) + 2 * (users.shape[1] + 4) * np.finfo(np.float32).eps
        slack = (table.error + most * table.length).numpy()
        best = torch.empty(items.shape)
        state = [tensor.numpy() for tensor in (span, users, scale, length / scale, best, items, is_nan)]
        memory = torch.empty(len(users) * table.TILE, dtype=torch.int32)  # once: what a thread frees, glibc gives back
        widths = {len(column_scale) for _, _, column_scale in table.tiles}
        products = {width: memory[: len(users) * width].view(-1, width) for width in widths}
        arrays = {width: product.numpy() for width, product in products.items()}
        n_worked_out = 0
        for part, columns, column_scale in table.tiles:  # a call of torch's or numpy's more is another wait for Python
            width = len(column_scale)
            torch._int_mm(rounded, columns, out=products[width])
            bounds = arrays[width], column_scale, slack[part]
            n_worked_out += _scan_bounds(*bounds, part.start, table.rows, hidden, *state)
        _sort_heaps(best.numpy(), items.numpy())
        if n_worked_out > users.shape[0] * self.shape[1] / 16:
            table.pays = False


def _product(users: Tensor, items: Tensor) -> Tensor:
    """``users @ items``, by numpy; each thread makes a share of the columns with a BLAS of its own.

    For users (B, d) and items (d, n), n in the tens of thousands, torch's oneMKL picks a kernel on AMD processors that
    takes twice the time of numpy's OpenBLAS.
    """
    scores = torch.empty(users.shape[0], items.shape[1])
    left = users.detach().numpy()
    with _blas().limit(limits=1, user_api="blas"):
        list(
            _in_threads(
                lambda some, out: np.matmul(left, some.numpy().T, out=out.numpy().T), items.detach().T, scores.T
            )
        )
    return scores


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


@lru_cache(maxsize=1)
def _threads(number: int) -> ThreadPoolExecutor:
    # These sleep when they have nothing to do; a pool of OpenMP's would spin beside them.
    return ThreadPoolExecutor(number, thread_name_prefix="ranking", initializer=_work_alone)


def _work_alone() -> None:
    """Let what torch does in this thread be done by this thread."""
    torch.get_num_threads()  # has torch set its number for the thread: not later, over ours
    ThreadpoolController().limit(limits=1, user_api="openmp")


if hasattr(os, "register_at_fork"):  # a fork has the pool, but none of its threads, and would wait for them
    os.register_at_fork(after_in_child=_threads.cache_clear)


def _in_threads(function: Callable[..., Any], *tensors: Tensor) -> Iterable[object]:
    """Call the function once for each of torch's threads, with that share of the tensors' rows; done at their end."""
    n_threads = torch.get_num_threads()
    n_shares = max(1, min(n_threads, len(tensors[0])))
    return _threads(n_threads).map(function, *(tensor.tensor_split(n_shares) for tensor in tensors))


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
    return top_items_later(scores, k)()


def top_items_later(scores: Tensor, k: int) -> Callable[[], Tensor]:
    """Start :func:`top_items`; the call of the result waits for it, if scores are :class:`ProductScores`."""
    n_users, n_items = scores.shape
    started: Iterable[object] = ()
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64) and 64 * k <= n_items:
        items = torch.empty(n_users, k, dtype=torch.int64)
        is_nan = torch.zeros(n_users, dtype=torch.bool)
        if isinstance(scores, ProductScores) and (block := scores.pending) is not None and k <= _Table.TILE:
            started = block.top_items(items, is_nan)
        else:
            rows = (scores.detach().contiguous(), items, is_nan)
            list(_in_threads(lambda *share: _scan(*(part.numpy() for part in share)), *rows))
    else:
        values, items = torch.topk(scores, k)
        is_nan = values[:, 0].isnan()

    def finish() -> Tensor:
        list(started)
        if is_nan.any():
            raise UserError(
                f"evaluation: {int(is_nan.sum())} of {n_users} users have scores that are not a number; the model has "
                "diverged, a lower learning_rate may help"
            )
        return items

    return finish


_STRIDE = 64
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
def _scan_bounds(
    products: Any,
    scale: Any,
    slack: Any,
    first: int,
    table: Any,
    hidden: Any,
    span: Any,
    users: Any,
    user_scale: Any,
    user_length: Any,
    best: Any,
    items: Any,
    is_nan: Any,
) -> Any:
    """Put the best columns of a tile into the heaps of its rows, and return how many scores were worked out.

    The score of row r and column i of the tile is at most
    ``user_scale[r] * (products[r, i] * scale[i] + user_length[r] * slack[i])``, products (B, tile) being int32; it is
    worked out from users (B, d) and the table (n, d), whose row ``first`` is the tile's first column.  At 0 the heaps
    are made: the best scores and items, (B, k), and whether one of the scores was NaN.  The items that are hidden from
    row r are ``hidden[span[r, 0] : span[r, 1]]``, ascending.
    """
    n_worked_out = 0
    k = items.shape[1]
    for r in range(len(products)):
        row, user, score, item, length = products[r], users[r], best[r], items[r], user_length[r]
        hide = hidden[span[r, 0] : span[r, 1]]
        start = 0
        if first == 0:
            start = k
            for i in range(k):
                score[i] = -np.inf if _is_among(i, hide) else simd.dot(user, table[i])
            is_nan[r] = np.isnan(score).any()
            _make_heap(score, item)
        for stride in range(start, len(row), _STRIDE):
            here = slice(stride, stride + _STRIDE)
            ahead, by, more = row[here], scale[here], slack[here]
            if _any_bound_above(ahead, by, more, user_scale[r], length, score[0]):
                for i in range(len(ahead)):
                    if _bound(ahead[i], by[i], more[i], user_scale[r], length) > score[0]:
                        n_worked_out += 1
                        column = first + stride + i
                        new = simd.dot(user, table[column])
                        if new > score[0] and not _is_among(column, hide):
                            _sift(score, item, 0, k, new, column)
    return n_worked_out


@njit(cache=True)  # type: ignore[untyped-decorator]
def _is_among(column: Any, columns: Any) -> Any:
    place = np.searchsorted(columns, column)
    return place < len(columns) and columns[place] == column


@njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _sort_heaps(best: Any, items: Any) -> None:
    for r in range(len(best)):
        _sort_heap(best[r], items[r])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _any_above(scores: Any, threshold: Any) -> Any:
    """Whether a score is above the threshold, or NaN."""
    # Of bytes LLVM makes vector instructions; of booleans and wider numbers it does not, or slower ones.
    above = np.uint8(0)
    for i in range(len(scores)):
        above |= np.uint8(not (scores[i] <= threshold))
    return above != 0


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _bound(product: Any, scale: Any, slack: Any, user_scale: Any, length: Any) -> Any:
    """What a score is at most, see :func:`_scan_bounds`."""
    return user_scale * (np.float32(product) * scale + length * slack)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _any_bound_above(product: Any, scale: Any, slack: Any, user_scale: Any, length: Any, threshold: Any) -> Any:
    """:func:`_any_above` of bounds, which are never kept."""
    above = np.uint8(0)
    for i in range(len(product)):
        above |= np.uint8(not (_bound(product[i], scale[i], slack[i], user_scale, length) <= threshold))
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
