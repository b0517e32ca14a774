"""``recbole-onebp serve``: its arguments, and what is checked before anything is served."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.processes import n_cores

__all__ = ["Service", "listening", "serve"]

KEY_VARIABLE = "RECBOLE_ONEBP_API_KEY"
"""The API key.  It is not an argument, because other users can read command lines."""

_MOST_WORKERS = 8
"""By default; more must be asked for, because each takes at least 50 MB of memory."""


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
    """Names under which the service may be addressed, in addition to loopback names and ``host``; ``*`` allows all."""
    max_new_users: int = 200_000
    """Users that events may add to those of the bundle.  Each takes about 1 KB of memory, in each process."""
    workers: int | None = None
    """Processes that answer; one per core if None, but at most 8."""
    compact_at: int = 100_000
    """Events that are stored one by one before they are compacted."""
    max_new_items: int = 10_000
    """Items that may be added to those of the bundle."""

    @property
    def events(self) -> Path:
        """Folder of the events."""
        return self.events_dir or self.bundle_dir.with_name(f"{self.bundle_dir.name}.events")


def serve(service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: if a package is missing, the bundle or the events cannot be read, the port is in use, or an argument
            is not allowed.
    """
    try:
        from recbole_onebp.serving.http import pool, process
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'recbole-onebp[serve]'") from None
    from recbole_onebp.serving.bundle import read_bundle
    from recbole_onebp.serving.http.events import EventStore
    from recbole_onebp.serving.http.live import Live
    from recbole_onebp.serving.http.middleware import check_key
    from recbole_onebp.serving.http.origins import Origins

    _check(service)
    service = replace(service, bundle_dir=service.bundle_dir.absolute())
    service = replace(service, events_dir=service.events.absolute())
    has_key = check_key(os.environ.get(KEY_VARIABLE)) is not None
    Origins(service.allowed_hosts, service.host)  # fails for a name that cannot be one
    read_bundle(service.bundle_dir, verify=False)  # fails before the folder of events is created
    with listening(service.host, service.port) as listener, closing(EventStore(service.events)) as store:

        def ready(n_replayed: int) -> None:
            """From now on requests wait instead of being refused."""
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            if not has_key and not ipaddress.ip_address(host).is_loopback:
                print(f"warning: no key: everybody who can reach {url} can use it; set {KEY_VARIABLE}", file=sys.stderr)
            with _explained(service.host, service.port):
                listener.listen(process.BACKLOG)
            print(f"replayed {n_replayed} events; {url}", flush=True)

        n_workers = service.workers or (min(n_cores(), _MOST_WORKERS) if hasattr(socket, "send_fds") else 1)
        if n_workers > 1:
            pool.serve_by_workers(service, n_workers, listener, ready)
            return
        live = Live(
            service.bundle_dir, store, service.memory_mb, service.index, max_new_users=service.max_new_users,
            max_new_items=service.max_new_items, compact_at=service.compact_at,
        )  # fmt: skip
        stop = threading.Event()
        if service.watch is not None:
            threading.Thread(target=live.watch, args=(service.watch, stop), name="watch", daemon=True).start()
        ready(live.n_replayed)
        try:
            process.answer(service, live, listener)
        finally:
            stop.set()


def _check(service: Service) -> None:
    """Refuse arguments that are out of range."""
    if not 0 <= service.port <= 65535:
        raise UserError(f"port: {service.port} is not allowed: expected 0 to 65535; 0 takes a free one")
    if service.watch is not None and not 0 < service.watch <= threading.TIMEOUT_MAX:
        raise UserError(f"watch: {service.watch:g} is not allowed: expected more than 0 seconds")
    if not 0 < service.memory_mb <= 1 << 20:
        raise UserError(f"memory_mb: {service.memory_mb:g} is not allowed: expected more than 0, at most {1 << 20}")
    for name in ("max_new_users", "max_new_items"):
        if getattr(service, name) < 0:
            raise UserError(f"{name}: {getattr(service, name)} is not allowed: expected at least 0")
    if service.workers is not None and not 1 <= service.workers <= (256 if hasattr(socket, "send_fds") else 1):
        raise UserError(f"workers: {service.workers} is not allowed: expected 1 to 256; on Windows 1")


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
