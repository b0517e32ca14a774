"""Every general recommender of RecBole trains one epoch and evaluates, or says what it needs."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import pytest
import recbole
from recbole.trainer import TraditionalTrainer

import recbole_onebp
from recbole_onebp.errors import UserError
from recbole_onebp.keys import model_names

_MODULES = {path.stem for path in (Path(recbole.__file__).parent / "model" / "general_recommender").glob("[a-z]*.py")}
MODELS = sorted(name for name in model_names() if name.lower() in _MODULES)

NEEDS = {"NCL": "faiss"}
"""Packages that RecBole does not ask for, though a model imports them."""

SMALL = {
    "ConvNCF": {"embedding_size": 16, "cnn_channels": [1, 8, 8], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
    "DGCF": {"train_batch_size": 20_000, "n_layers": 1},
    "NAIS": {"embedding_size": 4, "weight_size": 4},
    "NCL": {"num_clusters": 100},
    "NNCF": {"num_conv_kernel": 2, "neigh_embedding_size": 4, "eval_args": {"mode": "uni100"}},
    "RecVAE": {"mlp_hidden_size": [64]},
    "RaCT": {"pretrain_epochs": 1, "train_stage": "actor_pretrain"},
}
"""Smaller than the model's defaults, which take minutes an epoch on a CPU, or (NCL) more clusters than users."""


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


def has(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True
