"""How OneBP's cost grows with the data, and a whole run on data that RecBole's loader cannot hold.

    python benchmarks/large.py [--interactions 100000000 --users 10000000 --items 1000000] [--folder DIR] [--json OUT]
    python benchmarks/large.py --without_training --json OUT     # the local term alone
    python benchmarks/large.py growth [--only interactions ...] [--repeats 3] [--json OUT]

The first makes Parquet files, prepares them, trains one epoch and compares the lists with the best possible ones, which
are known: interactions are drawn from a planted law. Then it fits the local term. Each stage has a process of its own.
``growth`` varies one quantity at a time around ``BASE``, on pairs drawn in memory. It times the order of an epoch and
``STEPS`` steps.
"""

from __future__ import annotations

import argparse
import logging
import math
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import measure
import numpy as np
from measure import claim, memory_mb
from numpy.typing import NDArray

from recbole_onebp.util.errors import UserError

Floats = NDArray[np.float64]
Ids = NDArray[np.int32]

BASE = {"interactions": 3_000_000, "users": 100_000, "items": 50_000, "dimension": 64, "negatives": 5}
SWEEPS: dict[str, tuple[int, ...]] = {
    "interactions": (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000),
    "users": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "items": (10_000, 30_000, 100_000, 300_000, 1_000_000),
    "dimension": (16, 32, 64, 128, 256),
    "negatives": (1, 2, 5, 10, 20),
}
FITTED_FROM = {"interactions": 1_000_000}  # epochs of fewer interactions are too short to show how the cost grows
POSITIVES = 2048
STEPS = 488  # as many as an epoch of a million interactions has
LEARNERS = ("adam", "sparse_adam")


def power_law_pairs(n: int, n_users: int, n_items: int, seed: int) -> tuple[Ids, Ids]:
    """``n`` distinct pairs in random order, ids from 1.

    The r-th most active of U users has weight (r + U / 100)^-0.8, and items likewise (Zipf-Mandelbrot). At 300 pairs a
    user the most popular item has about 8 % of the users, as in real data.
    """
    if n > n_users * n_items // 4:
        raise UserError(f"{n:,} distinct pairs of {n_users:,} users and {n_items:,} items would not be a power law")
    rng = np.random.default_rng(seed)
    keys = np.empty(0, dtype=np.int64)
    while len(keys) < n:  # pairs drawn twice are dropped
        missing = n - len(keys) + n // 50 + 100
        keys = np.concatenate([keys, _ranks(n_users, missing, rng) * n_items + _ranks(n_items, missing, rng)])
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) > 0]
    rng.shuffle(keys)
    user, item = np.divmod(keys[:n], n_items)
    return (user + 1).astype(np.int32), (item + 1).astype(np.int32)


def _ranks(size: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``n`` ranks below ``size``: the inverse of the power law's distribution function, of uniform numbers."""
    low, high = (size / 100) ** 0.2, (size + size / 100) ** 0.2
    ranks = ((low + (high - low) * rng.random(n)) ** 5 - size / 100).astype(np.int64)
    return np.clip(ranks, 0, size - 1, out=ranks)  # rounding may exceed the range by one


def make_epoch(user: Ids, item: Ids, size: Mapping[str, int], seed: int, **overrides: Any) -> Callable[[], float]:
    """A function that trains an epoch, or ``STEPS`` steps of it, and returns the seconds of a whole epoch.

    It runs the fast engine in the paper's setting on plain arrays, without RecBole's data set, loaders and trainer.
    """
    import torch

    from recbole_onebp.config.properties import read_preset
    from recbole_onebp.config.schema import OneBPConfig, onebp_defaults
    from recbole_onebp.engine import Schedule
    from recbole_onebp.engine.cpu import FusedEngine

    own = {
        "embedding_size": size["dimension"], "weight_decay": 0.0, "duplicates": "sequential",
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": size["negatives"]},
        "train_batch_size": POSITIVES * size["negatives"],  # RecBole counts negatives
    }  # fmt: skip
    values = {**onebp_defaults(), **read_preset("paper", "made"), **own, **overrides}
    settings = OneBPConfig(**{key: values[key] for key in OneBPConfig.model_fields})
    counts = size["users"] + 1, size["items"] + 1  # with the padding row, as in RecBole
    generator = torch.Generator().manual_seed(seed)
    users, items = (0.01 * torch.randn(n, settings.embedding_size, generator=generator) for n in counts)
    table = torch.nn.Parameter(items)
    # The attributes that the engine reads.
    without = {
        "item_bias": None,
        "item_weight": None,
        "weighted_items": None,
        "users_from_earlier_items": False,
        "leaves_one_out": False,
    }
    model: Any = SimpleNamespace(
        config=settings, user_table=users, item_table=table, pair_weight=lambda *pairs: None, **without
    )
    learner = torch.optim.SparseAdam if settings.learner == "sparse_adam" else torch.optim.Adam
    schedule = Schedule(user, item, *counts, settings, seed)
    engine = FusedEngine(model, learner([table], lr=1e-3), schedule)
    epochs, steps = count(), min(STEPS, len(schedule))
    chance = math.log(1 + settings.repeats)

    def epoch() -> float:
        times = [perf_counter()]

        def first_steps(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in islice(batches, steps):
                times.append(perf_counter())  # the first batch comes after the epoch's order
                yield batch

        loss = engine.train_epoch(next(epochs), first_steps) / steps
        claim(math.isfinite(loss) and loss < chance + 1e-3, f"loss {loss}, chance is {chance}, of {len(user):,} pairs")
        return times[1] - times[0] + (perf_counter() - times[1]) * len(schedule) / steps

    return epoch


def fitted_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of a straight line through the points on log-log axes."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def sweep(
    quantity: str, sizes: Sequence[int], learners: Sequence[str], repeats: int, seed: int
) -> list[dict[str, Any]]:
    """For each learner the seconds of an epoch at each size, and an exponent fitted to each round."""
    epochs = []
    for value in sizes:
        base = {**BASE, quantity: value}
        pairs = power_law_pairs(base["interactions"], base["users"], base["items"], seed)
        epochs += [make_epoch(*pairs, base, seed, learner=learner) for learner in learners]
    for epoch in epochs:  # compiles and allocates
        epoch()
    seconds = measure.alternate(repeats, *epochs)
    fitted = [size for size in sizes if size >= FITTED_FROM.get(quantity, sizes[0])]
    sweeps = []
    for number, learner in enumerate(learners):
        rounds = seconds[number :: len(learners)]
        for size, values in zip(sizes, rounds, strict=True):
            print(f"  {quantity} {size:>11,}, {learner}: {statistics.median(values):.4g} s an epoch", flush=True)
        exponents = [fitted_exponent(fitted, values) for values in zip(*rounds[-len(fitted) :], strict=True)]
        about = {"quantity": quantity, "learner": learner, "sizes": list(sizes), "fitted_from": fitted[0]}
        rounded = [[float(f"{value:.5g}") for value in values] for values in rounds]
        sweeps.append({**about, "seconds": rounded, "exponents": [round(value, 4) for value in exponents]})
    return sweeps


def draw(sweeps: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """A panel for each quantity: medians, their range, and the fitted line with its exponent."""
    quantities = list(dict.fromkeys(entry["quantity"] for entry in sweeps))
    columns = min(3, len(quantities))
    lines = math.ceil(len(quantities) / columns)
    with measure.picture(path, 3.6 * columns, 3.2 * lines + 0.4) as figure:
        figure.suptitle(title, fontsize=10)
        for number, quantity in enumerate(quantities, start=1):
            axes = figure.add_subplot(lines, columns, number, xscale="log", yscale="log", xlabel=quantity)
            axes.set(ylabel="time of one epoch, in seconds")
            for entry, color in zip((e for e in sweeps if e["quantity"] == quantity), ("C0", "C1"), strict=False):
                sizes, seconds = np.array(entry["sizes"]), np.array(entry["seconds"])
                median, inside = np.median(seconds, axis=1), sizes >= entry["fitted_from"]
                ranges = median - seconds.min(axis=1), seconds.max(axis=1) - median
                axes.errorbar(sizes, median, yerr=ranges, fmt="o", color=color, markersize=4, capsize=2)
                slope, offset = np.polyfit(np.log(sizes[inside]), np.log(median[inside]), 1)
                label = f"{entry['learner']}, exponent {np.median(entry['exponents']):.2f}"
                axes.plot(sizes[inside], np.exp(offset) * sizes[inside] ** slope, color=color, label=label)
            axes.set_xticks(entry["sizes"], [_short(size) for size in entry["sizes"]])
            axes.minorticks_off()
            axes.axvline(BASE[quantity], color="grey", linewidth=0.8, linestyle=":")
            axes.grid(alpha=0.25)
            axes.legend(fontsize=8, frameon=False, loc="upper left")


def _short(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value / 1e3:g} k" if value >= 1e3 else f"{value:g}"


NAME = "large"
SHARES = (0.65, 0.25)  # of a user's interactions, with items of its first and second group; the rest follows popularity
AT_LEAST = 3  # interactions a user
USERS_A_BLOCK = 200_000
ROWS_A_GROUP = 1 << 22


@dataclass(frozen=True)
class Planted:
    """The law of the interactions. Users and items are numbered from 0."""

    group: Ids  # of each item `(n_items,)`; -1: none
    weight: Floats  # popularity of each item `(n_items,)`
    groups_of: Ids  # first and second group of each user `(n_users, 2)`

    @classmethod
    def make(cls, n_users: int, n_items: int, rng: np.random.Generator) -> Planted:
        n_groups = max(4, n_items // 1000)
        group = rng.permutation(np.arange(n_items, dtype=np.int32) % n_groups)
        first = rng.integers(n_groups, size=n_users, dtype=np.int32)
        second = (first + rng.integers(1, n_groups, size=n_users, dtype=np.int32)) % n_groups
        return cls(group, rng.permutation(_power_law(n_items)), np.stack([first, second], axis=1))

    @cached_property
    def _cumulative(self) -> tuple[Ids, Floats, Floats]:
        """Items by group, the sum of the weights up to each of them, and that at the bounds of the groups."""
        by_group = np.argsort(self.group, kind="stable").astype(np.int32)
        until = np.cumsum(self.weight[by_group])
        return by_group, until, np.append(0, until[np.cumsum(np.bincount(self.group)) - 1])

    def draw(self, user: Ids, rng: np.random.Generator, popular: bool = False) -> Ids:
        """An item for each user ``(n,)``, of all items if ``popular``."""
        by_group, until, bounds = self._cumulative
        kind = rng.random(len(user))
        group = self.groups_of[user, (kind >= SHARES[0]).astype(np.int8)]
        low, high = bounds[group], bounds[group + 1]
        anywhere = (kind >= sum(SHARES)) | popular
        low[anywhere], high[anywhere] = 0, until[-1]
        at = np.searchsorted(until, low + (high - low) * rng.random(len(user)), side="right")
        return by_group[np.minimum(at, len(until) - 1)]

    @cached_property
    def _totals(self) -> Floats:
        """Popularity of each group, from -1."""
        return np.bincount(self.group + 1, self.weight).astype(np.float64)

    def probability(self, user: int, item: Ids) -> Floats:
        """Probability of each item to be the user's next one, up to a factor."""
        share = np.full(len(item), (1 - sum(SHARES)) / self._totals.sum())
        for group, of_user in zip(self.groups_of[user], SHARES, strict=True):
            share += (self.group[item] == group) * of_user / self._totals[group + 1]
        return share * self.weight[item]

    @cached_property
    def _ranked(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The most popular items first: by group, with the group's starts, and of all items."""
        by_group = np.lexsort((-self.weight, self.group))
        return by_group, np.cumsum(np.bincount(self.group + 1)), np.argsort(-self.weight)

    def best(self, user: int, k: int) -> NDArray[np.int64]:
        """A user's k most probable items: they are among the first k of all, or of one of the groups."""
        by_group, starts, popular = self._ranked
        groups = [by_group[starts[group] : starts[group + 1]][:k] for group in self.groups_of[user]]
        candidates = np.unique(np.concatenate([*groups, popular[:k]]))
        return candidates[np.argsort(-self.probability(user, candidates), kind="stable")[:k]]


def _power_law(size: int) -> Floats:
    return np.asarray((np.arange(size) + size / 1000) ** -0.8, dtype=np.float64)


def _counts(n: int, n_users: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Number of interactions of each user, ``n`` in all."""
    if n < AT_LEAST * n_users:
        raise UserError(f"{n:,} interactions are less than {AT_LEAST} for each of {n_users:,} users")
    weight = rng.permutation(_power_law(n_users))
    wanted = (n - AT_LEAST * n_users) * weight / weight.sum()
    counts = AT_LEAST + np.floor(wanted + rng.random(n_users)).astype(np.int64)
    off = n - int(counts.sum())
    able = np.flatnonzero(counts > AT_LEAST) if off < 0 else np.arange(n_users)
    counts[rng.choice(able, abs(off), replace=False)] += np.sign(off)
    return counts


def draw_pairs(n: int, planted: Planted, rng: np.random.Generator) -> tuple[Ids, Ids]:
    """``n`` distinct pairs, users ascending."""
    n_users, n_items = len(planted.groups_of), len(planted.group)
    counts = _counts(n, n_users, rng)
    if counts.max() > n_items // 4:
        raise UserError(f"{n:,} distinct pairs of {n_users:,} users and {n_items:,} items would not be a power law")
    user, item = np.repeat(np.arange(n_users, dtype=np.int32), counts), np.empty(n, dtype=np.int32)
    ends = np.cumsum(counts)
    for start in range(0, n_users, USERS_A_BLOCK):
        rows = slice(int(ends[start] - counts[start]), int(ends[min(start + USERS_A_BLOCK, n_users) - 1]))
        of_block, block = user[rows] - start, np.empty(rows.stop - rows.start, dtype=np.int32)
        missing = open_rows = np.arange(len(block))
        for rounds in count():  # a user's repeated items are drawn again, after ten rounds from all items
            block[missing] = planted.draw(of_block[missing] + start, rng, popular=rounds >= 10)
            keys = of_block[open_rows].astype(np.int64) * n_items + block[open_rows]
            _, first = np.unique(keys, return_index=True)
            missing = np.delete(open_rows, first)
            if not len(missing):
                break
            unsettled = np.zeros(USERS_A_BLOCK, dtype=bool)
            unsettled[of_block[missing]] = True
            open_rows = open_rows[unsettled[of_block[open_rows]]]
        item[rows] = block
    return user, item


def make(folder: Path, n: int, n_users: int, n_items: int, n_tested: int, seed: int) -> dict[str, Any]:
    """Write the data set and its law."""
    rng = np.random.default_rng(seed)
    planted = Planted.make(n_users, n_items, rng)
    user, item = draw_pairs(n, planted, rng)
    counts = np.bincount(user, minlength=n_users)
    able = np.flatnonzero(counts >= 5)
    chosen = rng.choice(able, min(n_tested + n_tested // 5, len(able) // 2), replace=False)
    ends, held = np.cumsum(counts), np.zeros(n, dtype=np.int8)  # 1: test, 2: validation
    for place, one in enumerate(chosen):
        rows = np.arange(ends[one] - counts[one], ends[one])
        held[rng.choice(rows, counts[one] // 5, replace=False)] = 1 if place < len(chosen) * 5 // 6 else 2
    (folder / NAME).mkdir(parents=True)
    for part, name in enumerate(("train", "test", "valid")):
        rows = rng.permutation(np.flatnonzero(held == part).astype(np.int32))
        _write(folder / NAME / f"{NAME}.{name}.inter.parquet", user[rows], item[rows])
    np.savez(folder / "truth.npz", **asdict(planted))
    return {"bytes_of_files": sum(file.stat().st_size for file in (folder / NAME).iterdir())}


def _write(path: Path, user: Ids, item: Ids) -> None:
    import pyarrow as pa
    from pyarrow import compute, parquet

    def text(letter: str, ids: Ids) -> Any:
        return compute.binary_join_element_wise(letter, pa.array(ids).cast(pa.string()), "")

    schema = pa.schema({"user_id": pa.string(), "item_id": pa.string()})
    with parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, len(user), ROWS_A_GROUP):
            rows = slice(start, start + ROWS_A_GROUP)
            writer.write_table(pa.table([text("u", user[rows]), text("i", item[rows])], schema=schema))


CUTOFFS = (20, 100)
SETTINGS: dict[str, Any] = {
    "model": "OneBP", "dataset": NAME, "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]}, "metrics": ["Recall", "NDCG"], "topk": list(CUTOFFS),
    "valid_metric": "Recall@20", "show_progress": False, "epochs": 1, "learner": "sparse_adam", "learning_rate": 0.01,
    "score": "cosine", "temperature": 0.1, "item_bias": True, "aggregation": "step", "aggregation_alpha": 0.0,
    "beta": 0.9, "negatives": "per_pair", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 5},
}  # fmt: skip
MOST_POSITIVES = 16_384  # pairs a step; for small data a thousandth of the interactions


def settings_of(n: int, dimension: int, seed: int) -> dict[str, Any]:
    """The configuration of a run on ``n`` interactions."""
    positives = min(MOST_POSITIVES, max(256, n // 1000))
    batch = positives * SETTINGS["train_neg_sample_args"]["sample_num"]  # RecBole counts negatives
    return {**SETTINGS, "embedding_size": dimension, "train_batch_size": batch, "seed": seed}


def prepare(folder: Path, **settings: Any) -> dict[str, Any]:
    """Make the data set and its loaders from the files."""
    from recbole_onebp.run.build import load_config, load_data

    data = load_data(load_config(None, settings)[0])
    return {"n_train": len(data[1].dataset)}


def train(folder: Path, **settings: Any) -> dict[str, Any]:
    """A whole run on the cache that :func:`prepare` made, and its lists against the best possible ones."""
    from recbole_onebp import build

    run = build("OneBP", NAME, config_dict=settings)
    return {"result": asdict(run.fit()), "truth": against_truth(run, folder / "truth.npz")}


def local_term(folder: Path, **settings: Any) -> dict[str, Any]:
    """The fit of the local term alone, for users of all items, and how far it finds the planted groups."""
    from recbole_onebp import build

    run = build("OneBP", NAME, config_dict={**settings, "aggregation": "interval", "local": "ridge"})
    before, start = memory_mb("VmRSS"), perf_counter()
    model: Any = run.model
    term = model.local
    seconds = perf_counter() - start
    group = _in_internal_ids(run.dataset, folder / "truth.npz").group
    positive = term.values > 0
    owner, other = np.repeat(np.arange(len(group)), np.diff(term.indptr))[positive], term.indices[positive]
    together = np.average(group[owner] == group[other], weights=term.values[positive])
    claim(together > 2 / len(np.unique(group)), f"{together:.2%} of the weights are inside of a group")
    found = {"fit_seconds": seconds, "before_mb": before, "entries": len(term.values), "in_their_groups": together}
    return {"local": {name: float(value) for name, value in found.items()}}


def against_truth(run: Any, truth: Path) -> dict[str, float]:
    """Recall of the lists of the planted law and of popularity on the tested users' items.

    ``in their groups`` is the share of the run's first 20 items that belong to one of the user's two groups, for a
    thousand users.
    """
    import torch
    from recbole.data.interaction import Interaction

    planted = _in_internal_ids(run.dataset, truth)
    found, hidden = run.test_data.positives, run.test_data.history
    counts = np.bincount(run.train_data.dataset.inter_feat["item_id"].numpy(), minlength=len(planted.group))
    by_count, most = np.argsort(-counts), max(CUTOFFS)
    recalls: dict[str, list[float]] = {f"{name} recall@{k}": [] for name in ("law", "popularity") for k in CUTOFFS}
    recalls["in their groups"] = []
    for place, user in enumerate(run.test_data.uid_list.tolist()):
        seen, wanted = hidden[[user]].indices, found[[user]].indices
        n = most + len(seen)
        for name, ranked in (("law", planted.best(user, n)), ("popularity", by_count[:n])):
            free = ranked[~np.isin(ranked, seen)]
            for k in CUTOFFS:
                recalls[f"{name} recall@{k}"].append(np.isin(wanted, free[:k]).mean())
        if place < 1000:
            with torch.no_grad():
                scores = run.model.full_sort_predict(Interaction({"user_id": torch.tensor([user])}))
            scores[[0, *seen]] = -torch.inf
            best = scores.topk(20).indices.numpy()
            recalls["in their groups"].append(np.isin(planted.group[best], planted.groups_of[user]).mean())
    return {name: float(np.mean(values)) for name, values in recalls.items()}


def _in_internal_ids(dataset: Any, truth: Path) -> Planted:
    """The law by RecBole's ids, whose 0 is padding."""
    users, items = (
        np.array([0, *(int(token[1:]) for token in dataset.field2id_token[field][1:])])
        for field in ("user_id", "item_id")
    )
    with np.load(truth) as law:
        planted = Planted(law["group"][items], law["weight"][items], law["groups_of"][users])
    planted.group[0], planted.weight[0], planted.groups_of[0] = -1, 0, -1
    return planted


def _stage(stage: str, folder: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run a stage in this process; what it returns, its seconds and its peak of resident memory."""
    if stage != "make":  # imports are counted apart
        import recbole_onebp.engine.cpu
        import recbole_onebp.evaluation.full_sort
        import recbole_onebp.run.build
        import recbole_onebp.trainer  # noqa: F401
    logging.disable(logging.INFO)
    imports = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = perf_counter()
    stages: dict[str, Callable[..., dict[str, Any]]] = {
        "make": make, "prepare": prepare, "train": train, "local": local_term,
    }  # fmt: skip
    found = stages[stage](Path(folder), **arguments)
    seconds, faults = perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    memory = {"imports_mb": imports, "peak_mb": memory_mb("VmHWM")}
    return {"seconds": seconds, **memory, "major_faults": faults, **found}


def measure_whole(args: argparse.Namespace) -> None:
    about, free_mb = measure.here("numba", "pandas", "pyarrow"), int(memory_mb("MemAvailable", "/proc/meminfo"))
    sizes = {"n": args.interactions, "n_users": args.users, "n_items": args.items, "n_tested": args.tested}
    settings = settings_of(args.interactions, args.dimension, args.seed)
    plan = {"make": "make", "first start": "prepare"}
    if not args.without_training:
        plan |= {"second start": "prepare", "train and test": "train"}
    plan["local term"] = "local"
    stages = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run = {**settings, "data_path": folder}
        for name, stage in plan.items():
            given = {**sizes, "seed": args.seed} if stage == "make" else {**run, "output_dir": f"{folder}/run-{stage}"}
            found = stages[name] = measure.in_a_process(__file__, "stage", stage, folder, given)
            found["bytes_an_interaction"] = (found["peak_mb"] - found["imports_mb"]) * 2**20 / args.interactions
            numbers = {key: value for key, value in found.items() if key not in ("result", "truth")}
            print(f"{name}: {numbers}", flush=True)
    if trained := stages.get("train and test"):
        result, truth = trained["result"], trained["truth"]
        print(f"epoch {result['epoch_seconds'][0]:.1f} s; test {result['test']}; {truth}")
    settings |= {"threads": args.threads, "repeats": 1}
    shown = {key: getattr(args, key) for key in ("interactions", "users", "items", "dimension", "tested")}
    found = {**about, "settings": settings, "available_mb_before": free_mb, "sizes": shown, "stages": stages}
    measure.write_json(args.json or measure.RESULTS / f"{about['machine']['slug']}-large.json", found)


def measure_growth(args: argparse.Namespace) -> None:
    about, sweeps = measure.here("numba"), []
    for quantity in args.only:
        sweeps += sweep(quantity, SWEEPS[quantity], LEARNERS, args.repeats, args.seed)
    out = args.json or measure.RESULTS / f"{about['machine']['slug']}-growth.json"
    settings = {"threads": args.threads, "seed": args.seed, "repeats": args.repeats, "base": BASE}
    measure.write_json(out, {**about, "settings": settings, "sweeps": sweeps})
    base = ", ".join(f"{name} {_short(value)}" for name, value in BASE.items())
    title = f"OneBP, time of one epoch, {about['machine']['cpu']}, {args.threads} cores\ndotted line: {base}"
    draw(sweeps, out.with_suffix(".png"), title)


def main() -> None:
    args = measure.arguments(
        __doc__, "what", what=("whole", "growth"), json=Path, only=list(SWEEPS), repeats=3, seed=2024, threads=2,
        folder=Path, interactions=100_000_000, users=10_000_000, items=1_000_000, dimension=32, tested=10_000,
        without_training=False,
    )  # fmt: skip
    measure.use_threads(args.threads)
    (measure_whole if args.what == "whole" else measure_growth)(args)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main, {"stage": _stage}))
