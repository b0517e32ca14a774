"""How good is a user that was folded in: held out of training, against the same user trained in, by history length.

    python benchmarks/fold_in.py --dataset ml-100k [--setting mean] [--seeds 1 2 3]

A seed that the result file holds is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from measure import RESULTS, Machine, picture, versions, write_json

import recbole_onebp
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.serving.tables import unit_rows
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

K = 20
LENGTHS = (1, 2, 5, 10, 20, 50)
TARGETS = 5
"""Least number of items that are to be found."""
KEYS = (
    "embedding_size", "score", "item_bias", "temperature", "negatives", "n_shared_negatives", "aggregation",
    "aggregation_interval", "aggregation_alpha", "beta", "leave_one_out", "train_batch_size", "learning_rate",
    "learning_rate_decay",
)  # fmt: skip
MOVING = {
    "aggregation": "step", "aggregation_alpha": 0.0, "beta": 0.9, "leave_one_out": False, "train_batch_size": 2048,
    "learning_rate": 0.003,
}  # fmt: skip
KEEPS = (1.0, 0.95, 0.9, 0.8)
"""What an item counts of what the one after it does."""
EASE_ITEMS = 10_000
TRAINED_IN = "OneBP trained in"
FOLDED = "OneBP folded in: "
PLAIN, RECENT = f"{FOLDED}mean, unweighted", f"{FOLDED}0.8 ^ age, unweighted"

_Index = npt.NDArray[np.int64]
_Scores = npt.NDArray[Any]
_Histories = list[_Index]
_Table = dict[str, dict[str, dict[str, float]]]
"""Metrics by scorer and length."""


def settings() -> dict[str, dict[str, Any]]:
    """Users as the weighted mean of their items, which is the default, and moved step by step."""
    defaults = safe_yaml.read(properties_dir() / "model" / "OneBP.yaml", "OneBP.yaml")
    mean = {key: defaults[key] for key in KEYS}  # by name: results say what they are of
    return {"mean": mean, "moving": {**mean, **MOVING}}


class Split:
    """Users held out, each with a number of items that are known of it, drawn from ``LENGTHS``.

    A user's first ``max(LENGTHS)`` items are what may be known, of these the latest are; the rest is to be found.

    Attributes:
        rest: pairs (user, item) of all others.
        length: how many items of each user held out are known.
        histories: which, in order.
        targets: the items to find.
    """

    def __init__(self, pairs: pd.DataFrame, n_held_out: int, seed: int) -> None:
        """Split rows ``user``, ``item`` in the order of time, or, where there is none, of a seed."""
        rng = np.random.default_rng(seed)
        counts = pairs.groupby("user").size()
        able = counts.index[counts >= max(LENGTHS) + TARGETS].to_numpy()
        if len(able) < n_held_out:
            raise UserError(f"--users {n_held_out}: {len(able)} have {max(LENGTHS) + TARGETS} items")
        self.held_out: _Index = np.sort(rng.choice(able, n_held_out, replace=False))
        self.length = rng.permutation(np.resize(LENGTHS, n_held_out))
        self.n_users, self.n_items = int(pairs["user"].max()) + 1, int(pairs["item"].max()) + 1
        self.rest = pairs[~pairs["user"].isin(self.held_out)]
        by_user = pairs[pairs["user"].isin(self.held_out)].groupby("user")["item"]
        items = [by_user.get_group(user).to_numpy() for user in self.held_out]
        cut = max(LENGTHS)
        self.histories = [found[cut - n : cut] for found, n in zip(items, self.length.tolist(), strict=True)]
        self.targets = [found[cut:] for found in items]

    def known(self) -> pd.DataFrame:
        """What is known of the users held out, as pairs."""
        return pd.DataFrame({"user": np.repeat(self.held_out, self.length), "item": np.concatenate(self.histories)})

    def matrix(self) -> sp.csr_matrix:
        """The others' pairs, ``(n_users, n_items)``."""
        ones = np.ones(len(self.rest), np.float32)
        return sp.csr_matrix((ones, (self.rest["user"], self.rest["item"])), shape=(self.n_users, self.n_items))


def read_pairs(data_path: str, name: str, seed: int) -> pd.DataFrame:
    """Train and validation pairs of a data set in order of time, numbered; shuffled where the data know no time."""
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
    """A trained model's tables, in the numbers of the pairs."""

    def __init__(self, split: Split, pairs: pd.DataFrame, setting: dict[str, Any], seed: int) -> None:
        """Train on pairs of users and items of a split."""
        # All ids, so that the model has rows for them; nothing is evaluated on these pairs.
        place = np.arange(max(split.n_users, split.n_items) - 1)
        everything = pd.DataFrame({"user": 1 + place % (split.n_users - 1), "item": 1 + place % (split.n_items - 1)})
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "held"
            data.mkdir()
            for part, frame in (("train", pairs), ("valid", everything), ("test", everything)):
                frame = frame[["user", "item"]]
                names = ["user_id:token", "item_id:token"]
                frame.to_csv(data / f"held.{part}.inter", sep="\t", index=False, header=names)
            run = recbole_onebp.build("OneBP", "held", config_dict={
                **setting, "data_path": folder, "output_dir": f"{folder}/run", "seed": seed, "eval_step": 0,
                "load_col": {"inter": ["user_id", "item_id"]}, "benchmark_filename": ["train", "valid", "test"],
            })  # fmt: skip
            run.trainer.fit(run.train_data, None, saved=False, show_progress=False)
        model: Any = run.model.eval()
        dataset = run.dataset
        users = dataset.token2id("user_id", split.held_out.astype(str))
        items = np.array([0, *dataset.token2id("item_id", np.arange(1, split.n_items).astype(str))])
        config = model.config
        self.cosine = config.score == "cosine"
        self.keep = config.beta if config.aggregation == "step" and config.user_encoding == "moved" else 1.0
        item_e = model.item_table.detach().numpy()[items]
        self.items = unit_rows(item_e) if self.cosine else item_e
        self.weight = np.ones(len(items)) if model.item_weight is None else model.item_weight.numpy()[items, 0]
        self.users = model.scored_users().detach().numpy()[users]
        bias = model.item_bias
        self.bias = 0.0 if bias is None else config.temperature * bias.detach().numpy()[items, 0]

    def score(self, users: _Scores) -> _Scores:
        return (unit_rows(users) if self.cosine else users) @ self.items.T + self.bias

    def fold_in(self, histories: _Histories, keep: float, power: float) -> _Scores:
        """Scores of means of items, each times its weight ** power; the latest counts 1, the one before keep, ..."""
        users = []
        for history in histories:
            age = keep ** np.arange(len(history))[::-1]
            users.append(age / age.sum() * self.weight[history] ** power @ self.items[history])
        return self.score(np.stack(users).astype(np.float32))

    def scorers(self) -> dict[str, Callable[[_Histories], _Scores]]:
        """The ways to fold in, that of the training first."""

        def scorer(keep: float, power: float) -> Callable[[_Histories], _Scores]:
            return lambda histories: self.fold_in(histories, keep, power)

        ways = [(keep, 1.0) for keep in dict.fromkeys((self.keep, *KEEPS))]
        if (self.weight != 1).any():
            ways += [(keep, 0.0) for keep in KEEPS] + [(1.0, 0.5)]
        words = {0.0: ", unweighted", 0.5: ", weights ^ 0.5", 1.0: ""}
        named = {
            f"{FOLDED}{'mean' if keep == 1 else f'{keep:g} ^ age'}{words[power]}": scorer(keep, power)
            for keep, power in ways
        }
        first = next(iter(named))
        return {f"{name} (as in training)" if name == first else name: way for name, way in named.items()}


def measured(scores: _Scores, split: Split) -> tuple[_Scores, _Scores]:
    """Recall and NDCG at K of each user held out, as RecBole has them."""
    recall, ndcg = [], []
    gain = 1 / np.log2(np.arange(K) + 2)
    for row, history, targets in zip(scores, split.histories, split.targets, strict=True):
        row[history] = -np.inf
        row[0] = -np.inf
        best = np.argpartition(-row, K)[:K]
        hit = np.isin(best[np.argsort(-row[best], kind="stable")], targets)
        recall.append(hit.sum() / len(targets))
        ndcg.append((hit * gain).sum() / gain[: min(K, len(targets))].sum())
    return np.array(recall), np.array(ndcg)


def others(split: Split) -> dict[str, Callable[[_Histories], _Scores]]:
    """What else would be picked: a scorer of histories each."""
    matrix = split.matrix()
    popularity = np.asarray(matrix.sum(axis=0)).ravel()

    def rows(histories: _Histories) -> sp.csr_matrix:
        user = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        ones = np.ones(len(user), np.float32)
        return sp.csr_matrix((ones, (user, np.concatenate(histories))), shape=(len(histories), split.n_items))

    length = np.sqrt(np.maximum(popularity, 1))
    scaled = (matrix @ sp.diags(1 / length)).tocsc()

    def knn(histories: _Histories) -> _Scores:
        """Cosines to the 100 nearest items of each (ItemKNN)."""
        wanted = np.unique(np.concatenate(histories))
        near = []
        for start in range(0, len(wanted), 256):
            part = (scaled[:, wanted[start : start + 256]].T @ scaled).toarray()
            part[np.arange(len(part)), wanted[start : start + 256]] = 0
            cut = np.partition(part, -100, axis=1)[:, -100, None]
            near.append(sp.csr_matrix(np.where(part >= cut, part, 0)))
        return (rows(histories)[:, wanted] @ sp.vstack(near)).toarray()

    found: dict[str, Callable[[_Histories], _Scores]] = {
        "Pop": lambda histories: np.tile(popularity, (len(histories), 1)),
        "ItemKNN, 100 neighbours": knn,
    }
    if split.n_items > EASE_ITEMS:
        print(f"EASE: left out: more than {EASE_ITEMS:,} items")
    else:  # it inverts a matrix of items x items
        inverse = np.linalg.inv((matrix.T @ matrix).toarray() + 500 * np.eye(split.n_items, dtype=np.float32))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        found["EASE, lambda 500"] = lambda histories: rows(histories) @ weights
    try:
        from implicit.als import AlternatingLeastSquares
    except ModuleNotFoundError:
        print("ALS: left out: pip install implicit")
        return found
    als = AlternatingLeastSquares(factors=64, regularization=0.05, alpha=2.0, iterations=15, random_state=0)
    als.fit(matrix, show_progress=False)
    found["implicit's ALS, recalculate_user"] = lambda histories: (
        als.recalculate_user(np.arange(len(histories)), rows(histories)) @ als.item_factors.T
    )
    return found


def run(split: Split, setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """The table of one seed, and differences between users' Recall: mean, and variance of that, by length."""
    model = OneBP(split, split.rest, setting, seed)
    trained = OneBP(split, pd.concat([split.rest, split.known()]), setting, seed)
    scorers = {**model.scorers(), **others(split)}
    found = {TRAINED_IN: measured(trained.score(trained.users), split)}
    found |= {name: measured(np.asarray(scorer(split.histories)), split) for name, scorer in scorers.items()}
    as_in_training = next(iter(scorers))
    pairs = [(as_in_training, TRAINED_IN), *([(PLAIN, as_in_training)] if PLAIN in found else [])]
    table: _Table = {name: {} for name in found}
    differences: _Table = {f"{one}, less {other}": {} for one, other in pairs}
    for length in LENGTHS:
        group = split.length == length
        for name, (recall, ndcg) in found.items():
            table[name][str(length)] = {"recall": float(recall[group].mean()), "ndcg": float(ndcg[group].mean())}
        for name, (one, other) in zip(differences, pairs, strict=True):
            more = (found[one][0] - found[other][0])[group]
            variance = float(more.var(ddof=1) / len(more))
            differences[name][str(length)] = {"mean": float(more.mean()), "variance": variance}
    return {"table": table, "recall_differences": differences}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--setting", choices=("mean", "moving"), default="mean")
    parser.add_argument("--users", type=int, default=300, help="held out (default 300)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_args(argv)
    logging.disable(logging.INFO)
    setting = {**settings()[arguments.setting], "epochs": arguments.epochs}
    stem = f"fold-in-{arguments.dataset}-{arguments.setting}"
    facts = {"dataset": arguments.dataset, "users_held_out": arguments.users, "setting": setting}
    path = RESULTS / f"{stem}.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    runs = earlier["runs"] if facts.items() <= earlier.items() else {}
    for seed in map(str, arguments.seeds):
        if seed not in runs:
            pairs = read_pairs(arguments.data_path, arguments.dataset, int(seed))
            runs[seed] = run(Split(pairs, arguments.users, int(seed)), setting, int(seed))
            write_json(path, {**facts, "machine": Machine.here().cpu, "versions": versions(), "runs": runs})
    table = means(runs[str(seed)]["table"] for seed in arguments.seeds)
    text = markdown(arguments, [runs[str(seed)] for seed in arguments.seeds], table)
    write_atomically(RESULTS / f"{stem}.md", lambda file: file.write_text(text, encoding="utf-8"))
    draw(table, RESULTS / f"{stem}.png", f"{arguments.dataset}, {arguments.users} users held out")
    print(text)


def means(tables: Iterable[_Table]) -> _Table:
    """Over seeds."""
    tables = list(tables)
    return {
        name: {
            length: {metric: float(np.mean([table[name][length][metric] for table in tables])) for metric in cell}
            for length, cell in row.items()
        }
        for name, row in tables[0].items()
    }


def markdown(arguments: argparse.Namespace, runs: Sequence[dict[str, Any]], table: _Table) -> str:
    def row(name: str, found: dict[str, dict[str, float]]) -> str:
        cells = (f"{found[str(length)]['recall']:.4f} / {found[str(length)]['ndcg']:.4f}" for length in LENGTHS)
        return f"| {name} | {' | '.join(cells)} |"

    def difference(name: str, length: int) -> str:
        parts = [found["recall_differences"][name][str(length)] for found in runs]
        error = np.sqrt(np.sum([part["variance"] for part in parts])) / len(parts)
        return f"{np.mean([part['mean'] for part in parts]):+.4f} ± {error:.4f}"

    differences = [
        f"| Recall: {name} | {' | '.join(difference(name, length) for length in LENGTHS)} |"
        for name in runs[0]["recall_differences"]
    ]
    lengths = (f"{length} items" if length > 1 else "1 item" for length in LENGTHS)
    seeds = " ".join(map(str, arguments.seeds))
    command = f"python benchmarks/fold_in.py --dataset {arguments.dataset} --setting {arguments.setting}"
    return "\n".join([
        f"# Users folded in: {arguments.dataset}, {arguments.setting}",
        "",
        f"{arguments.users} users held out of training, seeds {seeds}; Recall@{K} / NDCG@{K} by the number of their "
        "items that are known, the latest of them where the data know the time. Each of these users has one of the "
        'numbers; "trained in" is a model that was trained on what is known of them too.',
        "",
        f"| | {' | '.join(lengths)} |",
        f"|---|{'---|' * len(LENGTHS)}",
        *(row(name, found) for name, found in table.items()),
        *differences,
        "",
        "Differences are between the same users, ± standard error. OneBP's and the others' settings are as given, not "
        f"searched for on these users. EASE is left out above {EASE_ITEMS:,} items: it inverts a matrix of items by "
        "items.",
        "",
        f"By `{command} --users {arguments.users} --epochs {arguments.epochs} --seeds {seeds}`.",
        "",
    ])  # fmt: skip


def draw(table: _Table, path: Path, title: str) -> None:
    """Recall by length: of the ways to fold in, those that :class:`~recbole_onebp.Recommender` knows."""
    with picture(path, 9.5, 4.2) as figure:
        axes = figure.add_subplot()
        shown = [name for name in table if FOLDED not in name or "(as in training)" in name or name in (PLAIN, RECENT)]
        for place, name in enumerate(shown):
            values = [table[name][str(length)]["recall"] for length in LENGTHS]
            line = "-" if "OneBP" in name else "--"
            axes.plot(LENGTHS, values, color=f"C{place}", linestyle=line, marker="o", markersize=3, label=name)
        axes.set(xlabel="items that are known", ylabel=f"recall@{K}", title=title, xscale="log")
        axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        figure.legend(fontsize=8, loc="outside right upper")


if __name__ == "__main__":
    main()
