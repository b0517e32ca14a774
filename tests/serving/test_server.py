"""The service in its own process: start, errors, and events after a kill."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from support.server import Server


def post_events(url, name, acknowledged, stop):
    """Send requests one after the other and record the acknowledged events."""
    number = len(acknowledged)
    with httpx.Client() as client:
        while not stop.is_set():
            events = [{"user": name, "item": f"i{(number + place) % 60}"} for place in range(1 + number % 4)]
            try:
                response = client.post(f"{url}/events", json={"events": events})
            except httpx.HTTPError:
                return
            if response.status_code == 200:
                acknowledged += [event["item"] for event in events]
                number = len(acknowledged)


@pytest.mark.usefixtures("bundle")
def test_acknowledged_events_survive_a_kill():
    """After each of several SIGKILLs during writes all acknowledged events are there, in order."""
    rng = random.Random(0)
    acknowledged = {name: [] for name in ("a", "b", "u1")}
    trained = Recommender.load("bundle").history("u1")
    for _ in range(4):
        server, stop = Server(), threading.Event()
        found = {
            name: [entry["item"] for entry in httpx.get(f"{server.url}/history", params={"user": name}).json()["items"]]
            for name in acknowledged
        }
        for name, items in acknowledged.items():
            taken = found[name][len(trained) if name == "u1" else 0 :]
            assert taken[: len(items)] == items
            assert len(taken) <= len(items) + 4  # the request that was under way may have been written too
            items[:] = taken
        threads = [
            threading.Thread(target=post_events, args=(server.url, name, items, stop))
            for name, items in acknowledged.items()
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3 + rng.random() / 2)
        server.end(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert all(len(items) > 20 for items in acknowledged.values())


@pytest.mark.usefixtures("bundle")
def test_serve_prints_its_address():
    server = Server("--events=mine", RECBOLE_ONEBP_API_KEY="secret")
    assert server.first_line.startswith("replayed 0 events; http://127.0.0.1:")
    assert Path("mine/00000001.log").exists()
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    port = server.url.rsplit(":", 1)[1]
    assert main(["serve", "bundle", "--events=others", f"--port={port}"]) == 2
    assert main(["serve", "bundle", "--events=mine", "--port=0"]) == 2
    server.end()


@pytest.mark.usefixtures("bundle")
def test_serve_errors(capsys):
    for arguments, words in (
        (["none"], "none: not a bundle"),
        (["bundle", "--port=70000"], "cannot listen there"),
        (["bundle", "--host=no.such.host.invalid"], "cannot listen there"),
        (["bundle", "--memory_mb=0"], "memory_mb"),
        (["bundle", "--watch=0"], "watch: 0 is not allowed: expected more than 0 seconds"),
        (["bundle", "--index=faiss"], "has no index of faiss; export it with --ann=faiss"),
    ):
        assert main(["serve", "--port=0", *arguments]) == 2
        assert words in capsys.readouterr().err
