"""Cold items ranked among themselves, warm ones among themselves, and all together."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import recbole_onebp
from conftest import write_inter
from recbole_onebp.util.errors import UserError
from support.films import COLD, write_films


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("data"))


def build(films, model="ItemKNN", **keys):
    return recbole_onebp.build(model, "films", config_dict={**films, "fast_evaluator": True, "epochs": 1, **keys})


def expected(run, items: str, n_train: range | None = None) -> dict[str, float]:
    """Recall@5 and NDCG@5 of the test part by hand; ``n_train``: train pairs of the relevant items."""
    part, train, n_items = run.test_data._dataset, run.train_data._dataset, run.dataset.item_num
    pairs = [set(zip(d.inter_feat["user_id"].tolist(), d.inter_feat["item_id"].tolist(), strict=True))
             for d in (train, run.valid_data._dataset, part)]  # fmt: skip
    warm, in_test = {item for _, item in pairs[0]}, {item for _, item in pairs[2]}
    chosen = {"all": set(range(1, n_items)), "warm": warm, "cold": in_test - warm}[items]
    count = Counter(item for _, item in pairs[0])
    relevant = {(u, i) for u, i in pairs[2] if i in chosen and (n_train is None or count[i] in n_train)}
    recall, ndcg = [], []
    for user in sorted({user for user, _ in relevant}):
        scores = run.model.full_sort_predict({"user_id": torch.tensor([user])}).detach().view(-1)
        hidden = {item for other, item in pairs[0] | pairs[1] if other == user} - {i for u, i in pairs[2] if u == user}
        ranked = sorted(chosen - hidden, key=lambda item: -float(scores[item]))[:5]
        own = {item for other, item in relevant if other == user}
        hits = np.array([item in own for item in ranked])
        recall.append(hits.sum() / len(own))
        gain = 1 / np.log2(np.arange(5) + 2)
        ndcg.append((hits * gain[: len(hits)]).sum() / gain[: len(own)].sum())
    return {"recall@5": np.mean(recall), "ndcg@5": np.mean(ndcg)}


@pytest.mark.parametrize("items", ["all", "warm", "cold"])
def test_metrics_are_those_of_the_chosen_items(films, items):
    run = build(films, "ContentKNN", eval_items=items, fast_evaluator=items == "all")
    result = run.fit()
    assert result.test == pytest.approx(expected(run, items), abs=1e-4)  # RecBole rounds to 4 digits
    if items != "warm":
        assert result.test == result.test_among[items]
    cold = {f"f{film}" for film in COLD["test"]}
    chosen = run.test_data.candidates
    if items == "cold":
        assert {*run.dataset.id2token("item_id", chosen.nonzero().squeeze(1))} == cold
        lists = run.per_user_metrics()
        assert lists["recall@5"].mean() == pytest.approx(result.test["recall@5"], abs=1e-4)
    elif items == "warm":
        assert 0 < chosen.sum() <= run.dataset.item_num - 1 - len(cold)
    else:
        assert chosen is None


def test_a_run_records_all_three(films):
    run = build(films, "BPR", epochs=2)
    result = run.fit()
    assert set(result.test_among) == {"all", "warm", "cold"}
    assert result.test_among["all"] == result.test
    for items in ("warm", "cold"):
        assert result.test_among[items] == pytest.approx(expected(run, items), abs=1e-4)
    assert json.loads((Path(films["output_dir"]) / "result.json").read_text())["test_among"] == result.test_among


def test_a_run_records_items_by_their_train_pairs(films):
    run = build(films, "BPR", epochs=2)
    found = run.fit().test_by_train_pairs
    groups = {"0": range(1), "1 to 4": range(1, 5), "5 to 19": range(5, 20)}
    assert found.keys() == groups.keys()  # no film has more: 10 users take those of a genre
    for name, n_train in groups.items():
        assert found[name] == pytest.approx(expected(run, "all", n_train), abs=1e-4)


def test_a_test_part_of_cold_items_alone_is_tested(tmp_path):
    rows = {"train": range(6), "valid": [6], "test": [7]}
    for part, chosen in rows.items():
        path = write_inter(
            tmp_path / "new", [(f"u{u}", f"i{(u + 1) * (i + 1) if i < 7 else 900}") for u in range(9) for i in chosen]
        )
        path.rename(tmp_path / "new" / f"new.{part}.inter")
    keys = {"data_path": str(tmp_path), "benchmark_filename": [*rows], "epochs": 1, "output_dir": str(tmp_path / "run")}
    keys |= {"load_col": {"inter": ["user_id", "item_id"]}, "fast_evaluator": True, "show_progress": False}
    run = recbole_onebp.build("OneBP", "new", config_dict=keys)
    assert run.test_data.cold_share == 1
    assert [*run.fit().test_among] == ["all", "cold"]


def test_without_cold_items_there_is_one_kind(tmp_path):
    keys = {"epochs": 1, "show_progress": False, "output_dir": str(tmp_path), "fast_evaluator": True}
    run = recbole_onebp.build("Pop", "ml-100k", config_dict=keys)
    assert 0 < run.test_data.cold_share < 0.05
    assert run.fit().test_among == {}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"eval_args": {"mode": "uni100"}}, "eval_items: cold needs eval_args.mode: full"),
        ({"repeatable": True}, "eval_items: cold cannot be combined with repeatable: True"),
        ({"metrics": ["Recall", "GAUC"], "valid_metric": "Recall@5"}, "cold cannot be combined with the metric GAUC"),
        ({"benchmark_filename": ["train", "valid", "valid"]}, None),
        ({"benchmark_filename": ["train", "train", "train"]}, "eval_items: cold: there is no such item in the part"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(films, keys, message):
    if message is None:
        assert build(films, eval_items="cold", **keys).test_data.candidates.sum() == len(COLD["valid"])
        return
    with pytest.raises(UserError, match=message):
        build(films, eval_items="cold", **keys)
