"""What a patch is, and where patches are collected."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["PATCHES", "STATUS", "ModuleView", "Patch", "patch", "replace_everywhere"]


@dataclass(frozen=True)
class Patch:
    """A repair of RecBole."""

    name: str
    why: str
    """What breaks without it: the docstring of the function."""
    issue: str
    needed: Callable[[], bool]
    """Whether the thing is broken on this machine."""
    apply: Callable[[], None]


PATCHES: dict[str, Patch] = {}
STATUS: dict[str, str] = {}
"""Patch name -> ``applied``, ``not needed`` or ``failed: <reason>``; empty until RecBole is imported."""


def patch(issue: str, needed: Callable[[], bool]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register the decorated function as a patch, which is applied where ``needed()`` is true."""

    def add(function: Callable[[], None]) -> Callable[[], None]:
        name = function.__name__
        why = " ".join((function.__doc__ or "").split())
        PATCHES[name] = Patch(name, why, issue, needed, function)
        return function

    return add


def replace_everywhere(original: Any, replacement: Any) -> None:
    """Replace an object in every loaded module of RecBole, including copies made by ``from ... import``."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "recbole":
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, replacement)


class ModuleView(types.ModuleType):
    """A module with some names replaced.

    One module of RecBole is given the view in place of the real module, which stays as it is for everybody else.

    Example:
        >>> import math
        >>> view = ModuleView(math, pi=3)
        >>> view.pi, view.sqrt(4.0), math.pi > 3
        (3, 2.0, True)
    """

    def __init__(self, original: types.ModuleType, **names: Any) -> None:
        super().__init__(original.__name__)
        self._original = original
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
