"""How fast a bundle answers, and whether a service loses events when it is killed.

    python benchmarks/serving.py BUNDLE_DIR [--kills 50] [--seconds 20] [--only ROW ...] [--json OUT]

``benchmarks/README.md`` explains the rows.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import measure
import numpy as np
from measure import Row, claim, timed

from recbole_onebp.serving import Recommender

RATE = 50  # requests a second
N_EVENTS = 1_000_000
NAMES = ("loading", "everybody", "updating", "latency", "killing")


class Bench:
    """The bundle and what is measured on it."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self._bundle, self._args, self._scratch = args.bundle.resolve(), args, scratch
        self._rng = np.random.default_rng(args.seed)

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

    def killing(self) -> list[Row]:
        """SIGKILL while four clients write and one thread compacts. Unacknowledged events are sent again.

        After each kill, every acknowledged event must be there once, in order.
        """
        folder = self._scratch / "kills"
        rng = random.Random(self._args.seed)
        items = Recommender.load(self._bundle).item_ids[:1000]
        clients = [_Writer(f"bench-{number}", items) for number in range(4)]
        lost = twice = 0
        for _ in range(self._args.kills + 1):
            with self._served(folder, compact_at=20) as (url, process), httpx.Client(base_url=url) as http:
                threads = [threading.Thread(target=client.send, args=(url,)) for client in clients]
                for client in clients:
                    client.post(http)
                    answer = http.get("/history", params={"user": client.user}).json()
                    found = [entry["item"] for entry in answer["items"]]
                    wanted = [client.item(number) for number in range(client.n_acknowledged)]
                    claim(found[: len(wanted)] == wanted or len(found) != len(wanted), "events are in another order")
                    lost += max(0, len(wanted) - len(found))
                    twice += max(0, len(found) - len(wanted))
                for thread in threads:
                    thread.start()
                sleep(0.2 + rng.random() / 2)
                process.send_signal(signal.SIGKILL)
                for thread in threads:
                    thread.join()
        total = sum(client.n_acknowledged for client in clients)
        claim(total > 10 * self._args.kills, f"only {total} events were acknowledged")
        after = f"over {self._args.kills} kills while four clients write and one thread compacts"
        parts = {"acknowledged": [float(total)]}
        return [
            Row(f"acknowledged events lost {after}", [float(lost)], parts, "order too, after every kill", target=0),
            Row(f"events counted twice after retries {after}", [float(twice)], parts, "after every kill", target=0),
        ]

    @contextmanager
    def _served(self, events: Path, compact_at: int | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        code = "import sys; from recbole_onebp.cli import main; from recbole_onebp.serving.http import live\n"
        if compact_at is not None:
            code += f"live.Live.__init__.__kwdefaults__['compact_at'] = {compact_at}\n"
        code += "sys.exit(main())"
        command = [sys.executable, "-c", code, "serve", str(self._bundle), "--port=0", f"--events={events}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                claim(bool(line), "the service did not start")
                yield line.split()[-1], process
            finally:
                process.kill()


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

    def send(self, url: str) -> None:
        """Send events until the service is gone."""
        with httpx.Client(base_url=url) as client, suppress(httpx.HTTPError):
            while True:
                numbers = range(self.n_acknowledged, self.n_acknowledged + 3)
                self._pending = [{"user": self.user, "item": self.item(n), "id": f"{self.user} {n}"} for n in numbers]
                self.post(client)


def main() -> int:
    options: dict[str, Any] = {"only": list(NAMES), "repeats": 3, "seed": 2024, "threads": 2}
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
