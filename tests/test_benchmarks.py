"""The benchmarks' own arithmetic, and that the pages show the committed results."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

from recbole_onebp import Recommender
from recbole_onebp.experiments.tune.search_spec import SearchSpec
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def test_pages_show_the_committed_results():
    render = import_module("render")
    for name, blocks in render.BLOCKS.items():
        page = (ROOT / name).read_text()
        assert render.rendered(page, blocks, ROOT / "benchmarks" / "results") == page, "run benchmarks/render.py"


@pytest.fixture
def rows():
    measure = import_module("measure")
    ratio = measure.Row("ours / theirs", [0.1, 0.3, 0.2], {"ours, s": [1, 3, 2], "theirs, s": [10.0] * 3}, "all", 0.25)
    rate = measure.Row("rate", [10.0], {}, "shape", target=20, at_least=True, note="a note")
    floor = measure.Row("floor", [2.0], {}, "losses")
    return {
        "a": ratio.as_json(),
        "b": rate.as_json(),
        "c": floor.as_json(),
        "d": {"title": "reference", "verdict": "not run: needs --reference"},
    }


def test_rows_say_pass_or_miss(rows):
    assert [row["verdict"] for row in rows.values()] == ["pass", "miss", "reported", "not run: needs --reference"]
    assert (rows["a"]["median"], rows["a"]["min"], rows["a"]["max"]) == (0.2, 0.1, 0.3)
    assert rows["a"]["parts"]["ours, s"]["median"] == 2


def test_the_comparison_is_a_table_of_all_data_sets(tmp_path):
    def model(label, value, trials=10, **more):
        test = {"ndcg@20": {"mean": value, "std": 0.001}}
        return {"label": label, "test": test, "tuning_trials": trials, "train_seconds": {"mean": 2.5}, **more}

    def difference(label, mean, p):
        return {"label": label, "metric": "ndcg@20", "mean": mean, "p_holm": p}

    def write(name, models, differences, left_out):
        (tmp_path / f"{name}-comparison").mkdir()
        report = {"dataset": name, "primary_metric": "ndcg@20", "reference": "OneBP", "seeds": [1, 2], "models": models}
        report |= {"differences": differences, "left_out": left_out}
        (tmp_path / f"{name}-comparison" / "results.json").write_text(json.dumps(report))

    render = import_module("render")
    assert render.comparison(tmp_path) == "Not run: `python benchmarks/comparison.py ml-100k`."
    higher, same, lower = difference("EASE", 0.1, 0.01), difference("BPR", -0.1, 0.2), difference("Pop", -0.2, 0.0)
    pop = model("Pop", 0.1, trials=0)
    write("a", [model("OneBP", 0.3), model("EASE", 0.4), model("BPR", 0.2), pop], [higher, same, lower], [])
    write("b", [model("OneBP", 0.3), model("EASE", 0.3, test={})], [], ["BPR", "Pop"])
    lines = render.comparison(tmp_path).splitlines()
    assert lines[:6] == [
        "| | a, NDCG@20 | train s | b, NDCG@20 | train s |",
        "|---|---|---|---|---|",
        "| OneBP | 0.3000 ± 0.0010 | 2.5 | 0.3000 ± 0.0010 | 2.5 |",
        "| EASE | 0.4000 ± 0.0010 ↑ | 2.5 |  |  |",
        "| BPR | 0.2000 ± 0.0010 | 2.5 |  |  |",
        "| Pop | 0.1000 ± 0.0010 ↓ * | 2.5 |  |  |",
    ]
    assert "2 seeds. 10 trials a model on validation" in lines[7]
    assert lines[8] == "Not run on b: BPR, Pop."
    assert lines[-1] == "![NDCG@20 and training time on a](../benchmarks/results/a-comparison/cost.png)"
    assert render.models(tmp_path).splitlines() == [
        "| | a | s | b | s |",
        "|---|---|---|---|---|",
        "| *OneBP* | 0.3000 | 2.5 | **0.3000** | 2.5 |",
        "| EASE | **0.4000** | 2.5 |  |  |",
        "| BPR | 0.2000 | 2.5 |  |  |",
        "| Pop | 0.1000 | 2.5 |  |  |",
    ]


def test_the_plans_of_the_comparison_agree():
    """The same models and terms in both, all spaces sound; only Pop is not searched."""
    comparison = import_module("comparison")
    search, compared = (yaml.safe_load(comparison.plan_of(kind).read_text()) for kind in ("tune", "compare"))
    own = {"models", "seeds", "seed", "reference", "trials", "warmup_epochs"}
    assert {key: search[key] for key in search if key not in own} == {
        key: compared[key] for key in compared if key not in own
    }
    searched = {entry["label"]: entry for entry in comparison.entries_of("tune")}
    for entry in comparison.entries_of("compare"):
        assert entry.items() <= searched.pop(entry["label"], {**entry, "space": {}}).items()
    assert not searched
    assert {plan.label for plan in SearchSpec.read(comparison.plan_of("tune"), {}).searches}.isdisjoint(
        comparison.NOTHING_TO_TUNE
    )


def test_small_results_are_kept(tmp_path, monkeypatch):
    comparison = import_module("comparison")
    monkeypatch.setattr(comparison, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "cost.png").write_bytes(b"picture")
    (tmp_path / "tuning.json").write_text("{}")
    report = {"dataset": "a", "primary_metric": "ndcg@20", "reference": "A", "models": []}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "report.md").write_text("# a\n\ntext\n\n![one](figures/time.png)\n\n![two](figures/cost.png)\n")
    out = comparison.write_results(tmp_path, tmp_path, "command", ["BPR"])
    assert out == tmp_path / "benchmarks" / "results" / "a-comparison"
    assert {path.name for path in out.iterdir()} == {"report.md", "results.json", "tuning.json", "cost.png"}
    head = f"# a\n\n`command`\n\nMachine: {comparison.measure.machine()['cpu']}.\n\nLeft out: BPR."
    assert (out / "report.md").read_text() == f"{head}\n\ntext\n\n![two](cost.png)\n"
    kept = json.loads((out / "results.json").read_text())
    assert (kept["command"], kept["left_out"], kept["dataset"]) == ("command", ["BPR"], "a")


def test_tables_hold_what_was_measured(tmp_path, rows):
    render = import_module("render")
    machine = {"cpu": "Some CPU", "cores": 2, "system": "Linux x86_64", "load_before": 0.1}
    settings = {"threads": 2, "seed": 7, "repeats": 3}
    result = {"machine": machine, "versions": {"torch": "2.0"}, "settings": settings, "rows": rows}
    (tmp_path / "some-speed.json").write_text(json.dumps(result))
    page = "<!-- speed: by benchmarks/render.py -->old<!-- end of speed -->"
    full = render.rendered(page, {"speed": render.speed}, tmp_path)
    assert full.splitlines()[2:10] == [
        "Some CPU, 2 of 2 cores, Linux x86_64; torch 2.0; 3 rounds, seed 7.",
        "",
        "| | median (least to most) | target | | made of (medians) |",
        "|---|---|---|---|---|",
        "| ours / theirs | 0.2 (0.1 to 0.3) | at most 0.25 | pass | ours, s 2; theirs, s 10 |",
        "| rate | 10 (10 to 10) | at least 20 | **miss** | a note |",
        "| floor | 2 (2 to 2) |  | reported |  |",
        "| reference |  |  | not run: needs --reference |  |",
    ]
    assert "- rate: shape." in full
    assert render.rendered(full, {"speed": render.speed}, tmp_path) == full
    with pytest.raises(ValueError, match="growth occurs 0 times"):
        render.rendered(page, {"growth": render.growth}, tmp_path)


def test_the_model_of_many_hosts_by_hand():
    model = import_module("scaling_model")
    world = model.World(users=1000, items=100, pairs=10_000, dimension=8, negatives=1, pairs_a_step=100, cores=2,
                        bandwidth=1e12, link=8e3, latency=0.5)  # fmt: skip
    assert model.memory(world, 2)["user rows"] == 1000 * 8 * 4 / 2
    assert model.memory(world, 2)["items and Adam's moments"] == model.memory(world, 1)["items and Adam's moments"]
    sent = model.traffic(world, 2)
    assert sent["embeddings, coefficients and ids"] == (8 * 4 + 2 * 2 * 4) / 2
    assert sent["dense all-reduce of gradients"] == 2 * (1 / 2) * 100 * 8 * 4 / 100
    assert not any(model.traffic(world, 1).values())
    constants = model.Constants(row_of_dense_adam=0.01, pair=0.3, items_share=2 / 3, far_row=0.05)
    seconds = model.epoch_seconds(world, 2, constants)
    assert seconds["link"] == pytest.approx(10_000 * 24 / 1000 + 100 * 0.5)
    assert seconds["Adam over all items, every 50 steps"] == pytest.approx(100 / 50 * 100 * 0.01 / 2)
    assert seconds["scores of its own pairs"] == pytest.approx(10_000 * (0.1 + 3 * 0.05 / 3) / 2 / 2)
    assert seconds["item rows of all pairs, on each host"] == pytest.approx(10_000 * (0.2 + 2 * 0.05) / 2)
    slow = model.epoch_seconds(dataclasses.replace(world, bandwidth=1e3), 2, constants)
    assert slow["Adam over all items, every 50 steps"] == pytest.approx(100 / 50 * 100 * 6 * 8 * 4 / 1e3)


def test_contestants_take_turns():
    measure = import_module("measure")
    calls = []

    def contestant(name, seconds):
        return lambda: calls.append(name) or seconds

    assert measure.alternate(3, contestant("a", 1.0), contestant("b", 2.0)) == [[1.0] * 3, [2.0] * 3]
    assert calls == ["a", "b"] * 3


def test_a_failed_check_leaves_the_other_rows(capsys, rows):
    measure = import_module("measure")

    def wrong():
        measure.claim(False, "losses differ")

    def missing():
        raise UserError("needs --reference")

    def right():
        return [measure.Row("right", [1.0], {}, "all")]

    done, sound = measure.measure_all({"w": wrong, "m": missing, "r": right})
    assert not sound
    assert done["w"]["verdict"] == "check failed: losses differ"
    assert done["m"]["verdict"] == "not run: needs --reference"
    assert done["r"]["median"] == 1.0
    assert "check failed" in capsys.readouterr().out


def test_made_data_is_distinct_skewed_and_seeded():
    growth = import_module("large")
    user, item = growth.power_law_pairs(20_000, 1_000, 500, seed=3)
    assert user.min() == 1
    assert user.max() <= 1_000
    assert item.min() == 1
    assert item.max() <= 500
    assert len(np.unique(user.astype(np.int64) * 1_000 + item)) == 20_000
    head, tail = ((item <= 50).sum(), (item > 450).sum())
    assert 3 * tail < head
    again = growth.power_law_pairs(20_000, 1_000, 500, seed=3)
    assert np.array_equal(user, again[0])
    assert np.array_equal(item, again[1])
    with pytest.raises(UserError, match="distinct pairs"):
        growth.power_law_pairs(1_000, 10, 10, seed=0)


def test_exponent_of_a_known_law():
    growth = import_module("large")
    sizes = [1e3, 1e4, 1e5, 1e6]
    assert growth.fitted_exponent(sizes, [3e-6 * size**1.25 for size in sizes]) == pytest.approx(1.25)


def test_growth_is_measured_on_a_part_of_an_epoch(monkeypatch):
    growth = import_module("large")
    monkeypatch.setattr(growth, "BASE", {"interactions": 0, "users": 500, "items": 400, "dimension": 8, "negatives": 2})
    monkeypatch.setattr(growth, "FITTED_FROM", {})
    for steps in (2, 50):  # less, and more than an epoch has
        monkeypatch.setattr(growth, "STEPS", steps)
        sweeps = growth.sweep("interactions", (5_000, 20_000), growth.LEARNERS, repeats=3, seed=1)
        assert [entry["learner"] for entry in sweeps] == list(growth.LEARNERS)
        for entry in sweeps:
            assert np.shape(entry["seconds"]) == (2, 3)
            assert np.min(entry["seconds"]) > 0
            assert len(entry["exponents"]) == 3


def test_growth_is_drawn(tmp_path):
    growth = import_module("large")
    sweeps = [
        {
            "quantity": quantity,
            "learner": learner,
            "sizes": [10, 100, 1000],
            "seconds": [[0.1, 0.2], [1.0, 1.1], [10.0, 11.0]],
            "fitted_from": 10,
            "exponents": [1.0, 1.1],
        }
        for quantity in ("interactions", "users", "items", "dimension")
        for learner in growth.LEARNERS
    ]
    growth.draw(sweeps, tmp_path / "growth.png", "title")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_bytes_of_an_epoch_by_hand():
    floor = import_module("speed")
    user, item = np.array([1, 1, 2, 3]), np.array([5, 5, 6, 7])
    touched = floor.touched_rows(user, item, n_items=8, positives=4, negatives=0, shared=True)
    assert touched == floor.Touched(steps=1, pairs=4, users=3, items=3)
    # 3 item rows and 3 user rows of 2 numbers, ids of 4 pairs
    assert floor.bytes_of_epoch(touched, n_items=8, size=2, dense=False) == 3 * 6 * 8 + 3 * 2 * 8 + 4 * 8
    assert floor.bytes_of_epoch(touched, n_items=8, size=2, dense=True) == 8 * 6 * 8 + 3 * 2 * 8 + 4 * 8
    drawn = floor.touched_rows(user, item, n_items=8, positives=1, negatives=1000, shared=False)
    assert drawn == floor.Touched(steps=4, pairs=4, users=4, items=4 * 7)


def test_rates_are_finite():
    floor = import_module("speed")
    assert 0 < floor.bandwidth(2**16, repeats=1) < math.inf
    assert 0 < floor.products_of_step(32, 16, 8, repeats=1) < math.inf


AUTHORS = {
    "main.py": """
import os, torch, numpy as np
os.environ["CUDA_LAUNCH_BLOCKING"] = "1"
from parse import parse_args
from data import Data, DataLoader
from cuda import MemCache
def init_seed(seed): pass
def model_init(): return Model(), None, None, 0
class Model: pass
def model_train(epoch):
    print("swallowed")
    rows = sum(len(batch) for batch in train_loader)
    print("Loss:\\t%.8f\\tlr:" % (rows + arg.lr + num_users / 1000 + epoch / 10000), file=f)
""",
    "data.py": """
from torch.utils.data import DataLoader
class Data:
    def __init__(self, pairs, arg, n_users, n_items): self.pairs = pairs
    def __len__(self): return len(self.pairs)
    def __getitem__(self, index): return self.pairs[index]
    def collate_fn(self, batch): return batch
""",
    "parse.py": """
import argparse
def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--num_workers", type=int, default=0)
    return parser.parse_args()
""",
    "model.py": "",
    "evaluation.py": "",
    "cuda.py": "class MemCache: pass",
}


def test_the_authors_code_is_driven_through_its_own_functions(tmp_path):
    reference = import_module("reference")
    for name, text in AUTHORS.items():
        (tmp_path / name).write_text(text)
    pairs = np.array([[0, 1], [1, 1], [2, 0]])
    with reference.ReferenceCode(tmp_path, pairs, 3, 2, {"lr": 0.5, "batch_size": 2}) as theirs:
        for epoch in range(2):
            seconds, loss = theirs.epoch()
            assert seconds > 0
            assert loss == pytest.approx(2 + 0.5 + 0.003 + epoch / 10000)  # the last, incomplete batch is dropped
    (tmp_path / "data.py").unlink()
    with pytest.raises(UserError, match=r"no data\.py there"):
        reference.ReferenceCode(tmp_path, pairs, 3, 2, {})


def test_missing_data_is_one_line(tmp_path, monkeypatch, capsys):
    measure, speed = import_module("measure"), import_module("speed")
    monkeypatch.setattr(sys, "argv", ["speed.py", "--data_path", str(tmp_path), "--only", "bpr"])
    assert measure.exit_code(speed.main) == 2
    expected = (
        f"error: {tmp_path}/gowalla/gowalla.train.inter is missing; recbole-onebp fetch gowalla --data_path {tmp_path}"
    )
    assert capsys.readouterr().err.startswith(expected)


def test_rows_measured_alike_stay_and_others_are_refused(tmp_path):
    measure = import_module("measure")
    path = tmp_path / "some-speed.json"
    here = {"machine": {"cpu": "A", "load_before": 0.1}, "versions": {"torch": "2"}, "settings": {"seed": 1}}
    assert measure.earlier(path, here, "rows", here) is None
    earlier = {**here, "settings": {"seed": 1, "run_seconds": 7}, "rows": {"bpr": {"median": 0.1}}}
    path.write_text(json.dumps(earlier))
    busier = {**here, "machine": {"cpu": "A", "load_before": 0.4}}
    assert measure.earlier(path, busier, "rows", here) == earlier["rows"]
    with pytest.raises(UserError, match=r"another settings \(seed\)"):
        measure.earlier(path, {**here, "settings": {"seed": 2}}, "rows", here)
    about = {"dataset": "gowalla", "settings": {"threads": 1}}
    path.write_text(json.dumps({**about, "runs": [{"seed": 1}]}))
    assert measure.earlier(path, about, "runs", about) == [{"seed": 1}]
    with pytest.raises(UserError, match="another dataset"):
        measure.earlier(path, {**about, "dataset": "yelp2018"}, "runs", about)


@pytest.fixture(scope="module")
def in_camps(tiny_path):
    """Settings for ``tiny``, and of a model that finds out the users' camps in an epoch or two."""
    data = {"load_col": {"inter": ["user_id", "item_id"]}, "data_path": tiny_path, "data_cache": False}
    return {**data, "n_shared_negatives": 16, "train_batch_size": 16, "embedding_size": 16}


def test_quality_chooses_on_validation_and_tests_once(in_camps):
    quality = import_module("quality")
    common = {**in_camps, "dataset": "tiny", "seed": 1}
    result = quality.train_and_test(common, 2, False, {})
    assert len(result["curve"]) == 2
    chosen = result["curve"][result["epochs"] - 1]
    assert {name: chosen[name] for name in result["valid"]} == result["valid"]
    assert result["test"]["recall@10"] > 10 / 40  # chance
    assert result["seconds"]["all"] > result["seconds"]["choose"] > result["seconds"]["of which valid"] > 0
    short = quality.train_and_test(common, 1, True, {})
    assert "test" not in short
    assert short["curve"][0]["ndcg@10"] == result["curve"][0]["ndcg@10"]
    other = quality.train_and_test({**common, "temperature": 0.5}, 1, True, {})
    assert other["curve"][0]["ndcg@10"] != short["curve"][0]["ndcg@10"]


def test_the_way_from_files_to_lists(tiny_path, tmp_path):
    fit, render, measure = import_module("fit"), import_module("render"), import_module("measure")
    header, *rows = (Path(tiny_path) / "tiny" / "tiny.inter").read_text().splitlines()
    for place, part in enumerate(("train", "valid", "test")):
        of_part = [row for number, row in enumerate(rows) if (number % 6 < 4, number % 6 == 4, number % 6 == 5)[place]]
        measure.write_text(tmp_path / "mine" / f"mine.{part}.inter", "\n".join([header, *of_part]) + "\n")
    settings = {"epochs": 2, "n_shared_negatives": 16, "train_batch_size": 16, "embedding_size": 16}
    found = fit.from_files(time.monotonic(), str(tmp_path / "mine"), settings)
    assert (found["epochs"], found["lists"]) == (2, 30)
    assert found["seconds"] > 0
    assert found["test"]["recall@20"] > 0.9  # all but the 10 items of the history are of the list, its camp's first
    about = {**measure.here("numba"), "dataset": "mine", "settings": {"epochs": 2}, "threads": 1}
    measure.write_json(tmp_path / "fit" / "mine.json", {**about, "runs": [found, {**found, "seconds": 9.0}]})
    row = render.fits(tmp_path).splitlines()[2]
    assert row.startswith("| mine | epochs: 2 |")
    assert row.endswith(f"to 9.0) | {found['test']['recall@20']:.4f} / {found['test']['ndcg@20']:.4f} |")


def test_quality_takes_the_local_weight_of_the_first_training(in_camps):
    quality = import_module("quality")
    common = {**in_camps, "dataset": "tiny", "seed": 1, "valid_metric": "NDCG@10", "local": "ridge", "local_reg": 1.0}
    result = quality.train_and_test(common, 1, False, {})
    assert result["local_weight"] > 0
    again = quality.refit_and_test({**common, "epochs": 1, "local_weight": result["local_weight"]})
    assert again["test"] == result["test"] != result["towers"]
    assert quality.refit_and_test({**common, "epochs": 1, "local": "none"})["test"] == result["towers"]
    other = quality.train_and_test({**common, "seed": 2}, 5, False, {"epochs": 1, "local_weight": 0.25})
    assert "valid" not in other
    assert other["test"] == quality.refit_and_test({**common, "seed": 2, "epochs": 1, "local_weight": 0.25})["test"]


def test_what_the_study_has_run_is_told_by_its_label():
    study = import_module("study")
    labels = [study.label(overrides) for _, overrides in study.variations(list(study.FACTORS))]
    assert len(labels) == len(set(labels))


def test_ease_in_all_directions_is_ease():
    taken = (np.random.default_rng(5).random((40, 12)) < 0.3).astype(float)
    value, vector = np.linalg.eigh(taken.T @ taken)
    inverse = np.linalg.inv(taken.T @ taken + 7 * np.eye(12))
    difference = import_module("ease_rank").weights(value[::-1], vector[:, ::-1], 7, 12) + inverse / np.diag(inverse)
    np.testing.assert_allclose(difference - np.diag(np.diag(difference)), 0, atol=1e-6)


def test_the_front_of_a_race_is_what_was_reached_by_a_budget(tmp_path):
    race = import_module("race")

    def row(*points):
        names = ("seconds", "train_seconds", "recall@20", "ndcg@20")
        return {"points": [dict(zip(names, point, strict=True)) for point in points]}

    models = {
        "slow": row((30, 5, 0.3, 0.4), (120.5, 90, 0.9, 0.9)),
        "quick": row((5, 4, 0.2, 0.1), (9, 6, 0.1, 0.2)),
        "none": row(),
    }
    assert race.front(models, 300, "seconds", "recall@20") == {
        "10": {"quick": 0.2},
        "20": {"quick": 0.2},
        "30": {"slow": 0.3, "quick": 0.2},
        "60": {"slow": 0.3, "quick": 0.2},
        "120": {"slow": 0.3, "quick": 0.2},
        "180": {"slow": 0.9, "quick": 0.2},
        "300": {"slow": 0.9, "quick": 0.2},
    }
    by_training = race.front(models, 120, "train_seconds", "ndcg@20")
    assert list(by_training) == ["10", "20", "30", "60", "120"]
    assert next(iter(by_training["10"].items())) == ("slow", 0.4)
    assert by_training["120"]["slow"] == 0.9
    about = {"dataset": "a", "budget": 300, "threads": 2, "machine": {"cpu": "A CPU"}}
    race.draw({**about, "models": models}, tmp_path / "race.png")
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "race.json").write_text(json.dumps({**about, "als_search": {}, "models": models}))
    busy = {**about, "machine": {"cpu": "A CPU", "load_before": 3}}
    assert race._earlier(tmp_path / "race.json", busy)["models"] == models
    for key, other in {"budget": 60, "machine": {"cpu": "another"}}.items():
        with pytest.raises(UserError, match=f"its rows have another {key}"):
            race._earlier(tmp_path / "race.json", {**about, key: other})


def test_a_race_without_the_time_of_validations():
    race = import_module("race")
    # Four seconds before training, three of each validation.
    points = [{"seconds": 4 + 3 * n + 2.5 * n, "train_seconds": 2.5 * n} for n in (1, 2, 3)]
    assert race.without_validation(points) == pytest.approx([6.5, 9, 11.5])
    assert race.without_validation(points[:1]) == [9.5]
    assert race.without_validation([]) == []


def test_a_contestant_races_in_its_own_process(tmp_path, tiny_path, in_camps, monkeypatch):
    race, settings = import_module("race"), {"model": "OneBP", "epochs": 2, **in_camps}
    done = race.race("tiny", tiny_path, settings, threads=1, budget=None)
    first, second = done["points"]
    assert done["ended"] == "schedule"
    assert 0 < first["train_seconds"] < second["train_seconds"] < second["seconds"] < done["seconds"]
    assert first["seconds"] < second["seconds"]
    assert second["recall@20"] > 20 / 40  # chance
    late = race.race("tiny", tiny_path, settings, threads=1, budget=0.1)
    assert (late["ended"], late["points"]) == ("budget", [])
    monkeypatch.setattr(race, "__file__", str(tmp_path / "no-such-file.py"))
    with pytest.raises(import_module("measure").CheckFailedError, match="exit code 2"):
        race.race("tiny", tiny_path, settings, threads=1, budget=None)


def test_als_is_evaluated_as_the_others_are(tmp_path, capsys):
    pytest.importorskip("implicit")
    race = import_module("race")

    def points_of(*trials):
        setting = {"factors": 16, "iterations": 3, "trials": trials}
        paths = {"data_path": str(tmp_path), "output_dir": str(tmp_path / "run")}
        race.contest(time.monotonic(), "ml-100k", paths, setting, threads=1)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith('{"seconds"')]

    trial = {"alpha": 2.0, "regularization": 0.05}
    points = points_of(trial)
    assert len(points) == 3
    assert points[-1]["ndcg@20"] > 0.1
    found = points_of(trial, {**trial, "alpha": 200.0})
    assert [point["alpha"] for point in found] == [2.0, 200.0]
    assert found[0]["ndcg@20"] == points[-1]["ndcg@20"]
    assert found[1]["ndcg@20"] != found[0]["ndcg@20"]


def test_large_data_are_drawn_from_a_known_law():
    large = import_module("large")
    rng = np.random.default_rng(1)
    planted = large.Planted.make(200, 8_000, rng)
    user, item = large.draw_pairs(5_000, planted, rng)
    assert len(np.unique(user.astype(np.int64) * 8_000 + item)) == 5_000
    counts = np.bincount(user, minlength=200)
    assert counts.min() >= large.AT_LEAST
    assert counts.max() > 4 * counts.mean()
    first, second = (planted.group[item] == planted.groups_of[user, place] for place in (0, 1))
    assert 0.55 < first.mean() < 0.7
    assert 0.2 < second.mean() < 0.3
    every = np.arange(8_000)
    share = np.bincount(planted.group, planted.probability(7, every))
    assert share.sum() == pytest.approx(1)
    assert share[planted.groups_of[7]] == pytest.approx(np.add(large.SHARES, share[share.argmin()]), abs=0.02)
    by_hand = np.argsort(-planted.probability(7, every), kind="stable")[:50]
    assert planted.best(7, 50).tolist() == by_hand.tolist()
    with pytest.raises(UserError, match="would not be a power law"):
        large.draw_pairs(50_000, large.Planted.make(20, 4_000, rng), rng)


def test_large_from_end_to_end(tmp_path, monkeypatch):
    large, render, measure = import_module("large"), import_module("render"), import_module("measure")
    in_a_process, out = measure.in_a_process, tmp_path / "some-large.json"

    def run_stage(script, task, stage, *arguments):
        # A process for the stage that starts quickly; the others import torch and RecBole, which are here already.
        return in_a_process(script, task, stage, *arguments) if stage == "make" else large._stage(stage, *arguments)

    monkeypatch.setattr(measure, "in_a_process", run_stage)
    monkeypatch.setattr(measure, "use_threads", lambda threads: None)
    monkeypatch.setattr(logging, "disable", lambda level: None)
    sizes = {"interactions": 20_000, "users": 2_000, "items": 4_000, "tested": 200, "threads": 1, "dimension": 8}
    flags = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["large.py", *flags, "--folder", str(tmp_path), "--json", str(out)])
    large.main()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    result = json.loads(out.read_text())
    stages = result["stages"]
    assert [*stages] == ["make", "first start", "second start", "train and test", "local term"]
    assert stages["first start"]["n_train"] == stages["train and test"]["result"]["n_train"]
    # Three of the stages run in this process, whose memory is also that of earlier tests.
    assert stages["make"]["peak_mb"] >= stages["make"]["imports_mb"] > 0
    assert all(stage["peak_mb"] > 0 for stage in stages.values())
    truth, test = stages["train and test"]["truth"], stages["train and test"]["result"]["test"]
    assert 1 > truth["law recall@20"] > truth["popularity recall@20"] > 0
    assert truth["law recall@20"] > test["recall@20"] > 0
    assert stages["local term"]["local"]["in_their_groups"] > 0.5
    text = render.rendered(
        "<!-- large: by benchmarks/render.py --><!-- end of large -->", {"large": render.large}, tmp_path
    )
    assert "20,000 interactions, 2,000 users, 4,000 items, d = 8" in text


def test_threads_are_set_before_libraries_read_them(tmp_path):
    """The benchmark starts itself anew, with the number in the environment, and keeps its flags."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, numpy\nfrom measure import use_threads\nuse_threads(1)\n"
        "print(os.environ['OMP_NUM_THREADS'], len(os.sched_getaffinity(0)), sys.argv[1:])\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])
    command = [sys.executable, str(script), "--flag", "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1 1 ['--flag', 'a b']\n"
    with pytest.raises(UserError, match="--threads 9999: "):
        import_module("measure").use_threads(9999)


def test_trials_of_resume_are_counted():
    resume = import_module("resume")
    row = {"run": "BPR", "signal": "SIGTERM", "exit_seconds": 0.1, "checkpoint": "epoch-000002-step-000000000"}
    inside = {**row, "checkpoint": "epoch-000002-step-000000004", "exit_seconds": 0.25, "different": ["model"]}
    anew = {**row, "checkpoint": None, "different": []}
    rows = resume.rows([{**row, "different": []}, inside, anew, {**anew, "signal": "SIGKILL"}])
    assert rows == [["BPR", "SIGKILL", 1, 1, 0, 1, "0.10"], ["BPR", "SIGTERM", 3, 2, 1, 1, "0.25"]]
    assert resume.timeless({"seconds": 1, "a": [{"train_seconds": 2, "b": 3}]}) == {"a": [{"b": 3}]}


def test_the_ranks_of_a_stream(tmp_path):
    """Each event is predicted before it is applied, new items join in their year, and each is counted."""
    import pandas as pd
    import stream

    bundle = made_bundle(tmp_path / "bundle", features=True, score="cosine", rule="mean", recency=1.0)
    history = [("u1", "i1", 0.0), ("u2", "i2", 0.0)]
    later = [("u1", "x", 86400.0), ("new", "i5", 86400.0), ("new", "x", 2e9), ("u1", "y", 2e9), ("u2", "x", 2e9)]
    events = pd.DataFrame([*history, *later], columns=["user", "item", "time"])
    genres = {"x": ["g1"], "y": ["g2"], "z": ["g3"], **{f"i{n}": ["g0"] for n in range(60)}}
    world = stream.World(events, genres, {**dict.fromkeys(genres, "1960"), "x": "1980", "y": "2000", "z": "2050"})
    both, stale = (stream.contestants()[name] for name in (stream.BOTH, stream.STALE))
    log = stream.play(world, 2, 7, both, lambda _: bundle)
    assert log.n_before == [0, 0, 1, 0, 2]
    rec, ranks = Recommender.load(bundle), []
    for user, item, when in later:
        fresh = {"x"} if when < 1e9 and item == "x" else {"x", "y"} if when > 1e9 else set()
        rec.add_items({name: world.features(name) for name in sorted(fresh) if not rec.knows_item(name)})
        names = [name for name, _ in rec.recommend([user], k=20)[0]] if rec.knows_user(user) else ["i1", "i2"]
        ranks.append(names.index(item) if item in names else -1)
        rec.update([(user, item)])
    assert log.rank == ranks
    assert max(ranks) >= 0
    assert stream.play(world, 2, 7, stale, lambda _: bundle).rank[2] == -1


def test_the_figures_of_a_stream():
    import stream

    ranks, n_before = [0, -1, 2, -1] * 10, [-1, -1, 0, 7] * 10
    log = stream.Log(ranks, n_before, [0.001] * 39 + [1.0], [0.01] * 40)
    found = stream.figures(log)
    assert found["all"] == {"events": 40, "recall@20": 0.5, "ndcg@20": 0.375}
    assert found["known items"] == {"events": 20, "recall@20": 0.5, "ndcg@20": 0.5}
    assert found["new items"]["0"] == {"events": 10, "recall@20": 1.0, "ndcg@20": 0.5}
    assert found["new items"]["5 to 19"]["recall@20"] == 0
    assert found["new items"]["1 to 4"] == {"events": 0}
    assert found["last quarter"]["events"] == 10
    assert [tenth["events"] for tenth in found["tenths"]] == [4] * 10
    assert found["events_a_second"] == 100
    assert found["answer_ms"]["median"] == 1
