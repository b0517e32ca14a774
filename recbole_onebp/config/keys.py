"""Which configuration keys exist, and which one was meant by a key that does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from recbole_onebp.config.properties import properties_dir
from recbole_onebp.util.errors import UserError

__all__ = ["NO_RESULT", "check_keys", "check_model_name", "model_names", "nearest"]

RUN_KEYS = frozenset(
    {"output_dir", "fast_sampler", "fast_evaluator", "eval_memory_mb", "refit", "split_seed", "resume"}
    | {"recbole_checkpoint", "dist_timeout"}
)
"""What our own commands read beside the model's keys."""

NO_RESULT = frozenset(
    {"output_dir", "checkpoint_dir", "data_path", "show_progress", "state", "device", "gpu_id", "eval_memory_mb"}
    | {"resume", "recbole_checkpoint", "log_wandb", "wandb_project", "save_dataset", "save_dataloaders"}
    | {"dataset_save_path", "dataloaders_save_path", "loss_decimal_place", "local_rank", "single_spec", "nproc"}
    | {"world_size", "offset", "ip", "port", "dist_timeout", "data_cache"}
)
"""Keys that no result depends on."""

# Read by RecBole's code, though none of its YAML files names them.
_UNLISTED = frozenset(
    {"model", "dataset", "config_files", "encoding", "tail_ratio", "token_num_threshold", "xgb_early_stopping_rounds"}
    | {"local_rank", "world_size", "offset", "nproc", "ip", "port", "neg_sampling", "training_neg_sample_num"}
)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known word most like this one, else nothing."""
    by_lower = {name.lower(): name for name in sorted(known)}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[match[0]]}?" if match else ""


def _recbole_properties() -> Path:
    return Path(import_module("recbole").__file__ or "").parent / "properties"


def _keys_of(path: Path) -> set[str]:
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    return set(content) if isinstance(content, dict) else set()


@lru_cache(maxsize=1)
def model_names() -> frozenset[str]:
    """The names that ``--model`` takes: those of RecBole's models, and OneBP."""
    names = {path.stem for path in (_recbole_properties() / "model").glob("*.yaml")} - {"lightgbm", "xgboost"}
    return frozenset(names | {"OneBP", "LightGBM", "XGBoost", "Random"})


def check_model_name(name: str) -> None:
    """Raise :class:`UserError` for a model that does not exist, naming the nearest that does."""
    if name not in model_names():
        hint = nearest(name, model_names()) or f"; known models: {', '.join(sorted(model_names()))}"
        raise UserError(f"model: there is none named {name!r}{hint}")


@lru_cache(maxsize=1)
def _general_keys() -> frozenset[str]:
    arguments = import_module("recbole.utils.argument_list")
    lists = (getattr(arguments, f"{kind}_arguments") for kind in ("general", "training", "evaluation", "dataset"))
    files = [
        _recbole_properties() / "overall.yaml",
        *(path for path in (_recbole_properties() / "dataset").glob("*.yaml") if not path.stem.endswith("url")),
        *(_recbole_properties() / "quick_start_config").glob("*.yaml"),
    ]
    return frozenset().union(_UNLISTED, RUN_KEYS, *lists, *map(_keys_of, files))


@lru_cache(maxsize=1)
def _model_keys() -> dict[str, frozenset[str]]:
    folders = (_recbole_properties() / "model", properties_dir() / "model")
    return {path.stem: frozenset(_keys_of(path)) for folder in folders for path in folder.glob("*.yaml")}


def check_keys(given: Iterable[str], model: str) -> list[str]:
    """Refuse keys that nobody knows.

    Args:
        given: the keys that the user set, wherever.
        model: the model they are for.

    Returns:
        The keys that only other models read: they do nothing here, and a shared config may well carry them.

    Raises:
        UserError: for a key that is neither RecBole's, nor any model's, nor ours; it names the nearest known one.
    """
    of_models = _model_keys()
    own = _general_keys() | of_models.get(model, frozenset())
    known = own.union(*of_models.values())
    others = []
    for key in given:
        if key not in known:
            raise UserError(f"{key}: no such configuration key{nearest(str(key), known)}")
        if key not in own:
            others.append(key)
    return others
