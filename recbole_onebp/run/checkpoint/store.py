"""Tensors and plain values on the disk: never half written, checked by checksums, and read without running anything.

A checkpoint is a folder: ``state.safetensors``, ``state.json`` with everything else and the SHA-256 of the files, and
``best.safetensors``, a copy of the best model so far.
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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import sync, whole_folder
from recbole_onebp.util.hashes import sha256

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


class DamagedError(Exception):
    """A file that is not what was written."""


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """``value`` as JSON knows it; the tensors in it go into ``tensors``, named by where they are.

    Raises:
        TypeError: for what is neither plain nor a dense tensor.
    """
    if isinstance(value, Tensor) and not value.is_sparse:
        tensors[name] = value
        return {_KIND: "tensor", "of": name}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):  # which JSON does not know
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
    """What :func:`pack` was given."""
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _KIND not in packed:
        return {key: unpack(item, tensors) for key, item in packed.items()}
    kind, of = packed[_KIND], packed["of"]
    if kind == "tensor":
        return tensors[of].clone()  # which was the file's memory
    if kind == "float":
        return float(of)
    if kind == "tuple":
        return tuple(unpack(of, tensors))
    return {key: unpack(item, tensors) for key, item in of}


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
        if start in memory:  # a layer used twice: the format wants each tensor in memory of its own
            ready[name] = ready[name].clone()
        memory.add(start)
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(ready, path, metadata)
        path.chmod(mode)  # as of any file: safetensors leaves one that nobody else may read
    except SafetensorError as error:  # it hides the system's error in its words
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        DamagedError: if it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path}: damaged: {error}") from None


@dataclass(frozen=True)
class Checkpoint:
    """One that has been read, and is whole."""

    path: Path
    values: Any
    best: Path | None
    """The best model so far, where one has been chosen."""

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read and check.

        Raises:
            DamagedError: for a file that is missing or not what was written.
        """
        try:
            content = json.loads((path / _STATE).read_text(encoding="utf-8"))
            checksum = _checksum(content) if isinstance(content, dict) else None
        except (OSError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path / _STATE}: damaged: {error}") from None
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise DamagedError(f"{path / _STATE}: no checkpoint")
        if content.get("version") != _VERSION:
            raise DamagedError(f"{path}: of format {content.get('version')}; this recbole_onebp reads {_VERSION}")
        if content.get("checksum") != checksum:
            raise DamagedError(f"{path / _STATE}: damaged: it does not match its checksum")
        try:
            best = path / _BEST if _BEST in content["files"] else None
            for file in (path / _TENSORS, best):
                if file is not None and sha256(file) != content["files"][file.name]:
                    raise DamagedError(f"{file}: damaged: it does not match its checksum")
            tensors, _ = read_tensors(path / _TENSORS)
            return cls(path, unpack(content["state"], tensors), best)
        except OSError as error:
            raise DamagedError(f"{error.filename}: damaged: {error.strerror}") from None
        except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise DamagedError(f"{path / _STATE}: damaged: {error!r}") from None

    def lies_in(self, folder: Path) -> bool:
        """Whether it is one of those in a folder."""
        return self.path.parent.resolve() == folder.resolve()


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, whole or not."""
    return (path / _STATE).is_file()


def _checksum(content: Mapping[str, Any]) -> str:
    covered = {name: value for name, value in content.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The checkpoints of a run, the last two of them: ``folder/<name>/``; a later one has a higher name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: list[str] = []

    def save(self, name: str, values: Any, best: Path | None) -> None:
        """Write one; it is there when it is on the disk, and the one before the last goes.

        Args:
            name: of the folder.
            values: see :func:`pack`.
            best: the file of the best model so far; copied, so that no damage is shared.

        Raises:
            OSError: if it cannot be written; what was there stands.
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
        for other in self.folder.iterdir():  # what a process left that was killed, too
            if other.name not in self._kept:
                shutil.rmtree(other, ignore_errors=True)

    def keep(self, name: str) -> None:
        """Take the one of that name for the last."""
        self._kept = [name]

    def load(self) -> Checkpoint | None:
        """The newest that is whole; None if there is none at all.

        Raises:
            UserError: if there are some, all of them damaged.
        """
        names = sorted((path.name for path in self.folder.glob("[!.]*") if path.is_dir()), reverse=True)
        for name in names:
            try:
                checkpoint = Checkpoint.read(self.folder / name)
            except DamagedError as error:
                getLogger().warning("%s; looking for the checkpoint before", error)
                continue
            return checkpoint
        if names:
            raise UserError(f"{self.folder}: no checkpoint there is whole; remove the folder to start anew")
        return None
