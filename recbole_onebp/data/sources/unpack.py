"""Read the bytes of a file, unpacked if it is compressed, up to a bound."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import zipfile
import zlib
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from recbole_onebp.util.errors import UserError

__all__ = ["DAMAGED", "MAX_MB", "base_suffix", "bound", "dataset_name", "read_bytes", "read_up_to"]

MAX_MB = 1000
"""Largest table that is read, after unpacking."""
_MOST_UNPACKED = 100
"""Limit of the ratio of unpacked to packed size, where no limit is given; interactions have about five."""
_MAGIC = {b"\x1f\x8b": "gz", b"\x28\xb5\x2f\xfd": "zst", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}
_PACKED = (".gz", ".zst", ".bz2", ".xz")
_KNOWN = (".csv", ".tsv", ".inter", ".json", ".jsonl", ".ndjson", ".parquet", ".pq", ".zip", ".data", ".dat", ".txt")

DAMAGED = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, struct.error, UnicodeDecodeError, ValueError
)  # fmt: skip
"""Errors of Python's readers for damaged content, an encrypted archive or an unknown compression."""


def base_suffix(path: Path) -> str:
    """The suffix of the table itself: ``.csv`` of ``x.csv.gz``."""
    return Path(path.stem).suffix if path.suffix.lower() in _PACKED else path.suffix


def dataset_name(path: Path) -> str:
    """The name of a file without the suffixes that tell its format."""
    inner = Path(path.stem) if path.suffix.lower() in _PACKED else path
    return inner.stem if inner is path or inner.suffix.lower() in _KNOWN else inner.name


def bound(where: str, n_bytes: int, max_mb: int | None, packed: int | None = None) -> int:
    """Bytes that may be read; ``n_bytes`` are known to come.

    Args:
        where: the file, for the message.
        n_bytes: size after unpacking as far as known.
        max_mb: limit that the user gave.
        packed: size before unpacking, if it is compressed.

    Raises:
        UserError: if these are too many.
    """
    limit = (MAX_MB if max_mb is None else max_mb) << 20
    if max_mb is None and packed is not None and _MOST_UNPACKED * packed < limit:
        if n_bytes > _MOST_UNPACKED * packed:
            raise UserError(
                f"{where}: unpacks to more than {_MOST_UNPACKED} times its size; --max_mb=N allows N MB in any case"
            )
        return _MOST_UNPACKED * packed
    if n_bytes > limit:
        raise UserError(f"{where}: larger than {limit >> 20:,} MB when it is read; --max_mb=N allows more")
    return limit


def read_up_to(file: IO[bytes], where: str, max_mb: int | None, packed: int | None = None) -> bytes:
    """The rest of a file; see :func:`bound`."""
    limit = bound(where, 0, max_mb, packed)
    content = file.read(limit + 1)
    bound(where, len(content), max_mb, packed)
    return content


def read_bytes(path: Path, max_mb: int | None) -> bytes:
    """The content of a plain file, unpacked if it begins as gzip, Zstandard, bzip2 or xz do.

    Raises:
        UserError: if it is too large, damaged, or not a plain file.
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path}: cannot be read: not a plain file")
    with open(path, "rb") as file:
        head = file.read(6)
        file.seek(0)
        packed = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        if packed is None:
            bound(str(path), size, max_mb)
            return read_up_to(file, str(path), max_mb)
        try:
            with closing(_unpacked(file, packed, path)) as content:
                return read_up_to(content, str(path), max_mb, size)
        except (*DAMAGED, OSError) as error:
            raise UserError(f"{path}: damaged {packed} file: {error}") from None


def _unpacked(file: IO[bytes], kind: str, path: Path) -> Any:
    if kind == "gz":
        return gzip.GzipFile(fileobj=file)
    if kind == "bz2":
        return bz2.BZ2File(file)
    if kind == "xz":
        return lzma.LZMAFile(file)
    if find_spec("compression") is not None:  # Python 3.14
        from importlib import import_module

        return import_module("compression.zstd").ZstdFile(file)
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading .zst needs Python 3.14 or pyarrow: pip install 'recbole-onebp[parquet]'")
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")
