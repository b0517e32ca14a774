"""The tables of the database of events, those of earlier formats, and how an interaction is written in them.

Tables:

    bundles (number, key)                         the bundles that were served
    events (number, bundle, user, item, weight)   interactions in the order in which they came in
    histories (number, bundle, user, items)       the same, compacted: the items of one user in order, as a JSON list
                                                  of items, and of pairs of an item and a weight
    ids (id, received)                            ids of recent events, so that a retry counts once
    items                                         added and removed items, see :mod:`item_store`
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from recbole_onebp.serving.http import item_store
from recbole_onebp.util.errors import UserError
from recbole_onebp.weights import LARGEST, LEAST

__all__ = [
    "FORMAT",
    "Entry",
    "Interaction",
    "as_entry",
    "checked_history",
    "history_text",
    "interactions",
    "parse_history",
    "prepare",
]

Interaction: TypeAlias = "tuple[str, str] | tuple[str, str, float]"
"""User, item, and the weight if there is one: what :meth:`Recommender.update` takes."""

Entry: TypeAlias = "str | list[Any]"
"""An item in a history, or [item, weight]."""

FORMAT = 3
_APPLICATION_ID = 0x0EBB0001
_WEIGHT = f"weight REAL CHECK (weight BETWEEN {LEAST!r} AND {LARGEST!r})"
_SCHEMA = f"""
CREATE TABLE bundles (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, bundle INTEGER NOT NULL REFERENCES bundles, user TEXT NOT NULL,
    item TEXT NOT NULL, {_WEIGHT}
) STRICT;
CREATE TABLE histories (
    number INTEGER PRIMARY KEY AUTOINCREMENT, bundle INTEGER NOT NULL REFERENCES bundles, user TEXT NOT NULL,
    items TEXT NOT NULL
) STRICT;
CREATE INDEX histories_by_user ON histories (user, number);
CREATE TABLE ids (id BLOB PRIMARY KEY, received REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX ids_by_time ON ids (received);
{item_store.SCHEMA}
"""
_UPGRADES = {1: item_store.SCHEMA, 2: f"ALTER TABLE events ADD COLUMN {_WEIGHT};"}
"""What makes the next format of a format: 1 had no items, 2 no weights."""


def prepare(database: sqlite3.Connection, path: Path) -> None:
    """Create the tables, or check the database as a whole and bring it to the current format.

    Raises:
        UserError: if it is another database, or one of a later version.
        sqlite3.DatabaseError: if it is damaged.
    """
    schema = [row[0] for row in database.execute("SELECT sql FROM sqlite_schema WHERE substr(name, 1, 7) <> 'sqlite_'")]
    if not schema:  # new, or a process was killed before it had written the tables
        header = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT};"
        database.executescript(f"BEGIN; {_SCHEMA} {header} COMMIT;")
        return
    application, version = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in
                            ("application_id", "user_version"))  # fmt: skip
    if application != _APPLICATION_ID:
        raise UserError(f"{path}: is not a store of events; choose another folder with --events")
    if version not in range(1, FORMAT + 1):
        raise UserError(f"{path}: has format {version}; this version of recbole_onebp reads 1 to {FORMAT}")
    found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found == "ok" and _statements(";".join(map(str, schema))) != _statements(_schema_of(version)):
        found = "its tables are not those of a store of events"
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    upgrade = "".join(_UPGRADES[one] for one in range(version, FORMAT))
    if upgrade:
        database.executescript(f"BEGIN; {upgrade} PRAGMA user_version = {FORMAT}; COMMIT;")


def _schema_of(version: int) -> str:
    schema = _SCHEMA if version == FORMAT else _SCHEMA.replace(f", {_WEIGHT}", "")
    return schema.replace(item_store.SCHEMA, "") if version == 1 else schema


def _statements(sql: str) -> list[str]:
    """The statements, without the white space in which a table that was altered differs."""
    tight = re.sub(r"\s*([(),;])\s*", r"\1", " ".join(sql.split()))
    return sorted(statement for statement in tight.split(";") if statement)


def parse_history(text: str) -> list[Entry]:
    """A row of ``histories``.

    Raises:
        sqlite3.DatabaseError: if it is damaged.
    """
    try:
        return checked_history(json.loads(text))
    except (ValueError, RecursionError):
        return checked_history(None)


def checked_history(entries: Any) -> list[Entry]:
    """What was read as a history.

    Raises:
        sqlite3.DatabaseError: if it is none.
    """
    if not isinstance(entries, list) or not all(isinstance(one, str) or _is_weighted(one) for one in entries):
        raise sqlite3.DatabaseError("a history is not a list of items")
    return entries


def _is_weighted(entry: Any) -> bool:
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    item, weight = entry
    return isinstance(item, str) and type(weight) in (int, float) and LEAST <= weight <= LARGEST


def history_text(entries: list[Entry]) -> str:
    """The same as text."""
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":"))


def as_entry(item: str, weight: float | None) -> Entry:
    """A row of ``events`` in a history."""
    return item if weight is None else [item, weight]


def interactions(user: str, entries: Iterable[Entry]) -> list[Interaction]:
    """Those of a user's history."""
    return [(user, one) if isinstance(one, str) else (user, *one) for one in entries]
