"""Finds the YAML files of ``properties/`` in a wheel, a clone and an editable install."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError

_PACKAGE = Path(__file__).parents[1]


def properties_dir() -> Path:
    """The folder with ``model/``, ``preset/``, ``dataset/``, ``compare/`` and ``tune/``."""
    # Inside the package in a wheel; next to it in a clone, which an editable install also uses.
    inside = _PACKAGE / "properties"
    return inside if inside.is_dir() else _PACKAGE.parent / "properties"


def own_models() -> list[Path]:
    """The folder of the user's own models, if there is one: ``mine.py`` with the class ``Mine``, and ``Mine.yaml``.

    Only the environment names it, and no file of a run does: its modules are run.
    """
    folder = os.environ.get("RECBOLE_ONEBP_MODELS")
    return [Path(folder)] if folder else []


def model_folders() -> list[Path]:
    """The folders with the defaults of models that RecBole does not have."""
    return [properties_dir() / "model", *own_models()]


def property_file(kind: str, name: str) -> Path | None:
    """``properties/<kind>/<name>.yaml``, or that of a model of the user's, if there is one."""
    folders = model_folders() if kind == "model" else [properties_dir() / kind]
    return next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)


def read_preset(name: str, dataset: str) -> dict[str, Any]:
    """The keys of ``properties/preset/<name>.yaml``: those of ``all``, overridden by those of the data set.

    Raises:
        UserError: if there is no such preset.
    """
    from recbole_onebp.util import safe_yaml  # here, because files are found without PyYAML too

    if name == "default":
        return {}
    path = property_file("preset", name) if isinstance(name, str) else None
    if path is None:
        known = ["default", *sorted(file.stem for file in (properties_dir() / "preset").glob("*.yaml"))]
        raise UserError(f"preset: there is none named {name!r}; known presets: {', '.join(known)}")
    preset = safe_yaml.read(path, path.name)
    return {**preset["all"], **preset["datasets"].get(dataset, {})}
