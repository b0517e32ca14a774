"""A service of several processes, so that Python's lock, which each process has for itself, does not limit it."""

from __future__ import annotations

import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from time import monotonic
from typing import Any

from recbole_onebp.serving.http.metrics import SHARED_FOLDER
from recbole_onebp.serving.http.reception import Reception
from recbole_onebp.serving.http.server import Service
from recbole_onebp.serving.http.worker import BOARD, DOOR, inside, make_board, work
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.processes import Call, Ending, supervise

__all__ = ["serve_by_workers"]

_ENDING_SECONDS = 30.0
"""For the requests that are under way when the service is stopped."""

_ENDS, _ENDS_SECONDS = 5, 60.0
"""A worker that ends so often within this time is not started again."""


def serve_by_workers(service: Service, n_workers: int, listener: socket.socket, ready: Callable[[int], None]) -> None:
    """Serve by several processes until SIGTERM or Ctrl-C.  A worker that crashes is started again.

    Args:
        service: its arguments, with absolute paths.  This process has opened the store of events.
        n_workers: processes in addition to this one, which accepts connections.
        listener: the socket for clients.
        ready: see :class:`Reception`.

    Raises:
        UserError: if a worker cannot start, or ends again and again.
    """
    folder = service.events / "processes"
    with _stopped_by_signals() as stop, socket.socket(socket.AF_UNIX) as door:
        _prepare(folder, door, n_workers)
        reception = Reception(listener, door, n_workers, ready)
        overseer = _Overseer(reception, stop)
        calls = [
            Call(f"worker {number}", work, (service, folder, n_workers, number), {SHARED_FOLDER: str(folder)})
            for number in range(1, n_workers + 1)
        ]
        thread = threading.Thread(target=reception.run, args=(stop,), name="reception", daemon=True)
        thread.start()
        try:
            with suppress(_StoppedError):
                supervise(calls, n_workers, overseer.ended, tick=overseer.tick)
        finally:
            stop.set()
            thread.join()


class _StoppedError(Exception):
    """The service has been stopped, and what still runs is not waited for."""


class _Overseer:
    """Decides what happens when a worker ends."""

    def __init__(self, reception: Reception, stop: threading.Event) -> None:
        self._reception, self._stop = reception, stop
        self._ends: dict[str, deque[float]] = {}
        self._stopped_at: float | None = None

    def ended(self, call: Call, ending: Ending) -> Call | None:
        """The call that starts the worker again; None after the service was stopped."""
        if self._stop.is_set():
            return None
        ends = self._ends.setdefault(call.name, deque(maxlen=_ENDS))
        ends.append(monotonic())
        reason = ending.error or f"{call.name} of the service {ending}"
        if not self._reception.is_open:
            raise UserError(str(reason))
        if len(ends) == _ENDS and ends[-1] - ends[0] < _ENDS_SECONDS:
            raise UserError(f"the service ends, because {call.name} ended {_ENDS} times in a minute: {reason}")
        getLogger(__name__).error("%s is started again: %s", call.name, reason)
        return call

    def tick(self) -> None:
        """Called about twice a second."""
        if self._reception.error is not None:
            raise self._reception.error
        if self._stop.is_set():
            self._stopped_at = self._stopped_at or monotonic()
            if not self._reception.is_open or monotonic() > self._stopped_at + _ENDING_SECONDS:
                raise _StoppedError


def _prepare(folder: Path, door: socket.socket, n_workers: int) -> None:
    """Make the folder with what the processes share.  It is closed to others, as that of the events is."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for pattern in (DOOR, BOARD, "*.db"):  # a service that was killed has left them
            for path in folder.glob(pattern):
                path.unlink()
        with inside(folder):
            door.bind(DOOR)
        make_board(folder, n_workers)
    except OSError as error:
        raise UserError(
            f"{folder}: several processes cannot share this folder: {error}; choose another one with --events, or use "
            "--workers=1"
        ) from None


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set.  At the end they do what they usually do."""
    stop, received = threading.Event(), list[int]()
    usual = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: Any) -> None:
        received.append(number)
        stop.set()

    for one in usual:
        signal.signal(one, handle)
    try:
        yield stop
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)
    if received:
        signal.raise_signal(received[0])
