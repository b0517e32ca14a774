"""Threads that do the work of requests, and bounds on how many requests wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["BusyError", "LateError", "Threads"]

_T = TypeVar("_T")


class BusyError(Exception):
    """Too much is waiting already.  Nothing was done; the request may be sent again later."""


class LateError(Exception):
    """The answer takes longer than allowed."""


class Threads:
    """Threads for questions, others for large ones, and one each for events, bundles and checks.

    There are no more threads for questions than cores: more would answer no faster, and would keep the event loop
    waiting for Python's lock.  Large questions have threads of their own, so that small ones do not wait for them.
    """

    def __init__(self, threads: int, waiting: int, seconds: float) -> None:
        """Start no thread yet.

        Args:
            threads: for small read requests; ``threads // 2`` more (at least 1) serve large ones.
            waiting: largest number of pending requests of each kind: small reads, large reads, events.
            seconds: from the complete request to the answer.
        """
        self._waiting, self._seconds = waiting, seconds
        self._askers = ThreadPoolExecutor(threads, thread_name_prefix="ask")
        self._large = ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="ask-large")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="record")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._checker = ThreadPoolExecutor(1, thread_name_prefix="check")
        pools = self._askers, self._large, self._writer, self._loader, self._checker
        self._n_pending, self._counting = dict.fromkeys(pools, 0), threading.Lock()

    async def ask(self, work: Callable[[], _T], is_large: bool = False) -> _T:
        """Answer a question.

        Raises:
            BusyError: if too many requests wait.
            LateError: if it takes too long.  A question that has begun is finished in its thread all the same.
        """
        return await self._result(self._submit(self._large if is_large else self._askers, self._waiting, work))

    async def record(self, work: Callable[[], _T]) -> _T:
        """Write events.  Time limits apply to waiting alone: writing that has begun is finished and answered.

        Raises:
            BusyError: if too many requests wait.
            LateError: if it did not begin in time; then it never will.
        """
        future = self._submit(self._writer, self._waiting, work)
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait({waiting}, timeout=self._seconds)
        if not done and future.cancel():
            raise LateError("the events did not get their turn in time and do not count; send them again")
        return await asyncio.shield(waiting)

    async def load(self, work: Callable[[], _T]) -> _T:
        """Load a bundle, however long it takes; one at a time, and one may wait.

        Raises:
            BusyError: if one waits already.
        """
        return await asyncio.wrap_future(self._submit(self._loader, 2, work))

    async def check(self, work: Callable[[], _T]) -> _T:
        """Check whether the service is ready.

        Raises:
            BusyError: if too many requests wait.
            LateError: if it takes too long.
        """
        return await self._result(self._submit(self._checker, self._waiting, work))

    async def _result(self, future: Future[_T]) -> _T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except asyncio.TimeoutError:
            raise LateError("the answer takes longer than allowed; ask for less at a time") from None

    def _submit(self, pool: ThreadPoolExecutor, limit: int, work: Callable[[], _T]) -> Future[_T]:
        if self._n_pending[pool] >= limit:
            raise BusyError("too many requests wait; try again later")
        with self._counting:
            self._n_pending[pool] += 1
        future = pool.submit(work)
        future.add_done_callback(lambda _: self._end(pool))
        return future

    def _end(self, pool: ThreadPoolExecutor) -> None:
        with self._counting:
            self._n_pending[pool] -= 1
