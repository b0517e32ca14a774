"""Finds the YAML files of ``properties/`` in a wheel, a clone and an editable install."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def properties_dir() -> Path:
    """The folder with ``model/``, ``preset/``, ``dataset/``, ``compare/`` and ``tune/``."""
    # Inside the package in a wheel; next to it in a clone, which an editable install also uses.
    inside = _PACKAGE / "properties"
    return inside if inside.is_dir() else _PACKAGE.parent / "properties"


def property_file(kind: str, name: str) -> Path | None:
    """``properties/<kind>/<name>.yaml`` if there is one; a kind is a folder there."""
    path = properties_dir() / kind / f"{name}.yaml"
    return path if path.is_file() else None
