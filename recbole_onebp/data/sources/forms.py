"""How a file of the user's own is read, and which of its columns mean what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.util.errors import UserError

__all__ = ["FAULT", "MORE", "TableFormat", "Text", "choose", "usual_columns"]

_SHOWN = 5
MORE, FAULT = "more fields", "fault"
"""More columns of a raw table than those of :class:`TableFormat`: a field too many, and what is wrong with the row."""
_USUAL = {
    "user_id": {"user", "userid", "uid"},
    "item_id": {"item", "itemid", "iid", "movie", "movieid", "product", "productid"},
    "rating": {"rating"},
    "timestamp": {"timestamp", "time"},
}


@dataclass(frozen=True)
class TableFormat:
    """How to read a file."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """``user_id``, ``item_id``, ``rating``, ``timestamp`` -> the file's column, by its name, or by its number from 1
    if there is no header; a missing key is looked up by its usual names, and a rating or time given as ``""`` is not
    read."""
    separator: str | None = None
    """One or more characters; None: by the suffix of the file."""
    header: bool = True
    encoding: str = "utf-8"
    time_format: str | None = None
    """``s``, ``ms``, ``us`` or ``ns``, or a format of ``strptime``; None: see
    :func:`~recbole_onebp.data.sources.times.seconds`."""
    weights: bool = False
    """Ratings are weights of interactions: above 0."""
    whole_ids: bool = False
    """Read ids of text files such as ``17850.0`` as ``17850``."""
    max_mb: int | None = None
    """Largest file, after unpacking; see :func:`~recbole_onebp.data.sources.unpack.bound`."""
    in_python: bool = False
    """Messages name the arguments of :func:`recbole_onebp.fit` in place of the flags of ``recbole-onebp convert``."""

    def in_its_words(self, message: str) -> str:
        """The message with the names of the caller's columns, if they have names, in place of ours."""
        if not self.header:
            return message
        return re.sub("|".join(_USUAL), lambda ours: self.columns.get(ours[0]) or ours[0], message)


def usual_columns(names: Sequence[str]) -> dict[str, str]:
    """Our name -> the one column whose name usually means it."""
    fitting = {
        key: [name for name in names if name.partition(":")[0].replace("_", "").lower() in usual]
        for key, usual in _USUAL.items()
    }
    return {key: found[0] for key, found in fitting.items() if len(found) == 1}


def choose(where: str, names: Sequence[str], form: TableFormat) -> dict[str, str]:
    """Our name -> the column."""
    listed = f"its columns are {', '.join(names)}"
    if len(names) == 1 and not {";", "|", "\t", ","}.isdisjoint(names[0]):
        listed += f"; for another separator {'pass a DataFrame' if form.in_python else 'use --sep'}"
    chosen = {key: column for key, column in form.columns.items() if column}
    if unknown := [column for column in chosen.values() if column not in names]:
        raise UserError(f"{where}: no column {unknown[0]}; {listed}")
    usual = usual_columns(names)
    for key in _USUAL:
        if key not in form.columns and key in usual:
            chosen[key] = usual[key]
        elif key not in chosen and key in ("user_id", "item_id"):
            hint = "" if form.header else ", by their numbers"
            flag = f"{key[:4]}=" if form.in_python else f"--{key[:4]}"
            raise UserError(f"{where}: which column is the {key[:4]}? name it by {flag}{hint}; {listed}")
    if len(set(chosen.values())) < len(chosen):
        twice = next(column for column, number in Counter(chosen.values()).items() if number > 1)
        raise UserError(f"{where}: one column cannot have two meanings: {twice} is named twice")
    for column, number in Counter(names).items():
        if number > 1 and column in chosen.values():
            raise UserError(f"{where}: {number} columns are called {column}; rename them")
    rating = usual.get("rating")
    if rating and form.columns.get("rating") == "" and rating not in chosen.values():
        message = "%s: column %s is not used: each row counts the same; leave low ratings out"
        getLogger().warning(message + ", or name it by weight=" * form.in_python, where, rating)
    unused = [column for column in names if column not in (*chosen.values(), rating)]
    if "timestamp" not in chosen and "timestamp" not in form.columns and unused:
        flag = "time=" if form.in_python else "--time"
        shown = ", ".join(unused[:_SHOWN]) + ", ..." * (len(unused) > _SHOWN)
        getLogger().warning("%s: no times, so no order; not used: %s; name a column of times by %s", where, shown, flag)
    return {key: chosen[key] for key in _USUAL if key in chosen}


class Text:
    """A column of texts that is collected in pieces, without an object for each row."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._pieces: list[npt.NDArray[np.int32]] = []

    def append(self, texts: Sequence[str | None] | npt.NDArray[Any]) -> None:
        """Add rows; None: there is no text."""
        codes, new = self._codes, len(self._codes)
        piece = np.empty(len(texts), np.int32)
        for row, text in enumerate(texts):
            if text is None or text == "":
                piece[row] = -1
            else:
                piece[row] = codes.setdefault(text, new)
                new = len(codes)
        self._pieces.append(piece)

    def append_coded(self, codes: npt.NDArray[np.integer[Any]], texts: Iterable[str | None]) -> None:
        """Add rows as numbers of ``texts``, -1 for none."""
        known = Text.__new__(Text)
        known._codes, known._pieces = self._codes, []
        known.append([*texts, None])
        self._pieces.append(known._pieces[0][codes])

    def column(self) -> pd.Categorical:
        pieces = np.concatenate(self._pieces) if self._pieces else np.empty(0, np.int32)
        return pd.Categorical.from_codes(pieces, pd.Index([*self._codes], dtype=object))
