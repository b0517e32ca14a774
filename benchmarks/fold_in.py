"""How good folded-in users are: held out of training, against the same users trained in, by length of history.

    python benchmarks/fold_in.py --dataset ml-100k [--users 300] [--epochs 15] [--seeds 1 2 3]

Seeds in the result file are not repeated. Writes ``results/fold-in-<data set>-mean.md``, ``.json`` and ``.png``.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

import recbole_onebp
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.evaluation.metrics import recall_and_ndcg
from recbole_onebp.serving.tables import unit_rows
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError

K = 20
LENGTHS = (1, 2, 5, 10, 20, 50)
TARGETS = 5
"""Least number of items to find."""
KEYS = (
    "embedding_size", "score", "item_bias", "temperature", "negatives", "n_shared_negatives", "aggregation",
    "aggregation_interval", "aggregation_alpha", "beta", "leave_one_out", "train_batch_size", "learning_rate",
    "learning_rate_decay",
)  # fmt: skip
"""Of the defaults, recorded by name in the results."""
EASE_ITEMS = 10_000
TRAINED_IN, FOLDED = "OneBP trained in", "OneBP folded in: "
AS_TRAINED, PLAIN, RECENT = (
    f"{FOLDED}{way}" for way in ("mean (as in training)", "mean, unweighted", "0.8 ^ age, unweighted")
)
WAYS = {
    AS_TRAINED: (1.0, 1.0),
    **{f"{FOLDED}{keep} ^ age": (keep, 1.0) for keep in (0.95, 0.9, 0.8)},
    PLAIN: (1.0, 0.0),
    **{f"{FOLDED}{keep} ^ age, unweighted": (keep, 0.0) for keep in (0.95, 0.9, 0.8)},
    f"{FOLDED}mean, weights ^ 0.5": (1.0, 0.5),
}
"""What an item counts of what the next one counts, and the power of the item weights."""

_Index = npt.NDArray[np.int64]
_Scores = npt.NDArray[Any]


class Split:
    """Held-out users, each with a number of known items that is drawn from ``LENGTHS``.

    Of a user's first ``max(LENGTHS)`` items the latest are known: ``length`` of them, in order in ``histories``. The
    items after those are the ``targets``. ``rest`` are the interactions of all other users.
    """

    def __init__(self, pairs: pd.DataFrame, n_held_out: int, seed: int) -> None:
        """Split rows ``user``, ``item`` that are in order of time, or shuffled where there is no time."""
        rng, cut = np.random.default_rng(seed), max(LENGTHS)
        counts = pairs.groupby("user").size()
        able = counts.index[counts >= cut + TARGETS].to_numpy()
        if len(able) < n_held_out:
            raise UserError(f"--users {n_held_out}: only {len(able)} have {cut + TARGETS} items")
        self.held_out: _Index = np.sort(rng.choice(able, n_held_out, replace=False))
        self.length = rng.permutation(np.resize(LENGTHS, n_held_out))
        self.n_users, self.n_items = int(pairs["user"].max()) + 1, int(pairs["item"].max()) + 1
        held = pairs["user"].isin(self.held_out)
        self.rest = pairs[~held]
        by_user = pairs[held].groupby("user")["item"]
        items = [by_user.get_group(user).to_numpy() for user in self.held_out]
        self.histories = [found[cut - n : cut] for found, n in zip(items, self.length.tolist(), strict=True)]
        self.targets = [found[cut:] for found in items]

    def known(self) -> pd.DataFrame:
        """The known items of the held-out users, as pairs."""
        return pd.DataFrame({"user": np.repeat(self.held_out, self.length), "item": np.concatenate(self.histories)})


def read_pairs(data_path: str, name: str, seed: int) -> pd.DataFrame:
    """Pairs of a data set in order of time; where there are no times, train and validation pairs, shuffled."""
    run = recbole_onebp.build("OneBP", name, config_dict={"data_path": data_path, "output_dir": tempfile.mkdtemp()})
    data = run.dataset
    fields = {"user": data.uid_field, "item": data.iid_field}
    parts = [loader.dataset.inter_feat for loader in (run.train_data, run.valid_data, run.test_data)]
    timed = data.time_field in parts[0].interaction
    parts = parts if timed else parts[:2]  # a published test part is not for choosing on
    columns = {**fields, **({"time": data.time_field} if timed else {})}
    pairs = pd.concat([pd.DataFrame({key: part[field].numpy() for key, field in columns.items()}) for part in parts])
    pairs = pairs.drop_duplicates(["user", "item"]).sample(frac=1, random_state=seed)
    return pairs.sort_values("time", kind="stable") if timed else pairs


class OneBP:
    """The tables of a trained model, by the ids of the pairs."""

    def __init__(self, split: Split, pairs: pd.DataFrame, setting: dict[str, Any], seed: int) -> None:
        """Train on the given pairs of a split."""
        # All ids, so that the model has rows for them; nothing is evaluated on these pairs.
        place = np.arange(max(split.n_users, split.n_items) - 1)
        everything = pd.DataFrame({"user": 1 + place % (split.n_users - 1), "item": 1 + place % (split.n_items - 1)})
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "held"
            data.mkdir()
            for part, frame in (("train", pairs), ("valid", everything), ("test", everything)):
                names = ["user_id:token", "item_id:token"]
                frame[["user", "item"]].to_csv(data / f"held.{part}.inter", sep="\t", index=False, header=names)
            run = recbole_onebp.build("OneBP", "held", config_dict={
                **setting, "data_path": folder, "output_dir": f"{folder}/run", "seed": seed, "eval_step": 0,
                "load_col": {"inter": ["user_id", "item_id"]}, "benchmark_filename": ["train", "valid", "test"],
            })  # fmt: skip
            run.trainer.fit(run.train_data, None, saved=False, show_progress=False)
        model: Any = run.model.eval()
        users = run.dataset.token2id("user_id", split.held_out.astype(str))
        items = np.array([0, *run.dataset.token2id("item_id", np.arange(1, split.n_items).astype(str))])
        self.cosine = model.config.score == "cosine"
        item_e = model.item_table.detach().numpy()[items]
        self.items = unit_rows(item_e) if self.cosine else item_e
        self.weight = np.ones(len(items)) if model.item_weight is None else model.item_weight.numpy()[items, 0]
        self.users = model.scored_users().detach().numpy()[users]
        bias = model.item_bias
        self.bias = 0.0 if bias is None else model.config.temperature * bias.detach().numpy()[items, 0]

    def score(self, users: _Scores) -> _Scores:
        return (unit_rows(users) if self.cosine else users) @ self.items.T + self.bias

    def folding(self, split: Split, keep: float, power: float) -> _Scores:
        """Scores by means of items, each times its weight ** power; the latest counts 1, the one before keep, ..."""
        users = []
        for history in split.histories:
            age = keep ** np.arange(len(history))[::-1]
            users.append(age / age.sum() * self.weight[history] ** power @ self.items[history])
        return self.score(np.stack(users).astype(np.float32))


def measured(scores: _Scores, split: Split) -> dict[str, _Scores]:
    """Recall and NDCG at K of each held-out user."""
    user = np.arange(len(scores))
    scores[np.repeat(user, split.length), np.concatenate(split.histories)] = -np.inf
    scores[:, 0] = -np.inf
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
    lists = zip(np.take_along_axis(best, order, 1), split.targets, strict=True)
    hit = np.concatenate([np.isin(items, targets) for items, targets in lists])
    wanted = np.array([len(targets) for targets in split.targets])
    recall, ndcg = recall_and_ndcg(np.repeat(user, K), np.tile(np.arange(K), len(user)), hit, wanted, K)
    return {"recall": recall, "ndcg": ndcg}


def others(split: Split) -> dict[str, _Scores]:
    """The alternatives: popularity, ItemKNN, EASE where the items are few enough, ALS where it is installed."""
    ones = np.ones(len(split.rest), np.float32)
    matrix = sp.csr_matrix((ones, (split.rest["user"], split.rest["item"])), shape=(split.n_users, split.n_items))
    known = split.known()
    rows = np.repeat(np.arange(len(split.length)), split.length)
    histories = sp.csr_matrix(
        (np.ones(len(known), np.float32), (rows, known["item"])), (len(split.length), split.n_items)
    )
    popularity = np.asarray(matrix.sum(axis=0)).ravel()
    found = {"Pop": np.tile(popularity, (len(split.length), 1))}
    # ItemKNN: cosines to the 100 nearest items of each.
    scaled = (matrix @ sp.diags(1 / np.sqrt(np.maximum(popularity, 1)))).tocsc()
    wanted, near = np.unique(known["item"]), []
    for part in np.array_split(wanted, -(-len(wanted) // 256)):
        cosine = (scaled[:, part].T @ scaled).toarray()
        cosine[np.arange(len(part)), part] = 0
        least = np.partition(cosine, -100, axis=1)[:, -100, None]
        near.append(sp.csr_matrix(np.where(cosine >= least, cosine, 0)))
    found["ItemKNN, 100 neighbours"] = (histories[:, wanted] @ sp.vstack(near)).toarray()
    if split.n_items <= EASE_ITEMS:  # it inverts a matrix of items x items
        inverse = np.linalg.inv((matrix.T @ matrix).toarray() + 500 * np.eye(split.n_items, dtype=np.float32))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        found["EASE, lambda 500"] = histories @ weights
    if find_spec("implicit"):
        from implicit.als import AlternatingLeastSquares

        als = AlternatingLeastSquares(factors=64, regularization=0.05, alpha=2.0, iterations=15, random_state=0)
        als.fit(matrix, show_progress=False)
        users = als.recalculate_user(np.arange(len(split.length)), histories)
        found["implicit's ALS, recalculate_user"] = users @ als.item_factors.T
    return found


def run(split: Split, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """The table of one seed, and differences between users' Recall by length: mean, and variance of the mean."""
    model = OneBP(split, split.rest, setting, seed)
    trained = OneBP(split, pd.concat([split.rest, split.known()]), setting, seed)
    scores = {TRAINED_IN: trained.score(trained.users)}
    scores |= {name: model.folding(split, *way) for name, way in WAYS.items()} | others(split)
    found = {name: measured(np.asarray(values), split) for name, values in scores.items()}
    groups = {str(length): split.length == length for length in LENGTHS}
    table = {
        name: {
            length: {metric: float(values[group].mean()) for metric, values in metrics.items()}
            for length, group in groups.items()
        }
        for name, metrics in found.items()
    }
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for one, other in ((AS_TRAINED, TRAINED_IN), (PLAIN, AS_TRAINED)):
        more = {length: (found[one]["recall"] - found[other]["recall"])[group] for length, group in groups.items()}
        differences[f"{one}, less {other}"] = {
            length: {"mean": float(values.mean()), "variance": float(values.var(ddof=1) / len(values))}
            for length, values in more.items()
        }
    return {"table": table, "recall_differences": differences}


def mean(runs: Sequence[dict[str, Any]], *keys: Any) -> float:
    """Over seeds, of the entry that has these keys."""
    return float(np.mean([reduce(getitem, map(str, keys), found) for found in runs]))


def markdown(dataset: str, users: int, runs: dict[str, dict[str, Any]], epochs: int) -> str:
    chosen, seeds = list(runs.values()), " ".join(runs)

    def cell(name: str, length: int) -> str:
        return " / ".join(f"{mean(chosen, 'table', name, length, metric):.4f}" for metric in ("recall", "ndcg"))

    def difference(name: str, length: int) -> str:
        variance = mean(chosen, "recall_differences", name, length, "variance") / len(chosen)
        return f"{mean(chosen, 'recall_differences', name, length, 'mean'):+.4f} ± {variance**0.5:.4f}"

    rows = [[name, *(cell(name, length) for length in LENGTHS)] for name in chosen[0]["table"]]
    rows += [
        [f"Recall: {name}", *(difference(name, length) for length in LENGTHS)]
        for name in chosen[0]["recall_differences"]
    ]
    return f"""# Folded-in users: {dataset}

{users} users held out of training, seeds {seeds}. Recall@{K} / NDCG@{K} by the number of known items, \
the latest ones where the data have times. Each user has one of these numbers. "Trained in" is a model that \
was trained on the known items too.

{measure.table(["", "1 item", *(f"{length} items" for length in LENGTHS[1:])], rows)}

Differences are between the same users, ± standard error. No setting was tuned on these users. EASE is left \
out above {EASE_ITEMS:,} items, because it inverts a matrix of items by items.

By `python benchmarks/fold_in.py --dataset {dataset} --users {users} --epochs {epochs} --seeds {seeds}`.
"""


def draw(runs: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Recall by length; of the ways to fold in, those that :class:`~recbole_onebp.Recommender` has."""
    with measure.picture(path, 9.5, 4.2) as figure:
        axes = figure.add_subplot(xlabel="known items", ylabel=f"recall@{K}", title=title, xscale="log")
        for name in runs[0]["table"]:
            if FOLDED not in name or name in (AS_TRAINED, PLAIN, RECENT):
                values = [mean(runs, "table", name, length, "recall") for length in LENGTHS]
                axes.plot(LENGTHS, values, linestyle="-" if "OneBP" in name else "--", marker=".", label=name)
        axes.set_xticks(LENGTHS, map(str, LENGTHS))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        figure.legend(fontsize=8, loc="outside right upper")


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset="ml-100k", data_path=measure.DATA, users=300, epochs=15, seeds=[1, 2, 3]
    )
    logging.disable(logging.INFO)
    defaults = safe_yaml.read(properties_dir() / "model" / "OneBP.yaml", "OneBP.yaml")
    setting = {**{key: defaults[key] for key in KEYS}, "epochs": args.epochs}
    facts = {"dataset": args.dataset, "users_held_out": args.users, "setting": setting}
    path = args.json or measure.RESULTS / f"fold-in-{args.dataset}-mean.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    runs = earlier["runs"] if facts.items() <= earlier.items() else {}
    about = {**facts, "machine": measure.machine()["cpu"], "versions": measure.versions()}
    for seed in args.seeds:
        if str(seed) not in runs:
            pairs = read_pairs(str(args.data_path), args.dataset, seed)
            runs[str(seed)] = run(Split(pairs, args.users, seed), setting, seed)
            measure.write_json(path, {**about, "runs": runs})
    chosen = {str(seed): runs[str(seed)] for seed in args.seeds}
    text = markdown(args.dataset, args.users, chosen, args.epochs)
    measure.write_text(path.with_suffix(".md"), text)
    draw(list(chosen.values()), path.with_suffix(".png"), f"{args.dataset}, {args.users} users held out")
    print(text)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
