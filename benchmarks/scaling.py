"""What several processes gain, what they send, and the constants of the model in ``docs/scaling.md``.

    python benchmarks/scaling.py [--data_path dataset] [--dataset gowalla] [--only ROW ...] [--repeats 5] [--json OUT]

Processes are pinned, each to a core, and take turns: one process on one core, two on two, four on two. Each turn is an
epoch, or its first 1,000 steps, with the epoch's order and the users' first aggregation.
``link`` has two processes that share no memory, as two hosts would, over the loopback device; a slower link is
simulated by letting each exchange last as long as its bytes would take. A run of all rows writes
``results/<machine>-scaling.json``; with ``--only`` nothing is written unless ``--json`` says where, and other rows of
the same machine, versions and settings that lie there stay.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from measure import (
    RESULTS,
    Machine,
    Row,
    add_common_flags,
    alternate,
    claim,
    earlier_rows,
    measure_all,
    ratios,
    versions,
    write_json,
)
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
"""Steps a turn, of which None are an epoch, some seconds of one core; and the configuration."""
LINKED = ("2,048 pairs a step", "paper's form, 2,048 pairs a step")
LINKS = {"25 Gbit/s, 20 us": (25e9, 20e-6), "10 Gbit/s, 50 us": (10e9, 50e-6), "1 Gbit/s, 200 us": (1e9, 200e-6)}
"""Bits a second and seconds until the first arrives."""
TARGET = 1.7


class Ask(Protocol):
    """Asks all processes for something, and brings their answers."""

    def __call__(self, what: str, value: Any = None) -> list[Any]: ...


# ------------------------------------------------------------------------------------------------------------ processes


def _work(pipe: Any, environment: Mapping[str, str], core: int, config: dict[str, Any]) -> None:
    """A rank: trains, or measures something, whenever it is asked to."""
    os.sched_setaffinity(0, {core})
    os.environ.update(environment)
    logging.disable(logging.WARNING)
    import torch

    torch.set_num_threads(1)
    import recbole_onebp

    run = recbole_onebp.build("OneBP", config["dataset"], config_dict=config)
    while True:
        what, value = pipe.recv()
        if what == "steps":
            pipe.send(_turn(run, value))
        elif what == "items":
            pipe.send(_items_share(run, value))
        elif what == "rows":
            users: Any = run.model.user_table
            pipe.send((len(users) - 1, users.nbytes, run.trainer._schedule.n_pairs))
        elif what == "link":
            _simulate(value)
            pipe.send(None)
        elif what == "collectives":
            pipe.send(_collectives(run, value))
        elif what == "adam":
            pipe.send(_adam_on_rows(*value))
        else:
            return


def _turn(run: Any, n_steps: int | None) -> tuple[float, float]:
    """Seconds and loss of the first steps of an epoch, or of all."""
    run.trainer.checkpointing.watch = lambda epoch, steps, *_: islice(steps, n_steps)
    start = perf_counter()
    loss = run.trainer._fast_epoch(run.train_data, 0, False)
    return perf_counter() - start, loss


def _items_share(run: Any, repeats: int) -> list[float]:
    """What part of an epoch's time goes into the items' gradients and steps."""
    engine, shares, spent = run.trainer._engine, [], 0.0
    train_items = engine._train_items

    def measured(*arguments: Any) -> None:
        nonlocal spent
        start = perf_counter()
        train_items(*arguments)
        spent += perf_counter() - start

    engine._train_items = measured
    for _ in range(repeats):
        spent = 0.0
        seconds, _ = _turn(run, None)
        shares.append(spent / seconds)
    return shares


def _adam_on_rows(n_rows: int, size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a row of Adam's step without a gradient, in a table of so many rows."""
    from recbole_onebp.engine.kernels import step_rows

    table, first, second = (np.full((n_rows, size), 1e-3, dtype=np.float32) for _ in range(3))
    head, following = np.full(n_rows, -1, dtype=np.int32), np.zeros(1, dtype=np.int32)
    source, none = np.zeros((1, size), dtype=np.float32), np.zeros((0, 0, size), dtype=np.float32)
    nothing = np.zeros(1, dtype=np.float32), 1, source, none, False, True  # no gradient, and no link to undo
    settings = [np.float32(value) for value in (1e-3, 1e-8, 0.9, 0.999, 0)]
    in_order = np.arange(1, n_rows, dtype=np.int32)
    orders = {"in order": in_order, "at random": np.random.default_rng(0).permutation(in_order)}
    seconds: dict[str, list[float]] = {}
    for name, order in orders.items():
        parts = np.array_split(order, max(1, len(order) // 40_000))  # of a large table, each time another one
        for number in range(1 + repeats):
            rows = parts[number % len(parts)]
            start = perf_counter()
            step_rows(rows, head, following, *nothing, table, first, second, *settings)
            if number > 0:  # the first may compile
                seconds.setdefault(name, []).append((perf_counter() - start) / len(rows))
    return seconds


def _simulate(link: tuple[float, float] | None) -> None:
    """Let every exchange last as long as over a link of so many bits a second, with such a delay."""
    import torch.distributed as dist

    from recbole_onebp.engine import cpu_sharded as sharded

    def exchange(received: list[Any], sent: Any, group: Any) -> None:
        start = perf_counter()
        dist.all_gather(received, sent, group=group)
        if link is not None:
            end = start + link[1] + 8 * sent.nbytes * (len(received) - 1) / link[0]
            while perf_counter() < end:
                pass

    class Slow:
        all_gather = staticmethod(exchange)

    vars(sharded)["dist"] = Slow


def _collectives(run: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds of what a step might do to bring the ranks together."""
    import torch
    import torch.distributed as dist

    engine, n_items = run.trainer._engine, run.dataset.item_num
    config = run.model.config
    words = engine.words_a_pair * config.positives_a_step // dist.get_world_size()
    dense, sent = torch.zeros(n_items, config.embedding_size), torch.zeros(words)
    touched = min(n_items, config.positives_a_step * (1 + config.repeats) // dist.get_world_size())
    rows = torch.zeros(touched, config.embedding_size + 1)
    candidates: dict[str, Callable[[], object]] = {
        "all-reduce of the dense gradient": lambda: dist.all_reduce(dense),
        "all-gather of gradient rows": lambda: dist.all_gather(
            [rows.clone() for _ in range(dist.get_world_size())], rows
        ),
        "all-gather of encodings and coefficients": lambda: dist.all_gather(
            [sent.clone() for _ in range(dist.get_world_size())], sent
        ),
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


@contextmanager
def ranks(world: int, local_world: int, config: Mapping[str, Any], apart: bool = False) -> Iterator[Ask]:
    """Processes that do what they are asked to, all at once; each a run of its own if ``apart``."""
    port = free_port()
    cores, context = sorted(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    started = []
    with tempfile.TemporaryDirectory() as scratch:
        for rank in range(world):
            environment = {
                **one_thread, "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": str(rank),
                "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank % local_world), "LOCAL_WORLD_SIZE": str(local_world),
            } if not apart else one_thread  # fmt: skip
            here, there = context.Pipe()
            own = {**config, "output_dir": str(Path(scratch) / str(rank * apart))}
            process = context.Process(
                target=_work, args=(there, environment, cores[rank % len(cores)], own), daemon=True
            )
            process.start()
            there.close()
            started.append((process, here))

        def ask(what: str, value: Any = None) -> list[Any]:
            for _, pipe in started:
                pipe.send((what, value))
            try:
                return [pipe.recv() for _, pipe in started]
            except EOFError:
                raise RuntimeError(f"a process of {world} has ended; see above") from None

        try:
            yield ask
        finally:
            for process, _ in started:
                process.terminate()
                process.join()


# ----------------------------------------------------------------------------------------------------------------- rows


class Bench:
    def __init__(self, data_path: Path, dataset: str, repeats: int, seed: int) -> None:
        self.repeats = repeats
        self.config: dict[str, Any] = {
            "data_path": str(data_path), "dataset": dataset, "seed": seed, "show_progress": False, "epochs": 1,
        }  # fmt: skip

    def throughput(self) -> list[Row]:
        return [row for name in SETTINGS for row in self._throughput(name)]

    def _throughput(self, name: str) -> list[Row]:
        n_steps, settings = SETTINGS[name]
        config = {**self.config, **settings}
        with ExitStack() as stack:
            groups = {world: stack.enter_context(ranks(world, world, config)) for world in (1, 2, 4)}
            apart = stack.enter_context(ranks(2, 1, config, apart=True))
            for _ in range(2):  # compiled, and the tables where they stay
                losses = [ask("steps", n_steps)[0][1] for ask in (*groups.values(), apart)]
                claim(np.allclose(losses, losses[0], rtol=1e-5), f"losses of 1, 2 and 4 processes: {losses}")
            turns = [partial(_seconds, ask, n_steps) for ask in (*groups.values(), apart)]
            *seconds, apart_seconds = alternate(self.repeats, *turns)
            held = {world: ask("rows") for world, ask in groups.items()}
        checked = f"losses of 1, 2 and 4 processes within 1e-5 of one another, the first of {losses[0]:.6g}"
        parts = {f"{world} processes, s": values for world, values in zip(groups, seconds, strict=True)}
        title = f"throughput, {{}}, {self.config['dataset']}, {name}"
        note = f"{n_steps} steps" if n_steps else "an epoch"
        rows = [
            Row(title.format("2 processes on 2 cores / 1 on 1"), ratios(seconds[0], seconds[1]), parts,
                checked, TARGET, at_least=True, note=note),
            Row(title.format("4 processes on 2 cores / 1 on 1"), ratios(seconds[0], seconds[2]), parts, checked),
            Row(title.format("2 runs at once / 1"), [2 * each for each in ratios(seconds[0], apart_seconds)],
                {"2 runs, s": apart_seconds}, checked, note="nothing shared: what two cores give at most"),
        ]  # fmt: skip
        if name == "defaults":
            whole = held[1][0][1]
            for world in (2, 4):
                part = max(rank[1] for rank in held[world]) / whole
                claim(sum(rank[0] for rank in held[world]) == held[1][0][0], "the ranks' users are not all users")
                megabytes = {f"rank {number}, MB": [rank[1] / 1e6] for number, rank in enumerate(held[world])}
                rows.append(Row(f"memory of user rows, the largest rank of {world} / 1 process", [part], megabytes,
                                "the ranks' users add up to all", 1 / world + 1e-3))  # fmt: skip
        return rows

    def link(self) -> list[Row]:
        return [row for name in LINKED for row in self._link(name)]

    def _link(self, name: str) -> list[Row]:
        n_steps, settings = SETTINGS[name]
        config, rows = {**self.config, **settings}, []
        with ranks(1, 1, config) as alone, ranks(2, 1, config) as two:
            for ask in (alone, two):
                ask("steps", n_steps)
            for wire, link in {"loopback": None, **LINKS}.items():
                two("link", link)
                turns = (partial(_seconds, ask, n_steps) for ask in (alone, two))
                seconds = alternate(max(2, self.repeats // 2), *turns)
                rows.append(
                    Row(f"throughput, 2 hosts of 1 process / 1, {name}, {wire}", ratios(*seconds),
                        {"1 process, s": seconds[0], "2 hosts, s": seconds[1]}, "losses finite")
                )  # fmt: skip
        return rows

    def collectives(self) -> list[Row]:
        with ranks(2, 2, {**self.config, **PAPER, "train_batch_size": 5 * 2048}) as two:
            two("steps", 1)
            seconds = two("collectives", self.repeats)[0]
        base = seconds["all-gather of encodings and coefficients"]
        return [
            Row(f"{name} / all-gather of encodings and coefficients, 2 processes", ratios(values, base),
                {f"{name}, us": [1e6 * value for value in values]}, "run by all ranks at once")
            for name, values in seconds.items()
        ]  # fmt: skip

    def constants(self) -> list[Row]:
        """Of ``scaling_model.py``, on one core.

        From epochs of several batch sizes: a step costs a constant, and each pair its own.
        """
        sizes, seconds, config = (512, 1024, 2048, 4096), [], {**self.config, **PAPER, "learner": "sparse_adam"}
        for size in sizes:
            with ranks(1, 1, {**config, "train_batch_size": 5 * size}) as one:
                one("steps")
                seconds.append(alternate(max(2, self.repeats // 2), partial(_seconds, one))[0])
                if size == sizes[-1]:
                    n_pairs = one("rows")[0][2]
                    share = one("items", self.repeats)[0]
                    adam = {n_rows: one("adam", (n_rows, PAPER["embedding_size"], self.repeats))[0] for n_rows in ROWS}
        steps = np.array([-(-n_pairs // size) for size in sizes])
        fits = [np.linalg.lstsq(np.stack([steps, np.full(len(sizes), n_pairs)], 1), np.array(round_), rcond=None)[0]
                for round_ in zip(*seconds, strict=True)]  # fmt: skip
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


def _seconds(ask: Ask, n_steps: int | None = None) -> float:
    answers = ask("steps", n_steps)
    claim(all(np.isfinite(loss) for _, loss in answers), "a loss is not a number")
    return float(statistics.median(seconds for seconds, _ in answers))


NAMES = ("throughput", "link", "collectives", "constants")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser, repeats=5)
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="RecBole's data folder")
    parser.add_argument("--dataset", default="gowalla")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="ROW", help=" ".join(NAMES))
    args = parser.parse_args()
    machine, all_rows = Machine.here(), set(args.only) == set(NAMES)
    out = args.json or (RESULTS / f"{machine.slug}-scaling.json" if all_rows else None)
    bench = Bench(args.data_path.resolve(), args.dataset, args.repeats, args.seed)
    settings = {"dataset": args.dataset, "seed": args.seed, "repeats": args.repeats, "threads": 2}
    result = {"machine": asdict(machine), "versions": versions("numba"), "settings": settings}
    start = perf_counter()
    try:
        earlier = earlier_rows(out, result) if out and not all_rows else {}
        if len(os.sched_getaffinity(0)) < 2:
            raise UserError("one core is free to use; two are needed")
        rows, sound = measure_all({name: getattr(bench, name) for name in args.only})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if out:
        settings["run_seconds"] = round(perf_counter() - start)
        write_json(out, {**result, "rows": {**earlier, **rows}})
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
