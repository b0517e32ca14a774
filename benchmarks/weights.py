r"""What weights of interactions are worth: OneBP with and without them, compared with implicit's ALS and BPR.

    pip install implicit
    recbole-onebp convert user_artists.dat --name=lastfm --user=userID --item=artistID --rating=weight --sep='\t' \
        --split=ratio
    python benchmarks/weights.py [--dataset lastfm] [--seeds 1 2 3] [--json OUT]

The weights are the column ``rating``.  Each contestant keeps the best of its settings by NDCG@20 on validation, with
the first seed; then it is trained with each seed and tested once.  OneBP has its defaults, and only the transform of
the weights is chosen; ALS has its size, regularisation, confidence (alpha) and transform, BPR, which does not read
weights, its size, learning rate and regularisation.  Then, on validation only: OneBP with the weights in one of their
places.

In ``weighted ndcg@20`` a test item counts log(1 + weight), in the list and in the best list.  What ``OUT`` holds is not
repeated.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import measure
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction

from recbole_onebp import build
from recbole_onebp.weights import transformed

FIELD, K = "rating", 20
TRANSFORMS = ("raw", "log1p", "sqrt", "rank")
ONEBP = {"epochs": 18, "eval_step": 6, "topk": [K], "metrics": ["NDCG"], "valid_metric": f"NDCG@{K}"}
WEIGHTED: list[dict[str, Any]] = [{"WEIGHT_FIELD": FIELD, "weight_transform": transform} for transform in TRANSFORMS]
PLACES = ("loss", "users", "local term")
FACTORS, REGULARIZATIONS = (16, 32, 64), (1.0, 10.0, 30.0)
ALS: list[dict[str, Any]] = [
    {"factors": factors, "regularization": regularization, "alpha": alpha}
    for factors, regularization, alpha in product(FACTORS, REGULARIZATIONS, (5.0, 10.0, 20.0))
]
BPR: list[dict[str, Any]] = [
    {"factors": factors, "regularization": regularization, "learning_rate": rate, "iterations": 200}
    for factors, regularization, rate in product(FACTORS, (0.01, 0.1), (0.01, 0.05))
]

Matrix: TypeAlias = Any
"""A CSR matrix of scipy's."""
Scorer = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Scores of users ``(B,)`` and all items, ``(B, n_items)``."""
Trained = tuple[Scorer, dict[str, Any]]
"""And what training has chosen."""


class Data(NamedTuple):
    """Weights of the parts, users x items, in RecBole's ids."""

    train: Matrix
    valid: Matrix
    test: Matrix


def run_of(args: Any, seed: int, settings: Mapping[str, Any], folder: str) -> Any:
    """A run of OneBP before training."""
    files = [str(args.data_path / args.dataset / f"{args.dataset}.yaml")]
    fixed = {"data_path": str(args.data_path), "show_progress": False, "output_dir": folder, "seed": seed}
    return build("OneBP", args.dataset, files, {**ONEBP, **fixed, **settings})


def data_of(args: Any) -> Data:
    """The parts as RecBole reads them."""
    with tempfile.TemporaryDirectory() as scratch:
        run = run_of(args, 1, {}, scratch)
        parts = [loader._dataset.inter_feat for loader in (run.train_data, run.valid_data, run.test_data)]
    cells = ((part[FIELD].double().numpy(), (part["user_id"].numpy(), part["item_id"].numpy())) for part in parts)
    return Data(*(sp.csr_array(sp.coo_array(one, shape=(run.dataset.user_num, run.dataset.item_num))) for one in cells))


def evaluate(score: Scorer, hidden: Matrix, wanted: Matrix) -> dict[str, float]:
    """Recall, NDCG and weighted NDCG of lists without the items in ``hidden``, for users with items in ``wanted``."""
    users = np.flatnonzero(np.diff(wanted.indptr))
    discount, found = 1 / np.log2(np.arange(2, K + 2)), np.zeros((len(users), 3))
    scores = score(users)
    scores[:, 0] = -np.inf  # padding
    for row, user in enumerate(users):
        scores[row, hidden.indices[hidden.indptr[user] : hidden.indptr[user + 1]]] = -np.inf
        own = slice(wanted.indptr[user], wanted.indptr[user + 1])
        gain_of = dict(zip(wanted.indices[own].tolist(), np.log1p(wanted.data[own]), strict=True))
        best = np.argpartition(-scores[row], K)[:K]
        best = best[np.argsort(-scores[row, best], kind="stable")]
        gains = np.array([gain_of.get(item, 0.0) for item in best.tolist()])
        ideal = np.sort([*gain_of.values()])[::-1][:K]
        hits = gains > 0
        found[row] = (
            hits.sum() / len(gain_of),
            hits @ discount / discount[: len(ideal)].sum(),
            gains @ discount / (ideal @ discount[: len(ideal)]),
        )
    return dict(zip((f"recall@{K}", f"ndcg@{K}", f"weighted ndcg@{K}"), found.mean(axis=0).tolist(), strict=True))


# ---------------------------------------------------------------------------------------------------------- contestants


def only_in(place: str, run: Any) -> None:
    """Let the weights of a run count in one place."""
    model, history = run.model, run.model.history
    if place != "loss":
        history.strength_of = lambda *_: None
    if place != "users":
        history.weight = history.total = None
        model._start_users()
    if place != "local term":
        history.arrays = (*history.arrays[:2], np.empty(0, np.float32))


def onebp(args: Any, _data: Data, seed: int, settings: dict[str, Any], place: str = "") -> Trained:
    with tempfile.TemporaryDirectory() as scratch:
        run = run_of(args, seed, settings, scratch)
        if place:
            only_in(place, run)
        best_epoch, _ = run.train()
        run.trainer.saver.load_best()

    @torch.no_grad()
    def score(users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        found = run.model.full_sort_predict(Interaction({"user_id": torch.from_numpy(users)}))
        return np.asarray(found.view(len(users), -1).numpy())

    run.model.eval()
    return score, {"epochs": best_epoch + 1, "local_weight": float(run.model.local_weight)}


def als(_args: Any, data: Data, seed: int, settings: dict[str, Any]) -> Trained:
    from implicit.als import AlternatingLeastSquares

    own = dict(settings)
    transform, train = own.pop("transform", None), data.train.copy()
    owner = np.repeat(np.arange(train.shape[0]), np.diff(train.indptr))
    train.data = np.ones(train.nnz) if transform is None else transformed(train.data, owner, transform)
    train.data /= train.data.mean()
    return _implicit(AlternatingLeastSquares(**own, iterations=20, random_state=seed), train)


def bpr(_args: Any, data: Data, seed: int, settings: dict[str, Any]) -> Trained:
    from implicit.bpr import BayesianPersonalizedRanking

    return _implicit(BayesianPersonalizedRanking(**settings, random_state=seed), data.train)


def _implicit(model: Any, train: Matrix) -> Trained:
    model.fit(sp.csr_matrix(train, dtype=np.float32), show_progress=False)
    users, items = np.asarray(model.user_factors), np.asarray(model.item_factors)
    return lambda rows: users[rows] @ items.T, {}


CONTESTANTS: dict[str, tuple[Callable[..., Trained], list[dict[str, Any]]]] = {
    "OneBP": (onebp, [{}]),
    "OneBP, weighted": (onebp, WEIGHTED),
    "ALS": (als, ALS),
    "ALS, weighted": (als, [{**one, "transform": transform} for transform, one in product(TRANSFORMS, ALS)]),
    "BPR": (bpr, BPR),
}


def contest(args: Any, data: Data, name: str) -> dict[str, Any]:
    """Choose the settings of a contestant and test it."""
    train, grid = CONTESTANTS[name]
    tried: list[dict[str, Any]] = []
    best: Trained | None = None
    for settings in grid:
        trained = train(args, data, args.seeds[0], settings)
        valid = evaluate(trained[0], data.train, data.valid)
        if all(valid[f"ndcg@{K}"] > row["valid"][f"ndcg@{K}"] for row in tried):
            best, chosen = trained, settings
        tried.append({"settings": settings, "valid": valid})
        print(f"{name}, {settings}: {valid}", flush=True)
    seen, runs = sp.csr_array(data.train + data.valid), []
    for seed in args.seeds:
        score, about = best or train(args, data, seed, chosen)
        runs.append({"seed": seed, **about, "valid": evaluate(score, data.train, data.valid)})
        runs[-1]["test"], best = evaluate(score, seen, data.test), None
    mean = {part: {key: statistics.mean(run[part][key] for run in runs) for key in runs[0][part]} for part in
            ("valid", "test")}  # fmt: skip
    print(f"{name}, {chosen}: {mean}", flush=True)
    return {"chosen": chosen, "tried": tried, "runs": runs, "mean": mean}


def where(args: Any, data: Data, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics on validation, for the first seed, with the weights in one place."""
    found = {}
    for place in PLACES:
        score, _ = onebp(args, data, args.seeds[0], settings, place)
        found[place] = evaluate(score, data.train, data.valid)
        print(f"weights in {place}: {found[place]}", flush=True)
    return found


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset="lastfm", data_path=measure.DATA, seeds=[1, 2, 3], only=[*CONTESTANTS], threads=1
    )
    measure.begin(args, [args.dataset])
    settings = {**ONEBP, "threads": args.threads}
    about = {**measure.here("numba", "implicit"), "dataset": args.dataset, "settings": settings}
    out = args.json or measure.RESULTS / "weights" / f"{args.dataset}.json"
    found = measure.earlier(out, about, "contestants", ("dataset", "settings")) or {}
    places = measure.earlier(out, about, "where", ("dataset", "settings"))
    data = data_of(args)
    for name in args.only:
        if name not in found:
            found[name] = contest(args, data, name)
            measure.write_json(out, {**about, "contestants": found, "where": places})
    if places is None and "OneBP, weighted" in found:
        places = where(args, data, found["OneBP, weighted"]["chosen"])
        measure.write_json(out, {**about, "contestants": found, "where": places})


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
