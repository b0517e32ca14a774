"""Added and removed items in the database of events: one row an item, with what was said of it last."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from recbole_onebp.util.ids import Token

__all__ = ["SCHEMA", "ItemChange", "read_items", "write_items"]

SCHEMA = """
CREATE TABLE items (
    number INTEGER PRIMARY KEY, item TEXT NOT NULL UNIQUE, features TEXT, removed INTEGER NOT NULL,
    change INTEGER NOT NULL UNIQUE
) STRICT;
"""
"""``number`` is the order in which items were first named, ``change`` that in which they were last."""


class ItemChange(NamedTuple):
    """What is known of an item that was added or removed."""

    item: Token
    features: dict[str, Any] | None
    """As they were given; None if the item is only known to have been in a bundle."""
    is_removed: bool
    change: int
    """Grows with every change of any item."""


def write_items(database: sqlite3.Connection, items: Mapping[Token, Mapping[str, Any]], is_removed: bool) -> None:
    """Write that items were added or removed; earlier features stay where none are given."""
    for item, features in items.items():
        database.execute(
            "INSERT INTO items (item, features, removed, change) "
            "VALUES (?, ?, ?, (SELECT coalesce(max(change), 0) + 1 FROM items)) ON CONFLICT (item) DO UPDATE SET "
            "features = coalesce(excluded.features, features), removed = excluded.removed, change = excluded.change",
            (item, json.dumps(features) if features else None, is_removed),
        )


def read_items(database: sqlite3.Connection, after: int = 0) -> list[ItemChange]:
    """The items with later changes, in the order in which they were first named.

    Raises:
        sqlite3.DatabaseError: for features that are no JSON.
    """
    rows = database.execute(
        "SELECT item, features, removed, change FROM items WHERE change > ? ORDER BY number", (after,)
    )
    try:
        return [ItemChange(item, features and json.loads(features), bool(removed), change)
                for item, features, removed, change in rows]  # fmt: skip
    except (ValueError, RecursionError):
        raise sqlite3.DatabaseError("the features of an item are no JSON") from None
