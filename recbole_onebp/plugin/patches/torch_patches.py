"""torch 2.4 and 2.6: the gradient scaler, and checkpoints that hold a pickled Config."""

from __future__ import annotations

import functools
import io
import os
import types
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import wrapt

from recbole_onebp.plugin.patches.registry import ModuleView, patch, replace_everywhere
from recbole_onebp.util.files import write_atomically

__all__ = ["checkpoints", "grad_scaler"]


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


def _trusting_load(*args: Any, **kwargs: Any) -> Any:
    return torch.load(*args, **{"weights_only": False, **kwargs})


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
    so a run that is stopped while it saves loses the previous checkpoint too. Only RecBole's own calls change:
    torch.load stays strict."""

    def use(module: Any) -> None:
        module.torch = ModuleView(torch, load=_trusting_load, save=_atomic_save)

    use(import_module("recbole.trainer.trainer"))
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
