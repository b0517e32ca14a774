"""What several processes gain, what they send, and the constants of the model in ``docs/scaling.md``.

    python benchmarks/scaling.py [--data_path dataset] [--dataset gowalla] [--only ROW ...] [--repeats 5] [--json OUT]

Each process is pinned to a core; groups of processes take turns. A turn is an epoch, or its first 1,000 steps. ``link``
has two processes without shared memory, as on two hosts; a slower link is simulated by stretching each exchange to the
time that its bytes would take.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
from measure import Row, claim, ratios
from scaling_model import ROWS

from recbole_onebp.distributed.launch import free_port
from recbole_onebp.util.errors import UserError

PAPER = {"preset": "paper", "embedding_size": 64, "weight_decay": 0.0}
"""With five negatives a pair; RecBole counts them into a batch."""
SETTINGS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "defaults": (1000, {}),
    "2,048 pairs a step": (None, {"train_batch_size": 2048}),
    "2,048 pairs a step, sparse_adam": (None, {"train_batch_size": 2048, "learner": "sparse_adam"}),
    "paper's form, 2,048 pairs a step": (None, {**PAPER, "train_batch_size": 5 * 2048}),
}
"""Steps of a turn (None: an epoch), and the configuration."""
LINKED = ("2,048 pairs a step", "paper's form, 2,048 pairs a step")
LINKS = {"25 Gbit/s, 20 us": (25e9, 20e-6), "10 Gbit/s, 50 us": (10e9, 50e-6), "1 Gbit/s, 200 us": (1e9, 200e-6)}
"""Bits a second, and seconds until the first one arrives."""
Ask = Callable[..., list[Any]]
"""Calls one of the functions of a rank, with arguments, in all processes of a group, and returns their answers."""
_rank: Any = None  # in a process of a group: its run


def _start(environment: Mapping[str, str], core: int, config: dict[str, Any]) -> None:
    global _rank
    os.sched_setaffinity(0, {core})
    os.environ.update(environment)
    logging.disable(logging.WARNING)
    import numba
    import torch

    numba.config.reload_config()  # this module has imported it already, and it reads the number again when it compiles
    torch.set_num_threads(1)
    import recbole_onebp

    _rank = recbole_onebp.build("OneBP", config["dataset"], config_dict=config)


def _answer(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(_rank, *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other ranks wait for this one until its connections close


@contextmanager
def ranks(world: int, local_world: int, config: Mapping[str, Any], apart: bool = False) -> Iterator[Ask]:
    """A group of processes that are asked together; each has a run of its own if ``apart``."""
    port, cores = free_port(), sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        pools = []
        for rank in range(world):
            environment = dict.fromkeys(measure.THREAD_VARIABLES, "1")
            if not apart:
                numbers = {"RANK": rank, "LOCAL_RANK": rank % local_world, "WORLD_SIZE": world}
                numbers |= {"LOCAL_WORLD_SIZE": local_world, "MASTER_PORT": port}
                environment |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in numbers.items()}}
            own = {**config, "output_dir": str(Path(scratch) / str(rank * apart))}
            arguments = environment, cores[rank % len(cores)], own
            pools.append(stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), _start, arguments)))

        def ask(function: Callable[..., Any], *arguments: Any) -> list[Any]:
            answers = [pool.submit(_answer, function, *arguments) for pool in pools]
            return [answer.result() for answer in answers]

        yield ask


def _seconds(ask: Ask, n_steps: int | None = None) -> float:
    answers = ask(_turn, n_steps)
    claim(all(np.isfinite(loss) for _, loss in answers), "a loss is not finite")
    return float(statistics.median(seconds for seconds, _ in answers))


# Functions of a rank


def _turn(run: Any, n_steps: int | None = None) -> tuple[float, float]:
    """Seconds and loss of the first steps of an epoch, or of the whole epoch."""
    run.trainer.checkpointing.watch = lambda epoch, steps, *_: islice(steps, n_steps)
    start = perf_counter()
    loss = run.trainer._fast_epoch(run.train_data, 0, False)
    return perf_counter() - start, loss


def _rows(run: Any) -> tuple[int, int, int]:
    """Users of this rank, bytes of their rows, and the number of train pairs."""
    users: Any = run.model.user_table
    return len(users) - 1, users.nbytes, run.trainer._schedule.n_pairs


def _items_share(run: Any, repeats: int) -> list[float]:
    """The share of an epoch's time that goes into the items' gradients and updates."""
    engine, shares, spent = run.trainer._engine, [], list[float]()
    train_items = engine._train_items

    def measured(*arguments: Any) -> None:
        start = perf_counter()
        train_items(*arguments)
        spent.append(perf_counter() - start)

    engine._train_items = measured
    for _ in range(repeats):
        spent.clear()
        seconds, _ = _turn(run)
        shares.append(sum(spent) / seconds)
    return shares


def _adam_on_rows(_run: Any, n_rows: int, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a row of Adam's step without a gradient, in a table of so many rows and columns."""
    from recbole_onebp.engine.adam import Adam
    from recbole_onebp.engine.kernels import GradientTerms, Links, step_rows

    table, first, second = (np.full((n_rows, size), 1e-3, dtype=np.float32) for _ in range(3))
    links = Links(np.full(n_rows, -1, dtype=np.int32), np.zeros(1, dtype=np.int32))  # no row has a gradient
    source, none = np.zeros((1, size), dtype=np.float32), np.zeros((0, 0, size), dtype=np.float32)
    terms = GradientTerms(np.zeros(1, dtype=np.float32), source, 1, none)
    names = "step_size", "eps", "beta1", "beta2", "weight_decay"
    settings = dict(zip(names, np.array((1e-3, 1e-8, 0.9, 0.999, 0), dtype=np.float32), strict=True))
    unused = np.empty(0, dtype=np.float32)  # no row misses a step
    missed = {"stepped": np.empty(0, dtype=np.int32), "now": 0, "drift": unused, "left1": unused, "left2": unused}
    adam = Adam(table, first, second, **settings, **missed)
    in_order = np.arange(1, n_rows, dtype=np.int32)
    orders = {"in order": in_order, "at random": np.random.default_rng(0).permutation(in_order)}
    seconds: dict[str, list[float]] = {}
    for name, order in orders.items():
        parts = np.array_split(order, max(1, len(order) // 40_000))  # other rows of a large table each time
        for number in range(1 + repeats):
            rows = parts[number % len(parts)]
            start = perf_counter()
            step_rows(rows, links, terms, False, adam)
            if number > 0:  # the first call may compile
                seconds.setdefault(name, []).append((perf_counter() - start) / len(rows))
    return seconds


def _simulate(_run: Any, link: tuple[float, float] | None) -> None:
    """Stretch every exchange to the time that a link of so many bits a second, with such a delay, would need."""
    import torch.distributed as dist

    from recbole_onebp.engine import cpu_sharded

    def exchange(received: list[Any], sent: Any, group: Any) -> None:
        start = perf_counter()
        dist.all_gather(received, sent, group=group)
        if link is not None:
            end = start + link[1] + 8 * sent.nbytes * (len(received) - 1) / link[0]
            while perf_counter() < end:
                pass

    vars(cpu_sharded)["dist"] = SimpleNamespace(all_gather=exchange)


def _collectives(run: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds of the ways in which a step could bring the ranks together."""
    import torch
    import torch.distributed as dist

    engine, n_items, world = run.trainer._engine, run.dataset.item_num, dist.get_world_size()
    config = run.model.config
    sent = torch.zeros(engine.words_a_pair * config.positives_a_step // world)
    touched = min(n_items, config.positives_a_step * (1 + config.repeats) // world)
    dense, rows = torch.zeros(n_items, config.embedding_size), torch.zeros(touched, config.embedding_size + 1)

    def gather(part: torch.Tensor) -> None:
        dist.all_gather([part.clone() for _ in range(world)], part)

    candidates: dict[str, Callable[[], object]] = {
        "all-reduce of the dense gradient": lambda: dist.all_reduce(dense),
        "all-gather of gradient rows": lambda: gather(rows),
        "all-gather of encodings and coefficients": lambda: gather(sent),
        "wait in shared memory": engine._host.wait,
    }
    seconds: dict[str, list[float]] = {}
    for name, candidate in candidates.items():
        candidate()
        for _ in range(repeats):
            dist.barrier()
            start = perf_counter()
            for _ in range(10):
                candidate()
            seconds.setdefault(name, []).append((perf_counter() - start) / 10)
    return seconds


class Bench:
    def __init__(self, args: argparse.Namespace) -> None:
        self.repeats, more = args.repeats, {"seed": args.seed, "show_progress": False, "epochs": 1}
        self.config: dict[str, Any] = {"data_path": str(args.data_path.resolve()), "dataset": args.dataset, **more}

    def throughput(self) -> list[Row]:
        rows = []
        for name, (n_steps, settings) in SETTINGS.items():
            config = {**self.config, **settings}
            with ExitStack() as stack:
                groups = {world: stack.enter_context(ranks(world, world, config)) for world in (1, 2, 4)}
                apart = stack.enter_context(ranks(2, 1, config, apart=True))
                for _ in range(2):  # compiles, and allocates the tables
                    losses = [ask(_turn, n_steps)[0][1] for ask in (*groups.values(), apart)]
                    claim(np.allclose(losses, losses[0], rtol=1e-5), f"losses of 1, 2 and 4 processes: {losses}")
                turns = [partial(_seconds, ask, n_steps) for ask in (*groups.values(), apart)]
                one, two, four, at_once = measure.alternate(self.repeats, *turns)
                held = {world: ask(_rows) for world, ask in groups.items()}
            checked = f"losses of 1, 2 and 4 processes within 1e-5 of one another, the first of {losses[0]:.6g}"
            parts = {"1 processes, s": one, "2 processes, s": two, "4 processes, s": four}
            title = f"throughput, {{}}, {self.config['dataset']}, {name}"
            note = f"{n_steps} steps" if n_steps else "an epoch"
            rows += [
                Row(title.format("2 processes on 2 cores / 1 on 1"), ratios(one, two), parts, checked, 1.7,
                    at_least=True, note=note),
                Row(title.format("4 processes on 2 cores / 1 on 1"), ratios(one, four), parts, checked),
                Row(title.format("2 runs at once / 1"), [2 * each for each in ratios(one, at_once)],
                    {"2 runs, s": at_once}, checked, note="nothing shared: what two cores give at most"),
                *(_memory_rows(held) if name == "defaults" else []),
            ]  # fmt: skip
        return rows

    def link(self) -> list[Row]:
        rows = []
        for name in LINKED:
            n_steps, settings = SETTINGS[name]
            config = {**self.config, **settings}
            with ranks(1, 1, config) as alone, ranks(2, 1, config) as two:
                turns = [partial(_seconds, ask, n_steps) for ask in (alone, two)]
                measure.alternate(1, *turns)
                for wire, link in {"loopback": None, **LINKS}.items():
                    two(_simulate, link)
                    seconds = measure.alternate(max(2, self.repeats // 2), *turns)
                    parts = {"1 process, s": seconds[0], "2 hosts, s": seconds[1]}
                    title = f"throughput, 2 hosts of 1 process / 1, {name}, {wire}"
                    rows.append(Row(title, ratios(*seconds), parts, "losses finite"))
        return rows

    def collectives(self) -> list[Row]:
        with ranks(2, 2, {**self.config, **PAPER, "train_batch_size": 5 * 2048}) as two:
            two(_turn, 1)
            seconds = two(_collectives, self.repeats)[0]
        base = "all-gather of encodings and coefficients"
        return [
            Row(f"{name} / {base}, 2 processes", ratios(values, seconds[base]),
                {f"{name}, us": [1e6 * value for value in values]}, "run by all ranks at once")
            for name, values in seconds.items()
        ]  # fmt: skip

    def constants(self) -> list[Row]:
        """Of ``scaling_model.py``, on one core: a cost of each step and one of each pair, fitted to epochs."""
        sizes, seconds, config = (512, 1024, 2048, 4096), [], {**self.config, **PAPER, "learner": "sparse_adam"}
        for size in sizes:
            with ranks(1, 1, {**config, "train_batch_size": 5 * size}) as one:
                one(_turn)
                seconds.append(measure.alternate(max(2, self.repeats // 2), partial(_seconds, one))[0])
                if size == sizes[-1]:
                    n_pairs, share = one(_rows)[0][2], one(_items_share, self.repeats)[0]
                    adam = {n_rows: one(_adam_on_rows, n_rows, 64, self.repeats)[0] for n_rows in ROWS}
        counts = np.array([(-(-n_pairs // size), n_pairs) for size in sizes])
        fits = [np.linalg.lstsq(counts, np.array(round_), rcond=None)[0] for round_ in zip(*seconds, strict=True)]
        parts = {f"{size} pairs a step, s": values for size, values in zip(sizes, seconds, strict=True)}
        checked = "least squares over four batch sizes"
        return [
            Row("sparse_adam: a step, us", [1e6 * fit[0] for fit in fits], parts, checked),
            Row("sparse_adam: a pair with 5 negatives, ns", [1e9 * fit[1] for fit in fits], parts, checked),
            Row("of that the items' gradients and steps, part", share, {}, f"epochs of {sizes[-1]} pairs a step"),
            *(Row(f"Adam's step on a row {order}, table of {n_rows:,} rows, ns", [1e9 * value for value in values], {},
                  "no gradient; each time other rows, if there are more than 40,000")
              for n_rows, by_order in adam.items() for order, values in by_order.items()),
        ]  # fmt: skip


def _memory_rows(held: Mapping[int, list[Any]]) -> list[Row]:
    """The largest rank's user rows, as a share of one process's; ``held``: answers to "rows", by number of ranks."""
    rows = []
    n_users, n_bytes, _ = held[1][0]
    for world in (2, 4):
        part = max(rank[1] for rank in held[world]) / n_bytes
        claim(sum(rank[0] for rank in held[world]) == n_users, "the ranks' users are not all users")
        megabytes = {f"rank {number}, MB": [rank[1] / 1e6] for number, rank in enumerate(held[world])}
        title = f"memory of user rows, the largest rank of {world} / 1 process"
        rows.append(Row(title, [part], megabytes, "the ranks' users add up to all", 1 / world + 1e-3))
    return rows


def main() -> int:
    names = ["throughput", "link", "collectives", "constants"]
    options: dict[str, Any] = {"seed": 2024, "data_path": measure.DATA, "dataset": "gowalla"}
    args = measure.arguments(__doc__, json=Path, only=names, repeats=5, **options)
    if len(os.sched_getaffinity(0)) < 2:
        raise UserError("one core is free to use; two are needed")
    settings = {"dataset": args.dataset, "seed": args.seed, "repeats": args.repeats, "threads": 2}
    about, bench = {**measure.here("numba"), "settings": settings}, Bench(args)
    rows = {name: getattr(bench, name) for name in names}
    return measure.measure_to_file(rows, args, f"{about['machine']['slug']}-scaling", about)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
