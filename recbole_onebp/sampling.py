"""Negative sampling from the exact distribution, without rejection, by a counter-based generator.

The items without an interaction of the user are numbered from 0.  A sample is one uniform random number below their
count (or below their total weight), and a binary search in the user's sorted items finds the item with that number.  So
no sample is rejected, and users without any negative are known in advance.

Every random number is a function of a seed, an epoch, a pair and a slot (SplitMix64: Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014).  So samples do not depend on threads or on the order of calls,
and the CPU and the GPU sample the same items.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from numba import prange
from torch import Tensor
from torch.utils.data import get_worker_info

from recbole_onebp.util.compiled import OPTIONS, njit
from recbole_onebp.util.errors import UserError

__all__ = ["DeviceSampler", "Distribution", "NegativeSampler", "coins", "csr"]

Distribution = Literal["uniform", "popularity"]
IntArray = npt.NDArray[Any]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TO_UNIT = 1.0 / (1 << 53)
_TOTAL_WEIGHT = 1 << 40
"""Approximate sum of the weights.  They are integers, so that their sums are exact; a sample has 53 random bits."""
_SHARED_STREAM, _COIN_STREAM = 1, 2


def csr(user: IntArray, item: IntArray, n_users: int, n_items: int) -> sp.csr_matrix:
    """The distinct pairs as a boolean matrix ``(n_users, n_items)`` with sorted rows; 5 bytes per pair."""
    matrix = sp.csr_matrix((np.ones(len(user), dtype=bool), (user, item)), shape=(n_users, n_items))
    matrix.sort_indices()
    return matrix


class NegativeSampler:
    """Samples items that a user has not interacted with.

    Args:
        user: internal user ids of the interactions, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``, none of them 0.
        n_users: number of users, the padding row included.
        n_items: number of items, the padding row included.
        seed: seed of the generator.
        distribution: ``uniform``, or ``popularity``: proportional to an item's count to the power of ``alpha``.
        alpha: used with ``popularity``.
        counts: occurrences of each item, shape ``(n_items,)``; by default counted in ``item``.
        per_user: false if only :meth:`draw_shared` is used, which needs no free item of each user.

    Raises:
        UserError: if there are no items, or a user has interacted with all of them.

    Example:
        >>> sampler = NegativeSampler(np.array([1, 1]), np.array([1, 2]), n_users=2, n_items=4, seed=0)
        >>> sampler.sample(np.array([1]), n=2)
        array([[3, 3]])
    """

    n_users: int
    n_items: int
    seed: int
    indptr: npt.NDArray[np.int64]
    before: npt.NDArray[np.float64] | None
    items: npt.NDArray[np.int32] | None
    gap: npt.NDArray[Any]
    free: npt.NDArray[Any]

    def __init__(
        self,
        user: IntArray,
        item: IntArray,
        n_users: int,
        n_items: int,
        seed: int,
        distribution: Distribution = "uniform",
        alpha: float = 1.0,
        counts: IntArray | None = None,
        per_user: bool = True,
    ) -> None:
        if len(item) and not 1 <= item.min() <= item.max() < n_items:
            raise UserError(f"items must lie in 1..{n_items - 1}, got {item.min()}..{item.max()}")
        if n_items < 2:
            raise UserError(f"there is no item to sample: n_items is {n_items}, the padding row included")
        self.n_users, self.n_items, self.seed = n_users, n_items, seed
        interacted = csr(user, item, n_users, n_items)
        self.indptr, items = interacted.indptr.astype(np.int64), interacted.indices
        rank = np.arange(len(items), dtype=np.int64) - np.repeat(self.indptr[:-1], np.diff(self.indptr))
        if distribution == "uniform":
            self.before = self.items = None
            # For each item of a user: the number of items before it that the user has not interacted with.
            self.gap = (items - 1 - rank).astype(np.int32)
            self.free = n_items - 1 - np.diff(self.indptr)
        else:
            weight = _weights(np.bincount(item, minlength=n_items) if counts is None else counts, alpha)
            self.before = np.concatenate([[0], np.cumsum(weight)])  # (n_items + 1,)
            self.items = items.astype(np.int32)
            until = np.concatenate([[0], np.cumsum(weight[items])])
            self.gap = self.before[items] - (until[:-1] - np.repeat(until[self.indptr[:-1]], np.diff(self.indptr)))
            self.free = self.before[-1] - (until[self.indptr[1:]] - until[self.indptr[:-1]])
        self._calls = 0
        exhausted = np.flatnonzero(self.free <= 0)
        if per_user and len(exhausted):
            raise UserError(
                f"user {exhausted[0]} has interacted with all {n_items - 1} items that can be sampled "
                f"({distribution}), so it has no negatives; remove such users"
            )

    def sample(self, user: IntArray, n: int) -> npt.NDArray[np.int64]:
        """Sample ``n`` items for each user, with replacement; each call gives new samples.

        Args:
            user: internal ids, shape ``(B,)``.
            n: number of items per user.

        Returns:
            Item ids, shape ``(B, n)``: never 0, and never an item of the user.

        Raises:
            UserError: for a user id out of range.
        """
        user = np.ascontiguousarray(user, dtype=np.int64)
        if len(user) and not 0 <= user.min() <= user.max() < self.n_users:
            raise UserError(f"users must lie in 0..{self.n_users - 1}, got {user.min()}..{user.max()}")
        self._calls += 1
        drawn = self.draw(user, n, np.arange(len(user)), -self._calls)  # no epoch has a negative number
        return drawn.astype(np.int64)

    def draw(self, user: IntArray, n: int, pair: IntArray, epoch: int) -> npt.NDArray[np.int32]:
        """Sample ``n`` items for each user; the same arguments always give the same items.

        Args:
            user: internal ids, shape ``(B,)``; not checked.
            n: number of items per user.
            pair: index of each pair among all pairs, shape ``(B,)``.
            epoch: any integer.

        Returns:
            Item ids, shape ``(B, n)``.
        """
        out = np.empty((len(user), n), dtype=np.int32)
        key = np.uint64(_key(self.seed, epoch))
        if len(user) == 0 or n == 0:
            return out
        # A worker of a DataLoader may be a fork of a process that has used OpenMP threads; OpenMP would then abort it.
        threads = get_worker_info() is None
        if self.before is None:
            draw = _draw_uniform_in_threads if threads else _draw_uniform
            draw(user, pair, key, self.indptr, self.gap, self.free, out)
        else:
            draw = _draw_weighted_in_threads if threads else _draw_weighted
            draw(user, pair, key, self.indptr, self.gap, self.free, self.items, self.before, out)
        return out

    def draw_shared(self, n: int, step: int, epoch: int) -> npt.NDArray[np.int32]:
        """Sample ``n`` items for a whole step, regardless of the users' histories; with replacement.

        Returns:
            Item ids, shape ``(n,)``, never 0.
        """
        number = _numbers(self.seed, epoch, _SHARED_STREAM, step, n)
        if self.before is None:
            return (number * (self.n_items - 1)).astype(np.int32) + 1
        at = (number * self.before[-1]).astype(np.int64)
        return (np.searchsorted(self.before, at, side="right") - 1).astype(np.int32)

    def log_probability(self) -> npt.NDArray[np.float32]:
        """Log probability of each item in :meth:`draw_shared`, shape ``(n_items,)``; -inf for items never sampled."""
        if self.before is None:
            share = np.full(self.n_items, 1 / (self.n_items - 1))
            share[0] = 0
        else:
            share = np.diff(self.before) / self.before[-1]
        with np.errstate(divide="ignore"):
            return np.log(share).astype(np.float32)


def _weights(counts: IntArray, alpha: float) -> npt.NDArray[np.int64]:
    """Integers in proportion to ``counts ** alpha``; 0 for items that do not occur."""
    weight = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** alpha, 0.0)
    weight[0] = 0
    if not weight.any():
        raise UserError("there is no item to sample by popularity: no item occurs")
    scaled = np.rint(weight / weight.sum() * _TOTAL_WEIGHT).astype(np.int64)
    return np.where(weight > 0, np.maximum(scaled, 1), 0)


# ----------------------------------------------------------------------------------------------------------- generator


def _mix(z: int) -> int:
    """The finaliser of SplitMix64, on Python integers."""
    z &= (1 << 64) - 1
    z = (z ^ (z >> 30)) * _MIX_1 & (1 << 64) - 1
    z = (z ^ (z >> 27)) * _MIX_2 & (1 << 64) - 1
    return z ^ (z >> 31)


def _key(seed: int, epoch: int, stream: int = 0) -> int:
    return _mix(_mix(_mix(seed) + stream) + epoch * _GOLDEN)


def _numbers(seed: int, epoch: int, stream: int, step: int, n: int) -> npt.NDArray[np.float64]:
    """Uniform numbers of a step in [0, 1), ``(n,)``."""
    number = np.empty(n)
    _fill(np.uint64(_mix(_key(seed, epoch, stream) + step * _GOLDEN)), number)
    return number


def coins(n: int, share: float, seed: int, epoch: int, step: int) -> npt.NDArray[np.bool_]:
    """``n`` coins of a step, each true with probability ``share``; the same arguments give the same coins."""
    return _numbers(seed, epoch, _COIN_STREAM, step, n) < share


_USERS_PER_TASK = 32
_U11, _U27, _U30, _U31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_UGOLDEN, _UMIX_1, _UMIX_2 = np.uint64(_GOLDEN), np.uint64(_MIX_1), np.uint64(_MIX_2)


@njit(inline="always", **OPTIONS)
def _mix_compiled(z):  # type: ignore[no-untyped-def]
    z = (z ^ (z >> _U30)) * _UMIX_1
    z = (z ^ (z >> _U27)) * _UMIX_2
    return z ^ (z >> _U31)


@njit(**OPTIONS)
def _fill(start, number):  # type: ignore[no-untyped-def]
    """Fill in uniform numbers in [0, 1).  Their product with an integer below 2^52 is below it, also after rounding."""
    for slot in range(len(number)):
        z = _mix_compiled(start + np.uint64(slot + 1) * _UGOLDEN)
        number[slot] = np.float64(np.int64(z >> _U11)) * _TO_UNIT


@njit(inline="always", **OPTIONS)
def _numbers_below(limit, start, number):  # type: ignore[no-untyped-def]
    scale = _TO_UNIT * np.float64(limit)
    for slot in range(len(number)):
        z = _mix_compiled(start + np.uint64(slot + 1) * _UGOLDEN)
        number[slot] = np.int64(np.float64(np.int64(z >> _U11)) * scale)


@njit(inline="always", **OPTIONS)
def _count_up_to(row, number, count):  # type: ignore[no-untyped-def]
    """How many entries of the sorted ``row`` are at most each number.

    All binary searches advance one level at a time, without branches, so that LLVM can vectorise the inner loop.
    """
    for slot in range(len(number)):
        count[slot] = 0
    left = len(row)
    while left > 1:
        half = left >> 1
        for slot in range(len(number)):
            at = count[slot] + half
            count[slot] = at if row[at - 1] <= number[slot] else count[slot]
        left -= half
    if left == 1:
        for slot in range(len(number)):
            count[slot] += np.int64(row[count[slot]] <= number[slot])


@njit(inline="always", **OPTIONS)
def _touch(user, indptr, gap, free):  # type: ignore[no-untyped-def]
    """Prefetch each user's row, so that the loads from memory overlap.  The result is meaningless.

    The caller stores it, so that the compiler does not remove the reads.
    """
    touched = 0
    for b in range(len(user)):
        start, end = indptr[user[b]], indptr[user[b] + 1]
        if end > start:
            touched += gap[start] + gap[(start + end) >> 1] + gap[end - 1] + free[user[b]]
    return touched & 1


@njit(**OPTIONS)
def _draw_uniform(user, pair, key, indptr, gap, free, out):  # type: ignore[no-untyped-def]
    number, count = np.empty(out.shape[1], dtype=np.int64), np.empty(out.shape[1], dtype=np.int64)
    out[0, 0] = _touch(user, indptr, gap, free)
    for b in range(len(user)):
        _numbers_below(free[user[b]], _mix_compiled(key + np.uint64(pair[b]) * _UGOLDEN), number)
        _count_up_to(gap[indptr[user[b]] : indptr[user[b] + 1]], number, count)
        for slot in range(len(number)):
            out[b, slot] = 1 + number[slot] + count[slot]


@njit(**OPTIONS)
def _draw_weighted(user, pair, key, indptr, gap, free, items, before, out):  # type: ignore[no-untyped-def]
    number, count = np.empty(out.shape[1], dtype=np.int64), np.empty(out.shape[1], dtype=np.int64)
    out[0, 0] = _touch(user, indptr, gap, free)
    for b in range(len(user)):
        first = indptr[user[b]]
        _numbers_below(free[user[b]], _mix_compiled(key + np.uint64(pair[b]) * _UGOLDEN), number)
        _count_up_to(gap[first : indptr[user[b] + 1]], number, count)
        for slot in range(len(number)):
            if count[slot] > 0:  # add the weight of the user's items below
                last = first + count[slot] - 1
                number[slot] += before[items[last] + 1] - gap[last]
        _count_up_to(before, number, count)
        for slot in range(len(number)):
            out[b, slot] = count[slot] - 1


@njit(parallel=True, **OPTIONS)
def _draw_uniform_in_threads(user, pair, key, indptr, gap, free, out):  # type: ignore[no-untyped-def]
    for task in prange((len(user) + _USERS_PER_TASK - 1) // _USERS_PER_TASK):
        a, b = task * _USERS_PER_TASK, min(len(user), (task + 1) * _USERS_PER_TASK)
        _draw_uniform(user[a:b], pair[a:b], key, indptr, gap, free, out[a:b])


@njit(parallel=True, **OPTIONS)
def _draw_weighted_in_threads(  # type: ignore[no-untyped-def]
    user, pair, key, indptr, gap, free, items, before, out
):
    for task in prange((len(user) + _USERS_PER_TASK - 1) // _USERS_PER_TASK):
        a, b = task * _USERS_PER_TASK, min(len(user), (task + 1) * _USERS_PER_TASK)
        _draw_weighted(user[a:b], pair[a:b], key, indptr, gap, free, items, before, out[a:b])


# -------------------------------------------------------------------------------------------------------------- device


class DeviceSampler:
    """:meth:`NegativeSampler.draw` in tensor operations: the same items, on any device, without waiting for it."""

    def __init__(self, sampler: NegativeSampler, device: torch.device) -> None:
        def on_device(array: IntArray) -> Tensor:
            return torch.as_tensor(array, dtype=torch.long).to(device)

        self._seed = sampler.seed
        self._indptr, self._gap, self._free = map(on_device, (sampler.indptr, sampler.gap, sampler.free))
        self._weighted = sampler.before is not None
        if sampler.before is not None and sampler.items is not None:
            self._before, self._items = on_device(sampler.before), on_device(sampler.items)
        # Rounds of the binary search: enough for the user with the most items.
        self._rounds = int(np.diff(sampler.indptr).max(initial=0)).bit_length()

    def draw(self, user: Tensor, n: int, pair: Tensor, epoch: int) -> Tensor:
        """See :meth:`NegativeSampler.draw`; returns ``(B, n)`` int64."""
        start = _mix_tensor(_signed(_key(self._seed, epoch)) + pair * _signed(_GOLDEN))
        slots = torch.arange(1, n + 1, device=user.device) * _signed(_GOLDEN)
        random = _shifted(_mix_tensor(start.unsqueeze(1) + slots), 11)  # (B, n), 53 bits
        at = (random.double() * _TO_UNIT * self._free[user].double().unsqueeze(1)).long()
        low = self._indptr[user].unsqueeze(1).expand_as(at)
        first, high = low, self._indptr[user + 1].unsqueeze(1).expand_as(at)
        for _ in range(self._rounds):  # find the number of the user's items whose gap is at most ``at``
            middle = (low + high) // 2
            go_on = (low < high) & (self._gap[middle.clamp(max=len(self._gap) - 1)] <= at)
            low, high = torch.where(go_on, middle + 1, low), torch.where(go_on, high, middle)
        if not self._weighted:
            return 1 + at + (low - first)
        last = (low - 1).clamp(min=0)
        back = self._before[self._items[last] + 1] - self._gap[last]
        at = torch.where(low > first, at + back, at)
        return torch.searchsorted(self._before, at, right=True) - 1


def _signed(number: int) -> int:
    """The same 64 bits as a signed integer: torch has no unsigned multiplication, but signed products wrap equally."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of the 64 bits."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_2)
    return z ^ _shifted(z, 31)
