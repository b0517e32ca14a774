"""RecBole's general recommenders, and settings that make them small."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import recbole

from recbole_onebp.config.keys import model_names

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


def has(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True
