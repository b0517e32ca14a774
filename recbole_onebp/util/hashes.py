"""Hashes of files: SHA-256, and the git blob id that repositories list."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO, Any

__all__ = ["git_blob_id", "matches", "sha256", "sha256_of"]


def _hexdigest(algorithm: str, path: Path, prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    with open(path, "rb") as file:
        return _finished(digest, file)


def _finished(digest: Any, file: IO[bytes]) -> str:
    while chunk := file.read(2**20):
        digest.update(chunk)
    return str(digest.hexdigest())


def git_blob_id(path: Path) -> str:
    r"""The id that ``git hash-object`` prints: the SHA-1 of ``blob <size>\0<bytes>``, in hexadecimal."""
    return _hexdigest("sha1", path, b"blob %d\0" % path.stat().st_size)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return _hexdigest("sha256", path)


def sha256_of(file: IO[bytes]) -> str:
    """The SHA-256 of an open file from here to its end, in hexadecimal."""
    return _finished(hashlib.sha256(usedforsecurity=False), file)


def matches(path: Path, pin: str) -> bool:
    """Whether a file has the hash ``pin``: a git blob id (40 digits) or a SHA-256 (64 digits)."""
    return pin == (git_blob_id(path) if len(pin) == 40 else sha256(path))
