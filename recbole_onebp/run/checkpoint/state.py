"""Training state, and the settings and data that must match on resume."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from recbole_onebp import __version__
from recbole_onebp.config.schema import NO_RESULT
from recbole_onebp.data.item_embeddings import embedding_digests
from recbole_onebp.distributed.ranks import current
from recbole_onebp.run.checkpoint.checks import check_arrays, check_counters, check_optimizer, check_other
from recbole_onebp.run.folder import plain

__all__ = [
    "VERSIONS",
    "array_digests",
    "data_of",
    "differences",
    "generator_states",
    "load_other_parameters",
    "n_generators",
    "other_parameters",
    "restore_trainer",
    "set_generator_states",
    "settings_of",
    "summary_of",
    "trainer_state",
]

VERSIONS = {"recbole_onebp": __version__, **{name: version(name) for name in ("torch", "numpy", "numba")}}
"""The versions that a resumed run should have in common with the run that it continues."""


def trainer_state(trainer: Any, built: Mapping[str, str]) -> dict[str, Any]:
    """Everything that training changes in a RecBole trainer and its model.

    Optimizers are found by type, because RecVAE's trainer has several.  Of what modules keep outside their
    ``state_dict``, counters (MultiVAE's for annealing) are saved, and arrays that training has changed (DiffRec's
    losses by time step, LINE's shuffled users).

    Args:
        trainer: a RecBole trainer.
        built: what :func:`array_digests` returned before training.
    """
    return {
        "model": trainer.model.state_dict(),
        "other_parameters": other_parameters(trainer.model),
        "counters": {name: _counters(module) for name, module in trainer.model.named_modules()},
        "arrays": {
            name: torch.as_tensor(array).clone()
            for name, array in _arrays(trainer.model).items()
            if built.get(name, now := _digest(array)) != now
        },
        "optimizers": {name: optimizer.state_dict() for name, optimizer in _optimizers(trainer).items()},
        "early_stopping": {
            "cur_step": trainer.cur_step,
            "best_valid_score": trainer.best_valid_score,
            "best_valid_result": trainer.best_valid_result,
        },
    }


def restore_trainer(trainer: Any, state: Mapping[str, Any]) -> None:
    """Restore what :func:`trainer_state` returned.

    Raises:
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError: if it is of another trainer.
    """
    trainer.model.load_state_dict(state["model"])
    load_other_parameters(trainer.model, state["other_parameters"])
    for name, module in trainer.model.named_modules():
        check_counters(_counters(module), state["counters"][name])
        for key in _counters(module).keys() & state["counters"][name].keys():
            setattr(module, key, state["counters"][name][key])
    check_arrays(arrays := _arrays(trainer.model), state["arrays"])
    for name, value in state["arrays"].items():
        torch.as_tensor(arrays[name]).copy_(value)  # shares the memory of an array of numpy's
    optimizers = _optimizers(trainer)
    # A new trainer of RecVAE also has the optimizer that its own ones replace when training begins.
    if optimizers.keys() ^ state["optimizers"].keys() not in (set(), {"optimizer"}):
        raise ValueError(f"optimizers {sorted(state['optimizers'])}")
    for name, values in state["optimizers"].items():
        if not current().is_distributed:  # otherwise it holds the users of all ranks
            check_optimizer(optimizers[name], values)
        optimizers[name].load_state_dict(values)
    for name in ("cur_step", "best_valid_score", "best_valid_result"):
        setattr(trainer, name, state["early_stopping"][name])


def load_other_parameters(model: Any, values: Mapping[str, Any]) -> None:
    """Set what :func:`other_parameters` returned, and nothing else.

    Raises:
        TypeError, ValueError: for an attribute that the model does not keep so, or of another type or shape.
    """
    check_other(model, values)
    model.load_other_parameter(values)


def other_parameters(model: Any) -> dict[str, Any]:
    """The numbers and tensors of RecBole's ``other_parameter``: what a model keeps outside its ``state_dict``.

    Other values (layers, matrices and neighbours from the train data) are omitted: constructing the model creates them
    again, and what a file says of them could not be checked.
    """
    plain = (bool, int, float, str, np.generic, type(None))
    return {
        name: value
        for name, value in model.other_parameter().items()
        if isinstance(value, plain) or (isinstance(value, Tensor) and not value.is_sparse)
    }


def _counters(module: torch.nn.Module) -> dict[str, int | float]:
    """Numbers that a module may count in training.  Numbers of users and items differ between ranks: not saved."""
    return {
        key: value
        for key, value in vars(module).items()
        if type(value) in (int, float) and key not in ("n_users", "n_items")
    }


def array_digests(model: torch.nn.Module) -> dict[str, str]:
    """Hashes of the arrays that a model keeps outside its ``state_dict``, such as the histories of users, by name."""
    return {name: _digest(array) for name, array in _arrays(model).items()}


def _arrays(model: torch.nn.Module) -> dict[str, Tensor | np.ndarray[Any, Any]]:
    """Dense tensors and arrays of numbers, by the names of the module and its attribute."""
    found = {}
    for module_name, module in model.named_modules():
        for key, value in vars(module).items():
            is_dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.requires_grad
            if is_dense or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf"):
                found[f"{module_name}.{key}"] = value
    return found


def _digest(array: Tensor | np.ndarray[Any, Any]) -> str:
    numbers = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    digest = hashlib.sha256(f"{numbers.dtype} {numbers.shape}".encode())
    digest.update(np.ascontiguousarray(numbers).data)
    return digest.hexdigest()


def _optimizers(trainer: Any) -> dict[str, Optimizer]:
    found = {name: value for name, value in vars(trainer).items() if isinstance(value, Optimizer)}
    if trainer.optimizer in [value for name, value in found.items() if name != "optimizer"]:
        del found["optimizer"]  # an alias of one of several
    return found


# ---------------------------------------------------------------------------------------------------------- generators


def generator_states(loaders: Iterable[Any]) -> dict[str, Any]:
    """States of all random generators: the global ones of Python, numpy and torch, and those of the loaders."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "loaders": [generator.get_state() for generator in _generators(loaders)],
    }


def set_generator_states(states: Mapping[str, Any], loaders: Iterable[Any]) -> None:
    """Restore what :func:`generator_states` returned."""
    random.setstate((states["python"][0], tuple(states["python"][1]), states["python"][2]))
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    for generator, state in zip(_generators(loaders), states["loaders"], strict=True):
        generator.set_state(state)


def n_generators(loaders: Iterable[Any]) -> int:
    """Number of generators of the loaders."""
    return len(_generators(loaders))


def _generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """A knowledge-aware model's loader contains two loaders, for interactions and for triples."""
    found = []
    for loader in (loader for loader in loaders if loader is not None):
        parts = [loader] if isinstance(loader, DataLoader) else vars(loader).values()
        found += [part.generator for part in parts if isinstance(part, DataLoader)]
    return found


# ------------------------------------------------------------------------------------------------- settings and data


def settings_of(config: Any) -> dict[str, Any]:
    """The settings that a result depends on, except ``epochs``, so that a finished run can be continued.

    RecBole validates every ``eval_step`` epochs, or once if ``epochs`` is smaller: the smaller number is returned.
    """
    values = {key: value for key, value in config.final_config_dict.items() if key not in NO_RESULT | {"epochs"}}
    return {**plain(values), "eval_step": min(config["eval_step"], config["epochs"])}


def data_of(dataset: Any, loaders: Mapping[str, Any]) -> dict[str, str]:
    """A summary of the data, of all ranks: counts, and a hash of all columns of each part."""
    parts = {name: None if loader is None else loader._dataset for name, loader in loaders.items()}
    features = {name: getattr(dataset, f"{name}_feat", None) for name in ("user", "item")}
    return {
        "users": str(dataset.user_num - 1),
        "items": str(dataset.item_num - 1),
        **{name: getattr(part, "summary", None) or summary_of(part) for name, part in parts.items()},
        **{f"{name} features": _summary(rows, "rows") for name, rows in features.items()},
        **embedding_digests(dataset),
    }


def summary_of(part: Any) -> str:
    """Number of interactions of a part, and a hash of them."""
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
    """Describe what differs; empty if nothing does.  If the models differ, only that is described."""
    keys = ["model"] if then.get("model") != now.get("model") else sorted(then.keys() | now.keys())
    changed = (key for key in keys if then.get(key) != now.get(key))
    return "; ".join(f"{key}: {then.get(key)} then, {now.get(key)} now" for key in changed)
