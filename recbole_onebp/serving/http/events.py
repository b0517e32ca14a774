"""Events in SQLite: an event is on the disk before it is acknowledged, and counts once however often it is sent.

A folder holds ``events.sqlite3``, with the tables of :mod:`event_tables`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import compress, groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from recbole_onebp.serving.http import item_store, legacy_journal
from recbole_onebp.serving.http.event_tables import (
    FORMAT,
    Entry,
    Interaction,
    as_entry,
    history_text,
    interactions,
    parse_history,
    prepare,
)
from recbole_onebp.serving.http.item_store import ItemChange
from recbole_onebp.util.errors import UserError, writing

__all__ = ["Event", "EventBatch", "EventStore", "MergedError", "StoreError", "Stored", "event_id"]

FILE = "events.sqlite3"
ID_SECONDS = 7 * 24 * 3600.0
"""A retry within this time counts once; older ids are forgotten when the store is compacted."""
_BUSY_SECONDS, _TRY_SECONDS = 5, 0.001
"""How long to wait for other processes, and how long between two tries to write."""
_AT_A_TIME = 1 << 16
_MERGED_AT_A_TIME = 1 << 12
"""Events that are merged in one transaction; new events wait meanwhile."""
_HISTORY_LETTERS = 1 << 16
"""A longer history is continued in another row, so that no merge rewrites all of it."""


class StoreError(Exception):
    """Events could not be written: none of them counts."""


class MergedError(Exception):
    """The events that are asked for have been merged with earlier ones: all must be read anew."""


class Event(NamedTuple):
    """A user interacted with an item."""

    user: str
    item: str
    weight: float | None = None
    """How much it counts; None if the client has not said. It does not tell events apart."""
    id: str | None = None
    """Given by the client. An event with an id that is known is a retry and does not count again."""
    time: float | None = None
    """When it happened, in seconds. Without an id, user, item and time identify the event."""


@dataclass(frozen=True)
class Stored:
    """What became of a list of events."""

    new: list[bool]
    """For each event, whether it is new; the others are retries."""
    end: int
    """The number of the last event, see :meth:`EventStore.read`."""


class EventBatch(NamedTuple):
    """Stored events that were recorded under one bundle, one after the other."""

    bundle: str
    """Its key."""
    events: list[Interaction]
    end: int
    """The number of the last event; of merged ones, that of the last event that was merged."""
    items: Sequence[ItemChange] = ()
    """Items that were added or removed.  They come before all events that name them, in a batch without events."""


def event_id(event: Event) -> bytes | None:
    """16 bytes that identify an event; None if it has neither an id nor a time, and therefore always counts."""
    if event.id is not None:
        content: list[object] = ["id", event.id]
    elif event.time is not None:
        content = ["content", event.user, event.item, event.time]
    else:
        return None
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


class EventStore:
    """The events of one service.  All methods may be called from any thread.

    The processes of one service share the store: one opens it alone and keeps it open, the others join.  The numbers of
    the events are their order for all of them.

    Example:
        >>> store = EventStore(Path("bundle.events"))
        >>> store.append("bundle key", [Event("196", "50", id="a")]).new
        [True]
        >>> store.append("bundle key", [Event("196", "50", id="a")]).new
        [False]
    """

    def __init__(self, folder: Path, *, join: bool = False) -> None:
        """Open or create the store. A journal of an earlier version in the same folder is imported first.

        Args:
            folder: created if it does not exist, for its owner alone.
            join: another process of the same service has opened the store, and keeps it open.

        Raises:
            UserError: if another service uses it, it cannot be written, or it is damaged.
        """
        self.folder = folder
        self.path = folder / FILE
        self._lock, self._watching = threading.RLock(), threading.Lock()
        if not join:
            self._open_alone()
        self._database, self._watcher = _connect(self.path), _connect(self.path)

    def _open_alone(self) -> None:
        """Create the store, or check it as a whole.  This fails while another process has it open."""
        folder = self.folder
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
                raise UserError(f"{self.path}: is not a plain file; choose another folder for the events")
            # SQLite gives the files beside it the same mode.  What it cannot write, it calls a disk I/O error.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with TemporaryFile(dir=folder):
                pass
        self._database = _connect(self.path, alone=True)
        try:
            with _explained(self.path):
                prepare(self._database, self.path)
            self._import_journal()
        finally:
            self._database.close()

    def _import_journal(self) -> None:
        if not legacy_journal.is_there(self.folder):
            return
        # The digest tells a journal that was imported just before a kill from one that was put there later.
        digest = legacy_journal.digest(self.folder)
        with _explained(self.path), self._transaction() as database:
            row = digest, float("inf")  # never forgotten
            if database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", row).rowcount == 1:
                for bundle, events in legacy_journal.read(self.folder):
                    self._insert(database, bundle, ((user, item, None) for user, item in events))
        legacy_journal.set_aside(self.folder)

    def close(self) -> None:
        """Close the store."""
        with self._lock, self._watching:
            self._database.close()
            self._watcher.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._database.in_transaction:  # that of a caller
                yield self._database
                return
            self._begin()
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Begin to write, when no other process does.

        SQLite would wait up to 0.1 s between two tries, and a process with less to write would seldom get its turn.
        """
        self._database.execute("PRAGMA busy_timeout = 0")
        end = time.monotonic() + _BUSY_SECONDS
        try:
            while True:
                try:
                    self._database.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if "locked" not in str(error) or time.monotonic() > end:
                        raise
                time.sleep(_TRY_SECONDS)
        finally:
            self._database.execute(f"PRAGMA busy_timeout = {1000 * _BUSY_SECONDS}")

    # --------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Keep all other writers out.  What is written meanwhile is on the disk at the end, all of it or nothing.

        Raises:
            StoreError: if it could not be written.
        """
        try:
            with self._transaction() as database:
                yield database
        except sqlite3.Error as error:
            raise StoreError(str(error)) from error

    def append(self, bundle: str, events: Sequence[Event]) -> Stored:
        """Write the events that are new; they are on the disk when this returns.

        Args:
            bundle: key of the bundle that is served.
            events: in the order in which they happened.

        Raises:
            StoreError: if they could not be written; then none of them counts.
        """
        now = time.time()
        new = []
        with self.writing() as database:
            for event in events:
                key = event_id(event)
                is_new = key is None or database.execute(
                    "INSERT OR IGNORE INTO ids VALUES (?, ?)", (key, now)
                ).rowcount == 1  # fmt: skip
                new.append(is_new)
            self._insert(database, bundle, (event[:3] for event in compress(events, new)))
            return Stored(new, self.end)

    def _insert(
        self, database: sqlite3.Connection, bundle: str, events: Iterable[tuple[str, str, float | None]]
    ) -> None:
        database.execute("INSERT OR IGNORE INTO bundles (key) VALUES (?)", (bundle,))
        (number,) = database.execute("SELECT number FROM bundles WHERE key = ?", (bundle,)).fetchone()
        rows = ((number, user, item, weight) for user, item, weight in events)
        database.executemany("INSERT INTO events (bundle, user, item, weight) VALUES (?, ?, ?, ?)", rows)

    def compact(self, up_to: int | None = None) -> None:
        """Merge events into one row per user and bundle, and forget ids that are older than :data:`ID_SECONDS`.

        Every step is one transaction: a process that is killed in between loses nothing, and nothing counts twice.

        Args:
            up_to: the number of the last event to merge; all if None.

        Raises:
            StoreError: if it could not be written; what has been merged so far stays.
        """
        end = self.end if up_to is None else up_to
        merged = True
        while merged:
            with self.writing() as database:
                merged = self._merge(database, end)
        with self.writing() as database:
            database.execute("DELETE FROM ids WHERE received < ?", (time.time() - ID_SECONDS,))

    def _merge(self, database: sqlite3.Connection, end: int) -> bool:
        """Merge the next events; whether there were any."""
        rows = database.execute(
            "SELECT number, bundle, user, item, weight FROM events WHERE number <= ? ORDER BY number LIMIT ?",
            (end, _MERGED_AT_A_TIME),
        ).fetchall()
        if not rows:
            return False
        latest: dict[str, tuple[int | None, int, list[Entry]]] = {}  # of each user: row, bundle, history
        for _, bundle, user, item, weight in rows:
            if user not in latest:
                found = database.execute(
                    "SELECT number, bundle, items FROM histories WHERE user = ? ORDER BY number DESC LIMIT 1", (user,)
                ).fetchone()
                if found and found[1] == bundle and len(found[2]) < _HISTORY_LETTERS:
                    latest[user] = (found[0], bundle, parse_history(found[2]))
            if user in latest and latest[user][1] != bundle:
                _write_history(database, user, *latest.pop(user))
            latest.setdefault(user, (None, bundle, []))[2].append(as_entry(item, weight))
        for user, history in latest.items():
            _write_history(database, user, *history)
        database.execute("DELETE FROM events WHERE number <= ?", (rows[-1][0],))
        return True

    # --------------------------------------------------------------------------------------------------------- reading

    @property
    def end(self) -> int:
        """The number of the last event; 0 if there was none."""
        with self._lock:
            return _end(self._database)

    @property
    def n_waiting(self) -> int:
        """Events that have not been merged by :meth:`compact`."""
        with self._lock:
            return _n_waiting(self._database)

    @property
    def bytes(self) -> int:
        """Size of the files on the disk."""
        return sum(path.stat().st_size for path in self.folder.glob(f"{FILE}*"))

    def check_writable(self) -> None:
        """Raise :class:`StoreError` if events cannot be written now."""
        with self.writing() as database:
            database.execute(f"PRAGMA user_version = {FORMAT}")

    @property
    def version(self) -> int:
        """Another number whenever this process or another one has written.  It waits for no writer.

        Raises:
            UserError: if it cannot be read.
        """
        with self._watching, _explained(self.path):
            return int(self._watcher.execute("PRAGMA data_version").fetchone()[0])

    def read(self, after: int = 0, items_after: int = 0) -> Iterator[EventBatch]:
        """Events as they are now, each user's in order; whatever is written meanwhile does not change what is read.

        Args:
            after: only events with higher numbers; if 0, all, those that were merged first.
            items_after: only items with later changes.

        Raises:
            MergedError: if some events with higher numbers have been merged.
            UserError: if the store is damaged.
        """
        with closing(_connect(self.path)) as database, _explained(self.path):
            database.execute("BEGIN")
            keys = {number: str(key) for number, key in database.execute("SELECT number, key FROM bundles")}
            n_merged = _end(database) - _n_waiting(database)
            if 0 < after < n_merged:
                raise MergedError
            changed = item_store.read_items(database, items_after)
            if changed:
                yield EventBatch("", [], after, changed)
            merged = "SELECT number, bundle, user, items FROM histories WHERE number > ? ORDER BY number LIMIT ?"
            for rows in _chunks(database, merged, 0) if after == 0 else ():
                for _, bundle, user, items in rows:
                    yield EventBatch(_key(keys, bundle), interactions(user, parse_history(items)), n_merged)
            single = "SELECT number, bundle, user, item, weight FROM events WHERE number > ? ORDER BY number LIMIT ?"
            for rows in _chunks(database, single, after):
                for number, run in groupby(rows, itemgetter(1)):
                    of_bundle = list(run)
                    events = [row[2:4] if row[4] is None else row[2:] for row in of_bundle]
                    yield EventBatch(_key(keys, number), events, of_bundle[-1][0])


def _end(database: sqlite3.Connection) -> int:
    row = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(row[0]) if row else 0


def _n_waiting(database: sqlite3.Connection) -> int:
    first = database.execute("SELECT min(number) FROM events").fetchone()[0]
    return 0 if first is None else _end(database) - int(first) + 1


def _chunks(database: sqlite3.Connection, query: str, after: int) -> Iterator[list[Any]]:
    while rows := database.execute(query, (after, _AT_A_TIME)).fetchall():
        yield rows
        after = rows[-1][0]


def _key(keys: dict[int, str], bundle: int) -> str:
    if bundle not in keys:
        raise sqlite3.DatabaseError(f"there is no bundle number {bundle}")
    return keys[bundle]


def _write_history(
    database: sqlite3.Connection, user: str, number: int | None, bundle: int, history: list[Entry]
) -> None:
    text = history_text(history)
    if number is None:
        database.execute("INSERT INTO histories (bundle, user, items) VALUES (?, ?, ?)", (bundle, user, text))
    else:
        database.execute("UPDATE histories SET items = ? WHERE number = ?", (text, number))


def _connect(path: Path, *, alone: bool = False) -> sqlite3.Connection:
    """A connection in WAL mode, with every commit on the disk; ``alone`` fails if there is another one anywhere."""
    if sqlite3.sqlite_version_info < (3, 37):
        raise UserError(f"events need SQLite 3.37 or newer; this Python has {sqlite3.sqlite_version}")
    database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        with _explained(path):
            if alone:
                database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA trusted_schema = OFF")
            database.execute("PRAGMA cell_size_check = ON")
            if alone:
                database.execute("BEGIN IMMEDIATE")
                database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line that says what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise UserError(f"{path}: another service uses these events; choose another folder with --events") from None
        raise UserError(f"{path}: cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: is damaged: {error}; restore a backup, or keep what can be read: "
            f"recbole-onebp repair-events {path.parent}"
        ) from None
