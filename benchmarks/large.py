"""OneBP on data that RecBole's loader cannot take: made, prepared, trained for an epoch, and held against the truth.

    python benchmarks/large.py [--interactions 100000000 --users 10000000 --items 1000000] [--json OUT] [--folder DIR]

Users and items follow power laws; every user has taken items of two groups planted in the items, and others by their
popularity.  So the best possible lists are known.  Files are Parquet with text for ids, rows in random order; a part of
some users' items is held out.  Each stage runs in a process of its own, whose peak of resident memory is its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from measure import RESULTS, CheckFailedError, Machine, claim, use_threads, versions, write_json
from numpy.typing import NDArray

from recbole_onebp.util.errors import UserError

NAME = "large"
SHARES = (0.65, 0.25)
"""Of a user's interactions with its first and second group; the rest goes by popularity."""
AT_LEAST = 3
"""Interactions a user."""
USERS_A_BLOCK = 200_000
ROWS_A_GROUP = 1 << 22
CUTOFFS = (20, 100)
SETTINGS: dict[str, Any] = {
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id"]},
    "learner": "sparse_adam",
    "epochs": 1,
    "metrics": ["Recall", "NDCG"],
    "topk": list(CUTOFFS),
    "valid_metric": "Recall@20",
    "show_progress": False,
    "score": "cosine",
    "temperature": 0.1,
    "item_bias": True,
    "negatives": "per_pair",
    "aggregation": "step",
    "aggregation_alpha": 0.0,
    "beta": 0.9,
    "learning_rate": 0.01,
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 5},
}
MOST_POSITIVES = 16_384
"""Pairs a step; of small data a thousandth."""
Floats = NDArray[np.float64]
Ids = NDArray[np.int32]


# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Planted:
    """The law that interactions are drawn from; users and items are numbered from 0."""

    group: Ids
    """Of each item ``(n_items,)``; -1: of nothing."""
    weight: Floats
    """Popularity of each item ``(n_items,)``."""
    groups_of: Ids
    """First and second group of each user ``(n_users, 2)``."""

    @classmethod
    def make(cls, n_users: int, n_items: int, rng: np.random.Generator) -> Planted:
        n_groups = max(4, n_items // 1000)
        group = rng.permutation(np.arange(n_items, dtype=np.int32) % n_groups)
        first = rng.integers(n_groups, size=n_users, dtype=np.int32)
        second = (first + rng.integers(1, n_groups, size=n_users, dtype=np.int32)) % n_groups
        return cls(group, rng.permutation(_power_law(n_items)), np.stack([first, second], axis=1))

    def sampler(self, rng: np.random.Generator) -> Any:
        """A function from users ``(n,)`` to an item for each ``(n,)``."""
        by_group = np.argsort(self.group, kind="stable").astype(np.int32)
        until = np.cumsum(self.weight[by_group])
        ends = until[np.cumsum(np.bincount(self.group)) - 1]
        starts = np.concatenate([[0.0], ends[:-1]])

        def draw(user: Ids, popular: bool = False) -> Ids:
            kind = rng.random(len(user))
            of_group = self.groups_of[user, (kind >= SHARES[0]).astype(np.int8)]
            low, high = starts[of_group], ends[of_group]
            anywhere = (kind >= sum(SHARES)) | popular
            low[anywhere], high[anywhere] = 0, until[-1]
            at = np.searchsorted(until, low + (high - low) * rng.random(len(user)), side="right")
            return by_group[np.minimum(at, len(until) - 1)]

        return draw

    def probability(self, user: int, item: Ids) -> Floats:
        """Of each item being the user's next, up to a factor."""
        share = np.full(len(item), (1 - sum(SHARES)) / self._totals.sum())
        for group, of_user in zip(self.groups_of[user], SHARES, strict=True):
            share += (self.group[item] == group) * of_user / self._totals[group + 1]
        return share * self.weight[item]

    @cached_property
    def _totals(self) -> Floats:
        """Popularity of each group, from -1."""
        return np.bincount(self.group + 1, self.weight).astype(np.float64)


def _power_law(size: int) -> Floats:
    return np.asarray((np.arange(size) + size / 1000) ** -0.8, dtype=np.float64)


def _counts(n: int, n_users: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Interactions of each user, ``n`` in all."""
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
    counts, draw = _counts(n, n_users, rng), planted.sampler(rng)
    if counts.max() > n_items // 4:
        raise UserError(f"{n:,} distinct pairs of {n_users:,} users and {n_items:,} items would not be a power law")
    user, item = np.repeat(np.arange(n_users, dtype=np.int32), counts), np.empty(n, dtype=np.int32)
    ends = np.cumsum(counts)
    for start in range(0, n_users, USERS_A_BLOCK):
        rows = slice(int(ends[start] - counts[start]), int(ends[min(start + USERS_A_BLOCK, n_users) - 1]))
        of_block, block = user[rows] - start, np.empty(rows.stop - rows.start, dtype=np.int32)
        missing = open_rows = np.arange(len(block))
        for rounds in count():  # an item drawn twice for one user is drawn anew; in the end from all
            block[missing] = draw(of_block[missing] + start, popular=rounds >= 10)
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
    """Write the data set and, beside it, what it was drawn from."""
    rng = np.random.default_rng(seed)
    planted = Planted.make(n_users, n_items, rng)
    user, item = draw_pairs(n, planted, rng)
    counts = np.bincount(user, minlength=n_users)
    able = np.flatnonzero(counts >= 5)
    chosen = rng.choice(able, min(n_tested + n_tested // 5, len(able) // 2), replace=False)
    tested, validated = np.split(chosen, [len(chosen) * 5 // 6])
    ends, held = np.cumsum(counts), np.zeros(n, dtype=np.int8)  # 1: test, 2: validation
    for part, users in ((1, tested), (2, validated)):
        for one in users:
            rows = np.arange(ends[one] - counts[one], ends[one])
            held[rng.choice(rows, counts[one] // 5, replace=False)] = part
    (folder / NAME).mkdir(parents=True)
    for part, name in enumerate(("train", "test", "valid")):
        rows = rng.permutation(np.flatnonzero(held == part).astype(np.int32))
        _write(folder / NAME / f"{NAME}.{name}.inter.parquet", user[rows], item[rows])
    np.savez(folder / "truth.npz", tested=np.sort(tested), **asdict(planted))
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


# --------------------------------------------------------------------------------------------------------------- stages


def settings_of(n: int, dimension: int, seed: int) -> dict[str, Any]:
    """The configuration of a run on ``n`` interactions."""
    positives = min(MOST_POSITIVES, max(256, n // 1000))
    batch = positives * SETTINGS["train_neg_sample_args"]["sample_num"]  # RecBole counts negatives
    own = {"model": "OneBP", "dataset": NAME, "embedding_size": dimension, "train_batch_size": batch, "seed": seed}
    return {**SETTINGS, **own}


def _config(folder: Path, n: int, dimension: int, seed: int) -> dict[str, Any]:
    return {**settings_of(n, dimension, seed), "data_path": str(folder), "output_dir": str(folder / "run")}


def prepare(folder: Path, n: int, dimension: int, seed: int) -> dict[str, Any]:
    """From the files to a data set and its loaders."""
    from recbole_onebp.run.build import load_config, load_data

    start = perf_counter()
    config, _ = load_config(None, _config(folder, n, dimension, seed))
    data = load_data(config)
    return {"seconds": perf_counter() - start, "n_train": len(data[1].dataset)}


def train(folder: Path, n: int, dimension: int, seed: int) -> dict[str, Any]:
    """A whole run, on what :func:`prepare` has left in the cache, and its lists against the best possible ones."""
    from recbole_onebp import build

    run = build("OneBP", NAME, config_dict=_config(folder, n, dimension, seed))
    result = asdict(run.fit())
    return {"result": result, "truth": against_truth(run, folder / "truth.npz")}


def against_truth(run: Any, truth: Path) -> dict[str, float]:
    """Recall on the tested users' items by lists of the planted law and by popularity; where the run's lists lie.

    ``in their groups`` is the share of a list's first 20 items that are of one of the user's two groups.
    """
    planted, numbers = _in_internal_ids(run.dataset, truth)
    found, hidden = run.test_data.positives, run.test_data.history
    by_law = _best_first(planted)
    by_count = np.argsort(-np.bincount(run.train_data.dataset.inter_feat["item_id"].numpy(), minlength=len(numbers)))
    recalls: dict[str, list[float]] = {f"{name} recall@{k}": [] for name in ("law", "popularity") for k in CUTOFFS}
    inside: list[float] = []
    for user in run.test_data.uid_list.tolist():
        taken, wanted = hidden[[user]].indices, found[[user]].indices
        for name, ranked in (("law", by_law(user, max(CUTOFFS) + len(taken))), ("popularity", by_count)):
            free = ranked[: max(CUTOFFS) + len(taken)]
            free = free[~np.isin(free, taken)]
            for k in CUTOFFS:
                recalls[f"{name} recall@{k}"].append(np.isin(wanted, free[:k]).mean())
        if len(inside) < 1000:
            best = _recommended(run, user, taken, 20)
            inside.append(np.isin(planted.group[best], planted.groups_of[user]).mean())
    return {
        **{name: float(np.mean(values)) for name, values in recalls.items()},
        "in their groups": float(np.mean(inside)),
    }


def _in_internal_ids(dataset: Any, truth: Path) -> tuple[Planted, Ids]:
    """The law by RecBole's ids, whose 0 is nobody and nothing; and each item's number in the law."""
    users, items = (
        np.fromiter((int(token[1:]) for token in tokens[1:]), np.int32, len(tokens) - 1)
        for tokens in (dataset.field2id_token[field] for field in ("user_id", "item_id"))
    )
    with np.load(truth) as law:
        group, weight, groups_of = law["group"][items], law["weight"][items], law["groups_of"][users]
    return Planted(
        np.concatenate([[-1], group]), np.concatenate([[0.0], weight]), np.concatenate([[[-1, -1]], groups_of])
    ), np.concatenate([[-1], items])


def _best_first(planted: Planted) -> Any:
    """A function from a user and k to its k most probable items."""
    order = np.lexsort((-planted.weight, planted.group))
    ends = np.cumsum(np.bincount(planted.group + 1))
    popular = np.argsort(-planted.weight)

    def best(user: int, k: int) -> Ids:
        groups = [order[ends[g] :][: min(k, ends[g + 1] - ends[g])] for g in planted.groups_of[user]]
        candidates = np.unique(np.concatenate([*groups, popular[:k]]))
        return candidates[np.argsort(-planted.probability(user, candidates), kind="stable")[:k]]

    return best


def _recommended(run: Any, user: int, taken: Ids, k: int) -> Ids:
    import torch
    from recbole.data.interaction import Interaction

    with torch.no_grad():
        scores = run.model.full_sort_predict(Interaction({"user_id": torch.tensor([user])}))
    scores[0] = -torch.inf
    scores[taken] = -torch.inf
    return np.asarray(scores.topk(k).indices)


STAGES: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "prepare": prepare, "train": train}


def _in_a_process(stage: str, **arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", json.dumps([stage, arguments])]
    start, before = perf_counter(), _swapped()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    claim(done.returncode == 0, f"stage {stage} ended with exit code {done.returncode}, see above")
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    return {"wall_seconds": perf_counter() - start, "pages_swapped": _swapped() - before, **found}


def _run_stage(text: str) -> None:
    """Run a stage in this process, and print what it returns and the most memory that it held at a time."""
    stage, arguments = json.loads(text)
    if stage != "make":  # what is imported is no interaction's
        import recbole_onebp.engine.cpu
        import recbole_onebp.evaluation.full_sort
        import recbole_onebp.run.build
        import recbole_onebp.trainer  # noqa: F401
    logging.disable(logging.INFO)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    start = perf_counter()
    found = STAGES[stage](Path(arguments.pop("folder")), **arguments)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({
        "seconds": perf_counter() - start, "imports_mb": before, "peak_mb": _status("VmHWM"),
        "major_faults": usage.ru_majflt, **found,
    }))  # fmt: skip


def _status(key: str) -> float:
    """MiB, of ``/proc/self/status``."""
    match = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 1024


def _swapped() -> int:
    """Pages that the machine has swapped in or out."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters["pswpin"]) + int(counters["pswpout"])


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sizes = {"n": args.interactions, "n_users": args.users, "n_items": args.items, "n_tested": args.tested}
    run = {"folder": str(folder), "n": args.interactions, "dimension": args.dimension, "seed": args.seed}
    stages = {}
    for name, stage, arguments in (
        ("make", "make", {"folder": str(folder), **sizes, "seed": args.seed}),
        ("first start", "prepare", run),
        ("second start", "prepare", run),
        ("train and test", "train", run),
    ):
        stages[name] = found = _in_a_process(stage, **arguments)
        found["bytes_an_interaction"] = (found["peak_mb"] - found["imports_mb"]) * 2**20 / args.interactions
        print(
            f"{name}: {found['seconds']:.1f} s, peak {found['peak_mb']:,.0f} MiB, {found['bytes_an_interaction']:.0f} "
            f"bytes an interaction, {found['major_faults']} major page faults, {found['pages_swapped']} pages swapped",
            flush=True,
        )
    return stages


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--interactions", type=int, default=100_000_000)
    parser.add_argument("--users", type=int, default=10_000_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=32)
    parser.add_argument("--tested", type=int, default=10_000, help="users whose items are held out (default 10,000)")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads (default 2)")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--folder", type=Path, help="for the data, 45 bytes an interaction (default: a temporary one)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to write the results")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    try:
        if args.stage:
            _run_stage(args.stage)
            return 0
        use_threads(args.threads)
        machine, free_mb = Machine.here(), _available_mb()
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            stages = measure(args, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except CheckFailedError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    result, truth = stages["train and test"]["result"], stages["train and test"]["truth"]
    print(f"epoch {result['epoch_seconds'][0]:.1f} s; test {result['test']}; {truth}")
    sizes = {key: getattr(args, key) for key in ("interactions", "users", "items", "dimension", "tested")}
    settings = {**settings_of(args.interactions, args.dimension, args.seed), "threads": args.threads, "repeats": 1}
    found = {"machine": asdict(machine), "versions": versions("numba", "pandas", "pyarrow"), "settings": settings}
    out = args.json or RESULTS / f"{machine.slug}-large.json"
    write_json(out, {**found, "available_mb_before": free_mb, "sizes": sizes, "stages": stages})
    return 0


def _available_mb() -> int:
    match = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
    assert match
    return int(match[1]) // 1024


if __name__ == "__main__":
    sys.exit(main())
