"""Configuration keys: which exist, their types and bounds, and the YAML files of defaults."""

from __future__ import annotations

from typing import Any

__all__ = ["OneBPConfig", "RunConfig"]


def __getattr__(name: str) -> Any:
    """Load the schema, which needs torch and RecBole, only when it is asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recbole_onebp.config import schema

    return getattr(schema, name)
