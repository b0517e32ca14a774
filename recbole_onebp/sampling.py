"""Negative items, drawn exactly, without rejection, from a counter-based generator.

The items that a user has not taken are numbered from 0; a draw is one uniform number below their count (or below their
total weight), and a binary search in the user's sorted items tells which item has that number.  So the cost does not
depend on how much a user has taken, nothing is ever drawn twice, and what cannot be drawn is known beforehand.

Every number is a function of a seed, an epoch, a pair and a slot (SplitMix64: Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014).  A result therefore depends neither on threads nor on the order of calls,
and the CPU and the GPU draw the same items.
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

from recbole_onebp.util.compiled import njit
from recbole_onebp.util.errors import UserError

__all__ = ["DeviceSampler", "Distribution", "NegativeSampler", "csr"]

Distribution = Literal["uniform", "popularity"]
IntArray = npt.NDArray[Any]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TO_UNIT = 1.0 / (1 << 53)
_TOTAL_WEIGHT = 1 << 40
"""Weights are integers that sum to about this, so that sums of them are exact; a draw has 53 random bits."""
_SHARED_STREAM = 1


def csr(user: IntArray, item: IntArray, n_users: int, n_items: int) -> sp.csr_matrix:
    """The pairs as a boolean matrix ``(n_users, n_items)``: a pair once, items sorted in each row; 5 bytes a pair."""
    matrix = sp.csr_matrix((np.ones(len(user), dtype=bool), (user, item)), shape=(n_users, n_items))
    matrix.sort_indices()
    return matrix


class NegativeSampler:
    """Draws items that a user has not taken.

    Args:
        user: internal user ids of the taken pairs, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``, none of them 0.
        n_users: number of users, the padding row included.
        n_items: number of items, the padding row included.
        seed: of the generator.
        distribution: ``uniform``, or ``popularity``: an item's count to the power of ``alpha``.
        alpha: used with ``popularity``.
        counts: how often each item occurs, shape ``(n_items,)``; by default counted in ``item``.

    Raises:
        UserError: if there is nothing to draw from, at all or for one of the users.
    """

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
    ) -> None:
        if len(item) and not 1 <= item.min() <= item.max() < n_items:
            raise UserError(f"items must lie in 1..{n_items - 1}, got {item.min()}..{item.max()}")
        if n_items < 2:
            raise UserError(f"there is no item to draw: n_items is {n_items}, the padding row included")
        self.n_users, self.n_items, self.seed = n_users, n_items, seed
        taken = csr(user, item, n_users, n_items)
        self.indptr, items = taken.indptr.astype(np.int64), taken.indices
        rank = np.arange(len(items), dtype=np.int64) - np.repeat(self.indptr[:-1], np.diff(self.indptr))
        if distribution == "uniform":
            self.before = self.taken = None
            # How many items that the user has not taken come before each that it has.
            self.gap = (items - 1 - rank).astype(np.int32)
            self.free = n_items - 1 - np.diff(self.indptr)
        else:
            weight = _weights(np.bincount(item, minlength=n_items) if counts is None else counts, alpha)
            self.before = np.concatenate([[0], np.cumsum(weight)])  # (n_items + 1,)
            self.taken = items.astype(np.int32)
            until = np.concatenate([[0], np.cumsum(weight[items])])
            self.gap = self.before[items] - (until[:-1] - np.repeat(until[self.indptr[:-1]], np.diff(self.indptr)))
            self.free = self.before[-1] - (until[self.indptr[1:]] - until[self.indptr[:-1]])
        self._calls = 0
        exhausted = np.flatnonzero(self.free <= 0)
        if len(exhausted):
            raise UserError(
                f"user {exhausted[0]} has taken all {n_items - 1} items that could be drawn ({distribution}): "
                "there is no negative for it; leave such users out"
            )

    def sample(self, user: IntArray, n: int) -> npt.NDArray[np.int64]:
        """Draw ``n`` items for each user, other ones at each call.

        Args:
            user: internal ids, shape ``(B,)``.
            n: how many for each.

        Returns:
            Item ids, shape ``(B, n)``: never 0, never one that the user has taken; with replacement.

        Raises:
            UserError: for a user id out of range.
        """
        user = np.ascontiguousarray(user, dtype=np.int64)
        if len(user) and not 0 <= user.min() <= user.max() < self.n_users:
            raise UserError(f"users must lie in 0..{self.n_users - 1}, got {user.min()}..{user.max()}")
        self._calls += 1
        drawn = self.draw(user, n, np.arange(len(user)), -self._calls)  # epochs count up from 0: these are apart
        return drawn.astype(np.int64)

    def draw(self, user: IntArray, n: int, pair: IntArray, epoch: int) -> npt.NDArray[np.int32]:
        """Draw ``n`` items for each user: those of this epoch and these pairs, whenever and wherever it is asked.

        Args:
            user: internal ids, shape ``(B,)``; not checked.
            n: how many for each.
            pair: the number of each pair among all, shape ``(B,)``.
            epoch: any integer.

        Returns:
            Item ids, shape ``(B, n)``.
        """
        out = np.empty((len(user), n), dtype=np.int32)
        key = np.uint64(_key(self.seed, epoch))
        if len(user) == 0 or n == 0:
            return out
        # A DataLoader's worker is a fork of a process that may have run OpenMP's threads, which would end it.
        threads = get_worker_info() is None
        if self.before is None:
            draw = _draw_uniform_in_threads if threads else _draw_uniform
            draw(user, pair, key, self.indptr, self.gap, self.free, out)
        else:
            draw = _draw_weighted_in_threads if threads else _draw_weighted
            draw(user, pair, key, self.indptr, self.gap, self.free, self.taken, self.before, out)
        return out

    def draw_shared(self, n: int, step: int, epoch: int) -> npt.NDArray[np.int32]:
        """Draw ``n`` items for a whole step, whoever took them; with replacement.

        Returns:
            Item ids, shape ``(n,)``, never 0.
        """
        start = _mix(_key(self.seed, epoch, _SHARED_STREAM) + step * _GOLDEN)
        number = _unit(_mix_array(np.uint64(start) + _slots(n)))
        if self.before is None:
            return (number * (self.n_items - 1)).astype(np.int32) + 1
        at = (number * self.before[-1]).astype(np.int64)
        return (np.searchsorted(self.before, at, side="right") - 1).astype(np.int32)

    def log_probability(self) -> npt.NDArray[np.float32]:
        """Natural logarithm of each item's share in :meth:`draw_shared`, shape ``(n_items,)``; -inf if never drawn."""
        if self.before is None:
            share = np.full(self.n_items, 1 / (self.n_items - 1))
            share[0] = 0
        else:
            share = np.diff(self.before) / self.before[-1]
        with np.errstate(divide="ignore"):
            return np.log(share).astype(np.float32)


def _weights(counts: IntArray, alpha: float) -> npt.NDArray[np.int64]:
    """Integers in proportion to ``counts ** alpha``; 0 for what does not occur."""
    weight = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** alpha, 0.0)
    weight[0] = 0
    if not weight.any():
        raise UserError("there is no item to draw by popularity: none occurs")
    scaled = np.rint(weight / weight.sum() * _TOTAL_WEIGHT).astype(np.int64)
    return np.where(weight > 0, np.maximum(scaled, 1), 0)


# ----------------------------------------------------------------------------------------------------------- generator


def _mix(z: int) -> int:
    """SplitMix64's finaliser, on Python integers."""
    z &= (1 << 64) - 1
    z = (z ^ (z >> 30)) * _MIX_1 & (1 << 64) - 1
    z = (z ^ (z >> 27)) * _MIX_2 & (1 << 64) - 1
    return z ^ (z >> 31)


def _key(seed: int, epoch: int, stream: int = 0) -> int:
    return _mix(_mix(_mix(seed) + stream) + epoch * _GOLDEN)


def _slots(n: int) -> npt.NDArray[np.uint64]:
    return np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


def _mix_array(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def _unit(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1); times an integer below 2^52 they stay below it, also after rounding."""
    return (z >> np.uint64(11)).astype(np.float64) * _TO_UNIT


_USERS_A_TASK = 32
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
_U11, _U27, _U30, _U31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_UGOLDEN, _UMIX_1, _UMIX_2 = np.uint64(_GOLDEN), np.uint64(_MIX_1), np.uint64(_MIX_2)


@njit(inline="always", **_OPTIONS)
def _mix_compiled(z):  # type: ignore[no-untyped-def]
    z = (z ^ (z >> _U30)) * _UMIX_1
    z = (z ^ (z >> _U27)) * _UMIX_2
    return z ^ (z >> _U31)


@njit(inline="always", **_OPTIONS)
def _numbers_below(limit, start, number):  # type: ignore[no-untyped-def]
    scale = _TO_UNIT * np.float64(limit)
    for slot in range(len(number)):
        z = _mix_compiled(start + np.uint64(slot + 1) * _UGOLDEN)
        number[slot] = np.int64(np.float64(np.int64(z >> _U11)) * scale)


@njit(inline="always", **_OPTIONS)
def _count_up_to(row, number, count):  # type: ignore[no-untyped-def]
    """How many of the sorted ``row`` are at most each number: all binary searches level by level, without a branch."""
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


@njit(inline="always", **_OPTIONS)
def _touch(user, indptr, gap, free):  # type: ignore[no-untyped-def]
    """Read a little of each user's row, so that the waits for memory overlap; the sum means nothing."""
    touched = 0
    for b in range(len(user)):
        start, end = indptr[user[b]], indptr[user[b] + 1]
        if end > start:
            touched += gap[start] + gap[(start + end) >> 1] + gap[end - 1] + free[user[b]]
    return touched & 1


@njit(**_OPTIONS)
def _draw_uniform(user, pair, key, indptr, gap, free, out):  # type: ignore[no-untyped-def]
    number, count = np.empty(out.shape[1], dtype=np.int64), np.empty(out.shape[1], dtype=np.int64)
    out[0, 0] = _touch(user, indptr, gap, free)
    for b in range(len(user)):
        _numbers_below(free[user[b]], _mix_compiled(key + np.uint64(pair[b]) * _UGOLDEN), number)
        _count_up_to(gap[indptr[user[b]] : indptr[user[b] + 1]], number, count)
        for slot in range(len(number)):
            out[b, slot] = 1 + number[slot] + count[slot]


@njit(**_OPTIONS)
def _draw_weighted(user, pair, key, indptr, gap, free, taken, before, out):  # type: ignore[no-untyped-def]
    number, count = np.empty(out.shape[1], dtype=np.int64), np.empty(out.shape[1], dtype=np.int64)
    out[0, 0] = _touch(user, indptr, gap, free)
    for b in range(len(user)):
        first = indptr[user[b]]
        _numbers_below(free[user[b]], _mix_compiled(key + np.uint64(pair[b]) * _UGOLDEN), number)
        _count_up_to(gap[first : indptr[user[b] + 1]], number, count)
        for slot in range(len(number)):
            if count[slot] > 0:  # put back the weight of the taken items that lie below
                last = first + count[slot] - 1
                number[slot] += before[taken[last] + 1] - gap[last]
        _count_up_to(before, number, count)
        for slot in range(len(number)):
            out[b, slot] = count[slot] - 1


@njit(parallel=True, **_OPTIONS)
def _draw_uniform_in_threads(user, pair, key, indptr, gap, free, out):  # type: ignore[no-untyped-def]
    for task in prange((len(user) + _USERS_A_TASK - 1) // _USERS_A_TASK):
        a, b = task * _USERS_A_TASK, min(len(user), (task + 1) * _USERS_A_TASK)
        _draw_uniform(user[a:b], pair[a:b], key, indptr, gap, free, out[a:b])


@njit(parallel=True, **_OPTIONS)
def _draw_weighted_in_threads(  # type: ignore[no-untyped-def]
    user, pair, key, indptr, gap, free, taken, before, out
):
    for task in prange((len(user) + _USERS_A_TASK - 1) // _USERS_A_TASK):
        a, b = task * _USERS_A_TASK, min(len(user), (task + 1) * _USERS_A_TASK)
        _draw_weighted(user[a:b], pair[a:b], key, indptr, gap, free, taken, before, out[a:b])


# -------------------------------------------------------------------------------------------------------------- device


class DeviceSampler:
    """:meth:`NegativeSampler.draw` in tensor operations, on any device, bit for bit the same; it never waits for it."""

    def __init__(self, sampler: NegativeSampler, device: torch.device) -> None:
        def on_device(array: IntArray) -> Tensor:
            return torch.as_tensor(array, dtype=torch.long).to(device)

        self._seed = sampler.seed
        self._indptr, self._gap, self._free = map(on_device, (sampler.indptr, sampler.gap, sampler.free))
        self._weighted = sampler.before is not None
        if sampler.before is not None and sampler.taken is not None:
            self._before, self._taken = on_device(sampler.before), on_device(sampler.taken)
        # Rounds of a binary search: enough for the user who took most.
        self._rounds = int(np.diff(sampler.indptr).max(initial=0)).bit_length()

    def draw(self, user: Tensor, n: int, pair: Tensor, epoch: int) -> Tensor:
        """See :meth:`NegativeSampler.draw`; returns ``(B, n)`` int64."""
        start = _mix_tensor(_signed(_key(self._seed, epoch)) + pair * _signed(_GOLDEN))
        slots = torch.arange(1, n + 1, device=user.device) * _signed(_GOLDEN)
        random = _shifted(_mix_tensor(start.unsqueeze(1) + slots), 11)  # (B, n), 53 bits
        at = (random.double() * _TO_UNIT * self._free[user].double().unsqueeze(1)).long()
        low = self._indptr[user].unsqueeze(1).expand_as(at)
        first, high = low, self._indptr[user + 1].unsqueeze(1).expand_as(at)
        for _ in range(self._rounds):  # the number of taken items whose gap is at most the number drawn
            middle = (low + high) // 2
            go_on = (low < high) & (self._gap[middle.clamp(max=len(self._gap) - 1)] <= at)
            low, high = torch.where(go_on, middle + 1, low), torch.where(go_on, high, middle)
        if not self._weighted:
            return 1 + at + (low - first)
        last = (low - 1).clamp(min=0)
        back = self._before[self._taken[last] + 1] - self._gap[last]
        at = torch.where(low > first, at + back, at)
        return torch.searchsorted(self._before, at, right=True) - 1


def _signed(number: int) -> int:
    """The same 64 bits as a signed integer: torch has no unsigned multiplication, but wraps around alike."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of the 64 bits."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shifted(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX_2)
    return z ^ _shifted(z, 31)
