"""``recbole-onebp serve``: run the service in this process."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from recbole_onebp.util.errors import UserError

__all__ = ["Service", "listening", "serve"]

KEY_VARIABLE = "RECBOLE_ONEBP_API_KEY"
"""The API key.  It is not an argument, because other users can read command lines."""

_OPEN_CONNECTIONS = 512

_BACKLOG = 2048
"""Connections that wait to be accepted."""

_ACCEPTED_AT_A_TIME = 32
"""Connections that are accepted before the event loop does something else."""

_SWITCH_SECONDS = 0.001
"""How long a thread keeps Python's lock while others wait for it; Python's default of 5 ms delays the event loop."""


@dataclass(frozen=True)
class Service:
    """The arguments of ``recbole-onebp serve``."""

    bundle_dir: Path
    events_dir: Path | None = None
    """Folder of the events; that of the bundle with ``.events`` appended if None."""
    host: str = "127.0.0.1"
    port: int = 8000
    watch: float | None = None
    """Seconds between two looks for a new bundle; None never looks."""
    memory_mb: float = 30
    index: str | None = None
    """``faiss`` for approximate search; None for exact search."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which the service may be addressed, beside loopback names and ``host``; ``*`` allows all."""
    max_new_users: int = 200_000
    """Users that events may add to those of the bundle.  Each takes about 1 KB of memory."""


def serve(service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: if a package is missing, the bundle or the events cannot be read, the port is in use, or an argument
            is not allowed.
    """
    try:
        import uvicorn
        from threadpoolctl import threadpool_limits

        from recbole_onebp.serving.http.app import create_app
        from recbole_onebp.serving.http.protocol import ConnectionLimits, limited_protocol
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'recbole-onebp[serve]'") from None
    from recbole_onebp.serving.bundle import read_bundle
    from recbole_onebp.serving.http.events import EventStore
    from recbole_onebp.serving.http.live import Live
    from recbole_onebp.serving.http.middleware import check_key
    from recbole_onebp.serving.http.origins import Origins

    _check(service)
    key = check_key(os.environ.get(KEY_VARIABLE))
    origins = Origins(service.allowed_hosts, service.host)
    bundle_dir = service.bundle_dir.absolute()
    read_bundle(bundle_dir, verify=False)  # fails before the folder of events is created
    with listening(service.host, service.port) as listener:
        store = EventStore(service.events_dir or bundle_dir.with_name(f"{bundle_dir.name}.events"))
        stop = threading.Event()
        try:
            live = Live(bundle_dir, store, service.memory_mb, service.index, max_new_users=service.max_new_users)
            if service.watch is not None:
                threading.Thread(target=live.watch, args=(service.watch, stop), name="watch", daemon=True).start()
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            if key is None and not ipaddress.ip_address(host).is_loopback:
                print(f"warning: no key: everybody who can reach {url} can use it; set {KEY_VARIABLE}", file=sys.stderr)
            logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", stream=sys.stderr)
            app = create_app(live, key, origins=origins)
            with _explained(service.host, service.port):
                listener.listen(_BACKLOG)  # from now on requests wait instead of being refused
            print(f"replayed {live.n_replayed} events; {url}", flush=True)
            sys.setswitchinterval(_SWITCH_SECONDS)
            gc.freeze()  # so that collecting garbage does not look through the bundle's ids again and again
            config = uvicorn.Config(
                app, log_level="warning", lifespan="off", ws="none", proxy_headers=False, backlog=_ACCEPTED_AT_A_TIME,
                http=limited_protocol(ConnectionLimits(_connections())),
            )  # fmt: skip

            class Server(uvicorn.Server):
                async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                    await super().startup(sockets)
                    listener.listen(_BACKLOG)  # uvicorn has set it to the number accepted at a time

            with threadpool_limits(1):  # requests run side by side; threads of BLAS would only get in their way
                Server(config).run(sockets=[listener])
        finally:
            stop.set()
            store.close()


def _check(service: Service) -> None:
    """Refuse arguments that are out of range."""
    if not 0 <= service.port <= 65535:
        raise UserError(f"port: {service.port} is not allowed: expected 0 to 65535; 0 takes a free one")
    if service.watch is not None and not 0 < service.watch <= threading.TIMEOUT_MAX:
        raise UserError(f"watch: {service.watch:g} is not allowed: expected more than 0 seconds")
    if not 0 < service.memory_mb <= 1 << 20:
        raise UserError(f"memory_mb: {service.memory_mb:g} is not allowed: expected more than 0, at most {1 << 20}")
    if service.max_new_users < 0:
        raise UserError(f"max_new_users: {service.max_new_users} is not allowed: expected at least 0")


def _connections() -> int:
    """Connections that may be open at a time: half of the files that this process may open, at most 512."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return _OPEN_CONNECTIONS
    return max(16, min(_OPEN_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


@contextmanager
def _explained(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a null byte, or letters that are in no name
        words = getattr(error, "strerror", None) or str(error)
        raise UserError(f"host {host}, port {port}: cannot listen there: {words}") from None


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address.  It does not listen yet.

    Raises:
        UserError: if the address does not exist or is in use.
    """
    with _explained(host, port):
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol given asyncio disables Nagle's algorithm, which would delay answers by 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        except BaseException:
            listener.close()
            raise
    return listener
