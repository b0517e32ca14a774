"""Configuration: the schema of keys, RecBole's configuration object, and the YAML files of defaults."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["OneBPConfig", "RunConfig"]

_HOMES = {"OneBPConfig": "schema", "RunConfig": "recbole_config"}


def __getattr__(name: str) -> Any:
    """Import torch and RecBole, which the two classes need, only when one of them is used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
