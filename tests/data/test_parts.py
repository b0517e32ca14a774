"""Published parts in RecBole, and the final run on train and validation together."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import recbole_onebp
from conftest import write_inter
from recbole_onebp.util.errors import UserError
from support.sources import pair_set, parts_of


@pytest.fixture
def split_path(tmp_path):
    """A data_path with the data set ``split``: 30 users, 40 items, parts of 8, 2 and 2 items a user."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "split"
    rows = [(f"u{u}", f"i{i}") for u in range(30) for i in rng.permutation(40)[:12]]
    for part, chosen in (("train", range(8)), ("valid", (8, 9)), ("test", (10, 11))):
        path = write_inter(folder, [row for n, row in enumerate(rows) if n % 12 in chosen])
        path.rename(folder / f"split.{part}.inter")
    return str(tmp_path / "data")


@pytest.fixture
def split(split_path, tmp_path):
    def build(model="OneBP", **overrides):
        values = {
            "data_path": split_path,
            "load_col": {"inter": ["user_id", "item_id"]},
            "benchmark_filename": ["train", "valid", "test"],
            "output_dir": str(tmp_path / "run"),
            "metrics": ["Recall", "NDCG"],
            "topk": [10],
            "valid_metric": "NDCG@10",
            "show_progress": False,
            "epochs": 2,
            **overrides,
        }
        return recbole_onebp.build(model, "split", config_dict={k: v for k, v in values.items() if v is not None})

    return build


@pytest.mark.parametrize("model", ["OneBP", "BPR", "ItemKNN", "MultiVAE"])
def test_refit_trains_on_train_and_validation(split, split_path, model):
    run = split(model, refit=True, **({"epochs": None} if model == "ItemKNN" else {}))
    parts = parts_of(Path(split_path) / "split")
    assert pair_set(run.train_data.dataset) == parts["train"] + parts["valid"]
    assert pair_set(run.test_data.dataset) == parts["test"]
    assert run.valid_data is None
    usual = split(model)
    assert pair_set(usual.train_data.dataset) == parts["train"]
    for (_, history, *positive), (_, usual_history, *usual_positive) in zip(
        run.test_data, usual.test_data, strict=True
    ):
        by_user, usual_by_user = (sorted(zip(*map(list, h), strict=True)) for h in (history, usual_history))
        assert by_user == usual_by_user  # what is masked at the test stays train and validation
        assert [p.tolist() for p in positive] == [p.tolist() for p in usual_positive]
    result = run.fit()
    assert result.n_train == 300
    assert result.valid == {}
    assert result.epochs_run == (1 if model == "ItemKNN" else 2)
    assert result.best_epoch == result.epochs_run - 1
    assert 0 < result.test["recall@10"] <= 1


@pytest.mark.parametrize("split_args", [{"RS": [0.8, 0.1, 0.1]}, {"LS": "valid_and_test"}])
@pytest.mark.parametrize("mode", ["full", "uni10"])
def test_refit_with_a_split_of_recboles(tiny, split_args, mode):
    settings = {"eval_args": {"split": split_args, "mode": mode}, "epochs": 1}
    usual, refit = tiny("BPR", **settings), tiny("BPR", refit=True, **settings)
    together = pair_set(usual.train_data.dataset) + pair_set(usual.valid_data.dataset)
    assert pair_set(refit.train_data.dataset) == together
    assert pair_set(refit.test_data.dataset) == pair_set(usual.test_data.dataset)
    refit.fit()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"refit": True, "epochs": None}, "refit: true needs epochs, the number chosen on validation"),
        ({"refit": True, "benchmark_filename": ["train", "test", "test"]}, "refit: true with benchmark_filename"),
        ({"refit": True, "save_dataloaders": True}, "refit: true with save_dataloaders"),
        ({"refit": "yes"}, "refit: 'yes' is not allowed"),
        ({"rm_dup_inter": "first"}, "benchmark_filename: ['train', 'valid', 'test'] with rm_dup_inter: RecBole uses"),
        ({"val_interval": {"rating": "[3,inf)"}}, "with val_interval"),
        ({"user_inter_num_interval": "[5,inf)"}, "with user_inter_num_interval"),
        ({"item_inter_num_interval": "[5,inf)"}, "with item_inter_num_interval"),
        ({"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}}}, "with eval_args.split"),
        ({"eval_args": {"order": "TO"}}, "with eval_args.order"),
    ],
)
def test_contradictions_are_refused(split, overrides, said):
    with pytest.raises(UserError, match=re.escape(said)):
        split(**overrides)


def test_what_does_not_contradict_is_allowed(split):
    split(user_inter_num_interval="[0,inf)", rm_dup_inter=None, eval_args={"mode": "full"}, refit=False)


def test_refit_without_a_validation_part(tiny):
    with pytest.raises(UserError, match="there is no validation part to add"):
        tiny("BPR", refit=True, eval_args={"split": {"LS": "test_only"}})


@pytest.mark.parametrize("model", ["OneBP", "BPR"])
def test_a_split_in_order_knows_seconds(timed, tmp_path, model):
    """RecBole reads times as 32-bit numbers, so times since 1970 that are a minute apart are often the same."""
    rows = [(f"u{u}", f"i{i}", 880_000_000 + i) for i in np.random.default_rng(0).permutation(10) for u in range(20)]
    folder = tmp_path / "seconds" / "tiny"
    write_inter(folder, [*rows, ("other", "i10", 880_000_000)], "user_id:token\titem_id:token\ttimestamp:float")
    run = timed(model, data_path=str(folder.parent))
    for loader, items in ((run.train_data, range(8)), (run.valid_data, [8]), (run.test_data, [9])):
        part = loader._dataset
        found = part.inter_feat[part.uid_field] == part.token2id(part.uid_field, "u7")
        tokens = part.field2id_token[part.iid_field][part.inter_feat[part.iid_field][found]]
        assert np.atleast_1d(tokens).tolist() == [f"i{item}" for item in items]


TIMED = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
HEADER = "user_id:token\titem_id:token\ttimestamp:float"


def write_timed(folder, order, times):
    """Ten items of each of 30 users, in the order of their numbers by time; the rows of a part in another order."""
    for part, chosen in (("train", range(8)), ("valid", [8]), ("test", [9])):
        rows = [(f"u{u}", f"i{10 * (u % 3) + i}", times(i)) for i in order if i in chosen for u in range(30)]
        write_inter(folder, rows, HEADER).rename(folder / f"{folder.name}.{part}.inter")


@pytest.mark.parametrize("stored", ["by file", "from the cache"])
def test_parts_in_any_order_of_rows_are_put_in_order_of_time(split, tmp_path, stored):
    histories = []
    for name, order in (("sorted", range(10)), ("shuffled", np.random.default_rng(0).permutation(10))):
        write_timed(tmp_path / name / "split", order, lambda i: 880_000_000 + 5 * i)
        for _ in range(1 if stored == "by file" else 2):
            run = split(data_path=str(tmp_path / name), **TIMED)
        part = run.train_data.dataset
        start, item, _ = run.model.history.arrays
        user = part.token2id(part.uid_field, "u7")
        histories.append(part.id2token(part.iid_field, item[start[user] : start[user + 1]]).tolist())
        assert part.in_order
    assert histories == [[f"i{10 + i}" for i in range(8)]] * 2


def test_without_two_times_of_one_user_there_is_no_order(split, tmp_path):
    write_timed(tmp_path / "same" / "split", range(10), lambda _: 880_000_000)
    run = split(data_path=str(tmp_path / "same"), **TIMED)
    assert not run.train_data.dataset.in_order
    assert run.model.use_of_order() == "not used"
    write_timed(tmp_path / "two" / "split", range(10), lambda i: i)
    run = split(data_path=str(tmp_path / "two"), **TIMED)
    assert run.model.use_of_order() == "recency: 1, training_history: earlier, trend_weight: 4, local_recency: 0.5"


@pytest.mark.parametrize("missing", ["", "NaN", "inf"])
def test_a_missing_time_is_refused(split, tmp_path, missing):
    write_timed(tmp_path / "odd" / "split", range(10), lambda i: missing if i == 2 else i)
    with pytest.raises(UserError, match=r"split\.train\.inter, line 62: no timestamp; RecBole would take the mean"):
        split(data_path=str(tmp_path / "odd"), **TIMED)
    split(data_path=str(tmp_path / "odd"))  # without the column
