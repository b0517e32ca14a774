"""``recbole-onebp repair-events``: what can be read of a damaged store of events."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from recbole_onebp.serving.http import item_store
from recbole_onebp.serving.http.event_tables import Interaction, as_entry, checked_history, interactions, parse_history
from recbole_onebp.serving.http.events import FILE, Event, EventStore
from recbole_onebp.serving.http.item_store import ItemChange
from recbole_onebp.util.errors import UserError, writing

__all__ = ["repair"]


def repair(folder: Path) -> tuple[int, Path]:
    """Copy what can be read of a damaged store into a new one; the damaged file is kept beside it.

    Returns:
        The number of events in the new store, and the path of the damaged file.

    Raises:
        UserError: if there is no store, or another process uses it.
    """
    path = folder / FILE
    if not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: there is no such file; expected the folder of a service's events")
    _refuse_if_used(path)
    runs: list[tuple[str, list[Interaction]]] = []
    for key, found in (*_salvage(path, "histories"), *_salvage(path, "events")):
        if not runs or runs[-1][0] != key:
            runs.append((key, []))
        runs[-1][1].extend(found)
    items = _salvaged_items(path)
    kept, number = path.with_name(f"{FILE}.damaged"), 2
    while kept.exists():
        kept, number = path.with_name(f"{FILE}.damaged-{number}"), number + 1
    with writing(folder):
        for suffix in ("-wal", "-shm", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(kept.with_name(kept.name + suffix))
    with closing(EventStore(folder)) as store, store.writing() as database:
        for key, events in runs:
            store.append(key, [Event(*event) for event in events])
        for one in items:
            item_store.write_items(database, {one.item: one.features or {}}, one.is_removed)
    return sum(len(events) for _, events in runs), kept


def _refuse_if_used(path: Path) -> None:
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
        try:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise UserError(f"{path}: a service uses it; stop the service first") from None
        except sqlite3.DatabaseError:
            pass  # damaged, which is why we are here


def _salvaged_items(path: Path) -> list[ItemChange]:
    """The added and removed items; none if their table is damaged."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database, suppress(sqlite3.Error):
        return item_store.read_items(database)
    return []


def _salvage(path: Path, table: str) -> Iterator[tuple[str, list[Interaction]]]:
    """Bundle key and interactions of every row that can be read."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as database:
        keys: dict[int, str] = {}
        with suppress(sqlite3.Error):
            keys = dict(database.execute("SELECT number, key FROM bundles"))
        last = 0
        for query in (f"SELECT max(number) FROM {table}", f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"):
            with suppress(sqlite3.Error, TypeError):
                last = max(last, int(database.execute(query).fetchone()[0]))
        database.row_factory = sqlite3.Row
        query = f"SELECT * FROM {table} WHERE number = ?"  # all: earlier formats have no column of weights
        for number in range(1, last + 1):
            with suppress(sqlite3.Error, ValueError, TypeError):
                for row in map(dict, database.execute(query, (number,)).fetchall()):
                    yield keys.get(row["bundle"], "unknown"), _interactions(row)


def _interactions(row: dict[str, Any]) -> list[Interaction]:
    """The interactions of a row.

    Raises:
        sqlite3.DatabaseError: if it holds something else.
    """
    if not isinstance(row["user"], str):
        raise sqlite3.DatabaseError("a user is no text")
    if "items" in row:
        return interactions(row["user"], parse_history(row["items"]))
    return interactions(row["user"], checked_history([as_entry(row["item"], row.get("weight"))]))
