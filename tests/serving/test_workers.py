"""A service of several processes: one state, one port, and none of them is missed."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.http.events import Event, EventStore
from recbole_onebp.serving.http.live import Live, TooManyUsersError
from recbole_onebp.serving.http.middleware import Limits
from recbole_onebp.serving.http.worker import SharedLive
from support.bundles import made_bundle
from support.server import Server

WORKERS = 2


def workers_of(server):
    """The processes of a service that serve, by the number of their files: other children have few."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def connections_of(pid):
    """Established TCP connections of a process."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    rows = [row.split() for row in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(f"socket:[{row[9]}]" in links for row in rows if row[3] == "01")


def have_ended(pids):
    """Whether the processes end within 20 s; who adopts them may collect them later."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        left = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        with suppress(psutil.NoSuchProcess):
            if all(process.status() == psutil.STATUS_ZOMBIE for process in left):
                return True
        time.sleep(0.05)
    return False


@pytest.fixture
def server(bundle, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    server = Server(f"--workers={WORKERS}")
    yield server
    server.end(signal.SIGKILL)


@pytest.fixture
def clients(server):
    """A client of each worker: they get connections in turn."""
    with ExitStack() as stack:
        found = [stack.enter_context(httpx.Client(base_url=server.url, timeout=30)) for _ in range(WORKERS)]
        for client in found:
            client.get("/health")
        yield found


@pytest.fixture
def pair(bundle, tmp_path):
    """Two recommenders that share their events, as those of two processes do."""
    with closing(EventStore(tmp_path / "events")) as first, closing(EventStore(first.folder, join=True)) as second:
        yield [Live(bundle, store, memory_mb=30, max_new_users=3) for store in (first, second)]


# --------------------------------------------------------------------------------------------------------------- state


def lists(live):
    return live.ask(lambda rec: rec.recommend(["u1", "u2", "new", "newer"], k=60))


def test_each_sees_the_events_of_the_other(pair):
    for number in range(20):
        writer, reader = pair if number % 2 else reversed(pair)
        assert writer.record([Event("u1", f"i{number}", id=f"{number}")]).new == [True]
        assert reader.ask(lambda rec: rec.history("u1"))[-1] == f"i{number}"
        assert reader.record([Event("u1", f"i{number}", id=f"{number}")]).new == [False]  # a retry elsewhere


def test_all_come_to_the_same_state(pair, bundle):
    """Both record at once; the order in the store is that of both, and of a recommender that replays them."""

    def record(live, start):
        for number in range(start, start + 60, 2):
            live.record([Event(user, f"i{number % 60}") for user in ("u1", "u2", "new")])

    threads = [threading.Thread(target=record, args=(live, start)) for start, live in enumerate(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    replayed = Recommender.load(bundle)
    replayed.update([event for run in pair[0].store.read() for event in run.events])
    assert lists(pair[0]) == lists(pair[1]) == replayed.recommend(["u1", "u2", "new", "newer"], k=60)
    assert len(replayed.history("new")) == 60


def test_one_that_slept_while_events_were_merged_reads_all_anew(pair, bundle):
    awake, asleep = pair
    awake.record([Event("u1", "i1"), Event("new", "i2")])
    assert lists(asleep) == lists(awake)
    awake.record([Event("new", "i3"), Event("newer", "i4")])
    awake.store.compact()
    awake.record([Event("u1", "i5")])
    assert lists(asleep) == lists(awake)
    assert asleep.ask(lambda rec: rec.history("new")) == ["i2", "i3"]


def test_a_bundle_that_one_serves_already(pair, bundle):
    """Between two reloads: events are recorded under either bundle, and both processes apply the same ones."""
    made_bundle(bundle, seed=1, replace=True)
    first, second = pair
    second.reload()
    for live in (first, second, first):
        live.record([Event("u1", item) for item in ("i1", "i2", "i3", "i4", "i5")])
    first.reload()
    assert lists(first) == lists(second)
    assert first.recommender.history("u1") == second.recommender.history("u1")


def test_new_users_are_bounded_together(pair):
    first, second = pair
    first.record([Event("a", "i1"), Event("b", "i1")])
    second.record([Event("c", "i1")])
    for live in pair:
        with pytest.raises(TooManyUsersError):
            live.record([Event("d", "i1")])
    assert first.recommender.n_users == second.recommender.n_users == 23


def test_the_shares_of_the_limits():
    limits = Limits(memory_bytes=64 << 20, waiting=64, threads=4)
    assert limits.divided(1) == limits
    half = limits.divided(2)
    assert (half.memory_bytes, half.waiting, half.threads, half.rows) == (32 << 20, 32, 2, limits.rows)
    small = limits.divided(64)
    assert (small.memory_bytes, small.waiting, small.threads) == (limits.body_bytes + limits.answer_bytes, 8, 1)


def test_a_reload_that_one_process_cannot_do_is_no_reload(pair, bundle):
    """It is told where it was asked for, and no other process tries it."""
    board = np.zeros(3, np.int64)
    first, second = (SharedLive(board, n, bundle, live.store, 30) for n, live in enumerate(pair, 1))
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(Exception, match="manifest of a bundle"):
        first.reload()
    assert board[0] == 0
    made_bundle(bundle, n_items=90, replace=True)
    stop = threading.Event()
    thread = threading.Thread(target=second.follow, args=(stop,))
    thread.start()
    first.reload()
    assert first.recommender.n_items == second.recommender.n_items == 90
    stop.set()
    thread.join()


# ----------------------------------------------------------------------------------------------------------- processes


@pytest.mark.usefixtures("bundle")
def test_one_process_needs_no_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = Server("--workers=1")
    response = httpx.post(f"{server.url}/events", json={"events": [{"user": "new", "item": "i1"}]})
    assert response.json()["new_users"] == ["new"]
    assert 'recbole_onebp_events_total{outcome="applied"} 1.0' in httpx.get(f"{server.url}/metrics").text
    assert not workers_of(server)
    server.end()


def test_connections_are_spread_evenly(server):
    with ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(httpx.Client(base_url=server.url))
            assert client.get("/health").status_code == 200
        assert [connections_of(pid) for pid in workers_of(server)] == [4] * WORKERS


def test_what_they_share_is_closed_to_others(server):
    folder = Path("bundle.events/processes")
    assert (folder / "door").is_socket()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_long_path(tmp_path, monkeypatch):
    """The path of a Unix socket may have about 100 letters."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    made_bundle(folder / "bundle")
    monkeypatch.chdir(folder)
    server = Server(f"--workers={WORKERS}", "--events=events")
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.end()


def test_one_records_and_the_other_answers(clients, bundle):
    one, other = clients
    rec = Recommender.load(bundle)
    for number in range(30):
        event = {"user": "new", "item": f"i{number}", "id": f"{number}"}
        assert one.post("/events", json={"events": [event]}).json()["new"] == [True]
        rec.update([("new", f"i{number}")])
        found = other.post("/recommend", json={"users": ["new"]}).json()["lists"][0]["items"]
        assert [(row["item"], row["score"]) for row in found] == rec.recommend(["new"])[0]
        assert other.post("/events", json={"events": [event]}).json()["new"] == [False]
    for client in clients:
        text = client.get("/metrics").text
        assert 'recbole_onebp_events_total{outcome="applied"} 30.0' in text
        assert 'recbole_onebp_requests_total{endpoint="/events",status="200"} 60.0' in text
        assert "recbole_onebp_users 21.0" in text


def test_a_reload_is_one_of_all(clients, bundle):
    for n_items in (70, 80):
        made_bundle(bundle, n_items=n_items, replace=True)
        assert clients[0].post("/reload", json={}).json()["items"] == n_items
        assert clients[1].get("/health").json()["items"] == n_items
    (bundle / "manifest.json").write_text("{}")
    assert clients[1].post("/reload", json={}).status_code == 422
    assert [client.get("/health").json()["items"] for client in clients] == [80, 80]


def test_killed_workers_lose_nothing(server):
    """Four clients write and send again what was not acknowledged, while one worker after the other is killed."""
    sent, stop = {f"writer {number}": 0 for number in range(4)}, threading.Event()

    def write(user):
        while not stop.is_set():
            with suppress(httpx.HTTPError), httpx.Client(base_url=server.url) as client:
                while not stop.is_set():
                    item = f"i{sent[user] % 60}"
                    body = {"events": [{"user": user, "item": item, "id": f"{user} {sent[user]}"}]}
                    sent[user] += client.post("/events", json=body).status_code == 200

    threads = [threading.Thread(target=write, args=(user,)) for user in sent]
    for thread in threads:
        thread.start()
    for _ in range(2):
        for pid in workers_of(server):
            enough, end = sum(sent.values()) + 20, time.monotonic() + 60
            os.kill(pid, signal.SIGKILL)
            while sum(sent.values()) < enough or pid in workers_of(server) or len(workers_of(server)) < WORKERS:
                assert time.monotonic() < end
                time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    for user, count in sent.items():
        found = httpx.get(f"{server.url}/history", params={"user": user}).json()["items"]
        assert [row["item"] for row in found][:count] == [f"i{number % 60}" for number in range(count)]
        assert len(found) <= count + 1  # one may have been written and not acknowledged


def test_workers_that_end_again_and_again_end_the_service(server, bundle):
    for path in bundle.iterdir():
        path.unlink()
    os.kill(workers_of(server)[0], signal.SIGKILL)
    assert server.process.wait(timeout=60) == 2
    *_, before, last = server.process.stderr.read().splitlines()
    assert "worker 1 is started again: " in before
    assert last.startswith("error: the service ends, because worker 1 ended 5 times in a minute: ")
    assert f"{bundle}: not a bundle: there is no manifest.json" in last


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
def test_a_stopped_service_leaves_nothing(server, how, code):
    workers = workers_of(server)
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))) as connection:
        body = b'{"events": [{"user": "u1", "item": "i1"}]}'
        head = b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        time.sleep(1)
        server.process.send_signal(how)
        time.sleep(0.3)
        connection.sendall(body)  # a request under way is answered
        assert b" 200 " in connection.recv(1 << 16)[:15]
    assert server.process.wait(timeout=30) == code
    assert have_ended(workers)


def test_workers_end_with_their_parent(server):
    """Killed, it leaves no process behind, and the events can be served again at once."""
    workers = workers_of(server)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    again = Server(f"--workers={WORKERS}")
    assert httpx.get(f"{again.url}/health").status_code == 200
    assert have_ended(workers)
    again.end()
