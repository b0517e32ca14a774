"""Databases of events as earlier versions wrote them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from recbole_onebp.serving.http.events import FILE


def make_earlier(folder: Path, version: int) -> None:
    """Turn a store that holds no weights and, for version 1, no items into one of an earlier format."""
    with closing(sqlite3.connect(folder / FILE)) as database:
        sql = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'events'").fetchone()[0]
        database.executescript(
            f"ALTER TABLE events RENAME TO later; {sql[: sql.index(', weight')]}) STRICT; "
            "INSERT INTO events SELECT number, bundle, user, item FROM later; DROP TABLE later; "
            f"{'DROP TABLE items;' if version == 1 else ''} PRAGMA user_version = {version};"
        )
