"""ray: RecBole imports it at the top, and old versions do not import on today's numpy and Python."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from recbole_onebp.plugin.patches.registry import patch

__all__ = ["importable_ray", "ray_stub"]


class _NoRay(types.ModuleType):
    """Replaces ``ray.tune`` where ray is missing or broken."""

    def report(self, *_args: Any, **_metrics: Any) -> None:
        """Do nothing: RecBole's ``objective_function`` reports to ray even when ray is not searching."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"ray.{self.__name__.split('.')[-1]}.{name} needs ray, which is missing or broken here")


def _ray_is_broken() -> bool:
    before = set(sys.modules)
    try:
        import_module("ray.tune")
    except Exception:  # ray 2.6.3 raises AttributeError on numpy 2, and other errors elsewhere
        for name in set(sys.modules) - before:  # remove what the failed import has left
            if name.split(".")[0] == "ray":
                del sys.modules[name]
        return True
    return False


@contextmanager
def importable_ray() -> Iterator[None]:
    """Make RecBole's ``from ray import tune`` succeed, and remove the stub afterwards."""
    if "recbole.quick_start.quick_start" in sys.modules or not _ray_is_broken():
        yield
        return
    ray = types.ModuleType("ray")
    tune = _NoRay("ray.tune")
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        yield
    finally:
        for name in ("ray", "ray.tune"):
            del sys.modules[name]


def _ray_was_replaced() -> bool:
    return isinstance(import_module("recbole.quick_start.quick_start").tune, _NoRay)


@patch("R#1518, R#1820", _ray_was_replaced)
def ray_stub() -> None:
    """RecBole imports ray at the top of quick_start, but only its own hyper-parameter search uses it. ray <= 2.6.3
    does not import on numpy 2 and has no release for Python 3.12."""
    # The work is done by importable_ray, while quick_start is imported.
