"""A cache of data sets after reading, filtering and numbering, beside their files and memory-mapped.

An entry is a folder below ``<data set>/.cache``, one for each set of RecBole's data keys.  It is used while
:func:`fingerprint` finds the files and its own arrays unchanged, and is replaced otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from recbole.utils import FeatureType
from recbole.utils.argument_list import dataset_arguments

from recbole_onebp.data.arrow_table import ArrowTable
from recbole_onebp.data.text_table import SMALL_BYTES, TextTable
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import whole_folder
from recbole_onebp.util.untrusted import open_plain, read_json

__all__ = ["DataCache", "State", "fingerprint"]

_FORMAT = 1
_MAX_STATE = 16 << 20
_KEYS = (*dataset_arguments, "encoding", "numerical_features", "discretization", "WEIGHT_FIELD")
"""Keys that change a data set before it is split, or how its files are checked."""
WORTH_BYTES = 4 << 20
"""Smaller data sets load fast enough without a cache."""
_WHOLE_BYTES = SMALL_BYTES
_DTYPES = [np.dtype(kind) for kind in (np.int32, np.int64, np.float32, np.float64)]
_BLOCK_BYTES, _BLOCKS = 1 << 16, 256


def fingerprint(path: Path, content: bytes | None = None) -> str:
    """A hash that identifies a file, or a folder of files, in a fraction of a second at any size.

    Up to 64 MiB it covers the whole content.  For a larger file it covers the size, the time of modification and 256
    evenly spaced blocks of 64 KiB, including the first and the last.  A change elsewhere in such a file is not noticed
    if it keeps the size and the time of modification is set back.

    Args:
        path: a file or folder.
        content: of a file that has been read already.
    """
    digest = hashlib.blake2b(content or b"", digest_size=16)
    if content is not None:
        return digest.hexdigest()
    if path.is_dir():
        for part in sorted(part for part in path.rglob("*") if part.is_file()):
            digest.update(f"{part.relative_to(path)}\0{fingerprint(part)}\0".encode())
        return digest.hexdigest()
    stat = path.stat()
    with open(path, "rb") as file:
        if stat.st_size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            for offset in np.linspace(0, stat.st_size - _BLOCK_BYTES, _BLOCKS, dtype=np.int64).tolist():
                file.seek(offset)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class State:
    """The state of a data set."""

    values: Mapping[str, Any]
    """Plain values, stored as JSON."""
    arrays: Mapping[str, npt.NDArray[Any]]
    """Columns and vocabularies by name."""


class DataCache:
    """The cache entry of one data set under one configuration.

    Args:
        config: RecBole's configuration.
        tables: of interactions.
        features: files of user and item features.
    """

    def __init__(self, config: Any, tables: Sequence[TextTable | ArrowTable], features: Sequence[Path]) -> None:
        settings = [_FORMAT, config["dataset"], config["benchmark_filename"], {key: config[key] for key in _KEYS}]
        text = json.dumps(settings, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        self._folder = Path(config["data_path"]) / ".cache" / digest
        self._wanted = bool(config["data_cache"])
        self._tables, self._features = tables, features

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        """Of the files by name; computed before anything is parsed."""
        tables = {table.path.name: fingerprint(table.path, table.content) for table in self._tables}
        return tables | {path.name: fingerprint(path) for path in self._features}

    def load(self) -> State | None:
        """The data set, with its arrays memory-mapped; None if there is no valid entry for these files."""
        if not self._wanted:
            return None
        fingerprints = self._fingerprints  # also needed by save, after the files have been parsed
        if not (self._folder / "state.json").is_file():
            return None
        try:
            if self._folder.is_symlink() or self._folder.parent.is_symlink():
                raise ValueError("it is a link")
            kept = read_json(self._folder / "state.json", _MAX_STATE)
            if kept["checksum"] != _checksum(kept["content"]):
                raise ValueError("state.json has changed since it was written")
            content = kept["content"]
            if content["files"] != fingerprints:
                return None
            state = State(content["values"], dict(self._mapped(content["arrays"])))
            _check(state)
            return state
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
            getLogger().warning("%s is damaged and will be rebuilt: %s", self._folder, error)
            return None

    def _mapped(self, arrays: Mapping[str, str]) -> Any:
        for number, (name, mark) in enumerate(arrays.items()):
            path = self._folder / f"{number}.npy"
            open_plain(path).close()  # a pipe would be waited for
            if fingerprint(path) != mark:
                raise ValueError(f"{path.name} has changed since it was written")
            # Copy on write: pages are shared with the file until they are written to. As a plain array, because a
            # memmap pickles badly.
            yield name, np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)

    def save(self, state: State) -> bool:
        """Write the entry, replacing an old one.

        Returns:
            Whether there is an entry now: small data sets are not cached, and an entry that cannot be written is only
            logged.
        """
        if not self._wanted or sum(array.nbytes for array in state.arrays.values()) < WORTH_BYTES:
            return False
        try:
            with whole_folder(self._folder, replace=True) as folder:
                marks = {}
                for number, (name, array) in enumerate(state.arrays.items()):
                    np.save(folder / f"{number}.npy", array, allow_pickle=False)
                    marks[name] = fingerprint(folder / f"{number}.npy")
                content = {"files": self._fingerprints, "values": state.values, "arrays": marks}
                text = json.dumps({"checksum": _checksum(content), "content": content}, indent=1)
                (folder / "state.json").write_text(text, encoding="utf-8")
        except OSError as error:
            getLogger().warning("data_cache: %s cannot be written: %s", self._folder, error.strerror or error)
            return False
        return True


def _check(state: State) -> None:
    """Raise an error for ids beyond their vocabulary, odd types, or columns that do not fit one another.

    The checksums tell damage, not who made the entry: with a data set of somebody else its cache may come along.
    """
    values, arrays = state.values, state.arrays
    columns = {name: arrays[f"column {name}"] for name in values["columns"]}
    if len({column.shape for column in columns.values()}) > 1:
        raise ValueError("columns of different lengths")
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype not in _DTYPES:
            raise ValueError(f"column {name}: {column.dtype} {column.shape}")
        if values["fields"]["field2type"][name] != FeatureType.TOKEN.value:
            continue
        tokens = arrays[f"tokens {name}"]
        if tokens.ndim != 1 or tokens.dtype.kind != "U" or not tokens.dtype.isnative or column.dtype.kind != "i":
            raise ValueError(f"tokens {name}: {tokens.dtype} {tokens.shape} for ids of {column.dtype}")
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < len(tokens):
            raise ValueError(f"column {name}: ids beyond its {len(tokens)} tokens")
    sizes = values["file_sizes"]
    if sizes is not None and any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError(f"sizes of files {sizes}")


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
