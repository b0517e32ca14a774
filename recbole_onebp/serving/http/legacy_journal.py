"""Reads the journal that services kept before SQLite, for :class:`~recbole_onebp.serving.http.events.EventStore`.

A journal is a folder of numbered segments. A line is a record: the CRC-32 of the rest in hexadecimal, a space, JSON.

    {"bundle": KEY, "events": [[user, item], ...]}      events as they came in
    {"bundle": KEY, "users": {user: [item, ...]}}       the same, compacted
    {"first": N}                                        first line of a segment that replaces those from N on
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError, writing

__all__ = ["digest", "is_there", "read", "set_aside"]

_SEGMENT = re.compile(r"\d{8}\.log")
_DONE = "imported-journal"


def _segments(folder: Path) -> list[Path]:
    named = (path for path in folder.iterdir() if _SEGMENT.fullmatch(path.name))
    return sorted(path for path in named if path.is_file() and not path.is_symlink())


def is_there(folder: Path) -> bool:
    """Whether a folder holds segments of a journal."""
    return any(path.read_bytes()[:9].endswith(b" ") for path in _segments(folder) if path.stat().st_size)


def digest(folder: Path) -> bytes:
    """16 bytes that identify the content of a journal."""
    hashed = hashlib.blake2b(digest_size=16)
    for path in _segments(folder):
        hashed.update(path.name.encode() + hashlib.blake2b(path.read_bytes()).digest())
    return hashed.digest()


def read(folder: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Bundle keys and (user, item) events, in order.

    Raises:
        UserError: for a line that is damaged, or a segment that is missing. Nothing is left out silently: the message
            says what to remove to import the rest.
    """
    segments = {int(path.stem): path for path in _segments(folder)}
    replaced: set[int] = set()
    for number, path in segments.items():
        first = _first(path)
        replaced |= set(range(first if first is not None else number, number))
    current = sorted(segments.keys() - replaced)
    for earlier, later in pairwise(current):
        begins = _first(segments[later])
        if (later if begins is None else begins) != earlier + 1:
            raise UserError(f"{folder}: a segment between {earlier:08d}.log and {later:08d}.log is missing; restore it")
    for number in current:
        path = segments[number]
        for place, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            content = _content(line)
            try:
                yield from _events(content)
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}: line {place} is damaged; restore the file from a backup, or delete that line, which "
                    "loses its events"
                ) from None


def set_aside(folder: Path) -> None:
    """Move the segments into a folder of their own; nothing is deleted."""
    with writing(folder):
        done, number = folder / _DONE, 2
        while done.exists():
            done, number = folder / f"{_DONE}-{number}", number + 1
        done.mkdir(mode=0o700)
        for path in _segments(folder):
            path.rename(done / path.name)


def _first(path: Path) -> int | None:
    with open(path, "rb") as file:
        content = _content(file.readline())
    first = content.get("first") if isinstance(content, dict) else None
    return first if isinstance(first, int) and 0 < first <= int(path.stem) else None


def _content(line: bytes) -> Any:
    """What a line holds; None if it is damaged."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _events(content: Any) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if not isinstance(content, dict):
        raise TypeError("not a record")
    if set(content) == {"first"}:
        return
    bundle = content["bundle"]
    if "users" in content:
        pairs = [(user, item) for user, items in content["users"].items() for item in items]
    else:
        pairs = [(user, item) for user, item in content["events"]]
    if not all(isinstance(text, str) for pair in [(bundle, ""), *pairs] for text in pair):
        raise TypeError("not text")
    yield bundle, pairs
