"""Files and folders that are written completely or not at all, and only where this program may write.

Every folder that this program makes holds a marker file. Nothing in a folder without it is replaced or removed.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import read_json

__all__ = [
    "MARKER",
    "TemporaryFolder",
    "check_folder",
    "claim_folder",
    "is_claimed",
    "mark_folder",
    "restore",
    "sync",
    "whole_folder",
    "write_atomically",
    "write_json",
]

MARKER = ".recbole_onebp"
"""Name of the file that marks a folder as made by this program: one line of JSON, ``{"kinds": ["run"]}``."""


def claim_folder(
    path: Path,
    kind: str,
    names: Iterable[str],
    earlier: Callable[[Path], bool] = lambda _folder: False,
    opened: Iterable[str] = (),
) -> None:
    """Make a folder, or take one that exists if nothing of somebody else is lost there.  Leaves the marker in it.

    Args:
        path: the folder.
        kind: what it will be: ``run``, ``comparison``, ``data set``, ...
        names: the files and folders in it that will be replaced or removed.
        earlier: whether a folder without a marker was made by an earlier version, which left none.
        opened: files in it that are opened for writing, but never replaced.

    Raises:
        UserError: if the folder holds one of ``names`` and is not ours, or if a name is a link or a device.
        OSError: if it cannot be written.

    Example:
        >>> claim_folder(Path("out"), "run", ["result.json", "checkpoint"])
    """
    path.mkdir(parents=True, exist_ok=True)
    check_folder(path, kind, names, earlier, opened)
    mark_folder(path, kind)


def check_folder(
    path: Path,
    kind: str,
    names: Iterable[str],
    earlier: Callable[[Path], bool] = lambda _folder: False,
    opened: Iterable[str] = (),
) -> None:
    """The checks of :func:`claim_folder`, for a folder that exists; changes nothing."""
    names = list(names)
    found = set()
    for name in (*names, *opened, MARKER):
        with suppress(FileNotFoundError):
            mode = os.lstat(path / name).st_mode
            found.add(name)
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UserError(f"{path / name}: is a link or a device; expected a plain file or folder: remove it")
    in_the_way = next((name for name in names if name in found), None)
    if in_the_way is not None and not is_claimed(path, kind) and not earlier(path):
        raise UserError(
            f"{path}: holds {in_the_way}, which would be replaced, and this program has not made the folder as a "
            f"{kind}; choose another folder, or move {in_the_way} away"
        )


def is_claimed(path: Path, kind: str) -> bool:
    """Whether this program has made a folder, as a ``kind``."""
    return kind in _kinds(path)


def mark_folder(path: Path, kind: str) -> None:
    """Leave the marker in a folder that this program makes.

    Raises:
        OSError: if it cannot be written.
    """
    kinds = _kinds(path)
    if kind not in kinds:
        text = json.dumps({"kinds": sorted({*kinds, kind})}) + "\n"
        write_atomically(path / MARKER, lambda file: file.write_text(text, encoding="utf-8"))


def _kinds(path: Path) -> list[str]:
    try:
        content = read_json(path / MARKER, max_bytes=4096)
    except UserError:
        return []
    kinds = content.get("kinds") if isinstance(content, dict) else None
    return [kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else []


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
        temporary.unlink(missing_ok=True)  # it may be a link, which would be followed
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class TemporaryFolder:
    """A folder that is removed with the object, in the process that made it.

    ``tempfile.TemporaryDirectory`` warns when the garbage collector removes it, and a forked process removes it too.
    """

    def __init__(self) -> None:
        self.path: Path = Path(tempfile.mkdtemp(prefix="recbole-onebp-"))
        weakref.finalize(self, _remove_folder, self.path, os.getpid())


def _remove_folder(path: Path, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


@contextmanager
def whole_folder(path: Path, replace: bool = False, kind: str | None = None) -> Iterator[Path]:
    """Context that yields a temporary folder to fill.

    When the block ends, the temporary folder is renamed to ``path``.  When the block raises, it is removed.  A folder
    that is replaced is exchanged in one step where the system can do that (Linux): there is always one of the two.

    Args:
        path: the folder; must not exist unless ``replace``.
        replace: replace a folder that exists.
        kind: leave a marker, see :func:`claim_folder`.  Whether an old folder may be replaced, the caller has checked.

    Raises:
        OSError: if it cannot be written.
    """
    restore(path)
    if kind is not None:
        _remove_left(path, kind)
    made = [parent for parent in path.parents if not parent.exists()]
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        if kind is not None:
            mark_folder(temporary, kind)
        yield temporary
        if not (replace and path.is_dir() and not path.is_symlink() and _exchange(temporary, path)):
            if replace and path.exists():
                os.replace(path, old)
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
    for left in (temporary, old):  # one of them is what was replaced
        shutil.rmtree(left, ignore_errors=True)


def _remove_left(path: Path, kind: str) -> None:
    """Remove the temporary folders that processes left beside ``path`` when they were killed."""
    from psutil import pid_exists  # bundles are read without it

    for folder in path.parent.glob(f".{glob.escape(path.name)}.*"):
        pid, _, ending = folder.name.removeprefix(f".{path.name}.").partition(".")
        is_temporary = pid.isdigit() and ending in ("tmp", "old") and not folder.is_symlink()
        if is_temporary and is_claimed(folder, kind) and not pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


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


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
