"""The interactions of a caller, checked and cleaned: what ``recbole-onebp convert`` would make of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import pandas as pd

from recbole_onebp.data.sources.frames import read_interactions, refuse_bad
from recbole_onebp.data.sources.tables import with_sums
from recbole_onebp.util.errors import UserError

__all__ = ["Columns", "each_once", "read_rows"]

_PAIR = ["user_id", "item_id"]


@dataclass(frozen=True)
class Columns:
    """Names of the columns; None: looked up by its usual names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    """``""``: no times are read."""
    weight: str | None = None
    """None: interactions have no weights."""

    def given(self, *, time: bool = True, weight: bool = True) -> dict[str, str]:
        """By our names, those that were given; without times or weights if ``time`` or ``weight`` is false."""
        named = {"user_id": self.user, "item_id": self.item, "timestamp": self.time if time else ""}
        named["rating"] = self.weight if weight else None
        return {key: str(name) for key, name in named.items() if name is not None}


def read_rows(data: Any, columns: Columns, name: str, *, time: bool = True, weight: bool = True) -> pd.DataFrame:
    """All rows, the earliest first.

    Args:
        data: see :func:`~recbole_onebp.data.sources.frames.read_interactions`.
        columns: names of its columns.
        name: of the data, for messages.
        time: read times, if there are any.
        weight: read weights, if there are any.

    Returns:
        ``(n, 2 to 4)``: ``user_id`` and ``item_id`` (categories of str), perhaps ``rating`` (float, the weight) and
        ``timestamp`` (float, seconds since 1970).

    Raises:
        UserError: names the first bad row; or there are no rows.
    """
    given = columns.given(time=time, weight=weight)
    table = read_interactions(data, given, name)
    for remark in table.remarks:
        getLogger().warning("%s: %s", name, remark)
    refuse_bad(table, name)
    frame = table.frame
    if not given.get("rating"):  # the archives of GroupLens have ratings
        frame = frame.drop(columns="rating", errors="ignore")
    if frame.empty:
        raise UserError(f"{name}: no rows")
    _tell_blanks(frame, name, given)
    return frame.sort_values("timestamp", kind="stable") if "timestamp" in frame else frame


def each_once(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """Each pair of a user and an item at its first row, with the sum of its weights."""
    pairs = rows.drop_duplicates(_PAIR)
    if len(pairs) < len(rows):
        how = ""
        if "rating" in rows:
            pairs, how = with_sums(rows, _PAIR).drop_duplicates(_PAIR), ", with the sum of its weights"
        message = "%s: %s rows are of a user and item that an earlier row has too; each pair counts once%s"
        getLogger().warning(message, name, f"{len(rows) - len(pairs):,}", how)
    return pairs.reset_index(drop=True)


def _tell_blanks(frame: pd.DataFrame, name: str, columns: Mapping[str, str]) -> None:
    for key in _PAIR:
        odd = [token for token in frame[key].cat.categories if token != token.strip()]
        if odd:
            message = "%s: %d values of %s begin or end with blanks, such as %r; they differ from those without"
            getLogger().warning(message, name, len(odd), columns.get(key, key), odd[0])
