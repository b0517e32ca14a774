"""How fast a bundle answers, and whether a service loses events when it is killed.

    python benchmarks/serving.py BUNDLE_DIR [--kills 50] [--cores 2] [--seconds 20] [--only ROW ...] [--json OUT]

``benchmarks/README.md`` explains the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import measure
import numpy as np
from measure import Row, claim, timed

from recbole_onebp.serving import Recommender

RATE = 50
"""Requests a second."""
N_EVENTS = 1_000_000
NAMES = ("loading", "everybody", "updating", "latency", "cores", "attacks", "killing")
CLIENTS = 8
HEAD = b"POST /%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Bench:
    """The bundle and what is measured on it."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._bundle, self._args, self._scratch = args.bundle.resolve(), args, scratch
        self._rng, self._random = np.random.default_rng(args.seed), random.Random(args.seed)

    def loading(self) -> list[Row]:
        code = (
            "from time import perf_counter as now; a = now(); from recbole_onebp import Recommender; b = now()\n"
            f"Recommender.load({str(self._bundle)!r}); print(b - a, now() - b)"
        )
        command = [sys.executable, "-c", code]
        printed = [subprocess.check_output(command, text=True).split() for _ in range(self._args.repeats)]
        imports, loads = ([float(seconds) for seconds in column] for column in zip(*printed, strict=True))
        checked = "in a process of its own, files in the page cache, checksums verified"
        return [Row("import, seconds", imports, {}, checked, 0.3), Row("load, seconds", loads, {}, checked, 0.5)]

    def everybody(self) -> list[Row]:
        rec = Recommender.load(self._bundle)
        answers: list[Any] = []
        recommend = timed(lambda: answers.append(rec.recommend(rec.user_ids, k=20)))
        values = [recommend() for _ in range(self._args.repeats)]
        for user in self._rng.choice(rec.n_users, 100, replace=False):
            claim(rec.recommend([rec.user_ids[user]], k=20)[0] == answers[-1][user], "a single user gets another list")
        title = f"exact top 20 of all {rec.n_users:,} users and {rec.n_items:,} items, seconds"
        return [Row(title, values, {}, "100 users alone have the same lists, to the last bit", target=6)]

    def updating(self) -> list[Row]:
        values = []
        for _ in range(self._args.repeats):
            rec = Recommender.load(self._bundle)
            drawn = (self._rng.choice(ids, N_EVENTS).tolist() for ids in (rec.user_ids, rec.item_ids))
            events = list(zip(*drawn, strict=True))
            start = perf_counter()
            report = rec.update(events)
            values.append(perf_counter() - start)
            claim(report.applied == N_EVENTS, f"{report.applied} events were applied")
        return [Row("update of 1 M events, seconds", values, {}, "all were applied", target=5)]

    def latency(self) -> list[Row]:
        rec = Recommender.load(self._bundle)
        histories = [rec.history(user)[:50] for user in rec.user_ids[:1000]]
        questions: dict[str, Callable[[int], dict[str, Any]]] = {
            "/recommend": lambda number: {"users": [rec.user_ids[number % rec.n_users]], "k": 20},
            "/recommend_history": lambda number: {"histories": [histories[number % len(histories)]], "k": 20},
        }
        rows = []
        with self._served(self._scratch / "latency") as (url, _), httpx.Client(base_url=url) as client:
            for path, question in questions.items():
                client.post(path, json=question(0))
                found = [self._percentiles(client, path, question) for _ in range(self._args.repeats)]
                title = f"{path} at {RATE} requests a second from another process, p99, ms"
                parts = {"median, ms": [median for median, _ in found]}
                rows.append(Row(title, [p99 for _, p99 in found], parts, "every answer is a whole list", target=30))
        return rows

    def _percentiles(
        self, client: httpx.Client, path: str, question: Callable[[int], dict[str, Any]]
    ) -> tuple[float, float]:
        """Median and 99th percentile of the latency, ms."""
        latencies = []
        start = perf_counter()
        for number in range(int(RATE * self._args.seconds)):
            due = start + number / RATE
            sleep(max(0.0, due - perf_counter()))
            answer = client.post(path, json=question(number))
            latencies.append(perf_counter() - due)  # includes waiting for an earlier answer
            claim(answer.status_code == 200, answer.text)
            claim(len(answer.json()["lists"][0]["items"]) == 20, "a list is short")
        median, p99 = 1000 * np.percentile(latencies, [50, 99])
        return float(median), float(p99)

    def cores(self) -> list[Row]:
        """Requests a second of 8 clients that ask one after the other, on one core and on several, and p99 at half of
        the latter.  The service has a process per core; the clients share the cores.
        """
        n_cores = self._args.cores
        users = Recommender.load(self._bundle).user_ids
        asked = [json.dumps({"users": [user], "k": 20}).encode() for user in users[:1000]]
        rates: dict[int, list[float]] = {1: [], n_cores: []}
        p99 = []
        for _ in range(self._args.repeats):
            for cores, found in rates.items():
                with _on_cores(cores), self._served(self._scratch / f"cores-{cores}") as (url, _):
                    _ask(url, asked, 1)
                    found.append(len(_ask(url, asked, self._args.seconds)) / self._args.seconds)
                    if cores == n_cores:
                        late = _ask(url, asked, self._args.seconds, found[-1] / 2)
                        p99.append(float(1000 * np.percentile(late, 99)))
        checked = "every answer is a whole list; service and clients share the cores"
        gain = [many / one for many, one in zip(rates[n_cores], rates[1], strict=True)]
        title = f"{CLIENTS} clients on {n_cores} cores, times the requests a second of one core"
        parts = {"requests a second": rates[n_cores], "requests a second of one core": rates[1]}
        late_title = f"p99 at half of the requests a second of {n_cores} cores, ms"
        return [
            Row(title, gain, parts, checked, target=1.7, at_least=True),
            Row(late_title, p99, {}, checked, target=50),
        ]

    def attacks(self) -> list[Row]:
        """The slowest ``/health``, each in a connection of its own, under three attacks, with the key set."""
        users = Recommender.load(self._bundle).user_ids[:1000]
        body = json.dumps({"users": users, "k": 20_000 // len(users)}).encode()
        key = b"Authorization: Bearer secret\r\n"
        large = HEAD % b"recommend" + key + b"Content-Length: %d\r\n\r\n" % len(body) + body
        chunks = HEAD % b"events" + key + b"Transfer-Encoding: chunked\r\n\r\n" + 900_000 * b"1\r\nx\r\n"
        rows = []
        for title, sent, n_connections, waits in (
            ("205 half-open connections", HEAD % b"events", 205, False),
            ("4 requests of 1,000 users at once", large, 4, True),
            ("900,000 chunks of one byte", chunks, 1, True),
        ):
            slowest = []
            for _ in range(self._args.repeats):
                with self._served(self._scratch / "attacks", {"RECBOLE_ONEBP_API_KEY": "secret"}) as (url, _):
                    slowest.append(1000 * _slowest_health(url, sent, n_connections, waits))
            checked = "every answer is 200; the attackers share the cores"
            rows.append(Row(f"slowest /health under {title}, ms", slowest, {}, checked, target=100))
        return rows

    def killing(self) -> list[Row]:
        """SIGKILL while four clients write and a thread compacts: of the whole service, and of one of its processes.
        Unacknowledged events are sent again.

        After each kill, every acknowledged event must be there once, in order.
        """
        items = Recommender.load(self._bundle).item_ids[:1000]
        rows = []
        for whole, what in ((True, "kills of the service"), (False, "kills of one of its processes")):
            clients = [_Writer(f"bench-{number}", items) for number in range(4)]
            lost, twice = self._kills(self._scratch / f"kills-{whole}", clients, whole)
            total = sum(client.n_acknowledged for client in clients)
            claim(total > 10 * self._args.kills, f"only {total} events were acknowledged")
            after = f"over {self._args.kills} {what} while four clients write and one thread compacts"
            parts, checked = {"acknowledged": [float(total)]}, "order too, after every kill"
            rows += [
                Row(f"acknowledged events lost {after}", [float(lost)], parts, checked, target=0),
                Row(f"events counted twice after retries {after}", [float(twice)], parts, checked, target=0),
            ]
        return rows

    def _kills(self, folder: Path, clients: list[_Writer], whole: bool) -> tuple[int, int]:
        """How many acknowledged events were lost, and how many counted twice."""
        lost = twice = 0

        def check(url: str) -> None:
            nonlocal lost, twice
            with httpx.Client(base_url=url) as http:
                for client in clients:
                    client.post(http)
                    answer = http.get("/history", params={"user": client.user}).json()
                    found = [entry["item"] for entry in answer["items"]]
                    wanted = [client.item(number) for number in range(client.n_acknowledged)]
                    claim(found[: len(wanted)] == wanted or len(found) != len(wanted), "events are in another order")
                    lost += max(0, len(wanted) - len(found))
                    twice += max(0, len(found) - len(wanted))

        for _ in range(self._args.kills + whole):
            with self._served(folder, workers=2, compact_at=20) as (url, process):
                check(url)
                stop = threading.Event()
                threads = [threading.Thread(target=client.send, args=(url, stop)) for client in clients]
                for thread in threads:
                    thread.start()
                sleep(0.2 + self._random.random() / 2)
                os.kill(process.pid if whole else self._random.choice(_workers(process.pid)), signal.SIGKILL)
                if not whole:
                    sleep(0.2)  # the others go on
                stop.set()
                for thread in threads:
                    thread.join()
                if not whole:
                    check(url)
        return lost, twice

    @contextmanager
    def _served(
        self, events: Path, environment: dict[str, str] | None = None, **options: int
    ) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        code = (
            "from pathlib import Path; from recbole_onebp.serving.http.server import Service, serve\n"
            f"serve(Service(Path({str(self._bundle)!r}), Path({str(events)!r}), port=0, **{options!r}))"
        )
        env = {**os.environ, **(environment or {})}
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                claim(bool(line), "the service did not start")
                yield line.split()[-1], process
            finally:
                process.kill()


def _workers(pid: int) -> list[int]:
    """The processes of a service that serve."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


class _Writer:
    """A client that numbers its events, and sends those again that were not acknowledged."""

    def __init__(self, user: str, items: Sequence[str]) -> None:
        self.user, self.n_acknowledged = user, 0
        self._items, self._pending = items, list[dict[str, str]]()

    def item(self, number: int) -> str:
        """Of an event."""
        return self._items[number % len(self._items)]

    def post(self, client: httpx.Client) -> None:
        """Send what was not acknowledged."""
        answer = client.post("/events", json={"events": self._pending})
        if answer.status_code == 200:
            self.n_acknowledged += len(self._pending)
            self._pending = []

    def send(self, url: str, stop: threading.Event) -> None:
        """Send events until ``stop`` is set or the service hangs up."""
        with httpx.Client(base_url=url) as client, suppress(httpx.HTTPError):
            while not stop.is_set():
                numbers = range(self.n_acknowledged, self.n_acknowledged + 3)
                self._pending = [{"user": self.user, "item": self.item(n), "id": f"{self.user} {n}"} for n in numbers]
                self.post(client)


@contextmanager
def _on_cores(number: int) -> Iterator[None]:
    """Run this thread, and the threads and processes that it starts, on the first cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return host, int(port)


def _ask(url: str, asked: list[bytes], seconds: float, rate: float | None = None) -> list[float]:
    """Latencies of 8 clients that ask for some seconds, one question after the other or at a rate of all together."""
    latencies: list[float] = []

    def client(first: int) -> None:
        # A plain socket, because a client library would take as long as the service.
        with socket.create_connection(_address(url)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number, start = 0, perf_counter()
            while perf_counter() < start + seconds:
                due = perf_counter() if rate is None else start + (number + first / CLIENTS) * CLIENTS / rate
                sleep(max(0.0, due - perf_counter()))
                body = asked[(first + CLIENTS * number) % len(asked)]
                connection.sendall(HEAD % b"recommend" + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                answer = connection.recv(1 << 16)
                head, _, body = answer.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                while len(body) < length:
                    body += connection.recv(1 << 16)
                latencies.append(perf_counter() - due)
                claim(b" 200 " in head[:15] and body.count(b'"score"') == 20, "an answer is not a whole list")
                number += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return latencies


def _slowest_health(url: str, sent: bytes, n_connections: int, waits: bool) -> float:
    """The slowest ``/health`` while connections send something, and then, if they wait, until they have an answer."""

    def attack(connection: socket.socket) -> None:
        with suppress(OSError):  # the service hangs up
            connection.sendall(sent)
            if waits:
                connection.recv(1)

    connections = [socket.create_connection(_address(url)) for _ in range(n_connections)]
    attackers = [threading.Thread(target=attack, args=(connection,)) for connection in connections]
    for attacker in attackers:
        attacker.start()
    slowest, start = 0.0, perf_counter()
    while perf_counter() < start + 1 or any(attacker.is_alive() for attacker in attackers):
        with httpx.Client(verify=False) as client:  # loading certificates takes a while
            asked = perf_counter()
            claim(client.get(f"{url}/health", timeout=60).status_code == 200, "/health is not 200")
            slowest = max(slowest, perf_counter() - asked)
        sleep(0.01)
    for connection in connections:
        connection.close()
    return slowest


def main() -> int:
    options: dict[str, Any] = {"only": list(NAMES), "repeats": 3, "seed": 2024, "threads": 2, "cores": 2}
    args = measure.arguments(__doc__, "bundle", bundle=Path, json=Path, kills=50, seconds=20.0, **options)
    measure.use_threads(args.threads)
    manifest = Recommender.load(args.bundle).bundle.manifest
    facts = {name: manifest.get(name) for name in ("n_users", "n_items", "embedding_size", "dtype", "score")}
    settings = {"threads": args.threads, "seed": args.seed, "seconds": args.seconds}
    about = {**measure.here(), "settings": settings, "bundle": facts}
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(args, Path(scratch))
        rows = {name: getattr(bench, name) for name in NAMES}
        return measure.measure_to_file(rows, args, f"{about['machine']['slug']}-serving", about)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
