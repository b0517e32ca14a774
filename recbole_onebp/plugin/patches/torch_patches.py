"""torch 2.4 and 2.6: the gradient scaler, checkpoints that hold a pickled Config, and a slow first optimizer."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import wrapt

from recbole_onebp.plugin.patches.registry import ModuleView, patch, replace_everywhere
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["checkpoints", "grad_scaler", "optimizers_without_compiler"]


def _old_scaler_is_deprecated() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.amp.GradScaler(enabled=False)
    return any(issubclass(warning.category, FutureWarning) for warning in caught)


@patch("no issue yet: since torch 2.4", _old_scaler_is_deprecated)
def grad_scaler() -> None:
    """Every epoch makes a torch.cuda.amp.GradScaler, which warns that it is deprecated for torch.amp.GradScaler."""
    trainer_module: Any = import_module("recbole.trainer.trainer")
    # RecBole's trainers use these two names of the old module and no other.
    trainer_module.amp = types.SimpleNamespace(
        GradScaler=torch.amp.GradScaler, autocast=functools.partial(torch.amp.autocast, "cuda")
    )


_OUTSIDE_COMPILER = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""Methods of an optimizer that torch excludes from compilation."""
_EXCLUDED = "__dynamo_disable"
"""Where torch keeps the excluded form of a function, once its compiler is imported."""


def _functions() -> list[Any]:
    methods = [getattr(torch.optim.Optimizer, name) for name in _OUTSIDE_COMPILER]
    return [method.__wrapped__ for method in methods if hasattr(method, "__wrapped__")]


def _optimizers_import_the_compiler() -> bool:
    excluded = [hasattr(function, _EXCLUDED) for function in _functions()]
    return "torch._dynamo" not in sys.modules and len(excluded) > 0 and not any(excluded)


@patch("none: torch's own", _optimizers_import_the_compiler)
def optimizers_without_compiler() -> None:
    """The first optimizer imports torch's compiler, more than a second, to exclude a method from compilation. Until
    somebody imports the compiler there is nothing to exclude the method from."""
    for function in _functions():
        setattr(function, _EXCLUDED, function)

    def forget(_compiler: Any) -> None:
        for function in _functions():
            if getattr(function, _EXCLUDED, None) is function:
                delattr(function, _EXCLUDED)

    wrapt.register_post_import_hook(forget, "torch._dynamo")


def _trusting_load(*args: Any, **kwargs: Any) -> Any:
    return torch.load(*args, **{"weights_only": False, **kwargs})


class _Unread:
    """In place of every object of a checkpoint that is neither a tensor nor plain: its class is not called."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> _Unread:
        return super().__new__(cls)

    def __call__(self, *_args: Any, **_kwargs: Any) -> _Unread:
        return self

    def __setstate__(self, _state: Any) -> None: ...


_READ = {("collections", "OrderedDict"), ("torch", "Size"), ("torch.serialization", "_get_layout")} | {
    ("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter")
}
"""Classes and functions that tensors are pickled with, in addition to torch's storages and dtypes."""


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _READ or (module == "torch" and name.endswith("Storage") and "." not in name):
            return super().find_class(module, name)
        return _Unread


def _load_tensors(file: Any, map_location: Any = None) -> Any:
    """Load tensors and plain values of a checkpoint of RecBole.  No class or function that it names is called."""
    reader = types.SimpleNamespace(
        __name__="pickle", Unpickler=_TensorsOnly, load=lambda f, **k: _TensorsOnly(f, **k).load()
    )
    try:
        found = torch.load(file, map_location, pickle_module=reader, weights_only=False)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise UserError(f"{file}: cannot be read as a checkpoint of RecBole: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise UserError(f"{file}: is no checkpoint of RecBole: it has no state_dict")
    return found


def _atomic_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(f, (str, os.PathLike)):
        write_atomically(Path(f), lambda temporary: torch.save(obj, temporary, *args, **kwargs))
    else:
        torch.save(obj, f, *args, **kwargs)


# These models load pretrained parameters from RecBole's checkpoints.
_PRETRAINED = [
    f"recbole.model.{kind}_recommender.{name}"
    for kind, name in [
        ("general", "convncf"),
        ("general", "nais"),
        ("general", "neumf"),
        ("general", "ract"),
        ("sequential", "s3rec"),
        ("context_aware", "kd_dagfm"),
    ]
]


def _load_refuses_objects() -> bool:
    buffer = io.BytesIO()
    torch.save(import_module("recbole.utils").ModelType.GENERAL, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer)
    except Exception:
        return True
    return False


def _saves_in_place() -> bool:
    save = import_module("recbole.trainer").Trainer._save_checkpoint
    return "replace" not in save.__code__.co_names


@patch("R#2212", lambda: _load_refuses_objects() or _saves_in_place())
def checkpoints() -> None:
    """RecBole's checkpoints hold a pickled Config, which torch.load refuses since 2.6. They are also written in place,
    so a run that is stopped while it saves loses the previous checkpoint too. Models that start from a checkpoint
    named by a key read its tensors and plain values only. Only RecBole's own calls change: torch.load stays strict."""

    trainer_module: Any = import_module("recbole.trainer.trainer")
    trainer_module.torch = ModuleView(torch, load=_trusting_load, save=_atomic_save)

    def use(module: Any) -> None:
        module.torch = ModuleView(torch, load=_load_tensors)

    for name in _PRETRAINED:
        wrapt.register_post_import_hook(use, name)

    # load_data_and_model imports torch inside the function, so its module cannot be given a view. Its first statement
    # calls torch.load: that function is replaced until then.
    quick_start = import_module("recbole.quick_start.quick_start")
    original = quick_start.load_data_and_model

    @wrapt.decorator
    def trusting(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        strict = torch.load

        def load_once(*load_args: Any, **load_kwargs: Any) -> Any:
            torch.load = strict
            return _trusting_load(*load_args, **load_kwargs)

        torch.load = load_once
        try:
            return wrapped(*args, **kwargs)
        finally:
            torch.load = strict

    replace_everywhere(original, trusting(original))
