"""Child processes: each starts with a fresh interpreter, is supervised, and ends when its parent ends.

Comparisons, hyper-parameter search, lists in bulk, ``--nproc`` and ``serve`` all start their processes here.  The
module needs nothing but the standard library: serving uses it where there is no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

from recbole_onebp.util.errors import UserError

__all__ = ["Call", "Ending", "n_cores", "share_cores", "supervise", "thread_limits"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_TICK = 0.5
"""Seconds between two calls of ``tick``."""


@dataclass(frozen=True)
class Call:
    """A function call to make in a child process."""

    name: str
    function: Callable[..., object]
    """A function of a module that the child can import."""
    arguments: tuple[Any, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the child gets in addition to ours."""
    output: Path | None = None
    """File for everything that the child prints; None: where our own output goes."""


@dataclass(frozen=True)
class Ending:
    """How a child process ended.  ``str(ending)`` completes the sentence "the process ..."."""

    exit_code: int
    """Negative: the signal that ended the process."""
    timeout: float | None = None
    """The time limit in seconds, if the process exceeded it and was stopped."""
    error: Exception | None = None
    """The :class:`UserError` or ``OSError`` that ended the function; other exceptions are printed by the child."""

    @property
    def ok(self) -> bool:
        return self.exit_code == 0 and self.timeout is None

    @property
    def killed(self) -> bool:
        return self.exit_code == -getattr(signal, "SIGKILL", 9)

    def __str__(self) -> str:
        if self.timeout is not None:
            return f"was stopped after {self.timeout / 60:g} minutes"
        if self.killed:
            return "was ended by SIGKILL, possibly out of memory"
        if self.exit_code < 0:
            return f"was ended by {signal.Signals(-self.exit_code).name}"
        return f"ended with exit code {self.exit_code}"


def supervise(
    calls: Iterable[Call],
    jobs: int,
    done: Callable[[Call, Ending], Call | None],
    *,
    timeout: float | None = None,
    tick: Callable[[], object] | None = None,
) -> None:
    """Make calls in child processes, and wait for all of them.

    An exception (Ctrl-C, or one that ``done`` raises) kills the children that still run.

    Args:
        calls: started in this order.
        jobs: how many processes run at the same time.
        done: called with each call as it ends; may return a call to start next.
        timeout: seconds that a call may take.
        tick: called about twice a second.
    """
    waiting, running = deque(calls), list[_Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Child(waiting.popleft(), timeout))
            limits = [child.seconds_left for child in running] + ([_TICK] if tick else [])
            wait([child.sentinel for child in running], min((s for s in limits if s is not None), default=None))
            for child in [child for child in running if child.is_over]:
                running.remove(child)
                following = done(child.call, child.end())
                if following is not None:
                    waiting.appendleft(following)
            if tick:
                tick()
    finally:
        for child in running:
            child.end()


class _Child:
    def __init__(self, call: Call, timeout: float | None) -> None:
        self.call, self._timeout, self._started = call, timeout, monotonic()
        context = multiprocessing.get_context("spawn")  # no thread pools, generators or memory of ours
        self._errors, theirs = context.Pipe(duplex=False)
        # Pickled here: unpickling imports the function's module, which the child does once its environment is set.
        pickled = pickle.dumps((call.function, call.arguments))
        self._process = context.Process(target=_run, args=(theirs, dict(call.environment), call.output, pickled))
        self._process.start()
        theirs.close()
        self.sentinel = self._process.sentinel

    @property
    def seconds_left(self) -> float | None:
        return None if self._timeout is None else max(0.0, self._started + self._timeout - monotonic())

    @property
    def is_over(self) -> bool:
        return self.seconds_left == 0 or not self._process.is_alive()

    def end(self) -> Ending:
        """Kill the process if it still runs."""
        late = self._process.is_alive()
        if late:
            self._process.kill()
        self._process.join()
        error = None
        with self._errors, suppress(EOFError):
            error = self._errors.recv()
        return Ending(self._process.exitcode or 0, self._timeout if late else None, error)


def _run(connection: Connection, environment: dict[str, str], output: Path | None, pickled: bytes) -> None:
    """What a child does."""
    if output is not None:
        with open(output, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends this process
    os.environ.update(environment)  # before numpy and torch are imported: they read it once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    function, arguments = pickle.loads(pickled)
    try:
        function(*arguments)
    except (UserError, OSError) as error:
        connection.send(error)
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """Nobody would use the result of a child whose parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def thread_limits(jobs: int) -> dict[str, str]:
    """Variables that give each of ``jobs`` processes its share of the cores, unless the user has set them."""
    if jobs == 1:
        return {}
    return {name: str(max(1, n_cores() // jobs)) for name in _THREADS if name not in os.environ}


def share_cores() -> None:
    """Let OpenMP's threads give up their cores soon when they wait.  Call it before torch and numba are imported.

    Between two parallel loops a thread waits in a busy one: 300,000 turns by default (GNU's libgomp), 15 ms on some
    processors.  Where another process needs the core, each loop then takes that long.  The gaps between the loops of a
    step are shorter than 10,000 turns.  Nothing changes where the user has said how threads wait.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = "10000"


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
