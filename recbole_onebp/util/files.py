"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["restore", "sync", "whole_folder", "write_atomically", "write_json"]

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux's ``renameat2``."""


def sync(path: Path) -> None:
    """Flush a file or folder to disk, so that it survives a crash of the machine."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file next to ``path``, then rename it.

    Args:
        path: the file; one that exists is replaced only when ``write`` succeeds.
        write: called with the temporary path.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> write_atomically(Path("ids.txt"), lambda file: file.write_text("1 2 3"))
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


@contextmanager
def whole_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Context that yields a temporary folder to fill.

    When the block ends, the temporary folder is renamed to ``path``.  When the block raises, it is removed.

    Args:
        path: the folder; must not exist unless ``replace``.
        replace: replace a folder that exists.

    Raises:
        OSError: if it cannot be written.
    """
    restore(path)
    made = [parent for parent in path.parents if not parent.exists()]
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if replace and path.exists():
            if _exchange(temporary, path):
                old = temporary  # a crash at any moment leaves one of the two at path
            else:
                os.replace(path, old)
                os.rename(temporary, path)
        else:
            os.rename(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for left in (temporary, old):  # old is left if another process has created path in the meantime
            shutil.rmtree(left, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def restore(path: Path, idle_seconds: float = 0) -> None:
    """Bring back a folder whose replacement was killed between two renames, where the system cannot exchange folders.

    Args:
        path: the folder.
        idle_seconds: leave it to a process that has renamed it so recently.

    Raises:
        OSError: if it cannot be renamed.
    """
    if os.path.lexists(path) or not path.parent.is_dir():
        return
    left = [folder for folder in path.parent.glob(f".{glob.escape(path.name)}.*.old") if folder.is_dir()]
    last = max(left, key=lambda folder: folder.stat().st_ctime, default=None)
    if last is not None and time.time() - last.stat().st_ctime >= idle_seconds:
        os.replace(last, path)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # an old C library
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0)
