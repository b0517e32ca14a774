"""Comparisons: the plan, the protocol, the numbers, processes that fail, and the report folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from recbole.evaluator import metrics as recbole_metrics
from scipy import stats

import recbole_onebp
from conftest import root_logger_restored, write_inter
from recbole_onebp.cli import main
from recbole_onebp.config.properties import property_file
from recbole_onebp.evaluation.metrics import coverage, diversity, gini, hits, novelty
from recbole_onebp.experiments.charts import ACCENT, scale_by_seconds
from recbole_onebp.experiments.compare import compare
from recbole_onebp.experiments.compare.figures import looks_of
from recbole_onebp.experiments.compare.outcome import Task, outcome_of, run_tasks
from recbole_onebp.experiments.compare.spec import ComparisonSpec
from recbole_onebp.experiments.compare.split import PARTS, Split
from recbole_onebp.experiments.compare.statistics import holm, paired
from recbole_onebp.util.errors import UserError
from support import tasks
from support.films import write_films

SHARED = {
    "dataset": "tiny",
    "load_col": {"inter": ["user_id", "item_id"]},
    "embedding_size": 8,
    "train_batch_size": 160,
    "epochs": 2,
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
}
SEQUENTIAL = {"model": "GRU4Rec", "train_neg_sample_args": None, "eval_args": {"order": "RO"}}
TWO_BP = {"model": "OneBP", "label": "TwoBP", "backprop": "two"}


def written(path: Path, **keys: object) -> str:
    path.write_text(yaml.safe_dump({**SHARED, **keys}))
    return str(path)


# ---------------------------------------------------------------------------------------------------------------- plan


@pytest.fixture
def plan(tiny_path, tmp_path):
    """A plan of the keys given: ``plan(models=["OneBP"])``."""

    def read(**keys):
        return ComparisonSpec.read([written(tmp_path / "mine.yaml", data_path=tiny_path, **keys)], {})

    return read


def test_runs_are_models_times_seeds(plan):
    runs = plan(models=["OneBP", TWO_BP, {"model": "BPR", "learning_rate": 0.01}], seeds=[3, 4]).runs()
    assert [(run.entry.label, run.seed) for run in runs] == [
        ("OneBP", 3), ("TwoBP", 3), ("BPR", 3), ("OneBP", 4), ("TwoBP", 4), ("BPR", 4)
    ]  # fmt: skip
    assert {run.given["split_seed"] for run in runs} == {3}
    assert (runs[1].given["model"], runs[1].given["backprop"], runs[2].given["learning_rate"]) == ("OneBP", "two", 0.01)
    assert len({run.key("split") for run in runs}) == 6


def test_all_models_load_the_features_that_one_of_them_reads(plan):
    with_features = [
        {"model": "OneBP", "label": fields[0], "item_features": fields}
        for fields in (["class"], ["release_year", "class"])
    ]
    runs = plan(dataset="ml-100k", models=[*with_features, "OneBP"]).runs()
    assert {run.settings["load_col"] for run in runs} == {
        "{'inter': ['user_id', 'item_id'], 'item': ['item_id', 'class', 'release_year']}"
    }
    runs = plan(dataset="ml-100k", models=[{"model": "OneBP", "label": "all", "item_features": "all"}, "Pop"]).runs()
    assert {run.given["load_col"]["item"] for run in runs} == {"*"}


def test_a_run_is_named_by_what_its_result_depends_on(plan):
    def key(split="a", **keys):
        return plan(models=["OneBP"], seeds=[1], **keys).runs()[0].key(split)

    assert key() == key(state="WARNING") == key(jobs=2, timeout_minutes=3)
    assert len({key(), key("b"), key(beta=0.5), key(epochs=3)}) == 4


def test_defaults_of_a_plan(plan, tiny_path):
    read = plan(models=["BPR", "OneBP"])
    assert (read.seeds, read.reference_label, read.jobs, read.timeout_minutes) == ([2020, 2021, 2022], "BPR", 1, None)
    assert read.output_dir == str(Path("runs") / "compare-mine")


def test_a_model_may_bring_files_of_its_own(plan, tmp_path):
    (tmp_path / "best.yaml").write_text("beta: 0.5\nlearning_rate: 1e-3\n")
    entry = {"model": "OneBP", "config_files": [str(tmp_path / "best.yaml")], "beta": 0.75}
    given = plan(models=[entry]).runs()[0].given
    assert (given["beta"], given["learning_rate"]) == (0.75, 0.001)


def test_files_of_all_models(plan, tmp_path):
    (tmp_path / "data.yaml").write_text("beta: 0.5\nlearning_rate: 1e-3\n")
    keys = {"models": ["OneBP", "BPR"], "learning_rate": 0.01, "config_files": [str(tmp_path / "data.yaml")]}
    for run in plan(**keys).runs():
        assert (run.given["beta"], run.given["learning_rate"]) == (0.5, 0.01)
    assert plan(**{**keys, "config_files": str(tmp_path / "data.yaml")}).runs() == plan(**keys).runs()
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        plan(models=["OneBP"], config_files=["none.yaml"]).runs()


def tuned(folder, model="BPR", seed=2020, **best):
    """A folder as ``tune`` leaves it, of ``model`` with ``best``, and of OneBP without a complete trial."""
    (folder / model).mkdir(parents=True)
    (folder / model / "best.yaml").write_text(yaml.safe_dump({**SHARED, "model": model, **best}))
    searched = {"model": model, "trials": 8, "pruned": 3, "seconds": 41.7, "config": f"{model}/best.yaml"}
    models = {model: searched, "OneBP": {"model": "OneBP", "trials": 8}}
    (folder / "tuning.json").write_text(json.dumps({"seed": seed, "budget": {"epochs": 60}, "models": models}))
    return str(folder)


def test_a_model_may_be_tuned(plan, tmp_path):
    """The search gives the model's settings and budget, the comparison data, evaluation and epochs."""
    folder = tuned(tmp_path / "tuned", learning_rate=0.25, embedding_size=12, epochs=60, topk=[3], train_batch_size=99)
    read = plan(models=[{"model": "BPR", "tuned": folder, "train_batch_size": 77}, "Pop"])
    given = read.runs()[0].given
    assert (given["learning_rate"], given["embedding_size"], given["train_batch_size"]) == (0.25, 12, 77)
    assert (given["epochs"], given["topk"], given["seed"]) == (SHARED["epochs"], SHARED["topk"], 2020)
    assert [entry.trials for entry in read.models] == [8, 0]


@pytest.mark.parametrize(
    ("best", "keys", "message"),
    [
        ({}, {"seeds": [7, 8]}, "tuned: split_seed: searched with 2020, compared with 7; validation of another split"),
        ({"split_seed": 5}, {}, "tuned: split_seed: searched with 5, compared with 2020"),
        ({"val_interval": {"rating": "[3,inf)"}}, {}, "tuned: val_interval: searched with {'rating'"),
        ({"dataset": "ml-100k"}, {}, "tuned: dataset: searched with ml-100k, compared with tiny"),
        ({}, {"tuning_trials": 3}, "models.0: tuning_trials: the folder of tuned has the number"),
        ({}, {"label": "bpr"}, "tuned: .*tuned has no bpr; labels there: BPR, OneBP"),
        ({}, {"model": "OneBP"}, "tuned: .*tuned: no trial of OneBP was completed"),
        ({}, {"tuned": "absent"}, "tuned: absent/tuning.json, which recbole-onebp tune writes"),
    ],
)
def test_a_search_on_other_terms_is_refused(plan, tmp_path, best, keys, message):
    folder = tuned(tmp_path / "tuned", **best)
    seeds = {"seeds": keys.pop("seeds")} if "seeds" in keys else {}
    with pytest.raises(UserError, match=message):
        plan(models=[{"model": "BPR", "tuned": folder, **keys}], **seeds).runs()


def test_the_split_of_the_search_may_be_named(plan, tmp_path):
    entry = {"model": "BPR", "tuned": tuned(tmp_path / "tuned", seed=5)}
    assert len(plan(models=[entry], split_seed=5, seeds=[1, 2]).runs()) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"models": []}, "models: .* at least 1 item"),
        ({"models": ["OneBP", "OneBP"]}, "models: OneBP appears twice; give one of them another label"),
        ({"models": ["OneBB"]}, "models, OneBB: model: there is none named 'OneBB'; did you mean OneBP"),
        ({"models": [{"model": "OneBP", "betta": 1}]}, "models, OneBP: betta: .* did you mean beta"),
        ({"models": [{"model": "OneBP", "beta": 2.0}]}, "models, OneBP: beta: 2.0 is not allowed"),
        ({"models": [{"beta": 0.5}]}, "models.0.model: .* field required"),
        ({"models": ["OneBP"], "seeds": [1, 1]}, "seeds: 1 appears twice"),
        ({"models": ["OneBP"], "seeds": [-1]}, "seeds.0: -1 is not allowed"),
        ({"models": ["OneBP"], "seed": 1}, "seed: a comparison has a list of seeds"),
        ({"models": ["OneBP"], "reference": "BPR"}, "reference: 'BPR' is no model's label; labels: OneBP"),
        ({"models": ["OneBP"], "jobs": 0}, "jobs: 0 is not allowed"),
        ({"models": ["OneBP", {"model": "BPR", "seed": 2}]}, "models, BPR: seed: must be the same for all models"),
        ({"models": ["OneBP", {"model": "BPR", "topk": [10]}]}, r"models, BPR: topk: \[10\], but \[5, 10\] for OneBP"),
        ({"models": ["OneBP", {"model": "BPR", "valid_metric": "Recall@5"}]}, "models, BPR: valid_metric: Recall@5"),
        (
            {"models": ["OneBP", SEQUENTIAL]},
            "models, GRU4Rec: GRU4Rec has its own way to split or rank",
        ),
        ({"models": ["OneBP"], "valid_metric": "NDCG"}, "valid_metric: NDCG has no value per user"),
        ({"models": ["OneBP"], "eval_args": {"mode": "uni100"}}, "compare ranks all items for each user"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_trained(plan, keys, message):
    with pytest.raises(UserError, match=message):
        plan(**keys).runs()


def test_the_quick_comparison_is_sound():
    path = property_file("compare", "quick")
    plan = ComparisonSpec.read([str(path)], {})
    assert plan.labels == ["OneBP", "TwoBP", "BPR", "ItemKNN", "Pop"]
    assert len(plan.runs()) == 10


# ------------------------------------------------------------------------------------------------------------ protocol


def split_of(train, valid, test, n_users=4, n_items=5):
    users, items = (np.array(["[PAD]", *(f"{kind}{n}" for n in range(1, size))]) for kind, size in
                    (("u", n_users), ("i", n_items)))  # fmt: skip
    pairs = {
        part: np.array(rows, np.int64).reshape(-1, 2) for part, rows in zip(PARTS, (train, valid, test), strict=True)
    }
    return Split(users, items, pairs)


def test_parts_that_share_pairs_are_refused():
    with pytest.raises(UserError, match="train and test share 1 pairs, such as user u2 and item i3"):
        split_of([(1, 1), (2, 3)], [(1, 2)], [(2, 3), (3, 4)]).check()
    with pytest.raises(UserError, match="valid and test share 1 pairs"):
        split_of([(1, 1)], [(1, 2)], [(1, 2)]).check()
    with pytest.raises(UserError, match="the test part is empty"):
        split_of([(1, 1)], [(1, 2)], []).check()


def test_a_split_is_described_and_known_by_its_content(tmp_path):
    split = split_of([(1, 1), (2, 3)], [(1, 2)], [(1, 3), (3, 4)])
    assert split.check() == {
        "split_id": split.id, "users": 3, "items": 4, "train": 2, "valid": 1, "test": 2, "test_users": 2,
        "test_users_without_train": 1,
    }  # fmt: skip
    assert split_of([(2, 3), (1, 1)], [(1, 2)], [(3, 4), (1, 3)]).id == split.id
    assert split_of([(1, 1), (2, 3), (1, 2)], [], [(1, 3), (3, 4)]).id != split.id
    split.save(tmp_path / "split.npz")
    assert Split.load(tmp_path / "split.npz").id == split.id
    assert split.activity.tolist() == [0, 1, 1, 0]
    assert split.popularity.tolist() == [0, 1, 0, 1, 0]


def test_repeated_pairs_in_the_data_are_refused(tmp_path, capsys):
    rows = [("u1", f"i{n}") for n in range(10)] * 2 + [("u2", f"i{n}") for n in range(5, 15)]
    write_inter(tmp_path / "twice", rows)
    file = written(tmp_path / "twice.yaml", dataset="twice", data_path=str(tmp_path), models=["OneBP"])
    assert main(["compare", file]) == 2
    assert re.search("error: protocol: train and (valid|test) share", capsys.readouterr().err)
    assert not (Path("runs") / "compare-twice" / "runs").exists()


# ---------------------------------------------------------------------------------------------------------------- lists


@st.composite
def listed(draw):
    """Lists ``(n, k)`` over items 1 to n_items - 1, and who took what."""
    n_items, seed = draw(st.integers(5, 12)), draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    k = draw(st.integers(2, 4))
    lists = np.stack([rng.permutation(np.arange(1, n_items))[:k] for _ in range(draw(st.integers(1, 6)))])
    taken = rng.random((7, n_items)) < 0.4
    taken[:, 0] = False
    return lists, taken


@settings(deadline=None, max_examples=50)
@given(listed())
def test_lists_against_recbole_and_plain_loops(case):
    lists, taken = case
    n_items = taken.shape[1] - 1
    recbole = {"metric_decimal_place": 12, "topk": [lists.shape[1]]}
    assert coverage(lists, n_items) == recbole_metrics.ItemCoverage(recbole).get_coverage(lists, n_items)
    assert gini(lists, n_items) == pytest.approx(recbole_metrics.GiniIndex(recbole).get_gini(lists, n_items))

    vectors = taken.T.astype(float)
    norms = np.maximum(np.linalg.norm(vectors, axis=1), 1e-12)
    cosine = (vectors @ vectors.T) / np.outer(norms, norms)
    expected = [np.mean([1 - cosine[i, j] for i in items for j in items if i < j]) for items in lists]
    assert diversity(lists, sp.csr_array(taken.astype(np.float32))) == pytest.approx(expected, abs=1e-6)

    popularity = taken.sum(axis=0)
    expected = [np.mean([-np.log2(max(popularity[i], 1) / 7) for i in items]) for items in lists]
    assert novelty(lists, popularity, 7) == pytest.approx(expected)

    users = np.arange(len(lists))
    expected = [
        sum(i in items and taken[u, i] for u, items in zip(users, lists, strict=True)) for i in range(n_items + 1)
    ]
    assert hits(users, lists, sp.csr_array(taken.astype(np.float32))).tolist() == expected


def test_gini_of_the_extremes():
    assert gini(np.array([[1, 2], [3, 4]]), 4) == 0
    assert gini(np.full((5, 1), 3), 100) == pytest.approx(0.99)


# ----------------------------------------------------------------------------------------------------------- statistics


def test_paired_differences():
    rng = np.random.default_rng(0)
    theirs = rng.random((400, 1))
    ours = np.column_stack([theirs[:, 0] + rng.normal(0.05, 0.1, 400), theirs[:, 0], theirs[:, 0] - 0.5])
    better, same, shifted = paired(ours, theirs)
    expected = stats.ttest_rel(ours[:, 0], theirs[:, 0])
    assert better.p == pytest.approx(expected.pvalue)
    assert better.mean == pytest.approx((ours[:, 0] - theirs[:, 0]).mean())
    assert better.effect == pytest.approx(expected.statistic / 20)  # d = t / sqrt(n)
    half = 1.96 * 0.1 / 20
    assert (better.low, better.high) == pytest.approx((better.mean - half, better.mean + half), abs=0.002)
    assert (same.mean, same.p, same.effect) == (0, 1, 0)
    assert (shifted.mean, shifted.p < 1e-12) == (pytest.approx(-0.5), True)


def test_holm_against_a_worked_example():
    # Sorted: .01 * 4, .02 * 3, .03 * 2 raised to .06, .04 * 1 raised to .06.
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.6, 0.9])) == pytest.approx([1, 1])
    assert holm(np.array([])).tolist() == []


# ------------------------------------------------------------------------------------------------------------ processes


def test_every_process_has_an_outcome(tmp_path):
    given = [(tasks.succeed, (7,)), (tasks.crash, ()), (tasks.be_killed, ()), (tasks.leave, ()), (tasks.succeed, (8,))]
    ended = []
    run_tasks(
        [Task(str(n), tmp_path / str(n), function, arguments) for n, (function, arguments) in enumerate(given)],
        jobs=2, timeout=None, done=lambda task, outcome: ended.append(task.name),
    )  # fmt: skip
    outcomes = [json.loads((tmp_path / str(n) / "outcome.json").read_text()) for n in range(5)]
    assert sorted(ended) == ["0", "1", "2", "3", "4"]
    assert [outcome["status"] for outcome in outcomes] == ["done", "crashed", "killed", "crashed", "done"]
    assert "SIGSEGV" in outcomes[1]["reason"]
    assert "memory" in outcomes[2]["reason"]
    assert "exit code 3" in outcomes[3]["reason"]
    assert (outcomes[0]["value"], outcomes[4]["value"]) == (7, 8)
    assert len({outcomes[0]["pid"], outcomes[4]["pid"], os.getpid()}) == 3


def test_a_process_that_takes_too_long_is_stopped(tmp_path):
    start, ended = time.monotonic(), []
    run_tasks([Task("long", tmp_path / "long", tasks.sleep, ())], 1, 2.0, lambda _, outcome: ended.append(outcome))
    assert time.monotonic() - start < 30
    assert ended == [{"status": "timed out", "reason": "the process was stopped after 0.0333333 minutes"}]


def test_processes_at_a_time_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    ended = []
    for jobs in (1, 1000):
        task = Task("t", tmp_path, tasks.environment, (["OMP_NUM_THREADS"],))
        run_tasks([task], jobs, None, lambda _, outcome: ended.append(outcome))
    assert [outcome["values"]["OMP_NUM_THREADS"] for outcome in ended] == [None, "1"]


# --------------------------------------------------------------------------------------------------------------- report

MODELS = ["OneBP", {**TWO_BP, "tuning_trials": 5}, "Pop", {"model": "BPR", "label": "huge", "embedding_size": 10**12}]


@contextmanager
def in_this_process():
    """Comparisons make their runs in this process, in seconds rather than a minute; other tests start processes."""

    def run_here(to_do, jobs, timeout, done):
        for task in to_do:
            task.folder.mkdir(parents=True, exist_ok=True)
            task.function(task.folder, *task.arguments)
            done(task, outcome_of(task.folder))

    with root_logger_restored(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("recbole_onebp.experiments.compare.run_tasks", run_here)
        yield


@pytest.fixture(scope="module")
def compared(tiny_path, tmp_path_factory):
    """The folder of a comparison of four models, of which one is out of memory, with two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    file = written(folder / "mine.yaml", data_path=tiny_path, models=MODELS, seeds=[1, 2])
    with in_this_process():
        assert compare([file], {"output_dir": str(folder / "out"), "jobs": 2}) == folder / "out"
    return folder


@pytest.fixture(scope="module")
def report(compared):
    return json.loads((compared / "out" / "report.json").read_text())


def test_the_report_folder(compared):
    folder = compared / "out"
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "data",
        "runs",
        "figures",
        "report.md",
        "report.json",
        "report.html",
        "table.tex",
        "per_user.parquet",
    }
    assert {path.stem for path in (folder / "figures").iterdir()} == {
        "difference", "time", "cost", "curves", "activity", "popularity", "diversity", "seconds", "memory"
    }  # fmt: skip
    for path in (folder / "figures").iterdir():
        assert imread(path).shape[0] > 400
    assert len(list((folder / "runs").iterdir())) == 8


def test_the_page_holds_everything_itself(compared):
    page = (compared / "out" / "report.html").read_text()
    assert page.count("plotly.js v") == 1
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?http', page)
    assert page.count('<div id="chart-') == 9
    assert "<tr class=reference><td>OneBP</td>" in page


def test_seconds_are_in_plain_words():
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    axes.plot([0.5, 400], [1, 2])
    scale_by_seconds(axes)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == ["1 s", "3 s", "10 s", "30 s", "1 min", "3 min"]


def test_a_model_looks_the_same_in_all_comparisons():
    assert looks_of(["OneBP", "EASE", "BPR"], "OneBP")["BPR"] == looks_of(["Mine", "BPR"], "Mine")["BPR"]


def test_no_two_of_forty_models_look_alike():
    looks = looks_of([f"model {n}" for n in range(40)], "model 3")
    assert len({tuple(look.values()) for look in looks.values()}) == 40
    assert [label for label, look in looks.items() if look["color"] == ACCENT] == ["model 3"]


def test_the_numbers_are_those_of_the_users(compared, report):
    users = pd.read_parquet(compared / "out" / "per_user.parquet")
    assert set(users["label"]) == {"OneBP", "TwoBP", "Pop"}
    assert set(users["user"]) == {f"u{n}" for n in range(30)}
    for model in report["models"][:3]:
        of_model = users[users["label"] == model["label"]]
        for metric in ("ndcg@10", "recall@5", "novelty@10", "diversity@10"):
            by_seed = of_model.groupby("seed")[metric].mean()
            assert model["test"][metric] == {"mean": pytest.approx(by_seed.mean()), "std": pytest.approx(by_seed.std())}
    results = [json.loads(path.read_text()) for path in (compared / "out" / "runs").glob("OneBP-*/result.json")]
    of_recbole = np.mean([result["test"]["ndcg@10"] for result in results])
    assert sum(int(name.split()[2].replace(",", "")) for name in report["by_item_popularity"]["OneBP"]) == 40
    assert sum(int(name.split()[2].replace(",", "")) for name in report["by_user_activity"]["OneBP"]) == 30
    assert report["models"][0]["test"]["ndcg@10"]["mean"] == pytest.approx(of_recbole, abs=5e-5)  # 4 decimals
    difference = next(row for row in report["differences"] if (row["label"], row["metric"]) == ("Pop", "ndcg@10"))
    means = users.groupby(["label", "user"])["ndcg@10"].mean()
    assert difference["p"] == pytest.approx(stats.ttest_rel(means["Pop"], means["OneBP"]).pvalue)
    assert difference["mean"] == pytest.approx((means["Pop"] - means["OneBP"]).mean())
    side = "lower" if difference["mean"] < 0 else "higher"
    assert re.search(
        f"significantly {side} NDCG@10 than OneBP|do not differ significantly in NDCG@10", difference["words"]
    )


def test_the_lists_are_those_that_were_tested(compared, report):
    """Recall of the kept lists is the recall that RecBole reports, and nothing in them was taken before."""
    folder = compared / "out"
    split = Split.load(folder / "data" / "split.npz")
    seen, test = (split.matrix(part).toarray() > 0 for part in ("train", "test"))
    for path in (folder / "runs").glob("OneBP-*/users.npz"):
        kept = np.load(path)
        for row, (user, items) in enumerate(zip(kept["users"], kept["lists"], strict=True)):
            assert not seen[user, items].any()
            assert items.min() > 0
            assert kept["recall@10"][row] == pytest.approx(test[user, items].sum() / test[user].sum())


def test_a_run_out_of_memory_is_a_row_that_says_so(compared, report):
    huge = report["models"][3]
    assert huge["status"].startswith("0/2 done; seed 1 out of memory: ")
    assert (huge["test"], huge["train_seconds"]) == ({}, None)
    assert "| huge" in (compared / "out" / "report.md").read_text()


def test_what_to_mind(compared, report):
    notes = "\n".join(report["notes"])
    assert "Unequal tuning budgets: OneBP 0, Pop 0, huge 0, where others had 5 trials" in notes
    assert "2 runs at a time" in notes
    text = (compared / "out" / "report.md").read_text()
    assert re.search(r"\| OneBP +\|.*\| 0 \* +\|", text)
    assert re.search(r"\| TwoBP +\|.*\| 5 +\|", text)
    table = (compared / "out" / "table.tex").read_text()
    assert r"\toprule" in table
    assert r"$\pm$" in table
    assert "±" not in table


@pytest.fixture
def no_figures(monkeypatch):
    """For a test of a report that does not look at its pictures."""
    monkeypatch.setattr("recbole_onebp.experiments.compare.report.draw_png", lambda _chart, path: path.touch())


@pytest.mark.usefixtures("no_figures")
def test_what_is_finished_is_not_run_again(compared, tiny_path, caplog):
    caplog.set_level("INFO")
    outcomes = {path: path.stat().st_mtime_ns for path in (compared / "out" / "runs").glob("*-*/outcome.json")}
    file = written(compared / "less.yaml", data_path=tiny_path, models=MODELS[:3], seeds=[1, 2], reference="Pop")
    with in_this_process():
        compare([file], {"output_dir": str(compared / "out")})
    assert "6 runs, of which 6 are finished" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in outcomes} == outcomes
    report = json.loads((compared / "out" / "report.json").read_text())
    assert (report["reference"], {row["label"] for row in report["differences"]}) == ("Pop", {"OneBP", "TwoBP"})


@pytest.mark.usefixtures("no_figures")
def test_cold_and_warm_items_have_a_table(tmp_path):
    films = {key: value for key, value in write_films(tmp_path).items() if key != "output_dir"}
    films["load_col"]["item"] = ["item_id", "genres", "year"]
    plan, data = tmp_path / "plan.yaml", tmp_path / "data.yaml"
    models = [{"model": "ContentKNN"}, {"model": "Pop", "fast_evaluator": True}, {"model": "BPR", "epochs": 1}]
    plan.write_text(yaml.safe_dump({"models": models, "dataset": "films", "seeds": [1]}))
    data.write_text(yaml.safe_dump(films))
    with in_this_process():
        assert main(["compare", str(plan), f"--config_files={data}", f"--output_dir={tmp_path / 'out'}"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    of_content = report["by_items"]["ContentKNN"]
    (folder,) = (tmp_path / "out" / "runs").glob("ContentKNN-*")
    result = json.loads((folder / "result.json").read_text())
    assert of_content["cold items"]["mean"] == result["test_among"]["cold"]["ndcg@5"] > 0
    assert of_content["0 train pairs"]["mean"] == result["test_by_train_pairs"]["0"]["ndcg@5"]
    assert report["by_items"]["Pop"]["cold items"]["mean"] < of_content["cold items"]["mean"]
    assert report["by_items"]["BPR"] == {}
    text, page = ((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))
    assert re.search(r"## All, warm and cold items\n\n\| NDCG@5 +\| all items +\| warm items +\| cold items", text)
    assert re.search(r"\| BPR +\| – +\|", text)
    assert "<h2>All, warm and cold items</h2>" in page


def test_without_cold_items_there_is_no_such_table(compared, report):
    assert set(report["by_items"]) == {"OneBP", "TwoBP", "Pop"}
    assert not any(report["by_items"].values())
    assert "cold items" not in (compared / "out" / "report.md").read_text()


@pytest.mark.usefixtures("forked", "no_figures")
def test_a_yaml_with_models_is_a_comparison_for_train_too(tiny_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recbole_onebp.experiments.compare.report.find_spec", lambda name: None)
    entry = {"model": "Pop", "tuned": tuned(tmp_path / "tuned", "Pop", seed=5)}
    file = written(tmp_path / "one.yaml", data_path=tiny_path, models=[entry])
    assert main(["train", f"--config_files={file}", "--seeds=[5]", f"--output_dir={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    assert "[1/1] Pop, seed 5: recall@5" in out
    assert "for Parquet install pyarrow: pip install 'recbole-onebp[parquet]'" in out
    assert len(pd.read_csv(tmp_path / "out" / "per_user.csv")) == 30
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["differences"] == []
    assert report["models"][0]["tuning"] == {"trials": 8, "pruned": 3, "epochs": 60, "seconds": 41.7}
    assert "Pop 8 trials (3 pruned) of at most 60 epochs in 42 s." in "\n".join(report["notes"])
    assert re.search(r"\| Pop +\|.*\| 8 +\|", (tmp_path / "out" / "report.md").read_text())
    assert main(["train", "--model=OneBP", f"--config_files={file}"]) == 2
    assert "error: model: a comparison has a list of models" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_half_way_it_finishes_and_runs_nothing_twice(tiny_path, tmp_path):
    file = written(tmp_path / "mine.yaml", data_path=tiny_path, models=["Pop", "OneBP", TWO_BP], seeds=[1], epochs=300)
    package = Path(recbole_onebp.__file__).parent.parent
    code = "import sys; from recbole_onebp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "compare", file, "--output_dir=out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    runs = tmp_path / "out" / "runs"
    deadline = time.monotonic() + 300
    while not (list(runs.glob("Pop-*/outcome.json")) and list(runs.glob("OneBP-*/metrics.jsonl"))):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = runs.glob("Pop-*/outcome.json")
    written_at = first.stat().st_mtime_ns
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "3 runs, of which 1 are finished" in again.stdout
    assert first.stat().st_mtime_ns == written_at
    for label in ("OneBP", "TwoBP"):
        (folder,) = runs.glob(f"{label}-*")
        epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert epochs == list(range(json.loads((folder / "result.json").read_text())["epochs_run"]))
    third = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "3 runs, of which 3 are finished" in third.stdout
