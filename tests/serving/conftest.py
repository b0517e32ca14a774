"""Recommenders of random bundles of every kind, and a service."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import httpx
import pytest
import uvicorn

from recbole_onebp import Recommender
from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.events import EventStore
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.protocol import ConnectionLimits, limited_protocol
from recbole_onebp.serving.http.server import listening
from support.bundles import made_bundle
from support.oracle import KINDS


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def rec(request, tmp_path):
    return Recommender.load(made_bundle(tmp_path / "bundle", **request.param))


@pytest.fixture
def bundle(tmp_path):
    return made_bundle(tmp_path / "bundle")


@pytest.fixture
def live(bundle, tmp_path):
    live = Live(bundle, EventStore(tmp_path / "events"), memory_mb=30)
    yield live
    live.store.close()


@pytest.fixture
def client_of():
    """Serves an app on a free port: ``client_of(app)`` is a client of it."""
    with ExitStack() as stack:

        def serve(app):
            listener = stack.enter_context(listening("127.0.0.1", 0))
            http = limited_protocol(ConnectionLimits())
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http=http))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            while not server.started:
                time.sleep(0.01)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            return stack.enter_context(httpx.Client(base_url=url, timeout=30))

        yield serve


@pytest.fixture
def client(live, client_of):
    return client_of(create_app(live))
