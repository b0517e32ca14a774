"""The fast evaluator against RecBole's own."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.evaluator import Collector
from recbole.quick_start import run_recbole
from recbole.utils.case_study import full_sort_scores, full_sort_topk

import recbole_onebp
from conftest import write_inter
from recbole_onebp.evaluation import bounded
from recbole_onebp.evaluation.bounded import Product
from recbole_onebp.evaluation.full_sort import FastCollector
from recbole_onebp.evaluation.full_sort_loader import FastFullSortEvalDataLoader
from recbole_onebp.util.errors import UserError

RANKING = ["Recall", "NDCG", "MRR", "MAP", "Hit", "Precision"]
OF_ALL_USERS = ["GAUC", "ItemCoverage", "GiniIndex", "ShannonEntropy"]
OF_POPULARITY = ["AveragePopularity", "TailPercentage"]
EVERY_METRIC = {"metrics": [*RANKING, *OF_ALL_USERS, *OF_POPULARITY], "metric_decimal_place": 12}
# One model of each kind: matrix product, graph, neighbourhood, closed form, autoencoder, all scores tied.
MODELS = ["OneBP", "BPR", "LightGCN", "ItemKNN", "EASE", "MultiVAE", "Pop"]


@pytest.fixture
def ml100k(tmp_path) -> Callable[..., recbole_onebp.Run]:
    def build(model: str, **overrides: Any) -> recbole_onebp.Run:
        config = {
            "epochs": 1,
            "embedding_size": 16,
            "topk": [10, 20],
            "valid_metric": "NDCG@10",
            "show_progress": False,
            "output_dir": str(tmp_path / "run"),
            "eval_batch_size": 200_000,
        }
        return recbole_onebp.build(model, "ml-100k", config_dict={**config, **overrides})

    return build


@pytest.fixture(scope="module")
def uneven_path(tmp_path_factory) -> str:
    """A data_path with the data set ``uneven``: 200 users, 300 items, repeated pairs, users without a test item."""
    rng, data_path = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    rows = [
        (f"u{user}", f"i{item}")
        for user in range(200)
        for item in rng.zipf(1.3, 3 if user % 10 == 0 else rng.integers(10, 60)) % 300
    ]
    write_inter(data_path / "uneven", rows)
    return str(data_path)


@pytest.fixture
def uneven(uneven_path, tmp_path) -> Callable[..., recbole_onebp.Run]:
    def build(model: str, **overrides: Any) -> recbole_onebp.Run:
        config = {
            "data_path": uneven_path,
            "load_col": {"inter": ["user_id", "item_id"]},
            "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none", "order": "RO"},
            "epochs": 2,
            "learning_rate": 0.01,
            "train_batch_size": 512,
            "embedding_size": 16,
            "topk": [10, 20],
            "valid_metric": "NDCG@10",
            "show_progress": False,
            "output_dir": str(tmp_path / "run"),
            "eval_batch_size": 40 * 301,
        }
        return recbole_onebp.build(model, "uneven", config_dict={**config, **overrides})

    return build


@pytest.fixture
def both(tiny) -> Callable[..., tuple[recbole_onebp.Run, recbole_onebp.Run]]:
    """The same trained model with the fast evaluator and with RecBole's."""

    def build(model: str = "OneBP", maker: Any = tiny, **overrides: Any) -> tuple[recbole_onebp.Run, recbole_onebp.Run]:
        fast, stock = (maker(model, fast_evaluator=choice, **overrides) for choice in (True, False))
        fast.trainer.fit(fast.train_data, fast.valid_data, verbose=False, saved=False)
        stock.trainer.eval_collector.data_collect(stock.train_data)
        stock.model.load_state_dict(fast.model.state_dict())
        stock.model.load_other_parameter(fast.model.other_parameter())
        return fast, stock

    return build


def evaluate(run: recbole_onebp.Run, part: str = "test") -> dict[str, float]:
    return dict(run.trainer.evaluate(getattr(run, f"{part}_data"), load_best_model=False))


# ----------------------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize(("model", "dataset"), [("OneBP", "ml100k"), *((model, "uneven") for model in MODELS)])
def test_every_ranking_metric_is_recboles_to_the_last_digit(model, dataset, both, ml100k, uneven):
    if model == "Pop" and sys.platform != "linux":
        pytest.skip("its scores have many ties, which other systems may resolve differently")
    maker = {"ml100k": ml100k, "uneven": uneven}[dataset]
    fast, stock = both(model, maker, metrics=[*RANKING, *OF_ALL_USERS], metric_decimal_place=12)
    if dataset == "uneven":
        assert len(fast.test_data.uid_list) < 200
        assert fast.test_data.history.nnz < len(fast.train_data._dataset)  # pairs are repeated
    for part in ("valid", "test"):
        expected = evaluate(stock, part)
        assert len(expected) == 2 * (len(RANKING) + 3) + 1
        assert 0 < expected["recall@20"] < 1
        assert evaluate(fast, part) == expected


def test_metrics_of_popularity_are_recboles_too(both):
    fast, stock = both("BPR", **EVERY_METRIC)
    expected = evaluate(stock)
    assert {"averagepopularity@5", "tailpercentage@10"} < expected.keys()
    assert evaluate(fast) == expected


@pytest.mark.parametrize(
    "overrides",
    [{}, {"score": "cosine", "item_bias": True}, {"metrics": [*RANKING, "GAUC"]}, {"user_encoding": "fresh"}],
)
@pytest.mark.parametrize("multiplies_int8", [True, False])
def test_metrics_with_bounded_scores_are_recboles(overrides, both, ml100k, monkeypatch, multiplies_int8):
    monkeypatch.setattr(bounded, "MIN_ITEMS", 0)  # more than ml-100k has
    monkeypatch.setattr(bounded, "multiplies_int8", lambda: multiplies_int8)
    products = []
    top_items = Product.top_items
    monkeypatch.setattr(
        Product, "top_items", lambda own, *args: products.append(own.table.uses_bounds) or top_items(own, *args)
    )
    settings = {"metrics": RANKING, "metric_decimal_place": 12, "eval_memory_mb": 1} | overrides
    fast, stock = both("OneBP", ml100k, **settings)
    expected, products[:] = evaluate(stock), []
    assert evaluate(fast) == expected
    assert products[0] is True


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_can_evaluate(both, ml100k, monkeypatch):
    monkeypatch.setattr(bounded, "MIN_ITEMS", 0)
    monkeypatch.setattr(bounded, "multiplies_int8", lambda: True)
    run, _ = both("OneBP", ml100k, metrics=RANKING)
    expected = evaluate(run)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def evaluate_in_one_thread() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        sender.send(evaluate(run))

    child = context.Process(target=evaluate_in_one_thread)
    child.start()
    answered = receiver.poll(60)
    child.kill()
    assert answered
    assert receiver.recv() == expected


def test_a_diverged_model_is_not_evaluated(tiny):
    run = tiny(epochs=1)
    run.fit()
    run.model.item_table.data[3] = torch.nan
    with pytest.raises(UserError, match="the model has diverged"):
        evaluate(run)


def test_with_repeatable_nothing_is_hidden(both):
    fast, stock = both("BPR", repeatable=True)
    assert fast.test_data.history.nnz == 0
    assert evaluate(fast) == evaluate(stock)


def test_a_model_without_full_sort_predict(both):
    fast, stock = both("NeuMF", metrics=RANKING, metric_decimal_place=12)
    assert evaluate(fast) == evaluate(stock)


def test_batches_are_recboles(both):
    fast, stock = both(eval_batch_size=41 * 7, eval_memory_mb=41 * 7 * 4 / 2**20)
    theirs, ours = list(stock.test_data), list(fast.test_data)
    assert [len(batch[0]) for batch in ours] == [7, 7, 7, 7, 2]
    for (users, history, *positives), (our_users, our_history, *our_positives) in zip(theirs, ours, strict=True):
        assert torch.equal(our_users["user_id"], users["user_id"])
        assert set(zip(*map(torch.Tensor.tolist, our_history), strict=True)) == set(
            zip(*map(torch.Tensor.tolist, history), strict=True)
        )
        assert sorted(zip(*map(torch.Tensor.tolist, our_positives), strict=True)) == sorted(
            zip(*map(torch.Tensor.tolist, positives), strict=True)
        )


def test_a_pair_of_several_parts_is_found_and_not_hidden(tmp_path):
    """RecBole hides interactions of earlier parts that are not positives; duplicate interactions count once."""
    folder = tmp_path / "parts"
    parts = {"train": [("a", "x"), ("a", "y"), ("b", "y"), ("c", "z"), ("c", "w")], "valid": [("a", "z")], "test": []}
    parts["test"] = [("a", "x"), ("a", "x"), ("b", "z")]
    for part, rows in parts.items():
        write_inter(folder, rows).rename(folder / f"parts.{part}.inter")
    common = {
        "data_path": str(tmp_path),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["user_id", "item_id"]},
        "output_dir": str(tmp_path / "run"),
        "topk": [1],
        "train_neg_sample_args": None,
        "metrics": ["Recall"],
        "valid_metric": "Recall@1",
    }
    run = recbole_onebp.build("EASE", "parts", config_dict={**common, "fast_evaluator": True})

    def items(of: Any, user: str) -> list[str]:
        row = of[run.dataset.token2id("user_id", user)]
        return sorted(run.dataset.id2token("item_id", row.numpy()).tolist()) if len(row) else []

    test = run.test_data
    assert {user: items(test.uid2positive_item, user) for user in "abc"} == {"a": ["x"], "b": ["z"], "c": []}
    assert {user: items(test.uid2history_item, user) for user in "abc"} == {
        "a": ["y", "z"],
        "b": ["y"],
        "c": ["w", "z"],
    }
    assert items(run.valid_data.uid2history_item, "a") == ["x", "y"]
    assert test.uid2items_num.tolist()[1:] == [1, 1, 0]
    assert len(test.uid_list) == 2


@pytest.mark.parametrize("users_a_block", [1, 4, 1000])
def test_metrics_do_not_depend_on_the_blocks(users_a_block, tiny):
    run = tiny(epochs=1, **EVERY_METRIC)
    run.fit()
    expected = evaluate(run)
    run.config.final_config_dict["eval_memory_mb"] = users_a_block * 41 * 100 / 2**20
    run.test_data.update_config(run.config)
    again = type(run.test_data)(run.config, run.test_data._dataset, run.test_data._sampler)
    assert len(again) == -(-30 // users_a_block)
    run.test_data = again
    assert evaluate(run) == expected


# --------------------------------------------------------------------------------------------------------------- hooks


def test_runs_with_the_fast_evaluator(tiny):
    for run in (tiny(), tiny("BPR", fast_evaluator=True), tiny("EASE", fast_evaluator=True)):
        assert type(run.valid_data) is type(run.test_data) is FastFullSortEvalDataLoader
        assert type(run.trainer.eval_collector) is FastCollector
    for run in (tiny(fast_evaluator=False), tiny("BPR")):
        assert type(run.valid_data) is type(run.test_data) is FullSortEvalDataLoader
        assert type(run.trainer.eval_collector) is Collector


def test_sampled_evaluation_is_recboles(tiny):
    run = tiny(eval_args={"mode": "uni10"})
    assert type(run.test_data) is NegSampleEvalDataLoader
    assert type(run.trainer.eval_collector) is Collector
    mixed = tiny(eval_args={"mode": {"valid": "uni10", "test": "full"}})
    assert type(mixed.valid_data) is NegSampleEvalDataLoader
    assert type(mixed.test_data) is FastFullSortEvalDataLoader
    assert 0 < mixed.fit().test["recall@10"] < 1


def test_sequential_models_are_recboles(tmp_path):
    rows = [(user, (user + step) % 7, step) for user in range(9) for step in range(6)]
    write_inter(tmp_path / "walk", rows, "user_id:token\titem_id:token\ttimestamp:float")
    config = {"data_path": str(tmp_path), "output_dir": str(tmp_path / "run"), "fast_evaluator": True, "topk": [3]}
    config |= {"load_col": {"inter": "*"}, "valid_metric": "MRR@3", "train_neg_sample_args": None, "epochs": 1}
    run = recbole_onebp.build("GRU4Rec", "walk", config_dict={**config, "show_progress": False})
    assert type(run.test_data) is FullSortEvalDataLoader
    assert type(run.trainer.eval_collector) is Collector
    assert run.fit().test["recall@3"] >= 0
    with pytest.raises(UserError, match="not by user"):
        run.per_user_metrics()


def test_run_recbole_gives_the_same_metrics_with_both_evaluators(tiny_config):
    results = [
        run_recbole(model="BPR", dataset="tiny", config_dict={**tiny_config, "fast_evaluator": fast})
        for fast in (True, False)
    ]
    assert results[0]["test_result"] == results[1]["test_result"]


def test_the_keys_are_checked(tiny):
    with pytest.raises(UserError, match="fast_evaluator"):
        tiny("BPR", fast_evaluator="yes")
    with pytest.raises(UserError, match="eval_memory_mb"):
        tiny(eval_memory_mb=0)


def test_saved_loaders_are_loaded(tiny):
    run = tiny()
    loader = run.test_data
    loader.generator = loader.sampler.generator = None  # as RecBole does before saving
    again = pickle.loads(pickle.dumps(loader))
    assert (again.history != run.test_data.history).nnz == 0
    assert len(next(iter(again))[0]) == 30


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("model", "metrics", "bytes_a_score"),
    [
        ("BPR", ["Recall"], 4),
        ("BPR", ["Recall", "GAUC"], 100),
        ("NeuMF", ["Recall"], 4 + 8 + 8),  # a user id and an item id per score
    ],
)
def test_the_memory_budget_is_respected(model, metrics, bytes_a_score, tiny):
    budget = 41 * 10 * bytes_a_score
    config = {"metrics": metrics, "valid_metric": "Recall@10", "fast_evaluator": True}
    run = tiny(model, eval_memory_mb=(budget + 5) / 2**20, **config)
    assert run.test_data.step == 10
    largest = 0
    collect = run.trainer.eval_collector.eval_batch_collect

    def measure(scores: torch.Tensor, *rest: Any) -> None:
        nonlocal largest
        largest = max(largest, scores.nbytes)
        collect(scores, *rest)

    run.trainer.eval_collector.eval_batch_collect = measure
    run.trainer.eval_collector.data_collect(run.train_data)
    evaluate(run)
    assert largest == 41 * 10 * 4
    assert tiny(model, eval_memory_mb=1e-6, **config).test_data.step == 1


def test_memory_is_a_few_bytes_per_interaction(ml100k):
    run = ml100k("BPR", fast_evaluator=True)
    for matrix in (run.test_data.history, run.test_data.positives):
        assert matrix.data.nbytes + matrix.indices.nbytes == 5 * matrix.nnz
    assert run.test_data.history.nnz + run.test_data.positives.nnz == 100_000


# ---------------------------------------------------------------------------------------------------------- case study


def test_case_study_agrees_with_recboles(both):
    fast, stock = both()
    users = [3, 1, 30]
    expected = full_sort_scores(users, stock.model, stock.test_data)
    assert torch.equal(full_sort_scores(users, fast.model, fast.test_data), expected)
    assert torch.equal(full_sort_topk(users, fast.model, fast.test_data, k=4)[1], expected.topk(4)[1])
    for name in ("uid2history_item", "uid2positive_item"):
        theirs, ours = getattr(stock.test_data, name)[users], getattr(fast.test_data, name)[users]
        assert [sorted(row.tolist()) for row in ours] == [sorted(row.tolist()) for row in theirs]
        assert torch.equal(getattr(fast.test_data, name)[3], ours[0])
    assert fast.test_data.uid2items_num.tolist() == stock.test_data.uid2items_num.tolist()
    assert torch.equal(fast.test_data.uid_list, stock.test_data.uid_list)
    assert torch.equal(fast.test_data.user_df["user_id"], stock.test_data.user_df["user_id"])


def test_case_study_of_a_user_without_a_test_item(tiny_path, tiny):
    """RecBole's own loader has None as the history of such a user and fails."""
    run = tiny(
        eval_args={"split": {"RS": [0.97, 0.0, 0.03]}, "group_by": "none", "order": "RO"}, valid_metric="NDCG@10"
    )
    absent = sorted(set(range(1, 31)) - set(run.test_data.uid_list.tolist()))
    assert absent
    scores, items = full_sort_topk(absent[:2], run.model, run.test_data, k=5)
    train = run.train_data.dataset.inter_feat
    for user, row in zip(absent, items.tolist(), strict=False):
        assert not set(row) & set(train["item_id"][train["user_id"] == user].tolist())
    assert torch.isfinite(scores).all()


# ------------------------------------------------------------------------------------------------------------ per user


@pytest.mark.parametrize("fast", [True, False])
def test_per_user_metrics_average_to_the_reported_ones(fast, tiny):
    run = tiny("BPR", fast_evaluator=fast, **EVERY_METRIC)
    result = run.fit()
    table = run.per_user_metrics()
    assert table.index.name == "user_id"
    assert sorted(table.index) == sorted(f"u{user}" for user in range(30))
    of_users = [*RANKING, *OF_POPULARITY]
    assert sorted(table.columns) == sorted(f"{metric.lower()}@{k}" for metric in of_users for k in (5, 10))
    for name, values in table.items():
        assert round(values.mean(), 12) == result.test[name]
    assert run.per_user_metrics("valid")["ndcg@10"].mean() == pytest.approx(result.valid["ndcg@10"])
    assert evaluate(run) == result.test


def test_per_user_metrics_are_of_that_user(tiny):
    run = tiny(fast_evaluator=True)
    run.fit()
    table = run.per_user_metrics()
    user = run.dataset.token2id("user_id", "u7")
    best = full_sort_topk([user], run.model, run.test_data, k=10)[1][0].tolist()
    wanted = run.test_data.uid2positive_item[user].tolist()
    assert table.loc["u7", "recall@10"] == len(set(best) & set(wanted)) / len(wanted)


def test_per_user_metrics_of_a_sampled_evaluation(tiny):
    run = tiny(eval_args={"mode": "uni10"})
    result = run.fit()
    assert run.per_user_metrics().shape == (30, 4)
    assert 0 < result.test["recall@10"] <= 1
    with pytest.raises(UserError, match="parts: valid, test"):
        run.per_user_metrics("train")
