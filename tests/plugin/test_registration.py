"""RecBole's own entry points take OneBP by name."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils import get_model, get_trainer
from recbole.utils.case_study import full_sort_scores, full_sort_topk

import recbole_onebp
from recbole_onebp.config.properties import properties_dir
from recbole_onebp.util.errors import UserError
from support import fresh

QUIET = {"epochs": 1, "show_progress": False, "embedding_size": 8}


def test_run_recbole():
    result = run_recbole(model="OneBP", dataset="ml-100k", config_dict={**QUIET, "epochs": 2})
    assert result["test_result"]["recall@10"] > 0.05
    assert Path("saved").is_dir()


def test_run_recbole_and_build_give_the_same_numbers(tiny, tiny_config):
    theirs = run_recbole(model="OneBP", dataset="tiny", config_dict=dict(tiny_config))
    ours = tiny(output_dir="ours").fit()
    assert ours.test == dict(theirs["test_result"])
    assert ours.valid == dict(theirs["best_valid_result"])


def test_run_recbole_and_build_give_the_same_numbers_for_a_baseline(tiny, tiny_config):
    theirs = run_recbole(model="BPR", dataset="tiny", config_dict=dict(tiny_config))
    assert tiny("BPR", output_dir="ours").fit().test == dict(theirs["test_result"])


def test_config_has_our_defaults():
    config = Config(model="OneBP", dataset="ml-100k")
    defaults = yaml.safe_load((properties_dir() / "model" / "OneBP.yaml").read_text())
    assert defaults["aggregation"] == "interval"
    assert {key: config[key] for key in defaults} == defaults
    assert Config(model="OneBP", dataset="ml-100k", config_dict={"beta": 0.5})["beta"] == 0.5
    assert "beta" not in Config(model="BPR", dataset="ml-100k")


def test_presets_lie_between_the_defaults_and_what_is_given(tmp_path):
    paper = {"preset": "paper"}
    published = Config(model="OneBP", dataset="onebp-ml-100k", config_dict=dict(paper))
    assert (published["embedding_size"], published["learning_rate"], published["epochs"]) == (32, 5e-4, 2000)
    assert (published["duplicates"], published["train_batch_size"]) == ("last", 5120)
    gowalla = Config(model="OneBP", dataset="gowalla", config_dict=dict(paper))
    assert (gowalla["embedding_size"], gowalla["beta"]) == (1024, 0.999)
    elsewhere = Config(model="OneBP", dataset="my-data", config_dict={**paper, "beta": 0.5})
    assert (elsewhere["beta"], elsewhere["temperature"]) == (0.5, 1.0)
    tuned = Config(model="OneBP", dataset="gowalla", config_dict={"preset": "tuned", "aggregation_alpha": 0.5})
    assert (tuned["negative_weight"], tuned["aggregation_alpha"], tuned["temperature"]) == (1.25, 0.5, 0.1)
    assert Config(model="OneBP", dataset="my-data", config_dict={"preset": "tuned"})["negative_weight"] == 0
    with pytest.raises(UserError, match="known presets: default, paper, tuned"):
        Config(model="OneBP", dataset="ml-100k", config_dict={"preset": "papper"})


def test_get_model_and_get_trainer():
    assert get_model("OneBP") is recbole_onebp.OneBP
    assert get_trainer(recbole_onebp.OneBP.type, "OneBP") is recbole_onebp.OneBPTrainer
    assert get_trainer(get_model("BPR").type, "BPR").__name__ == "Trainer"


def test_load_data_and_model_of_our_run_and_of_recboles(tiny, tiny_config, tmp_path):
    run = tiny(recbole_checkpoint=True)
    run.fit()
    strict = torch.load
    config, model, dataset, *_, test_data = load_data_and_model(str(tmp_path / "run" / "checkpoint.pth"))
    assert torch.load is strict
    assert config["model"] == "OneBP"
    assert torch.equal(
        model.user_table,
        torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=False)["state_dict"]["user_table"],
    )
    assert dataset.user_num == 31
    assert recbole_onebp.OneBPTrainer(config, model).evaluate(test_data, load_best_model=False)["recall@10"] > 0

    run_recbole(model="OneBP", dataset="tiny", config_dict={**tiny_config, "output_dir": str(tmp_path / "theirs")})
    (saved,) = (tmp_path / "theirs").glob("OneBP-*.pth")
    assert load_data_and_model(str(saved))[1].user_table.shape == (31, 8)


def test_case_study(tiny):
    run = tiny()
    run.fit()
    users = run.dataset.token2id("user_id", ["u0", "u1", "u2"])
    scores, items = full_sort_topk(users, run.model, run.test_data, k=5)
    assert items.shape == (3, 5)
    assert 0 not in items
    everything = full_sort_scores(users, run.model, run.test_data)
    assert everything.shape == (3, 41)
    torch.testing.assert_close(everything.gather(1, items), scores)
    history = run.train_data.dataset.inter_feat
    for user, row in zip(users, items, strict=True):
        assert not set(history["item_id"][history["user_id"] == user].tolist()) & set(row.tolist())


def test_objective_function_of_hyper_tuning(tiny_config):
    config = {**tiny_config, "model": "OneBP", "dataset": "tiny"}
    assert objective_function(config_dict=config)["test_result"]["recall@10"] > 0


def test_hyper_tuning(tiny_config, tmp_path):
    pytest.importorskip("hyperopt")
    if version("hyperopt") != "0.2.5":  # what RecBole's code is written for; it needs setuptools < 81 besides
        pytest.skip("RecBole's search needs hyperopt 0.2.5")
    from recbole.trainer import HyperTuning

    fixed, space = tmp_path / "fixed.yaml", tmp_path / "space.txt"
    fixed.write_text(yaml.safe_dump({**tiny_config, "model": "OneBP", "dataset": "tiny"}))
    space.write_text("beta choice [0.5, 0.99]\n")
    tuning = HyperTuning(
        objective_function, params_file=str(space), algo="exhaustive", fixed_config_file_list=[str(fixed)]
    )
    tuning.run()
    assert tuning.best_params["beta"] in (0.5, 0.99)


@pytest.mark.parametrize(
    "first",
    [
        "from recbole_onebp.model import OneBP",
        "from recbole_onebp.trainer import OneBPTrainer",
        "from recbole_onebp.config.schema import OneBPConfig",
        "from recbole_onebp.run.build import build",
        "from recbole_onebp import OneBP",
        "import recbole_onebp",
        "import recbole.trainer, recbole.utils; import recbole_onebp",
        "import recbole_onebp; import recbole",
    ],
)
def test_it_does_not_matter_what_is_imported_first(first):
    code = (
        f"{first}\n"
        "from recbole.utils import get_model, get_trainer\n"
        "from recbole.quick_start import run_recbole\n"
        "from recbole_onebp.plugin.patches import STATUS\n"
        "assert STATUS and not [s for s in STATUS.values() if s.startswith('failed')], STATUS\n"
        "import recbole_onebp, sys\n"
        "assert get_model('OneBP') is recbole_onebp.OneBP\n"
        "assert get_trainer(None, 'OneBP') is recbole_onebp.OneBPTrainer\n"
        "import recbole.data.interaction as i; i.Interaction({'a': [1.0, 2.0]})\n"
    )
    fresh.check(code)


def test_numpy_ids_are_taken_by_the_case_study(tiny):
    run = tiny(epochs=1)
    run.fit()
    assert full_sort_topk(np.array([1, 2]), run.model, run.test_data, k=3)[1].shape == (2, 3)
