"""Patches of RecBole: one file per library whose newer versions break it, one function per patch.

Each patch runs a test of the broken feature first, not a comparison of versions, so it switches itself off where it is
not needed.  ``R#n`` is issue or pull request n of RUCAIBox/RecBole.

To add a patch, write a function in the file of its library, with a docstring that says what breaks, decorate it with
:func:`~recbole_onebp.plugin.patches.registry.patch`, and add a test to ``tests/plugin/test_patches.py`` that fails
without it.
"""

from __future__ import annotations

import warnings
from importlib import import_module

# Importing these modules registers their patches.
from recbole_onebp.plugin.patches import (  # noqa: F401
    numpy_patches,
    pandas_patches,
    python_patches,
    ray_patches,
    recbole_patches,
    scipy_patches,
    torch_patches,
)
from recbole_onebp.plugin.patches.ray_patches import importable_ray
from recbole_onebp.plugin.patches.registry import PATCHES, STATUS, Patch

__all__ = ["PATCHES", "STATUS", "Patch", "apply_all"]


def apply_all() -> None:
    """Apply the patches that are needed and not yet applied, and record the outcome in :data:`STATUS`."""
    with importable_ray():
        import_module("recbole.quick_start")
    for patch in PATCHES.values():
        if STATUS.get(patch.name) in ("applied", "not needed"):
            continue
        try:
            needed = patch.needed()
            if needed:
                patch.apply()
            STATUS[patch.name] = "applied" if needed else "not needed"
        except Exception as error:  # a broken patch is reported, but does not prevent the import of RecBole
            STATUS[patch.name] = f"failed: {type(error).__name__}: {error}"
            warnings.warn(f"recbole_onebp: patch {patch.name} {STATUS[patch.name]}", stacklevel=2)
