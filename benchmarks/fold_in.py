"""How good folded-in users are: held out of training, against the same users trained in, by length of history.

    python benchmarks/fold_in.py --dataset ml-100k [--users 300] [--epochs 15] [--seeds 1 2 3]

Seeds in the result file are not repeated.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import measure
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

import recbole_onebp
from recbole_onebp.config.schema import onebp_defaults
from recbole_onebp.evaluation.metrics import recall_and_ndcg
from recbole_onebp.serving.export.local_term import local_table
from recbole_onebp.serving.tables import unit_rows
from recbole_onebp.util.errors import UserError

K = 20
LENGTHS = (1, 2, 5, 10, 20, 50)
TARGETS = 5  # least number of items to find
KEYS = (
    "embedding_size", "score", "item_bias", "temperature", "negatives", "n_shared_negatives", "aggregation",
    "aggregation_interval", "aggregation_alpha", "beta", "leave_one_out", "train_batch_size", "learning_rate",
    "learning_rate_decay",
)  # fmt: skip
"""Of the defaults, recorded by name in the results."""
EASE_ITEMS = 10_000
TRAINED_IN, FOLDED = "OneBP trained in", "OneBP folded in: "
AS_TRAINED, PLAIN = f"{FOLDED}mean (as in training)", f"{FOLDED}mean, unweighted"
RECENT = f"{FOLDED}0.8 ^ age, unweighted"
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
    with tempfile.TemporaryDirectory() as out:
        run = recbole_onebp.build("OneBP", name, config_dict={"data_path": data_path, "output_dir": out})
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
        bias = model.score_biases()
        self.bias = 0.0 if bias is None else bias.detach().numpy()[items, 0]
        self.local = local_table(model.local, items)
        self.histories = split.histories

    def score(self, users: _Scores) -> _Scores:
        scores: _Scores = (unit_rows(users) if self.cosine else users) @ self.items.T + self.bias
        if self.local is not None:
            added = np.empty(scores.shape[1])
            for row, history in zip(scores, self.histories, strict=True):
                self.local.write_scores(history, added)
                row += added
        return scores

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
    best = np.argsort(-scores, axis=1, kind="stable")[:, :K]
    hit = np.concatenate([np.isin(items, targets) for items, targets in zip(best, split.targets, strict=True)])
    wanted = np.array([len(targets) for targets in split.targets])
    recall, ndcg = recall_and_ndcg(np.repeat(user, K), np.tile(np.arange(K), len(user)), hit, wanted, K)
    return {"recall": recall, "ndcg": ndcg}


def others(split: Split) -> dict[str, _Scores]:
    """The alternatives: popularity, ItemKNN, EASE where the items are few enough, ALS where it is installed."""
    ones = np.ones(len(split.rest), np.float32)
    matrix = sp.csr_matrix((ones, (split.rest["user"], split.rest["item"])), shape=(split.n_users, split.n_items))
    known = split.known()
    rows = np.repeat(np.arange(len(split.length)), split.length)
    shape = len(split.length), split.n_items
    histories = sp.csr_matrix((np.ones(len(known), np.float32), (rows, known["item"])), shape)
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
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in found}
    differences: dict[str, dict[str, dict[str, float]]] = {}
    for length, group in groups.items():
        for name, metrics in found.items():
            table[name][length] = {metric: float(values[group].mean()) for metric, values in metrics.items()}
        for one, other in ((AS_TRAINED, TRAINED_IN), (PLAIN, AS_TRAINED)):
            more = (found[one]["recall"] - found[other]["recall"])[group]
            about = {"mean": float(more.mean()), "variance": float(more.var(ddof=1) / len(more))}
            differences.setdefault(f"{one}, less {other}", {})[length] = about
    return {"table": table, "recall_differences": differences}


def means(runs: Iterable[dict[str, Any]], part: str) -> dict[str, list[tuple[float, float]]]:
    """Over seeds, of each row of a part: the two values of each length."""
    of_seeds = [
        {name: [list(row[str(length)].values()) for length in LENGTHS] for name, row in found[part].items()}
        for found in runs
    ]
    return {name: np.mean([rows[name] for rows in of_seeds], axis=0).tolist() for name in of_seeds[0]}


def markdown(dataset: str, users: int, runs: dict[str, dict[str, Any]], epochs: int) -> str:
    seeds, differences = " ".join(runs), means(runs.values(), "recall_differences")
    rows = [
        [name, *(f"{recall:.4f} / {ndcg:.4f}" for recall, ndcg in row)]
        for name, row in means(runs.values(), "table").items()
    ]
    rows += [
        [f"Recall: {name}", *(f"{mean:+.4f} ± {(variance / len(runs)) ** 0.5:.4f}" for mean, variance in row)]
        for name, row in differences.items()
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


def draw(runs: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Recall by length; of the ways to fold in, those that :class:`~recbole_onebp.Recommender` has."""
    with measure.picture(path, 9.5, 4.2) as figure:
        axes = figure.add_subplot(xlabel="known items", ylabel=f"recall@{K}", title=title, xscale="log")
        for name, row in means(runs, "table").items():
            if FOLDED not in name or name in (AS_TRAINED, PLAIN, RECENT):
                values = [recall for recall, _ in row]
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
    defaults = onebp_defaults()
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
    draw(chosen.values(), path.with_suffix(".png"), f"{args.dataset}, {args.users} users held out")
    print(text)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
