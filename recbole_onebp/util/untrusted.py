"""Reading files that somebody else may have made: plain files only, bounded in size, checked before memory is taken."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.util.errors import UserError

__all__ = ["blocks", "map_array", "open_plain", "plain_name", "read_json", "read_text"]

_MAX_JSON_BYTES = 64 << 20
_MAX_JSON_DEPTH = 64
_BLOCK_VALUES = 1 << 20
_MAX_JSON_VALUES = 8_000_000
"""Roughly: an object counts as four. A value takes up to 64 bytes of memory, also where it takes two in the file."""


def plain_name(name: object, where: Path) -> str:
    """A name that stands for a file directly in its folder.

    Args:
        name: as found in a file.
        where: the file that holds the name, for the message.

    Raises:
        UserError: for anything else, such as ``../x`` or an absolute path.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(c in name for c in "/\\\0:") or len(name) > 255:
        raise UserError(f"{where}: {str(name)[:80]!r} is not the name of a file in the same folder")
    return name


def open_plain(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Links, devices, pipes and sockets are refused and never waited for.

    Raises:
        UserError: if it is not a regular file, or cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if stat.S_ISLNK(os.lstat(path).st_mode):
            raise UserError(f"{path}: is a link; expected a plain file")
        descriptor = os.open(path, flags)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the name
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: is not a plain file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, max_bytes: int = _MAX_JSON_BYTES) -> str:
    """The text of a plain UTF-8 file.

    Raises:
        UserError: if it is larger than ``max_bytes``, not UTF-8, or cannot be read.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise UserError(f"{path}: has {size} bytes; at most {max_bytes} are read")
        content = file.read(max_bytes + 1)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: damaged: not UTF-8: {error.reason} at byte {error.start}") from None


def read_json(
    path: Path, max_bytes: int = _MAX_JSON_BYTES, finite: bool = True, max_values: int = _MAX_JSON_VALUES
) -> Any:
    """The content of a plain JSON file; NaN and infinities are refused unless ``finite`` is false.

    Raises:
        UserError: if it is too large, nested too deeply, not JSON, or cannot be read.
    """
    text = read_text(path, max_bytes)
    n_values = 4 * text.count("{") + sum(map(text.count, "[,:"))
    if n_values > max_values:
        raise UserError(f"{path}: holds about {n_values} values; at most {max_values} are read")
    try:
        value = json.loads(text, parse_constant=_refuse_constant if finite else None)
        json_depth(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON as expected: {error}") from None
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is") from None
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


def json_depth(value: Any) -> int:
    """How deeply lists and objects are nested; ValueError if more than 64 deep."""
    depth, level = 0, _inner([value])
    while level:
        depth, level = depth + 1, [inner for item in level for inner in _inner(item)]
        if depth > _MAX_JSON_DEPTH:
            raise ValueError(f"nested more than {_MAX_JSON_DEPTH} deep")
    return depth


def _inner(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in values if isinstance(inner, (dict, list))]


def map_array(path: Path, shape: tuple[int, ...], *dtypes: type[np.generic], finite: bool = True) -> npt.NDArray[Any]:
    """Map a plain ``.npy`` file into memory, read-only, after its header and size have been checked.

    Args:
        path: the file.
        shape: expected; -1 stands for any length.
        dtypes: allowed, in the byte order of this machine.
        finite: refuse NaN and infinities, which reads a floating-point array once.

    Raises:
        UserError: if it is not such an array.
    """
    with open_plain(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            found, fortran, dtype = read(file)
        except Exception as error:  # numpy parses the header as Python's literals: any parser's error may come
            raise UserError(f"{path}: damaged: {error}") from None
        fits = len(found) == len(shape) and all(
            want in (-1, have) and have >= 0 for want, have in zip(shape, found, strict=True)
        )
        if not fits or dtype not in dtypes or not dtype.isnative or (fortran and len(found) > 1):
            names = " or ".join(np.dtype(allowed).name for allowed in dtypes)
            raise UserError(f"{path}: {dtype} {found}; expected {names} {shape}")
        size, offset = os.fstat(file.fileno()).st_size, file.tell()
        if size != offset + math.prod(found) * dtype.itemsize:
            raise UserError(f"{path}: damaged: {size} bytes do not fit an array {found} of {dtype}")
        if 0 in found:
            return np.empty(found, dtype)
        try:
            array: npt.NDArray[Any] = np.memmap(file, dtype, "r", offset, found).view(np.ndarray)
        except (OSError, OverflowError, ValueError) as error:  # larger than the address space
            raise UserError(f"{path}: cannot be mapped into memory: {error}") from None
    if finite and dtype.kind == "f" and not all(np.isfinite(block).all() for block in blocks(array)):
        raise UserError(f"{path}: holds values that are not finite numbers; export the bundle again")
    return array


def blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The rows of an array in blocks of about a million values, so that a check of them takes little memory."""
    rows = max(1, _BLOCK_VALUES * len(array) // max(array.size, 1))
    return (array[start : start + rows] for start in range(0, len(array), rows))
