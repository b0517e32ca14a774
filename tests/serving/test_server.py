"""The service in its own process: start, errors, and events after a kill."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import socket
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from recbole_onebp import Recommender
from recbole_onebp.cli import main
from recbole_onebp.serving.http.events import Event, EventStore
from support.bundles import made_bundle
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
def test_serve_prints_its_address(capsys):
    server = Server("--events=mine", RECBOLE_ONEBP_API_KEY="secret")
    assert server.first_line.startswith("replayed 0 events; http://127.0.0.1:")
    assert Path("mine/events.sqlite3").exists()
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    port = server.url.rsplit(":", 1)[1]
    assert main(["serve", "bundle", "--events=others", f"--port={port}"]) == 2
    assert main(["serve", "bundle", "--events=mine", "--port=0"]) == 2
    assert "another service uses these events" in capsys.readouterr().err
    server.end()


@pytest.mark.usefixtures("bundle")
def test_a22_a_port_that_is_taken_later_is_one_line(capsys, monkeypatch):
    """Another process listens while the bundle is loaded."""
    from recbole_onebp.serving.http import live

    taken = []

    class Slow(live.Live):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            rival = socket.socket()
            rival.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            rival.bind(("127.0.0.1", port))
            rival.listen()
            taken.append(rival)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(live, "Live", Slow)
    assert main(["serve", "bundle", f"--port={port}", "--workers=1"]) == 2
    assert "cannot listen there: Address already in use" in capsys.readouterr().err
    taken[0].close()


@pytest.mark.usefixtures("bundle")
def test_a03_damage_is_one_line_with_the_command(capsys):
    """Damage anywhere is refused; the command keeps what can be read, and the service starts again."""
    store = EventStore(Path("bundle.events"))
    for number in range(400):
        store.append("key", [Event(f"u{number % 20}", f"i{number % 60}")])
    store.close()
    file = Path("bundle.events/events.sqlite3")
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(content)
    assert main(["serve", "bundle", "--port=0"]) == 2
    error = capsys.readouterr().err
    assert "is damaged" in error
    assert error.strip().endswith(f"recbole-onebp repair-events {Path('bundle.events').absolute()}")
    assert file.read_bytes() == bytes(content)
    assert main(["repair-events", "bundle.events"]) == 0
    assert re.match(r"kept \d+ events in bundle.events; the damaged file is .*damaged", capsys.readouterr().out)
    server = Server()
    server.end()
    for arguments, words in (
        (["none"], "there is no such file; expected the folder of a service's events"),
        (["bundle.events", "--force"], "--force"),
    ):
        assert main(["repair-events", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.usefixtures("bundle")
def test_a08_files_are_for_their_owner_alone():
    before = os.umask(0)
    try:
        server = Server()
        httpx.post(f"{server.url}/events", json={"events": [{"user": "u1", "item": "i1"}]})
        folder = Path("bundle.events")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir() if file.is_file()} == {0o600}
        server.end()
    finally:
        os.umask(before)


# ------------------------------------------------------------------------------------------------------------- attacks


def slowest_health(url, seconds, while_this=lambda: True):
    """The longest time of ``/health``, in new connections, one after the other."""
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end and while_this():
        start = time.perf_counter()
        assert httpx.get(f"{url}/health", timeout=20).status_code == 200
        slowest = max(slowest, time.perf_counter() - start)
        time.sleep(0.01)
    return slowest


def address(server):
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def allowed(url):
    """Seconds that ``/health`` may take under attack.

    The benchmark asks for 0.1 s on an idle machine.  Tests run side by side, so what it takes without an attack counts.
    """
    return 0.3 + 3 * slowest_health(url, 1)


@pytest.mark.usefixtures("bundle")
def test_a04_half_open_connections_keep_nobody_out():
    """Half of a header, or half of a body: 600 are more than may be open."""
    server = Server(RECBOLE_ONEBP_API_KEY="secret")
    limit = allowed(server.url)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for start in (head, head + b"Authorization: Bearer secret\r\nContent-Length: 1000\r\n\r\n{", b""):
        half_open = []
        for _ in range(600):
            half_open.append(socket.create_connection(address(server)))
            half_open[-1].sendall(start)
        assert slowest_health(server.url, 1) < limit
        for connection in half_open:
            connection.close()
    server.end()


def test_a05_large_requests_block_nobody(tmp_path):
    made_bundle(tmp_path / "large", n_users=2000, n_items=20_000, size=32)
    server = Server(bundle="large")
    limit = allowed(server.url)
    users = [f"u{number}" for number in range(1000)]
    codes = []

    def ask(k):
        codes.append(httpx.post(f"{server.url}/recommend", json={"users": users, "k": k}, timeout=60).status_code)

    threads = [threading.Thread(target=ask, args=(k,)) for k in (20, 20, 20, 20, 1000, 1000, 1000, 1000)]
    for thread in threads:
        thread.start()
    assert slowest_health(server.url, 60, lambda: any(thread.is_alive() for thread in threads)) < limit
    assert sorted(codes) == [200] * 4 + [422] * 4
    server.end()


@pytest.mark.usefixtures("bundle")
def test_a06_small_chunks_block_nobody():
    server = Server()
    limit = allowed(server.url)

    def attack():
        with socket.create_connection(address(server)) as connection, suppress(OSError):
            head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + 900_000 * b"1\r\nx\r\n")

    thread = threading.Thread(target=attack)
    thread.start()
    assert slowest_health(server.url, 1) < limit
    thread.join()
    server.end()


@pytest.mark.usefixtures("bundle")
def test_a22_serve_errors(capsys, monkeypatch):
    for arguments, words in (
        (["none"], "none: not a bundle"),
        (["bundle", "--port=70000"], "port: 70000 is not allowed: expected 0 to 65535"),
        (["bundle", "--port=-1"], "port: -1 is not allowed"),
        (["bundle", "--host=" + "a" * 300], "cannot listen there"),
        (["bundle", "--host=a\0b"], "cannot listen there"),
        (["bundle", "--host="], "cannot listen there"),
        (["bundle", "--host=203.0.113.1"], "cannot listen there"),
        (["bundle", "--allowed_hosts=http://a"], "allowed_hosts: 'http://a' is no name of a host"),
        (["bundle", "--max_new_users=-1"], "max_new_users: -1 is not allowed"),
        (["bundle", "--max_new_items=-1"], "max_new_items: -1 is not allowed"),
        (["bundle", "--workers=0"], "workers: 0 is not allowed: expected 1 to 256"),
        (["bundle", "--watch=nan"], "watch: nan is not allowed"),
        (["bundle", "--memory_mb=nan"], "memory_mb: nan is not allowed"),
        (["bundle", "--host=no.such.host.invalid"], "cannot listen there"),
        (["bundle", "--memory_mb=0"], "memory_mb"),
        (["bundle", "--watch=0"], "watch: 0 is not allowed: expected more than 0 seconds"),
        (["bundle", "--index=faiss"], "has no index of faiss; export it with --ann=faiss"),
    ):
        assert main(["serve", "--port=0", *arguments]) == 2
        assert words in capsys.readouterr().err
    for key in ("", "a b"):
        monkeypatch.setenv("RECBOLE_ONEBP_API_KEY", key)
        assert main(["serve", "bundle", "--port=0"]) == 2
        assert "RECBOLE_ONEBP_API_KEY: expected printable" in capsys.readouterr().err
