"""An append-only journal of events with checksums.  Events are on the disk before they are acknowledged.

A journal is a folder of numbered segments.  A line is a record: the CRC-32 of the JSON in hexadecimal, a space, JSON.

    {"bundle": KEY, "events": [[user, item], ...]}      in the order received, while that bundle was served
    {"bundle": KEY, "users": {user: [item, ...]}}       the same, compacted: the items of each user in order
    {"first": N}                                        first line of a compacted segment, which replaces those from N
                                                        up to its own number
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import write_atomically

__all__ = ["Journal", "JournalError", "Position", "Record"]

_SEGMENT_BYTES = 1 << 26
_USERS_A_LINE = 1000


class JournalError(Exception):
    """Events could not be written.  None of them is applied."""


@dataclass(frozen=True, order=True)
class Position:
    """A place between two records."""

    segment: int
    offset: int


START = Position(0, 0)


@dataclass(frozen=True)
class Record:
    """Events in order, and the bundle that was served when they were received."""

    bundle: str
    events: list[tuple[str, str]]


class Journal:
    """The events of a service.  One process may open it at a time, and one thread may append at a time."""

    def __init__(self, folder: Path, segment_bytes: int = _SEGMENT_BYTES) -> None:
        """Open or create a journal.  An incomplete last record, which was never acknowledged, is removed.

        Args:
            folder: the folder; it is created if it does not exist.
            segment_bytes: size from which on a new segment is started.

        Raises:
            UserError: if another process has opened it, it cannot be written, or a record in its middle is damaged.
        """
        from filelock import FileLock, Timeout

        self.folder = folder
        self.torn_bytes = 0
        """Number of bytes removed at the end."""
        self._segment_bytes = segment_bytes
        self._broken = False
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / "lock")
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                raise UserError(
                    f"{folder}: another service uses these events; choose another folder with --events"
                ) from None
            try:
                self._remove_replaced()
                segments = self._segments()
                for number in segments:
                    self._check(number, is_last=number == segments[-1])
                self._open(segments[-1] if segments else 1)
            except BaseException:
                self._lock.release()
                raise

    def close(self) -> None:
        os.close(self._file)
        self._lock.release()

    # --------------------------------------------------------------------------------------------------------- writing

    def append(self, bundle: str, events: Sequence[tuple[str, str]]) -> None:
        """Write events.  They are on the disk when this returns.

        Raises:
            JournalError: if they could not be written.  After a failed fsync the content of the disk is unknown, so
                nothing more is accepted until the journal is opened again.
        """
        if self._broken:
            raise JournalError("the journal is closed after an error; start the service again")
        line = _line({"bundle": bundle, "events": events})
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError("no room for the whole record")
        except OSError as error:
            try:
                os.ftruncate(self._file, self._size)  # remove the incomplete record
            except OSError:
                self._broken = True
            raise JournalError(str(error)) from error
        try:
            os.fsync(self._file)
        except OSError as error:
            self._broken = True
            raise JournalError(str(error)) from error
        self._size += len(line)

    @property
    def is_full(self) -> bool:
        """Whether a new segment should be started by :meth:`turn`."""
        return self._size >= self._segment_bytes

    def turn(self) -> None:
        """Start a new segment.  The others can be compacted from now on."""
        os.close(self._file)
        self._open(self._number + 1)

    def compact(self) -> None:
        """Merge all segments before the current one into one, grouped by user.  It may run while others append.

        If the process is killed, either the old segments or the new one are used.
        """
        old = [number for number in self._segments() if number < self._number]
        if len(old) < 2 and not self._is_plain(old):
            return
        runs: list[tuple[str, dict[str, list[str]]]] = []  # consecutive events of one bundle
        for record in self._read(old, START, None):
            if not runs or runs[-1][0] != record.bundle:
                runs.append((record.bundle, {}))
            for user, item in record.events:
                runs[-1][1].setdefault(user, []).append(item)

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                file.write(_line({"first": old[0]}))
                for bundle, users in runs:
                    names = list(users)
                    for start in range(0, len(names), _USERS_A_LINE):
                        part = {name: users[name] for name in names[start : start + _USERS_A_LINE]}
                        file.write(_line({"bundle": bundle, "users": part}))
                file.flush()
                os.fsync(file.fileno())

        write_atomically(self._path(old[-1]), write)
        self._sync_folder()
        self._remove_replaced()

    def _is_plain(self, numbers: list[int]) -> bool:
        return bool(numbers) and self._first(numbers[0]) is None

    # --------------------------------------------------------------------------------------------------------- reading

    @property
    def end(self) -> Position:
        return Position(self._number, self._size)

    @property
    def bytes(self) -> int:
        """Size of all segments."""
        return sum(self._path(number).stat().st_size for number in self._segments())

    def read(self, start: Position = START, end: Position | None = None) -> Iterator[Record]:
        """The records from ``start`` to ``end``, or to the end of the journal.  Not while :meth:`compact` runs."""
        yield from self._read(self._segments(), start, end or self.end)

    def _read(self, numbers: Sequence[int], start: Position, end: Position | None) -> Iterator[Record]:
        for number in numbers:
            if number < start.segment or (end and number > end.segment):
                continue
            with open(self._path(number), "rb") as file:
                place = file.seek(start.offset if number == start.segment else 0)
                for line in file:
                    if end and number == end.segment and place >= end.offset:
                        break
                    place += len(line)
                    record = _record(_content(line))
                    if record:
                        yield record

    # --------------------------------------------------------------------------------------------------------- segments

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.log"

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.log"))

    def _open(self, number: int) -> None:
        is_new = not self._path(number).exists()
        self._file = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number, self._size = number, os.fstat(self._file).st_size
        if is_new:
            self._sync_folder()

    def _sync_folder(self) -> None:
        """Write the folder to the disk, and with it the names of the segments."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _first(self, number: int) -> int | None:
        """The first segment that a compacted one replaces; None if it is not compacted."""
        with open(self._path(number), "rb") as file:
            content = _content(file.readline())
        return content.get("first") if content else None

    def _remove_replaced(self) -> None:
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        numbers = self._segments()
        for number in numbers:
            first = self._first(number)
            for replaced in range(number if first is None else first, number):
                self._path(replaced).unlink(missing_ok=True)

    def _check(self, number: int, is_last: bool) -> None:
        """Remove an incomplete last record.  Refuse a segment that is damaged elsewhere."""
        path = self._path(number)
        sound, bad = 0, 0
        with open(path, "rb") as file:
            for place, line in enumerate(file, start=1):
                if _content(line) is None:
                    bad = bad or place
                    if _runs_on(line):
                        break
                elif bad:
                    break
                else:
                    sound += len(line)
            else:
                if not bad:
                    return
                if is_last:
                    self.torn_bytes = path.stat().st_size - sound
                    os.truncate(path, sound)
                    return
        raise UserError(f"{path}: line {bad} is damaged; restore the file, or remove that line and lose its events")


def _line(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is incomplete or damaged."""
    text = line[9:-1]
    if line[-1:] != b"\n" or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    return json.loads(text)


def _runs_on(line: bytes) -> bool:
    """Whether a line starts with a complete record and goes on, which means that its line end is damaged."""
    try:
        _, end = json.JSONDecoder().raw_decode(line[9:].decode("latin-1"))
    except (ValueError, RecursionError):
        return False
    return line[:9] == b"%08x " % zlib.crc32(line[9 : 9 + end]) and line[9 + end :].strip(b"\0") != b""


def _record(content: dict[str, Any] | None) -> Record | None:
    if content is None or "bundle" not in content:
        return None
    if "users" in content:
        return Record(content["bundle"], [(user, item) for user, items in content["users"].items() for item in items])
    return Record(content["bundle"], [(user, item) for user, item in content["events"]])
