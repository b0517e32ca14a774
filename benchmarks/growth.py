"""How the cost of an OneBP epoch grows with interactions, users, items, dimension and negatives.

    python benchmarks/growth.py [--json OUT] [--only interactions ...] [--repeats 3] [--largest 30000000]

Trains on made data: distinct pairs whose users and items follow power laws, drawn in memory from a seed. One quantity
varies at a time, the others stay at ``BASE``. Writes ``results/<machine>-growth.json`` and a plot beside it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from measure import (
    RESULTS,
    CheckFailedError,
    Machine,
    add_common_flags,
    claim,
    timed,
    use_threads,
    versions,
    write_json,
)
from numpy.typing import NDArray

from recbole_onebp.errors import UserError
from recbole_onebp.files import write_atomically

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


def make_engine(user: Ids, item: Ids, n_users: int, n_items: int, config: Mapping[str, Any]) -> Callable[[], float]:
    """The fast engine on plain arrays, without RecBole's data set, loaders and trainer.

    Args:
        user: internal user ids, shape ``(n,)``.
        item: internal item ids, shape ``(n,)``.
        n_users: the padding row included, as everywhere in RecBole.
        n_items: likewise.
        config: OneBP's keys that differ from their defaults, with ``learning_rate`` and ``seed``.

    Returns:
        A function that trains an epoch and returns its mean loss.
    """
    import torch
    import yaml

    from recbole_onebp.config import OneBPConfig
    from recbole_onebp.engine import Plan
    from recbole_onebp.engine.fused import FusedEngine
    from recbole_onebp.resources import properties_dir

    defaults = yaml.safe_load((properties_dir() / "model" / "OneBP.yaml").read_text(encoding="utf-8"))
    values = {**defaults, **config}
    hyper = OneBPConfig(**{key: values[key] for key in OneBPConfig.model_fields})
    generator = torch.Generator().manual_seed(config["seed"])
    users, items = (0.01 * torch.randn(n, hyper.embedding_size, generator=generator) for n in (n_users, n_items))
    # What the engine reads of a model.
    model: Any = SimpleNamespace(
        hyper=hyper, user_table=users, item_table=torch.nn.Parameter(items), item_bias=None, item_weight=None
    )
    learner = torch.optim.SparseAdam if hyper.learner == "sparse_adam" else torch.optim.Adam
    plan = Plan(user, item, n_users, n_items, hyper, config["seed"])
    engine = FusedEngine(model, learner([model.item_table], lr=config["learning_rate"]), plan)
    epochs = count()
    return lambda: engine.train_epoch(next(epochs)) / len(plan)


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of a straight line through the points on log-log axes."""
    slope, _ = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(slope)


def measure(size: Mapping[str, int], learner: str, repeats: int, seed: int) -> list[float]:
    """Seconds of each of ``repeats`` epochs, after one that compiles and warms up."""
    user, item = power_law_pairs(size["interactions"], size["users"], size["items"], seed)
    config = {
        "embedding_size": size["dimension"],
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": size["negatives"]},
        "train_batch_size": POSITIVES * size["negatives"],  # RecBole counts negatives
        "learner": learner,
        "learning_rate": 1e-3,
        "seed": seed,
    }
    epoch = make_engine(user, item, size["users"] + 1, size["items"] + 1, config)
    losses: list[float] = []

    def train() -> None:
        losses.append(epoch())

    seconds = [timed(train)() for _ in range(1 + repeats)][1:]
    claim(all(map(math.isfinite, losses)), f"losses {losses} at {dict(size)}")
    claim(losses[-1] < math.log(1 + size["negatives"]) + 1e-3, f"losses {losses}, chance or worse, at {dict(size)}")
    return seconds


def sweep(quantity: str, sizes: Sequence[int], learner: str, repeats: int, seed: int) -> dict[str, Any]:
    """Seconds an epoch at each size, and the exponent fitted to each round."""
    rounds = []
    for value in sizes:
        rounds.append(measure({**BASE, quantity: value}, learner, repeats, seed))
        print(f"  {quantity} {value:>11,}, {learner}: {min(rounds[-1]):.4g} s an epoch", flush=True)
    start = FITTED_FROM.get(quantity, sizes[0])
    fitted = [size for size in sizes if size >= start]
    of_rounds = zip(*rounds[-len(fitted) :], strict=True)
    return {
        "quantity": quantity,
        "learner": learner,
        "sizes": list(sizes),
        "seconds": [[float(f"{value:.5g}") for value in values] for values in rounds],
        "fitted_from": fitted[0],
        "exponents": [round(fitted_exponent(fitted, seconds), 4) for seconds in of_rounds],
    }


def draw(sweeps: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """A panel a quantity on log-log axes: medians, their range, and the fitted line with its exponent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    quantities = list(dict.fromkeys(entry["quantity"] for entry in sweeps))
    columns = min(3, len(quantities))
    lines = math.ceil(len(quantities) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * lines + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format="png"))
    print(f"wrote {path}")


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
            sweeps += [sweep(quantity, sizes, learner, args.repeats, args.seed) for learner in LEARNERS]
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
