"""Folders of comparisons and searches that somebody else made."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from recbole_onebp.experiments.compare import compare
from recbole_onebp.experiments.compare.outcome import outcome_of, run_tasks
from recbole_onebp.experiments.compare.results import FinishedRun
from recbole_onebp.experiments.compare.split import Split, write_npz
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.util.errors import UserError


@pytest.mark.parametrize("name", ["report.json", "data", "figures"])
def test_a15_a_comparison_leaves_what_is_not_its_own(tmp_path, tiny_path, name):
    out = tmp_path / "mine"
    (out / name).mkdir(parents=True)
    keys = {"dataset": "tiny", "data_path": tiny_path, "models": ["OneBP"], "output_dir": str(out)}
    (tmp_path / "plan.yaml").write_text(yaml.dump(keys))
    with pytest.raises(UserError, match=f"holds {name}, which would be replaced"):
        compare([str(tmp_path / "plan.yaml")])
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize(
    "outcome",
    [[], {}, {"status": 5}, {"status": "failed"}, {"status": "failed", "reason": []},
     {"status": "done", "peak_device_mb": "x"}],
)  # fmt: skip
def test_a12_odd_outcomes_are_none(tmp_path, outcome):
    (tmp_path / "outcome.json").write_text(json.dumps(outcome))
    assert outcome_of(tmp_path) is None


def test_a15_a_run_of_a_comparison_is_no_link(tmp_path):
    from recbole_onebp.experiments.compare.outcome import Task

    (tmp_path / "mine").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"):
        run_tasks([Task("run", tmp_path / "run", print, ())], 1, None, lambda *_: None)


@pytest.mark.parametrize("key", ["pre_model_path", "warm_up", "dataset_save_path", "output_dir"])
def test_a01_settings_of_a_search_name_no_file(tmp_path, key):
    (tmp_path / "BPR").mkdir()
    (tmp_path / "BPR" / "best.yaml").write_text(yaml.dump({"model": "BPR", key: "trap.pth"}))
    model = {"trials": 1, "pruned": 0, "seconds": 1.0, "config": "/etc/passwd"}  # not looked at
    summary = {"models": {"BPR": model}, "seed": 1, "budget": {"epochs": 1}}
    (tmp_path / "tuning.json").write_text(json.dumps(summary))
    with pytest.raises(UserError, match=f"{key} names a file"):
        Tuning.load(tmp_path, "BPR")


@pytest.mark.parametrize("result", ["", "[]", "{}", '{"model": "OneBP"}'])
def test_a12_odd_results_are_one_line(tmp_path, result):
    (tmp_path / "result.json").write_text(result)
    (tmp_path / "metrics.jsonl").touch()
    ids = np.array(["", "a", "b"])
    pairs = np.array([[1, 1]])
    write_npz(tmp_path / "users.npz", {"users": np.array([1]), "lists": np.array([[9]])})
    with pytest.raises(UserError, match=r"damaged: .*remove it, and the run is made again"):
        FinishedRun.load(tmp_path, 1, Split(ids, ids, dict.fromkeys(("train", "valid", "test"), pairs)))
