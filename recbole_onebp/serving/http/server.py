"""``recbole-onebp serve``: run the service in this process."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from recbole_onebp.util.errors import UserError

__all__ = ["Service", "listening", "serve"]

KEY_VARIABLE = "RECBOLE_ONEBP_API_KEY"
"""The API key.  It is not an argument, because other users can read command lines."""

_REQUESTS_AT_A_TIME = 200


@dataclass(frozen=True)
class Service:
    """The arguments of ``recbole-onebp serve``."""

    bundle_dir: Path
    events_dir: Path | None = None
    """Folder of the journal; that of the bundle with ``.events`` appended if None."""
    host: str = "127.0.0.1"
    port: int = 8000
    watch: float | None = None
    """Seconds between two looks for a new bundle; None never looks."""
    memory_mb: float = 30
    index: str | None = None
    """``faiss`` for approximate search; None for exact search."""


def serve(service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UserError: if a package is missing, the bundle or the events cannot be read, the port is in use, or ``watch``
            is not positive.
    """
    try:
        import uvicorn

        from recbole_onebp.serving.http.app import create_app
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'recbole-onebp[serve]'") from None
    from recbole_onebp.serving.bundle import read_bundle
    from recbole_onebp.serving.http.journal import Journal
    from recbole_onebp.serving.http.live import Live

    if service.watch is not None and not 0 < service.watch <= threading.TIMEOUT_MAX:
        raise UserError(f"watch: {service.watch:g} is not allowed: expected more than 0 seconds")
    bundle_dir = service.bundle_dir.absolute()
    read_bundle(bundle_dir, verify=False)  # fails before the folder of events is created
    key = os.environ.get(KEY_VARIABLE) or None
    with listening(service.host, service.port) as listener:
        journal = Journal(service.events_dir or bundle_dir.with_name(f"{bundle_dir.name}.events"))
        stop = threading.Event()
        try:
            if journal.torn_bytes:
                print(f"removed an incomplete record of {journal.torn_bytes} bytes from the journal", file=sys.stderr)
            live = Live(bundle_dir, journal, service.memory_mb, service.index)
            if service.watch is not None:
                threading.Thread(target=live.watch, args=(service.watch, stop), name="watch", daemon=True).start()
            host, port = listener.getsockname()[:2]
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            if key is None and not ipaddress.ip_address(host).is_loopback:
                print(f"warning: no key: everybody who can reach {url} can use it; set {KEY_VARIABLE}", file=sys.stderr)
            logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", stream=sys.stderr)
            app = create_app(live, key)
            listener.listen()  # from now on requests wait instead of being refused
            print(f"replayed {live.n_replayed} events; {url}", flush=True)
            config = uvicorn.Config(app, log_level="warning", limit_concurrency=_REQUESTS_AT_A_TIME)
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            stop.set()
            journal.close()


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to an address.  It does not listen yet.

    Raises:
        UserError: if the address does not exist or is in use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol given asyncio disables Nagle's algorithm, which would delay answers by 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise UserError(f"host {host}, port {port}: cannot listen there: {words}") from None
    return listener
