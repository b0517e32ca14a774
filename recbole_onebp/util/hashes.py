"""Hashes of files: SHA-256, and the git blob id that repositories list."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import IO

__all__ = ["git_blob_id", "matches", "sha256", "sha256_of"]


def _hexdigest(algorithm: str, file: IO[bytes], prefix: bytes = b"") -> str:
    digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest.hexdigest()


def git_blob_id(path: Path) -> str:
    r"""The id that ``git hash-object`` prints: the SHA-1 of ``blob <size>\0<bytes>``, in hexadecimal."""
    with open(path, "rb") as file:
        return _hexdigest("sha1", file, b"blob %d\0" % path.stat().st_size)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return sha256_of(file)


def sha256_of(file: IO[bytes]) -> str:
    """The SHA-256 of what is left to read of an open file, in hexadecimal."""
    return _hexdigest("sha256", file)


def matches(path: Path, pin: str) -> bool:
    """Whether a file has the hash ``pin``: a git blob id (40 digits) or a SHA-256 (64 digits)."""
    return pin == (git_blob_id(path) if len(pin) == 40 else sha256(path))
