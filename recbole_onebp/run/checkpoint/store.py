"""Checkpoints on disk: written completely or not at all, verified by checksums, and read without running code.

A checkpoint is a folder with ``state.safetensors``, which holds the tensors; ``state.json``, which holds everything
else and the SHA-256 of the files; and ``best.safetensors``, a copy of the best model so far.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import sync, whole_folder
from recbole_onebp.util.hashes import sha256, sha256_of
from recbole_onebp.util.untrusted import open_plain, read_json

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "DamagedError",
    "is_checkpoint",
    "pack",
    "read_tensors",
    "unpack",
    "write_tensors",
]

_FORMAT, _VERSION = "recbole_onebp checkpoint", 1
_KIND = "$"
_STATE, _TENSORS, _BEST = "state.json", "state.safetensors", "best.safetensors"
_MAX_STATE, _MAX_HEADER = 16 << 20, 16 << 20
"""Bytes of ``state.json`` and of the header of a safetensors file."""
_NAME = re.compile(r"epoch-\d+-step-\d+")
"""The name of a checkpoint."""


class DamagedError(Exception):
    """A file whose content is not what was written."""


def _damaged(path: Path, error: Exception) -> DamagedError:
    reason = str(error).removeprefix(f"{path}: ").removeprefix("damaged: ")
    return DamagedError(f"{path}: damaged: {reason}")


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Convert a value to JSON types.

    Args:
        value: dense tensors, plain values, and lists, tuples and mappings of them.
        tensors: receives the tensors in ``value``, named by their position.
        name: position of ``value`` itself.

    Raises:
        TypeError: for a value of another type.
    """
    if isinstance(value, Tensor) and not value.is_sparse:
        tensors[name] = value
        return {_KIND: "tensor", "of": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):  # not in JSON
        return {_KIND: "float", "of": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        packed = [pack(item, tensors, f"{name}.{place}") for place, item in enumerate(value)]
        return packed if isinstance(value, list) else {_KIND: "tuple", "of": packed}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: pack(item, tensors, f"{name}.{key}" if name else key) for key, item in value.items()}
        return {_KIND: "items", "of": [[key, pack(item, tensors, f"{name}.{key}")] for key, item in value.items()]}
    raise TypeError(f"{name}: a {type(value).__name__} cannot be saved")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that :func:`pack` converted.

    Raises:
        KeyError: if it refers to a tensor that is absent, or to one twice: a short text could then take much memory.
        ValueError: for anything else that :func:`pack` does not write.
    """
    return _unpack(packed, dict(tensors))


def _unpack(packed: Any, left: dict[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, left) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _KIND not in packed:
        return {key: _unpack(item, left) for key, item in packed.items()}
    kind, of = packed[_KIND], packed["of"]
    if kind == "tensor":
        return left.pop(of).clone()  # the original uses the file's memory
    if kind == "float" and isinstance(of, str):
        return float(of)
    if kind == "tuple" and isinstance(of, list):
        return tuple(_unpack(of, left))
    if kind == "items" and isinstance(of, list):
        return {key: _unpack(item, left) for key, item in of}
    raise ValueError(f"{str(kind)[:40]!r} is no kind of value")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: if it cannot be written.
    """
    ready: dict[str, Tensor] = {}
    memory = set()
    for name, tensor in tensors.items():
        ready[name] = tensor.detach().cpu().contiguous()
        start = ready[name].untyped_storage().data_ptr()
        if start in memory:  # a layer used twice: safetensors refuses tensors that share memory
            ready[name] = ready[name].clone()
        memory.add(start)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(ready, path, metadata)
        path.chmod(mode)  # safetensors would make it readable only by its owner
    except SafetensorError as error:  # it contains the system's error only as text
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        DamagedError: if it cannot be read, or is no plain file.
        UserError: if it is larger than the free memory.
    """
    try:
        with open_plain(path) as opened:
            size, header = os.fstat(opened.fileno()).st_size, int.from_bytes(opened.read(8), "little")
    except (UserError, OSError) as error:
        raise _damaged(path, error) from None
    if header > min(_MAX_HEADER, size - 8):
        raise DamagedError(f"{path}: damaged: a header of {header} bytes in a file of {size}")
    if size > (free := psutil.virtual_memory().available):
        raise UserError(f"{path}: {size} bytes are more than the free memory, {free} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except Exception as error:  # safetensors and torch raise many kinds for content of all kinds
        raise _damaged(path, error) from None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that has been read and verified."""

    path: Path
    values: Any
    best: Path | None
    """The file of the best model so far; None if validation has chosen none."""

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read and verify a checkpoint.

        Raises:
            DamagedError: if a file is missing or damaged.
            UserError: if it has another format version, or is larger than the free memory.
        """
        try:
            content = read_json(path / _STATE, _MAX_STATE)
        except UserError as error:
            raise _damaged(path / _STATE, error) from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DamagedError(f"{path / _STATE}: not a checkpoint")
        if content.get("version") != _VERSION:
            version = content.get("version")
            raise UserError(f"{path}: has format version {version}; this recbole_onebp reads version {_VERSION}")
        if content.get("checksum") != _checksum(content):
            raise DamagedError(f"{path / _STATE}: damaged: it does not match its checksum")
        try:
            best = path / _BEST if _BEST in content["files"] else None
            for file in (path / _TENSORS, best):
                if file is not None:
                    _check_file(file, content["files"][file.name])
            tensors, _ = read_tensors(path / _TENSORS)
            return cls(path, unpack(content["state"], tensors), best)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DamagedError(f"{path / _STATE}: damaged: {error!r}") from None

    def lies_in(self, folder: Path) -> bool:
        """Whether its parent is ``folder``."""
        return self.path.parent.resolve() == folder.resolve()


def _check_file(path: Path, checksum: Any) -> None:
    try:
        with open_plain(path) as file:
            found = sha256_of(file)
    except (UserError, OSError) as error:
        raise _damaged(path, error) from None
    if found != checksum:
        raise DamagedError(f"{path}: damaged: it does not match its checksum")


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, intact or damaged."""
    return (path / _STATE).is_file()


def _checksum(content: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of a run, ``folder/<name>/``.  Later ones sort after earlier ones; the last two are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: list[str] = []

    def save(self, name: str, values: Any, best: Path | None) -> None:
        """Write a checkpoint, flush it to disk, and remove all but the last two.

        Args:
            name: of its folder.
            values: see :func:`pack`.
            best: the file of the best model so far.  It is copied, so that damage to one does not affect the other.

        Raises:
            OSError: if it cannot be written; the earlier checkpoints are intact.
        """
        tensors: dict[str, Tensor] = {}
        state = pack(values, tensors)
        with whole_folder(self.folder / name, replace=True) as made:
            write_tensors(made / _TENSORS, tensors)
            if best is not None:
                shutil.copyfile(best, made / _BEST)
            files = {path.name: sha256(path) for path in made.iterdir()}
            content = {"format": _FORMAT, "version": _VERSION, "files": files, "state": state}
            text = json.dumps({**content, "checksum": _checksum(content)})
            (made / _STATE).write_text(text, encoding="utf-8")
            for path in (*made.iterdir(), made):
                sync(path)
        sync(self.folder)
        self._kept = [*[kept for kept in self._kept if kept != name][-1:], name]
        for other in self.folder.iterdir():  # also temporary folders of a killed process
            if other.name not in self._kept and _NAME.search(other.name):
                shutil.rmtree(other, ignore_errors=True)

    def keep(self, name: str) -> None:
        """Treat the checkpoint ``name`` as the last one: the next :meth:`save` removes all others."""
        self._kept = [name]

    def load(self) -> Checkpoint | None:
        """The newest intact checkpoint; None if there are no checkpoints.  A damaged one is reported.

        Raises:
            UserError: if all of them are damaged, the newest intact one cannot be used here, or the folder is a link.
        """
        names = sorted((path.name for path in self._folders() if _NAME.fullmatch(path.name)), reverse=True)
        for name in names:
            try:
                return Checkpoint.read(self.folder / name)
            except DamagedError as error:
                if name == names[-1]:
                    raise UserError(
                        f"{self.folder}: no checkpoint can be read, the last because: {error}; restore "
                        "one, or start a new run in another folder"
                    ) from None
                getLogger().warning("%s; trying the previous checkpoint", error)
        return None

    def _folders(self) -> list[Path]:
        """Folders in this one; links are not followed, because the files in them are replaced."""
        if self.folder.is_symlink():
            raise UserError(f"{self.folder}: is a link; expected a folder of checkpoints")
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if path.is_dir() and not path.is_symlink()]
