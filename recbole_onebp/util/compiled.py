"""numba's compiler with a cache in a folder of the user's own, and without one where there is no such folder.

numba's cache files are pickles, so whoever can write them can run code. numba itself would put them beside the source
or into any folder that it can write.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numba

from recbole_onebp import __version__

__all__ = ["OPTIONS", "ROWS_PER_TASK", "cache_folder", "njit", "tell_of_compilation"]

OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""How loops are compiled.  No fastmath: copies of a loop might then reorder sums and fuse products, each in its own
way, and results would differ in the last bits.  See :mod:`recbole_onebp.util.simd`, whose sums use vector registers."""
ROWS_PER_TASK = 32
"""Rows of a table that a thread of a parallel loop takes at a time."""


@lru_cache(maxsize=1)
def cache_folder() -> tuple[Path | None, str]:
    """The folder of the cache, or None; and why there is none, or why it is this one.

    It is ``NUMBA_CACHE_DIR`` if that is set; otherwise ``recbole_onebp/numba-VERSION`` below ``XDG_CACHE_HOME`` or
    ``~/.cache``, if it belongs to this user and nobody else can write it. Each version of this package has its own:
    numba reads the types in a cache file before it sees that the file is out of date, and fails where one is gone.
    """
    try:
        if numba.config.CACHE_DIR:
            return _writable(Path(numba.config.CACHE_DIR)), "set by NUMBA_CACHE_DIR"
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        if not home.is_absolute() or not (home.is_dir() or home.parent.is_dir()):
            return None, f"there is no folder {home.parent}"
        folder = _writable(home / "recbole_onebp" / f"numba-{__version__}")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        where = getattr(error, "filename", None)
        return None, f"{where}: {error.strerror}" if isinstance(error, OSError) and where else str(error)
    reason = _not_private(folder)
    return (None, reason) if reason else (folder, "of this user")


def _writable(folder: Path) -> Path:
    """Make a folder, and raise ``OSError`` if files cannot be written there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _not_private(folder: Path) -> str:
    """Why somebody else could put files into a folder; empty if nobody can."""
    if not hasattr(os, "geteuid"):  # on Windows
        return ""
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is a link or a file"
    if found.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if stat.S_IMODE(found.st_mode) & 0o022:
        return f"others may write {folder}: chmod 700 {folder}"
    return ""


@contextmanager
def _cache_at(folder: Path) -> Iterator[None]:
    """Make numba take ``folder`` for the functions that are decorated inside the block."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def njit(**options: Any) -> Any:
    """As ``numba.njit``; ``cache=True`` holds where :func:`cache_folder` names a folder."""
    folder, _ = cache_folder()
    wanted = options.pop("cache", False) and folder is not None

    def decorate(function: Callable[..., Any]) -> Any:
        if folder is None or not wanted:
            return numba.njit(**options)(function)
        with _cache_at(folder):
            return numba.njit(cache=True, **options)(function)

    return decorate


@lru_cache(maxsize=1)
def tell_of_compilation() -> None:
    """Log once that the first run compiles the loops, or that every run does because they are not kept."""
    folder, reason = cache_folder()
    if folder is not None:
        if next(folder.rglob("*.nbi"), None) is None:
            getLogger().warning("the first run compiles its loops, which takes half a minute; later ones find them")
    else:
        getLogger().warning(
            "numba compiles without a cache, which takes some seconds in each run: %s; to keep what is compiled, set "
            "NUMBA_CACHE_DIR to a folder that only you can write",
            reason,
        )
