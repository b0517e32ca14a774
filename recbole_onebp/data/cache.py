"""What a data set has become after reading, filtering and numbering, kept beside its files and memory-mapped.

An entry is a folder below ``<data set>/.cache`` for each set of RecBole's data keys.  It is used as long as the files
and its own arrays are what they were, by :func:`fingerprint`, and made anew otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from recbole.utils.argument_list import dataset_arguments

from recbole_onebp.data.interactions import find
from recbole_onebp.util.files import whole_folder

__all__ = ["DataCache", "State", "fingerprint"]

_FORMAT = 1
_KEYS = (*dataset_arguments, "encoding", "numerical_features", "discretization")
"""What changes a data set, before it is split."""
WORTH_BYTES = 4 << 20
"""Smaller files are read sooner than anybody would miss a cache of theirs."""
_WHOLE_BYTES = 64 << 20
_BLOCK_BYTES, _BLOCKS = 1 << 16, 256


def fingerprint(path: Path) -> str:
    """What tells a file, or a folder of files, from another one, in a fraction of a second at any size.

    Up to 64 MiB it is a hash of the contents.  Of a larger file it is one of size, time of modification and 256 blocks
    of 64 KiB, evenly spaced, the first and the last among them: whoever changes such a file elsewhere, in place, and
    sets its time back, goes unnoticed.
    """
    digest = hashlib.blake2b(digest_size=16)
    if path.is_dir():
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path)}\0{fingerprint(file)}\0".encode())
        return digest.hexdigest()
    stat = path.stat()
    with open(path, "rb") as content:
        if stat.st_size <= _WHOLE_BYTES:
            digest.update(content.read())
        else:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            for offset in np.linspace(0, stat.st_size - _BLOCK_BYTES, _BLOCKS, dtype=np.int64).tolist():
                content.seek(offset)
                digest.update(content.read(_BLOCK_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class State:
    """A data set."""

    values: Mapping[str, Any]
    """What JSON holds."""
    arrays: Mapping[str, npt.NDArray[Any]]
    """Columns and vocabularies, by names that are no paths."""


class DataCache:
    """The entry for one data set under one configuration of RecBole's."""

    def __init__(self, config: Any) -> None:
        folder, name = Path(config["data_path"]), config["dataset"]
        parts = config["benchmark_filename"]
        stems = [name] if parts is None else [f"{name}.{part}" for part in parts]
        files = [find(folder, stem) for stem in stems] + [folder / f"{name}.{kind}" for kind in ("user", "item")]
        self._files = [path for path in files if path.exists()]
        settings = [_FORMAT, name, parts, {key: config[key] for key in _KEYS}]
        text = json.dumps(settings, sort_keys=True, default=str)
        self._folder = folder / ".cache" / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._wanted = bool(config["data_cache"])

    @cached_property
    def _of_files(self) -> dict[str, str]:
        return {path.name: fingerprint(path) for path in self._files}

    def load(self) -> State | None:
        """The data set, its arrays mapped and not read; None where there is none, of these very files, unharmed."""
        if not self._wanted:
            return None
        of_files = self._of_files  # taken before anything is read, also for save
        if not (self._folder / "state.json").is_file():
            return None
        try:
            kept = json.loads((self._folder / "state.json").read_text(encoding="utf-8"))
            if kept["checksum"] != _checksum(kept["content"]):
                raise ValueError("its state.json is not what was written")
            content = kept["content"]
            if content["files"] != of_files:
                return None
            return State(content["values"], dict(self._mapped(content["arrays"])))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError) as error:
            getLogger().warning("%s is damaged, and made anew: %s", self._folder, error)
            return None

    def _mapped(self, arrays: Mapping[str, str]) -> Any:
        for number, (name, mark) in enumerate(arrays.items()):
            path = self._folder / f"{number}.npy"
            if fingerprint(path) != mark:
                raise ValueError(f"{path.name} is not what was written")
            # Copy on write: pages are the file's until somebody writes to them. Not as memmap, which pickles badly.
            yield name, np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)

    def save(self, state: State) -> bool:
        """Keep a data set in place of what was there; whether it is there now: small ones are not kept.

        Where it cannot be written, the log says so, and that is all.
        """
        if not self._wanted or sum(array.nbytes for array in state.arrays.values()) < WORTH_BYTES:
            return False
        try:
            with whole_folder(self._folder, replace=True) as folder:
                marks = {}
                for number, (name, array) in enumerate(state.arrays.items()):
                    np.save(folder / f"{number}.npy", array, allow_pickle=False)
                    marks[name] = fingerprint(folder / f"{number}.npy")
                content = {"files": self._of_files, "values": state.values, "arrays": marks}
                text = json.dumps({"checksum": _checksum(content), "content": content}, indent=1)
                (folder / "state.json").write_text(text, encoding="utf-8")
        except OSError as error:
            getLogger().warning("data_cache: %s cannot be written: %s", self._folder, error.strerror or error)
            return False
        return True


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
