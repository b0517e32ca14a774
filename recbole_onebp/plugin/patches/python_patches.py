"""Python 3.12: the standard library lost distutils."""

from __future__ import annotations

import sys
import types
from importlib import import_module
from importlib.util import find_spec

from recbole_onebp.plugin.patches.registry import patch

__all__ = ["distutils_version"]


@patch("R#2039", lambda: find_spec("distutils") is None)
def distutils_version() -> None:
    """thop, with which run_recbole counts a model's operations, imports distutils, which Python 3.12 removed
    (setuptools restores it where it is installed)."""
    from packaging.version import Version

    distutils, version = types.ModuleType("distutils"), types.ModuleType("distutils.version")
    version.LooseVersion = Version  # type: ignore[attr-defined]
    sys.modules.update({"distutils": distutils, "distutils.version": version})
    try:
        import_module("thop.profile")
    finally:
        for name in ("distutils", "distutils.version"):
            del sys.modules[name]
