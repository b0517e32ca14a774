"""Every general recommender of RecBole trains one epoch and evaluates, or says what it needs."""

from __future__ import annotations

import math

import pytest
from recbole.trainer import TraditionalTrainer

import recbole_onebp
from recbole_onebp.util.errors import UserError
from support.recbole_models import MODELS, NEEDS, SMALL, has


def test_the_list_is_recboles():
    assert len(MODELS) == 33
    assert {"BPR", "LightGCN", "EASE", "Random"} <= set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_epoch_on_ml_100k(name, tmp_path):
    package = NEEDS.get(name)
    config = {
        "epochs": 1,
        "show_progress": False,
        "output_dir": str(tmp_path),
        "metrics": ["Recall", "NDCG"],
        "topk": [20],
        "valid_metric": "NDCG@20",
        "eval_batch_size": 400_000,
        **SMALL.get(name, {}),
    }
    if package and not has(package):
        with pytest.raises(UserError, match=f"{name} needs the package {package}"):
            recbole_onebp.build(name, "ml-100k", config_dict=config).fit()
        pytest.skip(f"{name} needs {package}")
    run = recbole_onebp.build(name, "ml-100k", config_dict=config)
    result = run.fit()
    assert result.epochs_run == 1
    assert set(result.test) == {"recall@20", "ndcg@20"}
    assert all(math.isfinite(value) and 0 < value < 1 for value in result.test.values())
    kept = set() if isinstance(run.trainer, TraditionalTrainer) else {"model.safetensors", "checkpoint"}
    assert {path.name for path in tmp_path.iterdir()} >= {"result.json", "config.yaml", *kept}
