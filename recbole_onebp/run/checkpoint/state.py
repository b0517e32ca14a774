"""What makes a run: all that training changes, and what it must be the same as to go on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from recbole_onebp.config.schema import NO_RESULT
from recbole_onebp.run.checkpoint.store import pack
from recbole_onebp.run.folder import plain

__all__ = [
    "data_of",
    "differences",
    "generator_states",
    "other_parameters",
    "restore_trainer",
    "set_generator_states",
    "settings_of",
    "summary_of",
    "trainer_state",
]


def trainer_state(trainer: Any) -> dict[str, Any]:
    """What training has changed in a trainer of RecBole's and its model.

    Optimizers are found by type, since RecVAE's trainer has several; what a module counts with (the annealing of
    MultiVAE) is in no ``state_dict``.
    """
    return {
        "model": trainer.model.state_dict(),
        "other_parameters": other_parameters(trainer.model),
        "counters": {name: _counters(module) for name, module in trainer.model.named_modules()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in _optimizers(trainer).items()},
        "early_stopping": {
            "cur_step": trainer.cur_step,
            "best_valid_score": trainer.best_valid_score,
            "best_valid_result": trainer.best_valid_result,
        },
    }


def restore_trainer(trainer: Any, state: Mapping[str, Any]) -> None:
    """Put back what :func:`trainer_state` returned."""
    trainer.model.load_state_dict(state["model"])
    trainer.model.load_other_parameter(state["other_parameters"])
    for name, module in trainer.model.named_modules():
        for key in _counters(module):
            setattr(module, key, state["counters"][name][key])
    optimizers = _optimizers(trainer)
    for name, values in state["optimizers"].items():
        optimizers[name].load_state_dict(values)
    for name in ("cur_step", "best_valid_score", "best_valid_result"):
        setattr(trainer, name, state["early_stopping"][name])


def other_parameters(model: Any) -> dict[str, Any]:
    """RecBole's name for results that a model keeps beside its ``state_dict``, as far as they are plain.

    The others (layers, matrices of the train data) are what making the model made of them.
    """
    kept = {}
    for name, value in model.other_parameter().items():
        try:
            pack(value, {})
        except TypeError:
            continue
        kept[name] = value
    return kept


def _counters(module: torch.nn.Module) -> dict[str, int | float]:
    """What is counted in training; the users and items are not, which in several processes are a rank's own."""
    return {
        key: value
        for key, value in vars(module).items()
        if type(value) in (int, float) and key not in ("n_users", "n_items")
    }


def _optimizers(trainer: Any) -> dict[str, Optimizer]:
    found = {name: value for name, value in vars(trainer).items() if isinstance(value, Optimizer)}
    if trainer.optimizer in [value for name, value in found.items() if name != "optimizer"]:
        del found["optimizer"]  # one of several, whose turn it is
    return found


# ---------------------------------------------------------------------------------------------------------- generators


def generator_states(loaders: Iterable[Any]) -> dict[str, Any]:
    """The state of every generator: Python's, numpy's and torch's global ones, and the loaders' own."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_generator_states(states: Mapping[str, Any], loaders: Iterable[Any]) -> None:
    """Put back what :func:`generator_states` returned."""
    random.setstate((states["python"][0], tuple(states["python"][1]), states["python"][2]))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    for generator, state in zip(_generators(loaders), states["loaders"], strict=True):
        generator.set_state(state)


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The loader of a knowledge-aware model has one for pairs and one for triples inside."""
    found = []
    for loader in (loader for loader in loaders if loader is not None):
        parts = [loader] if isinstance(loader, DataLoader) else vars(loader).values()
        found += [part.generator for part in parts if isinstance(part, DataLoader)]
    return found


# ------------------------------------------------------------------------------------------------- settings and data


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that a result depends on; how many epochs there are is not among them, so that a run can be longer.

    RecBole validates after every ``eval_step`` epochs, or once if there are fewer.
    """
    values = {key: value for key, value in config.final_config_dict.items() if key not in NO_RESULT | {"epochs"}}
    return {**plain(values), "eval_step": min(config["eval_step"], config["epochs"])}


def data_of(dataset: Any, loaders: Mapping[str, Any]) -> dict[str, str]:
    """What the data are: counts, and a hash of everything that is read of each part; those of all ranks' users."""
    parts = {name: None if loader is None else loader._dataset for name, loader in loaders.items()}
    features = {name: getattr(dataset, f"{name}_feat", None) for name in ("user", "item")}
    return {
        "users": str(dataset.user_num - 1),
        "items": str(dataset.item_num - 1),
        **{name: getattr(part, "summary", None) or summary_of(part) for name, part in parts.items()},
        **{f"{name} features": _summary(rows, "rows") for name, rows in features.items()},
    }


def summary_of(part: Any) -> str:
    """How many interactions a part has, and a hash of them."""
    return _summary(None if part is None else part.inter_feat, "interactions")


def _summary(rows: Any, what: str) -> str:
    if rows is None:
        return "none"
    digest = hashlib.sha256()
    for name in sorted(rows.columns):
        column: Tensor = rows[name]
        digest.update(f"{name} {column.dtype} {tuple(column.shape)}".encode())
        digest.update(np.ascontiguousarray(column.numpy()).data)
    return f"{len(rows)} {what} (SHA-256 {digest.hexdigest()[:16]})"


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not the same, in words; empty if everything is.  Of another model that is all there is to say."""
    keys = ["model"] if then.get("model") != now.get("model") else sorted(then.keys() | now.keys())
    changed = (key for key in keys if then.get(key) != now.get(key))
    return "; ".join(f"{key}: {then.get(key)} then, {now.get(key)} now" for key in changed)
