"""Read the formats of published splits into frames of interactions."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_onebp.util.errors import UserError

__all__ = ["read_pairs"]

_DIGITS = 18
"""Longest id that always fits into 64 bits."""


def read_pairs(path: Path) -> pd.DataFrame:
    """Read ``user item item ...`` lines (``.txt``), or a CSV file of ``user,item`` or ``user,item,rating`` rows.

    Returns:
        (n, 2) or (n, 3): ``user_id`` and ``item_id`` (int64) and the rating, if there is one (float), one row per
        interaction, in the order of the file.

    Raises:
        UserError: names the file, the line and what is wrong there.
    """
    try:
        pairs = _read_csv(path) if path.suffix == ".csv" else _read_lines(path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if pairs.empty:
        raise UserError(f"{path}: no pairs")
    return pairs


def _read_lines(path: Path) -> pd.DataFrame:
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, start=1):
        for token in line:
            if not token.isdecimal() or len(token) > _DIGITS:
                raise UserError(
                    f"{path}, line {number}: {token!r} is not an id; expected lines of 'user item item ...'"
                )
    counts = np.array([max(len(line) - 1, 0) for line in lines], dtype=np.int64)
    users = np.array([line[0] if line else 0 for line in lines], dtype=np.int64)
    items = np.array(list(chain.from_iterable(line[1:] for line in lines)), dtype=np.int64)
    return pd.DataFrame({"user_id": np.repeat(users, counts), "item_id": items})


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        pairs = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"{path}: {error}") from None
    if pairs.shape[1] not in (2, 3):
        raise UserError(f"{path}: {pairs.shape[1]} columns; expected user,item or user,item,rating")
    if str(pairs.columns[0]).isdecimal():
        raise UserError(
            f"{path}, line 1: {','.join(pairs.columns)!r}: expected a header, user,item or user,item,rating"
        )
    pairs.columns = ["user_id", "item_id", "rating"][: pairs.shape[1]]
    for column in pairs:
        try:
            numbers = pd.to_numeric(pairs[column], errors="coerce")
        except OverflowError:
            raise UserError(f"{path}: {column} has a number with hundreds of digits; expected ids") from None
        wrong = numbers.isna() | ((column != "rating") & ((numbers % 1 != 0) | (numbers.abs() >= 2**53)))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            expected = "a number" if column == "rating" else "an id"
            raise UserError(
                f"{path}, line {row + 2}: {column} is {str(pairs[column].iloc[row])!r}, expected {expected}"
            )
        pairs[column] = numbers.astype(np.float64 if column == "rating" else np.int64)
    return pairs
