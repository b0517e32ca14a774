"""One of several processes of a service.

They share the database of events, which tells each what the others have recorded, and a few numbers about reloads.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from logging import getLogger
from pathlib import Path
from time import monotonic, monotonic_ns, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.http.events import EventStore
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.process import answer
from recbole_onebp.serving.http.server import Service
from recbole_onebp.serving.http.threads import LateError

__all__ = ["BOARD", "DOOR", "SharedLive", "inside", "make_board", "work"]

DOOR, BOARD = "door", "reloads"
"""Files in the folder that the processes share: the socket of the parent, and the numbers about reloads."""

_FOLLOW_SECONDS = 0.2
"""Time between two checks for events and reloads of the other processes."""

_RELOAD_SECONDS = 60.0
"""How long the others may take to load a bundle, in addition to ten times what this process took."""


def make_board(folder: Path, n_workers: int) -> npt.NDArray[np.int64]:
    """The numbers about reloads, in a file that all processes map; see :class:`SharedLive`."""
    return np.memmap(folder / BOARD, np.int64, "w+", shape=(1 + n_workers,))


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The folder as the current one: the path of a Unix socket may have about 100 letters only."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class SharedLive(Live):
    """A recommender that does what those of the other processes do.

    When a bundle is replaced in one process, it is replaced in all.  ``board[number]`` is the time at which process
    ``number`` began to load what it serves; ``board[0]`` is the time after which all must have begun.
    """

    def __init__(self, board: npt.NDArray[np.int64], number: int, *args: Any, **options: Any) -> None:
        """Load the bundle and apply the events; see :class:`Live` for the other arguments."""
        self._board, self._number = board, number
        board[number] = monotonic_ns()
        super().__init__(*args, **options)

    def reload(self) -> None:
        """Load the bundle again, here and then in all other processes.

        Raises:
            UserError: if the bundle cannot be read; then no process loads it.
            LateError: if another process takes too long.
        """
        asked, start = monotonic_ns(), monotonic()
        super().reload()
        self._board[self._number] = asked
        end = monotonic() + 10 * (monotonic() - start) + _RELOAD_SECONDS
        while (self._board[1:] < asked).any():
            # Each time, because another process may have written an earlier time at the same moment.
            self._board[0] = max(self._board[0], asked)
            if monotonic() > end:
                raise LateError("the bundle is served, but not by all processes yet")
            sleep(_FOLLOW_SECONDS / 10)

    def follow(self, stop: threading.Event) -> None:
        """Apply the events of the other processes and load the bundle when they do, until ``stop`` is set."""
        told = ""
        while not stop.wait(_FOLLOW_SECONDS):
            try:
                self.catch_up()
                if self._board[self._number] < self._board[0]:
                    began = monotonic_ns()
                    try:
                        super().reload()
                    finally:
                        self._board[self._number] = began  # it is tried once
                told = ""
            except Exception as error:
                if str(error) != told:
                    getLogger(__name__).error("this process is behind the others: %s", error)
                told = str(error)


def work(service: Service, folder: Path, n_workers: int, number: int) -> None:
    """Answer requests as process ``number`` of 1 to ``n_workers``, until the parent closes the channel."""
    board = np.memmap(folder / BOARD, np.int64, "r+", shape=(1 + n_workers,))
    stop = threading.Event()
    with closing(EventStore(service.events, join=True)) as store, socket.socket(socket.AF_UNIX) as channel:
        live = SharedLive(
            board, number, service.bundle_dir, store, service.memory_mb, service.index,
            max_new_users=service.max_new_users, max_new_items=service.max_new_items,
            compact_at=service.compact_at,
        )  # fmt: skip
        threading.Thread(target=live.follow, args=(stop,), name="follow", daemon=True).start()
        if service.watch is not None and number == 1:  # the others follow
            threading.Thread(target=live.watch, args=(service.watch, stop), name="watch", daemon=True).start()
        with inside(folder):
            channel.connect(DOOR)
        channel.sendall(b"%d" % live.n_replayed)
        try:
            answer(service, live, channel, n_workers)
        finally:
            stop.set()
