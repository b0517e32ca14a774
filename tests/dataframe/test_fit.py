"""``fit``: the same results as the command line, evaluation, saving, warm starts, and nothing left behind."""

from __future__ import annotations

import doctest
import logging
import pickle
import re
import sys
import tempfile
from dataclasses import asdict
from inspect import isfunction
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recbole
import torch
from recbole.data.interaction import Interaction

from recbole_onebp import OneBPRecommender, Recommender, fit
from recbole_onebp.cli import main
from recbole_onebp.dataframe.recommender import FittedRecommender
from recbole_onebp.run.checkpoint.model_file import read_model
from recbole_onebp.util.errors import UserError
from support.interactions import FAST, made

ML_100K = Path(recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
QUICK = {"embedding_size": 8, "n_shared_negatives": 32, "train_batch_size": 4096, "show_progress": False}


def tables(run_dir) -> dict[str, np.ndarray]:
    return {name: np.asarray(table) for name, table in read_model(Path(run_dir) / "model.safetensors").state.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def command_line(*arguments: str) -> None:
    assert main([*arguments]) == 0


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_the_results_are_those_of_the_command_line(tmp_path, ordered, weighted):
    ratings = pd.read_csv(ML_100K, sep="\t").set_axis(["user", "item", "rating", "ts"], axis=1)
    ratings = ratings[ratings["user"] <= 150]
    ratings.to_csv("ratings.csv", index=False)
    time = "ts" if ordered else ""
    command_line("convert", "ratings.csv", "--name=mine", f"--rating={'rating' * weighted}", f"--time={time}")
    split = {"split": {"RS": [0.9, 0.1, 0.0]}, "order": "TO" if ordered else "RO", "group_by": "user"}
    settings = [f"--{key}={value}" for key, value in QUICK.items()] + ["--WEIGHT_FIELD=rating"] * weighted
    columns = {"user": "user", "item": "item", "time": time, "weight": "rating" if weighted else None}
    arguments = ["--model=OneBP", "--dataset=mine", "--data_path=dataset", "--config_files=dataset/mine/mine.yaml"]
    train = ["train", *arguments, *settings, f"--eval_args={split}"]

    command_line(*train, "--epochs=2", "--output_dir=shell")
    rec = fit(ratings, **columns, valid=0.1, output_dir="python", epochs=2, **QUICK)
    assert_same(tables("python"), tables("shell"))
    command_line("export", "shell", "bundle")
    exported = Recommender.load("bundle")
    assert exported.recommend(exported.user_ids) == rec.recommend(exported.user_ids)
    assert exported.bundle.manifest["metrics"]["valid"] == rec.result.valid

    chosen = (
        f"--epochs={rec.result.best_epoch + 1}",
        f"--recency={rec.result.recency}",
        f"--local_weight={(rec.result.local or {'weight': 0.0})['weight']}",
    )
    command_line(*train, "--output_dir=refitted", "--refit=true", *chosen)
    again = fit(ratings, **columns, output_dir="all", epochs=2, **QUICK)
    assert_same(tables("all"), tables("refitted"))
    assert again.result.valid == rec.result.valid
    assert (again.result.n_train, rec.result.n_train) == (len(ratings), len(ratings) - _tenths(ratings["user"]))


def test_weights_stay_with_the_recommender(frame):
    plays = frame.assign(plays=np.random.default_rng(0).integers(1, 500, len(frame)))
    given = {"weight": "plays", "weight_transform": "sqrt", "valid": 0.2, **FAST}
    rec = fit(plays, **given)
    assert OneBPRecommender(**given).fit(plays).recommend(["0"]) == rec.recommend(["0"])
    rows = {(str(row.user_id), str(row.item_id)): row.plays for row in plays.itertuples()}
    assert rec.bundle.manifest["weights"]["transform"] == "sqrt"
    for user in ("0", "7"):
        found = rec._users.given(rec._user_tokens.row(user))
        assert found.tolist() == [rows[user, item] for item in rec.history(user)]
    later, copy = rec.refit(plays, epochs=1), pickle.loads(pickle.dumps(rec))
    assert later.bundle.manifest["weights"]["default"] == np.median(plays["plays"])
    assert copy.recommend(["0"]) == rec.recommend(["0"])
    assert rec.recommend(["0"]) != fit(plays, valid=0.2, **FAST).recommend(["0"])
    assert rec.evaluate(frame[frame["user_id"] < 9], ["recall@5"]).n_users == 9


def _tenths(users: pd.Series) -> int:
    """RecBole's rounding: a tenth, and at least one."""
    return int(users.value_counts().map(lambda n: max(int(0.1 * n), 1)).sum())


def test_the_latest_rows_are_held_out(frame):
    rec = fit(frame.sample(frac=1, random_state=1), valid=0.2, **FAST)
    latest = frame.sort_values("timestamp").groupby("user_id").tail(2)
    held_out = {(str(user), item) for user in frame["user_id"].unique() for item in _missing(rec, frame, user)}
    assert held_out == set(zip(latest["user_id"].astype(str), latest["item_id"].astype(str), strict=True))
    assert rec.run.model.users_from_earlier_items


def _missing(rec, frame, user):
    return {*frame[frame["user_id"] == user]["item_id"].astype(str)} - {*rec.history(user)}


def test_the_user_is_made_of_all_rows_by_default(rec):
    frame = made()
    assert not any(_missing(rec, frame, user) for user in frame["user_id"].unique())
    assert rec.history("3") == [*frame[frame["user_id"] == 3].sort_values("timestamp")["item_id"].astype(str)]
    assert rec.result.n_train == len(frame)
    assert rec.result.valid.keys() == {"recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10"}


def test_the_weight_of_the_local_term_is_the_one_chosen_on_held_out_rows(frame):
    settings = {**FAST, "local": "ridge", "local_neighbors": 5}
    chosen, rec = fit(frame, valid=0.1, **settings), fit(frame, **settings)
    assert rec.result.local == chosen.result.local
    assert rec.result.local["weight"] != 1  # that of a training without validation
    assert rec.refit(frame).result.local == chosen.result.local


def test_rows_of_ones_own_choose_the_epoch(frame, capsys):
    valid = frame.groupby("user_id").tail(1)
    train = frame.drop(valid.index)
    strange = pd.DataFrame({"user_id": ["nobody", 1], "item_id": [1, "nothing"], "timestamp": [1, 1]})
    rec = fit(train, valid=pd.concat([valid, strange, train[:3]]), **FAST)
    assert rec.result.n_train == len(train)
    run = fit(train, valid=valid, **FAST).result
    assert (run.valid, run.test) == (rec.result.valid, {})
    with pytest.raises(UserError, match="per-user metrics: the run has no test part"):
        rec.run.per_user_metrics("test")
    with pytest.raises(UserError, match="valid: none of its rows is a new pair"):
        fit(train, valid=train, **FAST)
    with pytest.raises(UserError, match="valid: it has no column of times, but data has one"):
        fit(train, valid=valid.drop(columns="timestamp"), **FAST)


def test_metrics_are_those_of_recbole(frame, caplog):
    """A test part of RecBole's split, once evaluated by RecBole and once as rows of the caller's."""
    rec = fit(frame, eval_args={"split": {"RS": [0.7, 0.1, 0.2]}}, topk=[3, 5], **FAST)
    test = frame.sort_values("timestamp").groupby("user_id").tail(2)
    assert rec.evaluate(test) == pytest.approx(rec.result.test, abs=1e-9)
    assert rec.evaluate(test).n_users == 30
    assert not caplog.records
    strange = pd.DataFrame({"user_id": ["nobody", 1, 1], "item_id": [1, "nothing", rec.history(1)[0]]})
    found = rec.evaluate(pd.concat([test, strange]), metrics=["Recall@5"])
    assert found["recall@5"] < rec.result.test["recall@5"]
    assert (found.n_users, found.unknown_users, found.unknown_items) == (30, ["nobody"], ["nothing"])
    assert "test: 2 of 63 pairs are left out" in caplog.text
    for bad in ("recall", "recall@0", "gauc@5", "recall@x"):
        with pytest.raises(UserError, match=f"metrics: {bad}: expected one of"):
            rec.evaluate(test, [bad])
    with pytest.raises(UserError, match="test: no row is of a user that the model knows"):
        rec.evaluate(strange[:1])


def test_a_pickle_is_the_bundle(rec):
    modules = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            modules.add(module.split(".")[0])
            return super().find_class(module, name)

    content = pickle.dumps(rec)
    copy = Unpickler(BytesIO(content)).load()
    assert modules == {"recbole_onebp"}
    assert copy.recommend(range(30)) == rec.recommend(range(30))
    assert (asdict(copy.result), copy.run) == (asdict(rec.result), None)
    assert pickle.loads(pickle.dumps(copy)).recommend(range(30)) == rec.recommend(range(30))
    path = copy.bundle.path
    del copy
    assert not path.exists()


def test_saved(rec, tmp_path):
    rec.save("bundle")
    assert Recommender.load("bundle").recommend(range(30)) == rec.recommend(range(30))
    with pytest.raises(UserError, match="bundle: exists already"):
        rec.save("bundle")
    rec.save("bundle", force=True)
    assert {file.name for file in Path("bundle").iterdir()} == {file.name for file in rec.bundle.path.iterdir()}


def test_what_a_saved_bundle_lacks_is_told(rec, tmp_path, caplog):
    changed = pickle.loads(pickle.dumps(rec))
    changed.add_items({"new": ["3"]})
    changed.remove_items(["1", "2", "new"])
    assert not [message for message in caplog.messages if "not in the bundle" in message]
    changed.save("bundle")
    pickle.dumps(changed)
    said = "not in the bundle: 1 items that were added after training; still in it: 2 that were removed"
    assert [message for message in caplog.messages if "not in the bundle" in message] == [said, said]


def test_warm_start(rec):
    """With a learning rate of nearly 0 the old rows stay, in a new order of ids, and new ones are xavier's."""
    more = pd.concat([made(), pd.DataFrame({"user_id": [31, 31], "item_id": ["new", 3], "timestamp": [9, 10]})])
    later = rec.refit(more[::-1], learning_rate=1e-12)
    old = [later.item_ids.index(item) for item in rec.item_ids]
    np.testing.assert_allclose(later.bundle.item_encodings[old], rec.bundle.item_encodings, atol=1e-6)
    np.testing.assert_allclose(later.bundle.item_bias[old], rec.bundle.item_bias, atol=1e-6)
    assert (later.knows_item("new"), later.knows_user("31"), later.result.n_train) == (True, True, len(more))
    table = later.run.model.item_table.detach().norm(dim=1)
    new = later.run.dataset.field2token_id["item_id"]["new"]
    assert 0.2 < table[new] < 0.9 < table[later.run.dataset.field2token_id["item_id"]["3"]]
    assert (later.result.epochs_run, later.result.valid) == (rec.result.epochs_run, {})
    newer = pd.DataFrame({"user_id": [31], "item_id": [4], "timestamp": [11]})
    assert rec.refit(more, valid=newer, topk=5).result.valid.keys() >= {"recall@5"}
    with pytest.raises(UserError, match=r"valid: 0\.1: a share would hold out rows that the model knows already"):
        rec.refit(more, valid=0.1)
    with pytest.raises(UserError, match="embedding_size: 4: refit continues a model with 8; use fit"):
        rec.refit(more, embedding_size=4)


def test_nothing_is_left(frame, tmp_path, monkeypatch, capsys):
    """No files, handlers or output; and the temporary folder goes with the recommender."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    root = logging.getLogger()
    handlers, root.handlers = root.handlers, []
    try:
        rec = fit(frame, **FAST)
        assert (root.handlers, root.level) == ([], logging.WARNING)
    finally:
        root.handlers = handlers
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert capsys.readouterr() == ("", "")
    assert rec.bundle.path.is_dir()
    rec.run = None
    del rec
    import gc

    gc.collect()
    assert not [*(tmp_path / "temporary").iterdir()]


def test_output_dir_keeps_the_run(frame):
    rec = fit(frame, output_dir="out", **FAST)
    command_line("export", "out", "bundle")
    assert Recommender.load("bundle").recommend(range(30)) == rec.recommend(range(30))
    assert Recommender.load("bundle").bundle.manifest["metrics"]["valid"] == rec.result.valid
    Path("out/data/mine.txt").touch()
    fit(frame[:-5], output_dir="out", valid=frame[-5:], **FAST)
    assert {path.name for path in Path("out/data").rglob("*.*")} == {
        "mine.txt", "dataframe.train.inter", "dataframe.valid.inter", "dataframe.test.inter",
    }  # fmt: skip
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"mine: holds config\.yaml"):
        fit(frame, output_dir="mine", **FAST)


def test_progress_is_one_bar_a_training(frame, monkeypatch):
    screen = StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(frame, **{**FAST, "show_progress": True})
    assert "choose the number of epochs: 2 epochs" in screen.getvalue()
    assert "train on all rows: 100%" in screen.getvalue()
    assert "Train " not in screen.getvalue()  # RecBole's bar of an epoch


def test_epochs_are_told_to_the_caller(frame):
    seen = []
    rec = fit(frame, on_epoch=seen.append, **FAST)  # 2 epochs to choose from, then as many as are best
    assert [epoch["epoch"] for epoch in seen] == [0, 1, *range(rec.result.epochs_run)]
    assert seen[rec.result.best_epoch]["valid"] == rec.result.valid
    assert not any(epoch["valid"] for epoch in seen[2:])
    pickle.dumps(rec)  # although the function cannot be pickled
    again = []
    rec.refit(frame, epochs=1, on_epoch=again.append)
    assert [epoch["epoch"] for epoch in again] == [0]

    def stop(epoch):
        raise RuntimeError(epoch["epoch"])

    with pytest.raises(RuntimeError, match="0"):
        fit(frame, on_epoch=stop, **FAST)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "BPR"}, "model: fit sets it"),
        ({"dataset": "mine"}, "dataset: fit sets it"),
        ({"epoch": 3}, "epoch: fit and OneBP have no such argument or key; did you mean epochs"),
        ({"tiem": "when"}, "tiem: fit and OneBP have no such argument or key; did you mean time"),
        ({"sep": ";"}, "sep: fit and OneBP have no such argument or key$"),
        ({"encoding": "latin-1"}, "encoding: fit sets it"),
        ({"weight": "plays"}, "data: no column plays"),
        ({"WEIGHT_FIELD": "rating"}, "WEIGHT_FIELD: fit sets it"),
        ({"embedding_size": "8"}, "embedding_size: '8' is not allowed"),
        ({"valid": 1.5}, "valid: 1.5: expected a share between 0 and 1, or a table"),
        ({"valid": True}, "valid: bool is no table"),
        ({"topk": 100}, "topk: 100 is more than the 25 items"),
        ({"refit": True, "epochs": None}, "epochs"),
    ],
)
def test_bad_settings(frame, settings, said):
    with pytest.raises(UserError, match=said):
        fit(frame, **{**FAST, **settings})


def test_topk_follows_the_data_and_the_metric_follows_topk(frame):
    assert "mrr@6" in fit(frame[frame["item_id"] < 6], **FAST).result.valid
    assert "mrr@20" in fit(frame, topk=20, **FAST).result.valid


def test_the_examples_of_the_docstrings(rec):
    examples = doctest.DocTestFinder().find(FittedRecommender) + doctest.DocTestFinder().find(fit)
    own = {name for name, value in vars(FittedRecommender).items() if isfunction(value) and not name.startswith("_")}
    assert {test.name.split(".")[-1] for test in examples if test.examples} == own | {"fit"}
    names = {"rec": rec, "data": made(), "test": pd.DataFrame({"user_id": [1, 2], "item_id": ["x", "y"]})}
    for test in examples:
        test.globs.update(names, Recommender=Recommender)
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_the_page_about_it(monkeypatch):
    """All but the grid search, in order, on made data."""
    page = (Path(__file__).parents[2] / "docs" / "dataframe.md").read_text()
    rows = made().rename(columns={"user_id": "customer", "item_id": "sku", "timestamp": "when"})
    rows = rows.assign(customer="c" + rows["customer"].astype(str), sku="sku" + rows["sku"].astype(str), price=1)
    latest = rows.groupby("customer").tail(2).index
    rows.drop(latest).to_csv("purchases.csv", index=False)
    rows.loc[latest].to_csv("later.csv", index=False)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for block in blocks[:-1]:
        exec(compile(block, "dataframe.md", "exec"), names)
    assert (len(blocks), names["metrics"].n_users, names["newer"].result.n_train) == (5, 30, len(rows))
    assert Recommender.load("bundle").n_items == 25
    assert names["featured"].n_items == 27


def test_lists_of_20000_users_are_those_of_the_model():
    """The bundle against RecBole's side: scores of all items, the history hidden."""
    rng, n_users, n_items, k = np.random.default_rng(0), 20_000, 300, 10
    popularity = 1 / np.arange(3, n_items + 3)
    frame = pd.DataFrame({
        "user_id": rng.integers(n_users, size=6 * n_users),
        "item_id": rng.choice(n_items, size=6 * n_users, p=popularity / popularity.sum()),
        "timestamp": np.arange(6 * n_users),
    }).drop_duplicates(["user_id", "item_id"])  # fmt: skip
    rec = fit(frame, refit=True, epochs=1, embedding_size=8, local_weight=2.0, show_progress=False)
    model, dataset = rec.run.model, rec.run.dataset
    assert model.local is not None
    assert rec.n_users > 19_000
    items = dataset.token2id("item_id", np.array(rec.item_ids))
    place = {item: at for at, item in enumerate(rec.item_ids)}
    taken = frame.assign(place=frame["item_id"].astype(str).map(place)).groupby("user_id")["place"].agg(list)
    for block in np.array_split(np.array(rec.user_ids), 10):
        users = torch.from_numpy(dataset.token2id("user_id", block))
        with torch.no_grad():
            scores = model.full_sort_predict(Interaction({"user_id": users})).view(len(block), -1)[:, items].numpy()
        hidden = scores.copy()
        for row, user in enumerate(block.tolist()):
            hidden[row, taken[int(user)]] = -np.inf
        best = -np.sort(-hidden, axis=1)[:, :k]
        for row, answer in enumerate(rec.recommend(block.tolist(), k)):
            found = [place[item] for item, _ in answer]
            np.testing.assert_allclose([score for _, score in answer], best[row], atol=2e-5)
            np.testing.assert_allclose(hidden[row, found], best[row], atol=2e-5)
