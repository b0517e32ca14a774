"""Checks of names: which models and keys exist, with the nearest name for one that does not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from recbole_onebp.config.properties import model_folders
from recbole_onebp.config.schema import RUN_KEYS
from recbole_onebp.config.suggest import nearest
from recbole_onebp.util.errors import UserError

__all__ = ["check_keys", "check_model_name", "comparison_keys", "keys_read_by", "model_names", "nearest"]


def _recbole_properties() -> Path:
    return Path(import_module("recbole").__file__ or "").parent / "properties"


def _recbole_arguments(*kinds: str) -> frozenset[str]:
    """RecBole's lists of ``general``, ``training``, ``evaluation`` or ``dataset`` keys."""
    arguments = import_module("recbole.utils.argument_list")
    return frozenset().union(*(getattr(arguments, f"{kind}_arguments") for kind in kinds))


def _keys_of(path: Path) -> set[str]:
    content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    return set(content) if isinstance(content, dict) else set()


def _model_files() -> list[Path]:
    """The defaults of all models: RecBole's, ours and the user's own."""
    folders = [_recbole_properties() / "model", *model_folders()]
    return [path for folder in folders for path in folder.glob("*.yaml")]


@lru_cache(maxsize=1)
def model_names() -> frozenset[str]:
    """The names that ``--model`` accepts: RecBole's models, ours and the user's own."""
    names = {path.stem for path in _model_files()} - {"lightgbm", "xgboost"}
    return frozenset(names | {"LightGBM", "XGBoost", "Random"})


def check_model_name(name: str) -> None:
    """Raise :class:`UserError` for a model that does not exist, with the nearest name that does."""
    if name not in model_names():
        hint = nearest(name, model_names()) or f"; known models: {', '.join(sorted(model_names()))}"
        raise UserError(f"model: there is none named {name!r}{hint}")


def comparison_keys() -> frozenset[str]:
    """Keys of data and evaluation: models that are compared must agree in them."""
    return (_recbole_arguments("dataset", "evaluation") | {"refit"}) - {"eval_batch_size"}


@lru_cache(maxsize=1)
def _general_keys() -> frozenset[str]:
    files = [
        _recbole_properties() / "overall.yaml",
        *(path for path in (_recbole_properties() / "dataset").glob("*.yaml") if not path.stem.endswith("url")),
        *(_recbole_properties() / "quick_start_config").glob("*.yaml"),
    ]
    lists = _recbole_arguments("general", "training", "evaluation", "dataset")
    return frozenset().union(RUN_KEYS, lists, *map(_keys_of, files))


@lru_cache(maxsize=1)
def _model_keys() -> dict[str, frozenset[str]]:
    return {path.stem: frozenset(_keys_of(path)) for path in _model_files()}


def keys_read_by(model: str) -> frozenset[str]:
    """The keys of any run, and those of a model."""
    return _general_keys() | _model_keys().get(model, frozenset())


def check_keys(given: Iterable[str], model: str) -> list[str]:
    """Refuse unknown keys.

    Args:
        given: the keys that the user set, in files or as arguments.
        model: the model they are for.

    Returns:
        The keys that only other models read. They have no effect, and a config file that several models share may
        contain them.

    Raises:
        UserError: for a key that neither RecBole, nor any model, nor this package knows, with the nearest known one.
    """
    own = keys_read_by(model)
    known = own.union(*_model_keys().values())
    others = []
    for key in given:
        if key not in known:
            raise UserError(f"{key}: no such configuration key{nearest(str(key), known)}")
        if key not in own:
            others.append(key)
    return others
