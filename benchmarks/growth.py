"""How the cost of an OneBP epoch grows with interactions, users, items, dimension and negatives.

    python benchmarks/growth.py [--json OUT] [--only interactions ...] [--repeats 3] [--largest 30000000]

Trains on made data: distinct pairs whose users and items follow power laws, drawn in memory from a seed. One quantity
varies at a time, the others stay at ``BASE``. The sizes take turns, round by round, so that a machine that slows down
slows all of them. Of a longer epoch ``STEPS`` steps are timed, which are all alike, and its order, which is made whole.
Writes ``results/<machine>-growth.json`` and a plot beside it; takes some six minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from measure import (
    RESULTS,
    CheckFailedError,
    Machine,
    add_common_flags,
    alternate,
    claim,
    picture,
    use_threads,
    versions,
    write_json,
)
from numpy.typing import NDArray

from recbole_onebp.util.errors import UserError

BASE = {"interactions": 3_000_000, "users": 100_000, "items": 50_000, "dimension": 64, "negatives": 5}
SWEEPS: dict[str, tuple[int, ...]] = {
    "interactions": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000),
    "users": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "items": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "dimension": (16, 32, 64, 128, 256),
    "negatives": (1, 2, 5, 10, 20),
}
FITTED_FROM = {"interactions": 1_000_000}
"""Below that many interactions the epoch is too short to say how it grows."""
POSITIVES = 2048
STEPS = 488
"""As many as a million interactions have."""
LEARNERS = ("adam", "sparse_adam")
Ids = NDArray[np.int32]


def power_law_pairs(n: int, n_users: int, n_items: int, seed: int) -> tuple[Ids, Ids]:
    """``n`` distinct pairs in random order, ids from 1.

    The r-th most active user of U is drawn with weight (r + U / 100)^-0.8, items alike (Zipf-Mandelbrot), so that the
    most popular item has about 8 % of the users at 300 pairs a user, as real data has.
    """
    if n > n_users * n_items // 4:
        raise UserError(f"{n:,} distinct pairs of {n_users:,} users and {n_items:,} items would not be a power law")
    rng = np.random.default_rng(seed)
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < n:  # pairs drawn twice are dropped, so a few rounds are needed
        missing = n - len(keys) + n // 50 + 100
        keys = np.concatenate([keys, _ranks(n_users, missing, rng) * n_items + _ranks(n_items, missing, rng)])
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) > 0]
    rng.shuffle(keys)
    user, item = np.divmod(keys[:n], n_items)
    return (user + 1).astype(np.int32), (item + 1).astype(np.int32)


def _ranks(size: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` ranks from 0 below ``size``: the inverse of the power law's distribution function, at uniform places."""
    low, high = (size / 100) ** 0.2, (size + size / 100) ** 0.2
    ranks = ((low + (high - low) * rng.random(n)) ** 5 - size / 100).astype(np.int64)
    return np.clip(ranks, 0, size - 1, out=ranks)  # rounding may leave the range by one


def make_epoch(user: Ids, item: Ids, n_users: int, n_items: int, config: Mapping[str, Any]) -> Callable[[], float]:
    """The fast engine on plain arrays, without RecBole's data set, loaders and trainer.

    Args:
        user: internal user ids, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``.
        n_users: the padding row included, as everywhere in RecBole.
        n_items: likewise.
        config: OneBP's keys that differ from the paper's setting, with ``learning_rate`` and ``seed``.

    Returns:
        A function that trains an epoch, or ``STEPS`` steps of it, and returns the seconds that all of it takes.
    """
    import torch
    import yaml

    from recbole_onebp.config.properties import properties_dir
    from recbole_onebp.config.schema import OneBPConfig
    from recbole_onebp.engine import Schedule
    from recbole_onebp.engine.cpu import FusedEngine

    files = (properties_dir() / "model" / "OneBP.yaml", properties_dir() / "preset" / "paper.yaml")
    defaults, paper = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    values = {**defaults, **paper["all"], **config}
    settings = OneBPConfig(**{key: values[key] for key in OneBPConfig.model_fields})
    generator = torch.Generator().manual_seed(config["seed"])
    users, items = (0.01 * torch.randn(n, settings.embedding_size, generator=generator) for n in (n_users, n_items))
    # What the engine reads of a model.
    model: Any = SimpleNamespace(
        config=settings, user_table=users, item_table=torch.nn.Parameter(items), item_bias=None, item_weight=None
    )
    learner = torch.optim.SparseAdam if settings.learner == "sparse_adam" else torch.optim.Adam
    schedule = Schedule(user, item, n_users, n_items, settings, config["seed"])
    engine = FusedEngine(model, learner([model.item_table], lr=config["learning_rate"]), schedule)
    epochs, steps = count(), min(STEPS, len(schedule))
    chance = math.log(1 + settings.repeats)

    def epoch() -> float:
        started = perf_counter()
        ordered = started

        def first_steps(batches: Iterable[Any]) -> Iterator[Any]:
            nonlocal ordered
            batches = iter(batches)
            first = next(batches)  # the epoch's order is made here
            ordered = perf_counter()
            yield first
            yield from islice(batches, steps - 1)

        loss = engine.train_epoch(next(epochs), first_steps) / steps
        ended = perf_counter()
        claim(math.isfinite(loss) and loss < chance + 1e-3, f"loss {loss}, chance is {chance}, of {len(user):,} pairs")
        return ordered - started + (ended - ordered) * len(schedule) / steps

    return epoch


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of a straight line through the points on log-log axes."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def epochs_of(size: Mapping[str, int], learners: Sequence[str], seed: int) -> list[Callable[[], float]]:
    """An epoch to time, see :func:`make_epoch`, for each learner, on the same data."""
    user, item = power_law_pairs(size["interactions"], size["users"], size["items"], seed)
    config = {
        "embedding_size": size["dimension"],
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": size["negatives"]},
        "train_batch_size": POSITIVES * size["negatives"],  # RecBole counts negatives
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "duplicates": "sequential",
        "seed": seed,
    }
    counts = size["users"] + 1, size["items"] + 1
    return [make_epoch(user, item, *counts, {**config, "learner": learner}) for learner in learners]


def sweep(
    quantity: str, sizes: Sequence[int], learners: Sequence[str], repeats: int, seed: int
) -> list[dict[str, Any]]:
    """For each learner seconds an epoch at each size, and the exponent fitted to each round."""
    epochs = [epoch for size in sizes for epoch in epochs_of({**BASE, quantity: size}, learners, seed)]
    for epoch in epochs:  # compiles, and makes the optimizer's state
        epoch()
    seconds = alternate(repeats, *epochs)
    start = FITTED_FROM.get(quantity, sizes[0])
    fitted = [size for size in sizes if size >= start]
    sweeps = []
    for number, learner in enumerate(learners):
        rounds = seconds[number :: len(learners)]
        for size, values in zip(sizes, rounds, strict=True):
            print(f"  {quantity} {size:>11,}, {learner}: {statistics.median(values):.4g} s an epoch", flush=True)
        of_rounds = zip(*rounds[-len(fitted) :], strict=True)
        sweeps.append(
            {
                "quantity": quantity,
                "learner": learner,
                "sizes": list(sizes),
                "seconds": [[float(f"{value:.5g}") for value in values] for values in rounds],
                "fitted_from": fitted[0],
                "exponents": [round(fitted_exponent(fitted, values), 4) for values in of_rounds],
            }
        )
    return sweeps


def draw(sweeps: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """A panel a quantity on log-log axes: medians, their range, and the fitted line with its exponent."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    quantities = list(dict.fromkeys(entry["quantity"] for entry in sweeps))
    columns = min(3, len(quantities))
    lines = math.ceil(len(quantities) / columns)
    with picture(path, 3.6 * columns, 3.2 * lines + 0.4) as figure:
        figure.suptitle(title, fontsize=10)
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
        for axes in panels.flat[len(quantities) :]:
            axes.set_visible(False)
        for axes, quantity in zip(panels.flat, quantities, strict=False):
            axes.set(xscale="log", yscale="log", xlabel=quantity)
            for entry, color in zip((e for e in sweeps if e["quantity"] == quantity), ("C0", "C1"), strict=False):
                sizes, medians = np.array(entry["sizes"]), np.array([np.median(s) for s in entry["seconds"]])
                ranges = [[m - min(s), max(s) - m] for m, s in zip(medians, entry["seconds"], strict=True)]
                axes.errorbar(sizes, medians, yerr=np.transpose(ranges), fmt="o", color=color, markersize=4, capsize=2)
                inside = sizes >= entry["fitted_from"]
                slope, offset = np.polyfit(np.log(sizes[inside]), np.log(medians[inside]), 1)
                line = np.exp(offset) * sizes[inside] ** slope
                label = f"{entry['learner']}, exponent {np.median(entry['exponents']):.2f}"
                axes.plot(sizes[inside], line, color=color, linewidth=1.2, label=label)
            ticks = entry["sizes"]
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(_short))
            axes.axvline(BASE[quantity], color="grey", linewidth=0.8, linestyle=":")
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8, frameon=False, loc="upper left")
        for axes in panels[:, 0]:
            axes.set_ylabel("seconds an epoch")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _short(value: float, _position: object = None) -> str:
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {letter}"
    return f"{value:g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser, repeats=3)
    parser.add_argument("--threads", type=int, default=2, help="cores and threads, for everything timed (default 2)")
    parser.add_argument("--only", nargs="+", choices=list(SWEEPS), default=list(SWEEPS), metavar="QUANTITY")
    parser.add_argument("--largest", type=int, default=SWEEPS["interactions"][-1], help="most interactions to go to")
    args = parser.parse_args()
    try:
        if args.largest < 3_000_000:
            raise UserError(f"--largest {args.largest:,}: the law is fitted from 1 million to at least 3 million")
        use_threads(args.threads)
        machine = Machine.here()
        sweeps = []
        for quantity in args.only:
            sizes = [size for size in SWEEPS[quantity] if quantity != "interactions" or size <= args.largest]
            sweeps += sweep(quantity, sizes, LEARNERS, args.repeats, args.seed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailedError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    out = args.json or RESULTS / f"{machine.slug}-growth.json"
    settings = {"threads": args.threads, "seed": args.seed, "repeats": args.repeats, "base": BASE}
    result = {"machine": asdict(machine), "versions": versions("numba"), "settings": settings, "sweeps": sweeps}
    write_json(out, result)
    base = ", ".join(f"{name} {_short(value)}" for name, value in BASE.items())
    draw(sweeps, out.with_suffix(".png"), f"OneBP epoch, {machine.cpu}, {args.threads} cores\ndotted: {base}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
