"""What a checkpoint may hold: types, ranges and shapes are checked before anything of a run is replaced.

Checksums tell damage, not who made a file: its values may be of any type and size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor

from recbole_onebp.engine import ema

__all__ = [
    "EpochRecord",
    "Values",
    "check_arrays",
    "check_counters",
    "check_generators",
    "check_model",
    "check_optimizer",
    "check_other",
    "checked_values",
]

_Seconds = Annotated[FiniteFloat, Field(ge=0)]
_WORDS = 624
"""Numbers in the state of a Mersenne twister."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class EpochRecord(_Strict):
    """A line of ``metrics.jsonl``."""

    epoch: NonNegativeInt
    train_loss: float | None
    train_seconds: _Seconds
    valid: dict[str, float]
    valid_seconds: _Seconds


class _EarlyStopping(_Strict):
    cur_step: NonNegativeInt
    best_valid_score: float
    best_valid_result: dict[str, float] | None


class _Trainer(_Strict):
    model: dict[str, Tensor]
    other_parameters: dict[str, Any]
    counters: dict[str, dict[str, int | float]]
    arrays: dict[str, Tensor]
    optimizers: dict[str, dict[str, Any]]
    early_stopping: _EarlyStopping


class _Generators(_Strict):
    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    cuda: list[Tensor]
    loaders: list[Tensor]


class Values(_Strict):
    """The values of a checkpoint, as :meth:`~recbole_onebp.run.checkpoint.saver.Saver.save` writes them."""

    epoch: NonNegativeInt
    step: NonNegativeInt
    loss: FiniteFloat
    stopped_early: bool
    trainer: _Trainer
    generators: _Generators
    epochs: list[EpochRecord]
    seconds: _Seconds
    epoch_seconds: _Seconds
    settings: dict[str, Any]
    data: dict[str, str]
    versions: dict[str, str]


def checked_values(values: Any) -> Values:
    """The values of a checkpoint.

    Raises:
        ValueError: if one has another type, or the records of the epochs are not those of the epochs before.
    """
    try:
        found = Values.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}") from None
    numbers = [epoch.epoch for epoch in found.epochs]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= found.epoch):
        raise ValueError(f"epochs {numbers[-3:]} before epoch {found.epoch}")
    return found


def check_generators(states: Mapping[str, Any], n_loaders: int) -> None:
    """Raise an error for the state of a generator that it cannot have, or for other numbers of loaders."""
    if len(states["loaders"]) != n_loaders:
        raise ValueError(f"{len(states['loaders'])} generators of loaders, expected {n_loaders}")
    version, words, gauss = states["python"]
    random.Random().setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    # numpy reads beyond its table at a position that is too high.
    if kind != "MT19937" or len(keys) != _WORDS or type(position) is not int or not 0 <= position <= _WORDS:
        raise ValueError("not a state of numpy's generator")
    if has_gauss not in (0, 1) or type(cached) is not float:
        raise ValueError("not a state of numpy's generator")
    np.random.RandomState().set_state((kind, np.asarray(keys, np.uint32), position, has_gauss, cached))
    for state in (states["torch"], *states["loaders"]):
        torch.Generator().set_state(state)


def check_optimizer(optimizer: torch.optim.Optimizer, values: Mapping[str, Any]) -> None:
    """Raise an error if the saved state of an optimizer has parameters, settings or shapes that it could not have."""
    groups, own_groups = values["param_groups"], optimizer.state_dict()["param_groups"]
    for group, own in zip(groups, own_groups, strict=True):
        if missing := own.keys() - group.keys() - _NEW_SETTINGS:
            raise ValueError(f"{min(missing)}: missing")
        for key in own.keys() & group.keys() - {"lr", "initial_lr"}:
            if group[key] != own[key]:
                raise ValueError(f"{key}: {str(group[key])[:40]}, expected {str(own[key])[:40]}")
        if list(group["params"]) != own["params"] or not 0 <= float(group["lr"]) < math.inf:
            raise ValueError("other parameters or learning rates")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed, allowed = _STATES.get(type(optimizer).__name__, (set(), set()))
    for number, state in values["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise ValueError(f"a state of parameter {str(number)[:40]}")
        if not needed <= state.keys() <= needed | allowed:
            raise ValueError(f"state of parameter {number}: {sorted(map(str, state))[:5]}")
        for key, value in state.items():
            if key != "step" and value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{key}: {str(value)[:40]}")
            numbers = value if isinstance(value, Tensor) else torch.tensor(0.0 if value is None else float(value))
            if key != "step" and isinstance(value, Tensor) and value.shape != parameters[number].shape:
                raise ValueError(f"{key}: shape {tuple(value.shape)}, expected {tuple(parameters[number].shape)}")
            if key == "step" and numbers.numel() != 1:
                raise ValueError(f"step: shape {tuple(numbers.shape)}")
            if not torch.isfinite(numbers).all() or (key in _NOT_NEGATIVE and (numbers < 0).any()):
                raise ValueError(f"{key}: not finite, or below 0")


_NEW_SETTINGS = {"foreach", "maximize", "capturable", "differentiable", "fused", "decoupled_weight_decay"}
"""Settings that older versions of torch do not save; torch fills them in."""
_NOT_NEGATIVE = {"step", "sum", "square_avg", "exp_avg_sq", "max_exp_avg_sq"}
_ADAM = {"step", "exp_avg", "exp_avg_sq"}, {"max_exp_avg_sq", ema.KEY}
_STATES: dict[str, tuple[set[str], set[str]]] = {
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "SparseAdam": _ADAM,
    "Adagrad": ({"step", "sum"}, set()),
    "RMSprop": ({"step", "square_avg"}, {"momentum_buffer", "grad_avg"}),
    "SGD": (set(), {"momentum_buffer"}),
}
"""What torch's optimizers keep of each parameter: always, and with some settings."""


def check_model(model: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Raise an error for tensors of other names or shapes than the model's, or that are not finite."""
    own = model.state_dict()
    if own.keys() != state.keys():
        raise ValueError(f"other tensors: {sorted(own.keys() ^ state.keys())[:3]}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape or tensor.dtype != own[name].dtype:
            expected = f"{own[name].dtype} {tuple(own[name].shape)}"
            raise ValueError(f"{name}: {tensor.dtype} {tuple(tensor.shape)}, expected {expected}")
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all() and torch.isfinite(own[name]).all():  # a mask may be infinite
            raise ValueError(f"{name}: values that are not finite")


def check_counters(own: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise an error for a counter of another type.  One may be missing: RaCT puts a tensor where a number was."""
    for name in own.keys() & values.keys():
        if type(values[name]) is not type(own[name]):
            raise TypeError(f"{name}: {values[name]!r}")


def check_arrays(own: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    """Raise an error for an array that a model does not keep, or of another type or shape, or that is not finite."""
    for name, value in values.items():
        mine = torch.as_tensor(own[name])
        if value.dtype != mine.dtype or value.shape != mine.shape:
            expected = f"{mine.dtype} {tuple(mine.shape)}"
            raise ValueError(f"{name[:80]}: {value.dtype} {tuple(value.shape)}, expected {expected}")
        if not torch.isfinite(value).all() and torch.isfinite(mine).all():
            raise ValueError(f"{name[:80]}: values that are not finite")


def check_other(model: Any, values: Mapping[str, Any]) -> None:
    """Raise an error for an attribute that a model does not keep outside its ``state_dict``, or of another shape."""
    own = model.other_parameter()
    sizes = {(1,), *((getattr(model, name, 1),) for name in ("n_users", "n_items", "n_entities", "n_nodes"))}
    for name, value in values.items():
        if name not in own:
            raise ValueError(f"{name[:40]}: not a parameter of {type(model).__name__}")
        mine = own[name]
        if isinstance(value, Tensor) and not (
            value.shape == mine.shape if isinstance(mine, Tensor) else mine is None and value.shape[:1] in sizes
        ):
            raise ValueError(f"{name}: shape {tuple(value.shape)}")
        if not isinstance(value, Tensor) and mine is not None and value is not None and type(value) is not type(mine):
            raise TypeError(f"{name}: a {type(value).__name__}")
