"""The interactions of a caller, checked and cleaned: what ``recbole-onebp convert`` would make of them."""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from typing import Any

import pandas as pd

from recbole_onebp.data.sources.frames import read_interactions
from recbole_onebp.util.errors import UserError

__all__ = ["Columns", "read_pairs"]

_PAIR = ["user_id", "item_id"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None: looked up by its usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    """``""``: no times are read."""

    def given(self, *, time: bool = True) -> dict[str, str]:
        """By our names, those that were given; without times if ``time`` is false."""
        named = {"user_id": self.user, "item_id": self.item, "timestamp": self.time if time else ""}
        return {key: str(name) for key, name in named.items() if name is not None}


def read_pairs(data: Any, columns: Columns, name: str, *, time: bool = True) -> pd.DataFrame:
    """Each pair of a user and an item once, the earliest first.

    Args:
        data: see :func:`~recbole_onebp.data.sources.frames.read_interactions`.
        columns: names of its columns.
        name: of the data, for messages.
        time: read times, if there are any.

    Returns:
        ``(n, 2 or 3)``: ``user_id`` and ``item_id`` (categories of str), and ``timestamp`` (float, seconds since 1970).

    Raises:
        UserError: names the first bad row; or there are no rows.
    """
    given = columns.given(time=time)
    table = read_interactions(data, given, name)
    for remark in table.remarks:
        getLogger().warning("%s: %s", name, remark)
    if table.bad:
        first = table.bad[0]
        meant = ", ".join(f"{key} is column {column}" for key, column in given.items() if column)
        counted = "" if " line" in first.where else "; rows are counted from 0"
        raise UserError(
            f"{first.where}: {first.reason}: {first.text or 'empty'} ({len(table.bad):,} such rows"
            f"{'; ' if meant else ''}{meant}{counted}); correct them or leave them out"
        )
    frame = table.frame
    if frame.empty:
        raise UserError(f"{name}: no rows")
    if "timestamp" in frame:
        frame = frame.sort_values("timestamp", kind="stable")
    pairs = frame.drop_duplicates(_PAIR, ignore_index=True)
    if len(pairs) < len(frame):
        getLogger().warning(
            "%s: %s rows are of a user and item that an earlier row has too; each pair counts once",
            name,
            f"{len(frame) - len(pairs):,}",
        )
    return pairs
