"""A service while the world goes on: real events in order of time, each predicted and then applied.

    python benchmarks/stream.py --dataset ml-100k --json benchmarks/results/stream-ml-100k.json
    python benchmarks/stream.py --dataset ml-latest-small --source DIR --json ... [--priors 0.3 1 4 16]

A model is trained on the first half. For every later event the 20 best items of the user are asked for, then the event
is applied. ``ml-100k`` is in RecBole's package; of ``ml-latest-small``, ``DIR`` holds GroupLens' ``ratings.csv`` and
``movies.csv``. An item joins the catalogue in its year of release, or with its first event. Users that a model does not
know get its most popular items. ``--priors`` compares numbers of users that weigh as much as an item's features, on a
stretch before: trained on the first three eighths, tried until the half. Rows that the file holds are not repeated.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import measure
import numpy as np
import pandas as pd

import recbole_onebp
from recbole_onebp import Recommender
from recbole_onebp.serving import mirror
from recbole_onebp.util.errors import UserError

K = 20
TENTHS = 10
STEPS = {"0": (0, 1), "1 to 4": (1, 5), "5 to 19": (5, 20), "20 and more": (20, 10**9)}
"""Events that an item had before, of items that the first model does not know."""
NEVER = 1e12
"""As a prior: items stay what their features make of them."""
STALE, USERS, FEATURES = "stale model", "online users", "new items by features"
BOTH, RETRAINED = "online users and items", "retrained every tenth"
RETRAINED_ONLINE = "retrained every tenth, online users and items between"


@dataclass
class World:
    """Events in order of time, each pair once, and the features of the items."""

    events: pd.DataFrame
    """``user``, ``item``, ``time`` in seconds."""
    genres: Mapping[str, list[str]]
    year: Mapping[str, str]

    def features(self, item: str) -> dict[str, Any]:
        year = self.year.get(item, "")
        return {"genres": self.genres.get(item, []), **({"year": year} if year else {})}


def read(dataset: str, source: Path | None) -> World:
    """The events and items of a data set."""
    if dataset == "ml-100k":
        folder = Path(str(files("recbole"))) / "dataset_example" / dataset
        events = pd.read_csv(folder / f"{dataset}.inter", sep="\t", dtype=str)
        items = pd.read_csv(folder / f"{dataset}.item", sep="\t", dtype=str, keep_default_na=False)
        items.columns = pd.Index(["item", "title", "year", "genres"])
        genres = items["genres"].str.split()
    else:
        if source is None:
            raise UserError(f"--source is missing: the folder with ratings.csv and movies.csv of {dataset}")
        events = pd.read_csv(source / "ratings.csv", dtype=str)
        items = pd.read_csv(source / "movies.csv", dtype=str, keep_default_na=False)
        items.columns = pd.Index(["item", "title", "genres"])
        items["year"] = items["title"].str.extract(r"\((\d{4})\)\s*$")[0].fillna("")
        genres = items["genres"].str.replace(" ", "_").str.split("|")
    events.columns = pd.Index(["user", "item", "rating", "time"])
    events["time"] = events["time"].astype(float)
    events = events.sort_values("time", kind="stable").drop_duplicates(["user", "item"], ignore_index=True)
    genres_of, year_of = (dict(zip(items["item"], column, strict=True)) for column in (genres, items["year"]))
    return World(events, genres_of, year_of)


def train(world: World, n: int, bundle: Path, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train on the first n events with the defaults and the features, and export; what was chosen on validation.

    ``settings`` may hold what was chosen before: then nothing is held out.
    """
    from recbole_onebp.serving.export.exporter import export  # here, because it loads torch

    events = world.events[:n]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "stream")
        folder.mkdir()
        pairs = events[["user", "item", "time"]]
        header = ["user_id:token", "item_id:token", "timestamp:float"]
        pairs.to_csv(folder / "stream.inter", sep="\t", index=False, header=header)
        items = [*pairs["item"].unique()]
        rows = [(item, " ".join(world.genres.get(item, [])), world.year.get(item, "")) for item in items]
        header = ["item_id:token", "genres:token_seq", "year:token"]
        pd.DataFrame(rows).to_csv(folder / "stream.item", sep="\t", index=False, header=header)
        keys: dict[str, Any] = {
            "data_path": scratch, "show_progress": False, "seed": seed, "item_features": "all", "state": "WARNING",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "genres", "year"]},
            "eval_args": {"split": {"RS": [0.9, 0.1, 0.0]}, "order": "TO", "group_by": "user", "mode": "full"},
            "metrics": ["Recall", "NDCG"], "topk": [K], "valid_metric": f"NDCG@{K}",
        }  # fmt: skip
        chosen = dict(settings)
        if not chosen:
            keys["output_dir"] = str(Path(scratch, "first"))
            result = recbole_onebp.build("OneBP", "stream", None, keys).fit()
            chosen = {"epochs": result.best_epoch + 1}
            if result.local:
                chosen["local_weight"] = result.local["weight"]
        keys |= {**chosen, "refit": True, "output_dir": str(Path(scratch, "last"))}
        recbole_onebp.build("OneBP", "stream", None, keys).fit()
        export(keys["output_dir"], bundle, force=True)
    return chosen


@dataclass
class Contestant:
    """A way to go on after the training."""

    moves_users: bool = False
    adds_items: bool = False
    prior: float | None = None
    """See :data:`recbole_onebp.serving.mirror.PRIOR`; the default if None."""
    trains_again: bool = False


@dataclass
class Log:
    """What became of each event."""

    rank: list[int] = field(default_factory=list)
    """Place of the item in the list, from 0; -1 if it is not there."""
    n_before: list[int] = field(default_factory=list)
    """Events of the item before; -1 for an item that the first model knows."""
    answer_seconds: list[float] = field(default_factory=list)
    apply_seconds: list[float] = field(default_factory=list)


def play(world: World, begin: int, end: int, how: Contestant, bundle_of: Callable[[int], Path]) -> Log:
    """Predict and apply the events from ``begin`` to ``end``."""
    default = mirror.PRIOR, mirror.BIAS_PRIOR
    if how.prior is not None:
        mirror.PRIOR, mirror.BIAS_PRIOR = how.prior, max(how.prior, mirror.BIAS_PRIOR)
    try:
        return _play(world, begin, end, how, bundle_of)
    finally:
        mirror.PRIOR, mirror.BIAS_PRIOR = default


def _play(world: World, begin: int, end: int, how: Contestant, bundle_of: Callable[[int], Path]) -> Log:
    cuts = [begin + (end - begin) * tenth // TENTHS for tenth in range(TENTHS if how.trains_again else 1)]
    known_first, log, so_far = set(world.events["item"][:begin]), Log(), Counter[str]()
    for first, last in zip(cuts, [*cuts[1:], end], strict=True):
        rec, taken = Recommender.load(bundle_of(first)), defaultdict[str, list[str]](list)
        popular = [item for item, _ in Counter(world.events["item"][:first]).most_common()]
        for user, item in zip(world.events["user"][:first], world.events["item"][:first], strict=True):
            taken[user].append(item)
        unknown = (item for item in world.genres if not rec.knows_item(item))
        waiting = sorted(unknown, key=lambda name: world.year[name] or "0")
        part = world.events[first:last]
        for user, item, when in zip(part["user"], part["item"], part["time"], strict=True):
            if how.adds_items:
                _join(rec, world, waiting, item, when)
            start = perf_counter()
            if rec.knows_user(user):
                (answer,) = rec.recommend([user], k=K, deny=() if how.moves_users else taken[user])
                best = [name for name, _ in answer]
            else:
                seen = set(taken[user])
                best = [name for name in popular[: K + len(seen)] if name not in seen][:K]
            middle = perf_counter()
            log.rank.append(best.index(item) if item in best else -1)
            log.n_before.append(-1 if item in known_first else so_far[item])
            if how.moves_users:
                rec.update([(user, item)])
            log.answer_seconds.append(middle - start)
            log.apply_seconds.append(perf_counter() - middle)
            so_far[item] += 1
            taken[user].append(item)
    return log


def _join(rec: Recommender, world: World, waiting: list[str], item: str, when: float) -> None:
    """Add the items that have been released, and the item of the event."""
    year = str(datetime.fromtimestamp(when, timezone.utc).year)
    released = next((place for place, name in enumerate(waiting) if world.year[name] > year), len(waiting))
    added = waiting[:released]
    del waiting[:released]
    if item in waiting:
        waiting.remove(item)
        added.append(item)
    if added:
        rec.add_items({name: world.features(name) for name in added})


def figures(log: Log) -> dict[str, Any]:
    """Recall and NDCG by position in the stream and by events of the item, and the times."""
    rank, n_before = np.array(log.rank), np.array(log.n_before)
    n, position = len(rank), np.arange(len(rank))
    tenths = [(position >= n * tenth // TENTHS) & (position < n * (tenth + 1) // TENTHS) for tenth in range(TENTHS)]
    groups = {name: (n_before >= least) & (n_before < most) for name, (least, most) in STEPS.items()}
    answers = np.array(log.answer_seconds)
    return {
        "all": accuracy(rank),
        "last quarter": accuracy(rank[position >= n * 3 // 4]),
        "tenths": [accuracy(rank[tenth]) for tenth in tenths],
        "known items": accuracy(rank[n_before < 0]),
        "new items": {name: accuracy(rank[group]) for name, group in groups.items()},
        "events_a_second": round(n / max(sum(log.apply_seconds), 1e-9)),
        "answer_ms": {
            "median": round(1e3 * float(np.median(answers)), 3),
            "p99": round(1e3 * float(np.percentile(answers, 99)), 3),
        },
    }


def accuracy(rank: Any) -> dict[str, float]:
    """Each event has one relevant item: recall is the share of hits, NDCG the mean of 1 / log2(place + 1)."""
    gain = np.where(rank >= 0, 1 / np.log2(rank.clip(0) + 2), 0)
    mean = {"recall@20": float((rank >= 0).mean()), "ndcg@20": float(gain.mean())} if len(rank) else {}
    return {"events": len(rank), **{name: round(value, 5) for name, value in mean.items()}}


def contestants(priors: Iterable[float] = ()) -> dict[str, Contestant]:
    """Name -> contestant."""
    users = Contestant(moves_users=True)
    features = Contestant(moves_users=True, adds_items=True, prior=NEVER)
    both = Contestant(moves_users=True, adds_items=True)
    if tried := {f"prior {prior:g}": Contestant(moves_users=True, adds_items=True, prior=prior) for prior in priors}:
        return {USERS: users, FEATURES: features, **tried}
    return {
        STALE: Contestant(),
        USERS: users,
        FEATURES: features,
        BOTH: both,
        RETRAINED: Contestant(trains_again=True),
        RETRAINED_ONLINE: Contestant(moves_users=True, adds_items=True, trains_again=True),
    }


def draw(path: Path, rows: Mapping[str, Any]) -> None:
    """Recall by position in the stream."""
    with measure.picture(path, 7, 4) as figure:
        axes = figure.subplots()
        for name, row in rows.items():
            axes.plot(np.arange(TENTHS) + 0.5, [tenth["recall@20"] for tenth in row["tenths"]], marker="o", label=name)
        axes.set_xlabel("tenth of the stream")
        axes.set_ylabel("Recall@20")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)


def main() -> None:
    args = measure.arguments(
        __doc__, dataset=("ml-100k", "ml-latest-small"), source=Path, json=Path, seed=1, threads=1, priors=[], only=[],
    )  # fmt: skip
    measure.use_threads(args.threads)
    logging.disable(logging.INFO)
    world, priors = read(args.dataset, args.source), [float(prior) for prior in args.priors]
    n = len(world.events)
    begin, end = (n * 3 // 8, n // 2) if priors else (n // 2, n)
    every = contestants(priors)
    settings = {"seed": args.seed, "threads": args.threads, "trained on": begin, "streamed": end - begin}
    about = {**measure.here("numba"), "dataset": args.dataset, "settings": settings}
    rows = measure.earlier(args.json, about, "rows", ("dataset", "settings")) or {}
    with tempfile.TemporaryDirectory() as scratch:
        chosen: dict[str, Any] = {}
        made: dict[int, Path] = {}

        def bundle_of(first: int) -> Path:
            if first not in made:
                made[first] = Path(scratch, str(first))
                start = perf_counter()
                chosen.update(train(world, first, made[first], args.seed, chosen))
                print(f"trained on {first:,} events in {perf_counter() - start:.0f} s: {chosen}", flush=True)
            return made[first]

        bundle_of(begin)  # first, because it chooses the settings of the others
        for name, how in every.items():
            if name in rows or (args.only and name not in args.only):
                continue
            rows[name] = figures(play(world, begin, end, how, bundle_of))
            print(name, rows[name]["all"], rows[name]["last quarter"], flush=True)
            if args.json:
                about["chosen"] = chosen
                measure.write_json(args.json, {**about, "rows": {key: rows[key] for key in every if key in rows}})
    if args.json:
        draw(args.json.with_suffix(".png"), {key: rows[key] for key in every if key in rows})


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
