"""numpy 1.24 and 2: names that were removed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import wrapt

from recbole_onebp.plugin.patches.registry import ModuleView, patch
from recbole_onebp.util.errors import UserError

__all__ = ["array_wrap", "numpy_aliases", "plain_arrays"]

_ALIASES: dict[str, Any] = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def _aliases_are_gone() -> bool:
    return "float" not in vars(np)  # hasattr would make numpy warn


@patch("R#1604, R#2162, R#2216", _aliases_are_gone)
def numpy_aliases() -> None:
    """Data structures, metrics and layers use np.float, np.bool, ..., which numpy 1.24 removed. RecBole's Config
    restores them, but from names that numpy 2 removed."""

    def compatibility_settings(_self: Any = None) -> None:
        for name, value in _ALIASES.items():
            if name not in vars(np):
                setattr(np, name, value)

    import_module("recbole.config").Config.compatibility_settings = compatibility_settings
    compatibility_settings()  # RecBole's data structures need them before there is a Config


def _ldiffrec_unpickles() -> bool:
    found = find_spec("recbole.model.general_recommender.ldiffrec")
    return found is not None and "allow_pickle=True" in Path(str(found.origin)).read_text(encoding="utf-8")


def _load_plain(path: str, **_options: Any) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: expected a plain array of numbers: {error}") from None


@patch("no issue yet: always", _ldiffrec_unpickles)
def plain_arrays() -> None:
    """LDiffRec unpickles item_emb.npy, which lies beside the data, so data of somebody else could run code."""

    def use(module: Any) -> None:
        module.np = ModuleView(np, load=_load_plain)

    wrapt.register_post_import_hook(use, "recbole.model.general_recommender.ldiffrec")


def _array_wrap_is_deprecated() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.argsort(torch.zeros(1), kind="stable")
    return bool(caught)


@patch("no issue yet: since numpy 2", _array_wrap_is_deprecated)
def array_wrap() -> None:
    """Interaction.sort passes a tensor to np.argsort, and numpy warns that torch's __array_wrap__ is outdated: with
    python -W error no evaluation can be prepared."""

    def quietly(wrapped: Callable[..., Any], _interaction: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="__array_wrap__")
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper("recbole.data.interaction", "Interaction.sort", quietly)
