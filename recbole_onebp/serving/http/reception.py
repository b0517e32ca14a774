"""The thread that accepts the connections of a service of several processes, and hands them to these in turn.

So each process has as many.  The kernel would spread connections unevenly, and would let other programs share a port on
which several processes listen.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import sleep

__all__ = ["Reception"]

_WELCOME_SECONDS = 1.0
"""For a worker to say how many events it has replayed."""

_TICK = 0.2
"""Seconds between two looks whether to stop."""


class Reception:
    """Workers connect to its Unix socket when they are ready, and get connections there as file descriptors.

    Attributes:
        is_open: whether all workers have been ready, so that connections are accepted.
        error: what has ended the thread before its time.
    """

    def __init__(
        self, listener: socket.socket, door: socket.socket, n_workers: int, ready: Callable[[int], None]
    ) -> None:
        """Start no thread yet.

        Args:
            listener: the socket for clients.
            door: the socket for workers.
            n_workers: how many workers are waited for.
            ready: called when all are ready, with the number of events that they have replayed; makes ``listener``
                listen.
        """
        self._listener, self._door, self._n_workers, self._ready = listener, door, n_workers, ready
        self._channels: deque[socket.socket] = deque()
        self._n_replayed = 0
        self.is_open = False
        self.error: Exception | None = None

    def run(self, stop: threading.Event) -> None:
        """Accept connections until ``stop`` is set; then the workers see the end of their channels."""
        self._door.listen()
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._door, selectors.EVENT_READ, self._welcome)
                while not stop.is_set():
                    if not self.is_open and len(self._channels) == self._n_workers:
                        self._ready(self._n_replayed)
                        self._listener.setblocking(False)
                        selector.register(self._listener, selectors.EVENT_READ, self._hand_over)
                        self.is_open = True
                    for key, _ in selector.select(_TICK):
                        key.data()
        except Exception as error:
            self.error = error
        finally:
            for one in (self._listener, self._door, *self._channels):
                one.close()

    def _welcome(self) -> None:
        channel, _ = self._door.accept()
        try:
            channel.settimeout(_WELCOME_SECONDS)
            self._n_replayed = int(channel.recv(32))
        except (OSError, ValueError):  # it was killed before it had sent the number
            channel.close()
            return
        channel.setblocking(False)
        self._channels.append(channel)

    def _hand_over(self) -> None:
        if not self._channels:
            sleep(_TICK)  # clients wait until a worker has been started again
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client has gone, or there are too many open files
            return
        with connection:
            for channel in tuple(self._channels):
                self._channels.rotate(-1)
                try:
                    socket.send_fds(channel, [b"c"], [connection.fileno()])
                    return
                except BlockingIOError:  # it is stopped, or has too much to do
                    continue
                except OSError:  # it has ended
                    self._channels.remove(channel)
                    channel.close()
