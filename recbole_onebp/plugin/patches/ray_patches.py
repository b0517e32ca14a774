"""ray: RecBole imports it at the top, where it is slow, or missing, or does not work with today's numpy and Python."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from recbole_onebp.plugin.patches.registry import patch

__all__ = ["importable_ray", "ray_stub"]


class _LateTune(types.ModuleType):
    """``ray.tune`` as RecBole sees it: ray is imported when something of it is used."""

    def report(self, *args: Any, **metrics: Any) -> None:
        """Report to ray if somebody searches with it: RecBole's ``objective_function`` reports in any case."""
        if "ray.tune" in sys.modules:
            sys.modules["ray.tune"].report(*args, **metrics)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            tune = import_module("ray.tune")
        except Exception as error:  # ray 2.6.3 raises AttributeError on numpy 2, and other errors elsewhere
            raise ImportError(f"ray.tune.{name} needs ray, which is missing or broken here: {error}") from error
        return getattr(tune, name)


@contextmanager
def importable_ray() -> Iterator[None]:
    """Make RecBole's ``from ray import tune`` succeed without ray, and remove the stub afterwards."""
    if "recbole.quick_start.quick_start" in sys.modules or "ray" in sys.modules:
        yield
        return
    ray = types.ModuleType("ray")
    tune = _LateTune("ray.tune")
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        yield
    finally:
        for name in ("ray", "ray.tune"):
            del sys.modules[name]


def _ray_was_replaced() -> bool:
    return isinstance(import_module("recbole.quick_start.quick_start").tune, _LateTune)


@patch("R#1518, R#1820", _ray_was_replaced)
def ray_stub() -> None:
    """RecBole imports ray at the top of quick_start, but only its own hyper-parameter search uses it. ray <= 2.6.3
    does not import on numpy 2, has no release for Python 3.12, and takes seconds to import."""
    # The work is done by importable_ray, while quick_start is imported.
