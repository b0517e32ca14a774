"""One process of the service: its recommender, the application, and uvicorn."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from contextlib import suppress

import uvicorn
from threadpoolctl import threadpool_limits

from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.middleware import Limits
from recbole_onebp.serving.http.origins import Origins
from recbole_onebp.serving.http.protocol import ConnectionLimits, limited_protocol
from recbole_onebp.serving.http.server import KEY_VARIABLE, Service

__all__ = ["BACKLOG", "answer"]

BACKLOG = 2048
"""Connections that wait to be accepted."""

_OPEN_CONNECTIONS = 512

_ACCEPTED_AT_A_TIME = 32
"""Connections that are accepted before the event loop does something else."""

_SWITCH_SECONDS = 0.001
"""How long a thread keeps Python's lock while others wait for it; Python's default of 5 ms delays the event loop."""


def answer(service: Service, live: Live, source: socket.socket, n_workers: int = 1) -> None:
    """Answer requests until SIGTERM or Ctrl-C.

    Args:
        service: its arguments.
        live: the recommender.
        source: listens for connections; if there are several processes, this one's connections arrive there as file
            descriptors, and its end ends the process.
        n_workers: processes of the service; each has a share of its limits.
    """
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", stream=sys.stderr)
    origins = Origins(service.allowed_hosts, service.host)
    app = create_app(live, os.environ.get(KEY_VARIABLE), Limits().divided(n_workers), origins)
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # so that collecting garbage does not look through the bundle's ids again and again
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", ws="none", proxy_headers=False, backlog=_ACCEPTED_AT_A_TIME,
        http=limited_protocol(ConnectionLimits(_connections(n_workers))),
    )  # fmt: skip
    server = _Listening(config, source) if n_workers == 1 else _Receiving(config, source)
    with threadpool_limits(1):  # requests run side by side; threads of BLAS would only get in their way
        server.run(sockets=[])


def _connections(n_workers: int) -> int:
    """Connections that this process may have open: its share of 512, but no more than half of the files allowed."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return _OPEN_CONNECTIONS // n_workers
    return max(16, min(_OPEN_CONNECTIONS // n_workers, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


class _Listening(uvicorn.Server):
    """It accepts the connections itself."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        super().__init__(config)
        self._listener = listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([self._listener])
        self._listener.listen(BACKLOG)  # uvicorn has set it to the number accepted at a time


class _Receiving(uvicorn.Server):
    """Its connections have been accepted by the parent process."""

    def __init__(self, config: uvicorn.Config, channel: socket.socket) -> None:
        super().__init__(config)
        self._channel, self._opening = channel, set[asyncio.Task[None]]()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._receive)

    def _receive(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
        except BlockingIOError:
            return
        for descriptor in descriptors:
            task = asyncio.get_running_loop().create_task(self._open(descriptor))
            self._opening.add(task)  # the loop itself keeps no reference
            task.add_done_callback(self._opening.discard)
        if not message:
            self._close()

    async def _open(self, descriptor: int) -> None:
        with suppress(OSError):  # the client has gone
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        made: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made

    def _close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        self._channel.close()  # so that the parent sends no more
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._channel.fileno() >= 0:
            self._close()
        await super().shutdown(sockets)
