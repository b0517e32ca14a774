"""How good is a user that was folded in: held out of training, against the same user trained in, by history length.

python benchmarks/fold_in.py --dataset ml-100k
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from measure import Machine, versions, write_json

import recbole_onebp
from recbole_onebp.errors import UserError
from recbole_onebp.files import write_atomically
from recbole_onebp.serving.search import unit_rows

RESULTS = Path(__file__).parent / "results"
K = 20
LENGTHS = (1, 2, 5, 10, 20)
TARGETS = 5
"""Least number of items that are to be found."""
SETTINGS: dict[str, dict[str, Any]] = {
    "cosine": {
        "score": "cosine", "temperature": 0.1, "item_bias": True, "negatives": "shared", "beta": 0.9,
        "learning_rate": 0.003, "train_batch_size": 2048, "epochs": 12,
    },
    "dot": {"epochs": 30},
}  # fmt: skip

_Index = npt.NDArray[np.int64]
_Scores = npt.NDArray[Any]
_Histories = list[_Index]


class Split:
    """Users held out: of each the first ``max(LENGTHS)`` items are what may be known, the rest is to be found.

    Attributes:
        rest: pairs (user, item) of all others.
        known: held-out users' items in order, ``max(LENGTHS)`` each.
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
        self.n_users, self.n_items = int(pairs["user"].max()) + 1, int(pairs["item"].max()) + 1
        self.rest = pairs[~pairs["user"].isin(self.held_out)]
        by_user = pairs[pairs["user"].isin(self.held_out)].groupby("user")["item"]
        items = [by_user.get_group(user).to_numpy() for user in self.held_out]
        self.known = [found[: max(LENGTHS)] for found in items]
        self.targets = [found[max(LENGTHS) :] for found in items]

    def histories(self, length: int) -> _Histories:
        """The latest of what may be known."""
        return [found[-length:] for found in self.known]

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

    def __init__(self, split: Split, setting: dict[str, Any], length: int, seed: int) -> None:
        """Train on all others and on ``length`` items of each user held out."""
        known = np.concatenate(split.histories(length)) if length else np.empty(0, np.int64)
        held = pd.DataFrame({"user": np.repeat(split.held_out, length), "item": known})
        # All ids, so that the model has rows for them; nothing is evaluated on these pairs.
        place = np.arange(max(split.n_users, split.n_items) - 1)
        others = pd.DataFrame({"user": 1 + place % (split.n_users - 1), "item": 1 + place % (split.n_items - 1)})
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "held"
            data.mkdir()
            for part, frame in (("train", pd.concat([split.rest, held])), ("valid", others), ("test", others)):
                frame = frame[["user", "item"]]
                names = ["user_id:token", "item_id:token"]
                frame.to_csv(data / f"held.{part}.inter", sep="\t", index=False, header=names)
            run = recbole_onebp.build("OneBP", "held", config_dict={
                **setting, "data_path": folder, "output_dir": f"{folder}/run", "seed": seed, "eval_step": 0,
                "load_col": {"inter": ["user_id", "item_id"]}, "benchmark_filename": ["train", "valid", "test"],
            })  # fmt: skip
            run.trainer.fit(run.train_data, None, saved=False, show_progress=False)
        model: Any = run.model
        dataset = run.dataset
        users = dataset.token2id("user_id", split.held_out.astype(str))
        items = np.array([0, *dataset.token2id("item_id", np.arange(1, split.n_items).astype(str))])
        self.beta, self.cosine = model.hyper.beta, model.hyper.score == "cosine"
        item_e = model.item_table.detach().numpy()[items]
        self.items = unit_rows(item_e) if self.cosine else item_e
        self.users = model.user_table.detach().numpy()[users]
        bias = model.item_bias
        self.bias = 0.0 if bias is None else model.hyper.temperature * bias.detach().numpy()[items, 0]

    def score(self, users: _Scores) -> _Scores:
        return (unit_rows(users) if self.cosine else users) @ self.items.T + self.bias

    def fold_in(self, histories: _Histories, weigh: Callable[[_Index], _Scores]) -> _Scores:
        weights = [weigh(history) for history in histories]
        mean = [w / w.sum() @ self.items[history] for w, history in zip(weights, histories, strict=True)]
        return self.score(np.stack(mean).astype(np.float32))


def measured(scores: _Scores, split: Split, histories: _Histories) -> dict[str, float]:
    """Recall and NDCG at K, as RecBole has them, averaged over the users held out."""
    recall, ndcg = [], []
    gain = 1 / np.log2(np.arange(K) + 2)
    for row, history, targets in zip(scores, histories, split.targets, strict=True):
        row[history] = -np.inf
        row[0] = -np.inf
        best = np.argpartition(-row, K)[:K]
        hit = np.isin(best[np.argsort(-row[best], kind="stable")], targets)
        recall.append(hit.sum() / len(targets))
        ndcg.append((hit * gain).sum() / gain[: min(K, len(targets))].sum())
    return {"recall": float(np.mean(recall)), "ndcg": float(np.mean(ndcg))}


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
        near = np.zeros((len(wanted), split.n_items), np.float32)
        for start in range(0, len(wanted), 256):
            part = (scaled[:, wanted[start : start + 256]].T @ scaled).toarray()
            part[np.arange(len(part)), wanted[start : start + 256]] = 0
            cut = np.partition(part, -100, axis=1)[:, -100, None]
            near[start : start + 256] = np.where(part >= cut, part, 0)
        return rows(histories)[:, wanted] @ near

    found: dict[str, Callable[[_Histories], _Scores]] = {
        "Pop": lambda histories: np.tile(popularity, (len(histories), 1)),
        "ItemKNN, 100 neighbours": knn,
    }
    if split.n_items <= 10_000:  # it inverts a matrix of items x items
        inverse = np.linalg.inv((matrix.T @ matrix).toarray() + 500 * np.eye(split.n_items, dtype=np.float32))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        found["EASE, lambda 500"] = lambda histories: rows(histories) @ weights
    try:
        from implicit.als import AlternatingLeastSquares
    except ModuleNotFoundError:
        print("ALS: not run: pip install implicit")
        return found
    als = AlternatingLeastSquares(factors=64, regularization=0.05, alpha=2.0, iterations=15, random_state=0)
    als.fit(matrix, show_progress=False)
    found["implicit's ALS, recalculate_user"] = lambda histories: (
        als.recalculate_user(np.arange(len(histories)), rows(histories)) @ als.item_factors.T
    )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default="dataset")
    parser.add_argument("--setting", choices=SETTINGS, default="cosine")
    parser.add_argument("--users", type=int, default=200, help="held out (default 200)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=2024)
    arguments = parser.parse_args(argv)
    setting = {**SETTINGS[arguments.setting], **({"epochs": arguments.epochs} if arguments.epochs else {})}
    split = Split(read_pairs(arguments.data_path, arguments.dataset, arguments.seed), arguments.users, arguments.seed)
    popularity = np.maximum(np.bincount(split.rest["item"], minlength=split.n_items), 1)
    model = OneBP(split, setting, 0, arguments.seed)
    scorers: dict[str, Callable[[_Histories], _Scores]] = {
        "OneBP folded in: mean": lambda histories: model.fold_in(histories, lambda items: np.ones(len(items))),
        "OneBP folded in: moving, beta": lambda histories: model.fold_in(
            histories, lambda items: model.beta ** np.arange(len(items))[::-1].astype(float)
        ),
        "OneBP folded in: popularity ^ -0.5": lambda histories: model.fold_in(
            histories, lambda items: popularity[items] ** -0.5
        ),
        **others(split),
    }
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in ("OneBP trained in", *scorers)}
    for length in LENGTHS:
        histories = split.histories(length)
        trained = OneBP(split, setting, length, arguments.seed)
        table["OneBP trained in"][str(length)] = measured(trained.score(trained.users), split, histories)
        for name, scorer in scorers.items():
            table[name][str(length)] = measured(np.asarray(scorer(histories)), split, histories)
        print(length, {name: round(found[str(length)]["recall"], 4) for name, found in table.items()}, flush=True)
    stem = f"fold-in-{arguments.dataset}-{arguments.setting}"
    facts = {
        "dataset": arguments.dataset, "users_held_out": arguments.users, "setting": setting, "seed": arguments.seed,
        "machine": Machine.here().cpu, "versions": versions(), "table": table,
    }  # fmt: skip
    write_json(RESULTS / f"{stem}.json", facts)
    text = markdown(arguments, setting, table)
    write_atomically(RESULTS / f"{stem}.md", lambda file: file.write_text(text, encoding="utf-8"))
    draw(table, RESULTS / f"{stem}.png", f"{arguments.dataset}, {arguments.users} users held out")


def markdown(arguments: argparse.Namespace, setting: dict[str, Any], table: dict[str, Any]) -> str:
    def row(name: str, found: dict[str, dict[str, float]]) -> str:
        cells = (f"{found[str(length)]['recall']:.4f} / {found[str(length)]['ndcg']:.4f}" for length in LENGTHS)
        return f"| {name} | {' | '.join(cells)} |"

    command = f"python benchmarks/fold_in.py --dataset {arguments.dataset} --setting {arguments.setting}"
    return "\n".join([
        f"# Users folded in: {arguments.dataset}, {arguments.setting}",
        "",
        f"{arguments.users} users held out of training; Recall@{K} / NDCG@{K} by the number of their items that are "
        "known, the latest of them where the data know the time. \"Trained in\" is a model of its own for each column.",
        "",
        f"| | {' | '.join(f'{length} items' for length in LENGTHS)} |",
        f"|---|{'---|' * len(LENGTHS)}",
        *(row(name, found) for name, found in table.items()),
        "",
        f"By `{command} --users {arguments.users} --epochs {setting['epochs']} --seed {arguments.seed}`.",
        "",
    ])  # fmt: skip


def draw(table: dict[str, Any], path: Path, title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, found in table.items():
        values = [found[str(length)]["recall"] for length in LENGTHS]
        axes.plot(LENGTHS, values, marker="o", markersize=3, label=name, linestyle="-" if "OneBP" in name else "--")
    axes.set(xlabel="items that are known", ylabel=f"recall@{K}", title=title, xscale="log")
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))


if __name__ == "__main__":
    main()
