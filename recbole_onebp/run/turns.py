"""One run at a time in a process: RecBole, numpy and torch draw from generators that all threads share."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba
import numpy as np
import torch

from recbole_onebp.util.errors import UserError

__all__ = ["Turn", "one_at_a_time"]

_lock = threading.RLock()
_last: Turn | None = None
"""Who drew from the generators last."""


_lost_threads = False
"""Whether this process was forked from one whose OpenMP threads had started: it has none, and would wait for them."""


def _after_fork() -> None:
    global _lock, _lost_threads
    _lock = threading.RLock()  # a thread that has not been forked may hold the old one
    _lost_threads |= _last is not None and torch.get_num_threads() > 1
    with suppress(ValueError):  # numba has started no threads
        _lost_threads |= numba.threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Context that one thread at a time enters; the others wait."""
    with _lock:
        yield


class Turn:
    """The turns of one run to use the global generators.  It finds them as it left them, whoever ran in between."""

    def __init__(self) -> None:
        self._states: tuple[Any, ...] | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Context in which no other run is built or trained in this process.

        Raises:
            UserError: in a process that was forked from one that has trained: it would wait for ever.
        """
        global _last
        if _lost_threads:
            raise UserError(
                "this process was forked from one that has trained, and the threads of OpenMP do not survive a fork; "
                "start it with multiprocessing.get_context('spawn')"
            )
        with _lock:
            if self._states is not None and _last is not self:
                _restore(*self._states)
            _last = self
            try:
                yield
            finally:
                self._states = _states()


def _states() -> tuple[Any, ...]:
    # Asked for its states, torch would start CUDA, also for a run on the CPU.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_cuda = torch.cuda.get_rng_state_all() if started else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), on_cuda


def _restore(python: Any, of_numpy: Any, of_torch: Any, on_cuda: Any) -> None:
    random.setstate(python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if on_cuda is not None:
        torch.cuda.set_rng_state_all(on_cuda)
