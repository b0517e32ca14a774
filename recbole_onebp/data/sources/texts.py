"""Read tables of text: columns between separators, or one JSON object a line."""

from __future__ import annotations

import io
import json
from itertools import chain, islice
from typing import Any

import numpy as np
import pandas as pd

from recbole_onebp.data.quotes import quoted_rows
from recbole_onebp.data.sources.forms import FAULT, MORE, TableFormat, Text, choose
from recbole_onebp.util.errors import UserError

__all__ = ["SEPARATORS", "read_json_lines", "read_text"]

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::"}
_SHEETS = {".xlsx", ".xls", ".ods"}
_CHUNK = 1 << 16
_HEAD = 1 << 12
"""Objects of JSON that are looked at together; the first ones name the columns."""
_ONE_CHARACTER = "\x1f"
"""Replaces separators such as ``::``, which pandas' fast parser does not support."""


def read_text(content: bytes, where: str, suffix: str, form: TableFormat) -> tuple[pd.DataFrame, list[str]]:
    """The chosen columns by our names, by the number of the line, and remarks on how they were read."""
    separator = form.separator or SEPARATORS.get(suffix)
    if suffix in _SHEETS:
        raise UserError(f"{where}: is a spreadsheet: save it as CSV")
    if separator is None:
        remedy = "pass a DataFrame" if form.in_python else "give it by --sep"
        raise UserError(f"{where}: which character separates its columns? {remedy}")
    text = _decoded(content, where, form)
    if '"' in text:
        return _read_quoted(text, where, separator, form)
    if len(separator) > 1:
        text, separator = text.replace(separator, _ONE_CHARACTER), _ONE_CHARACTER
    return _read_plain(text.encode("utf-8", "surrogatepass"), where, separator, form), []


def _decoded(content: bytes, where: str, form: TableFormat) -> str:
    encoding = form.encoding
    try:
        return content.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeError:
        remedy = "pass what pd.read_csv(..., encoding=...) reads" if form.in_python else "give its own by --encoding"
        raise UserError(f"{where}: not text in {encoding}; {remedy}") from None
    except LookupError:
        raise UserError(f"--encoding {encoding}: Python does not know it") from None


def _read_plain(content: bytes, where: str, separator: str, form: TableFormat) -> pd.DataFrame:
    settings: dict[str, Any] = {"sep": separator, "header": None, "keep_default_na": False, "na_values": [""]}
    try:
        first = pd.read_csv(io.BytesIO(content), nrows=1, dtype=str, **settings).iloc[0].fillna("")
        names = [str(name) for name in (first if form.header else range(1, len(first) + 1))]
        chosen = choose(where, names, form)
        # An empty first row makes room for one more column, in which a row with too many fields shows: with usecols,
        # the parser itself does not report such rows.
        places = [*(names.index(column) for column in chosen.values()), len(names)]
        columns = {place: Text() for place in places}
        with pd.read_csv(
            io.BytesIO(separator.encode() * len(names) + b"\n" + content),
            usecols=places,
            skiprows=[1] if form.header else [],
            skip_blank_lines=False,
            dtype=object,
            chunksize=_CHUNK,
            **settings,
        ) as chunks:
            for chunk in chunks:
                for place, column in columns.items():
                    codes, texts = pd.factorize(chunk[place])
                    column.append_coded(codes, texts)
    except (pd.errors.EmptyDataError, IndexError):  # IndexError: only blank lines
        raise UserError(f"{where}: empty") from None
    except (ValueError, OverflowError) as error:  # a ParserError is one
        raise UserError(f"{where}: {error}") from None
    frame = pd.DataFrame(
        {key: columns[place].column()[1:] for key, place in zip([*chosen, MORE], places, strict=True)}, copy=False
    )
    frame.index += 1 + int(form.header)  # now the number of the line
    n_lines = sum(1 for _ in io.TextIOWrapper(io.BytesIO(content), encoding="utf-8", errors="replace", newline=None))
    if len(frame) + form.header not in (n_lines, n_lines - 1):
        raise UserError(f"{where}: {len(frame):,} rows are read of {n_lines:,} lines; does it hold null characters?")
    return _rows(frame, chosen, form)


def _read_quoted(text: str, where: str, separator: str, form: TableFormat) -> tuple[pd.DataFrame, list[str]]:
    """The same where there are quotes; see :mod:`~recbole_onebp.data.quotes`."""
    rows = quoted_rows(io.StringIO(text, newline=None), separator)
    first = next((row for row in rows if row.fields != [""]), None)
    if first is None:
        raise UserError(f"{where}: empty")
    names = first.fields if form.header else [str(number + 1) for number in range(len(first.fields))]
    chosen = choose(where, names, form)
    wanted = [names.index(column) for column in chosen.values()]
    columns = [Text() for _ in [*wanted, MORE, FAULT]]
    numbers, stray, spanning = [], [], []
    pending: list[list[str | None]] = [[] for _ in columns]

    def flush() -> None:
        for column, texts in zip(columns, pending, strict=True):
            column.append(texts)
            texts.clear()

    for row in rows if form.header else chain([first], rows):
        numbers.append(row.line)
        fields = row.fields
        fault = None
        for key, texts, number in zip(chosen, pending, wanted, strict=False):
            texts.append(fields[number] if number < len(fields) else None)
            if row.stray and number < len(fields) and fields[number].startswith('"'):
                fault = f"the quotes of {key} make no sense"
        pending[-2].append("\t".join(fields[len(names) :]) or None)
        pending[-1].append(fault)
        if row.stray and fault is None:
            stray.append(row.line)
        if row.n_lines > 1:
            spanning.append(row.line)
        if len(pending[0]) == _CHUNK:
            flush()
    flush()
    frame = pd.DataFrame(
        {key: column.column() for key, column in zip([*chosen, MORE, FAULT], columns, strict=True)},
        index=pd.Index(np.asarray(numbers, np.int64)),
        copy=False,
    )
    remarks = []
    if stray:
        remarks.append(
            f"{len(stray):,} rows with quotes that make no sense, read as ordinary characters: {_lines(stray)}"
        )
    if spanning:
        remarks.append(f"{len(spanning):,} rows of several lines, with line breaks in quotes: {_lines(spanning)}")
    return _rows(frame, chosen, form), remarks


def _lines(lines: list[int]) -> str:
    return f"line {', '.join(map(str, lines[:5]))}{', ...' if len(lines) > 5 else ''}"


def _rows(frame: pd.DataFrame, chosen: dict[str, str], form: TableFormat) -> pd.DataFrame:
    """Without blank lines, and with a fault for a header between the rows: of files that were joined."""
    if form.header:
        again = np.ones(len(frame), bool)
        for key, column in chosen.items():
            again &= (frame[key].isin([column, f"\ufeff{column}"])).to_numpy()
        if again.any():
            faults = np.array(frame[FAULT], object) if FAULT in frame else np.full(len(frame), None, object)
            faults[again] = "the header once more"
            frame[FAULT] = faults
    given = frame.notna().any(axis=1)
    return frame if given.all() else frame[given]


# ----------------------------------------------------------------------------------------------------------------- JSON


def read_json_lines(content: bytes, where: str, form: TableFormat) -> tuple[pd.DataFrame, list[str]]:
    """The chosen columns of JSON objects, one a line; numbers stay as they are written."""
    lines = io.StringIO(_decoded(content, where, form), newline=None)
    objects = ((number, _object(line)) for number, line in enumerate(lines, start=1) if line.strip())
    head = [*islice(objects, _HEAD)]
    if not head:
        raise UserError(f"{where}: empty")
    names = dict.fromkeys(name for _, row in head if row for name in row)
    if not names:
        raise UserError(f"{where}: expected one JSON object a line; line {head[0][0]} is none")
    chosen = choose(where, [*names], form)
    columns = {key: Text() for key in (*chosen, FAULT)}
    numbers: list[int] = []
    rows = chain(head, objects)
    while some := [*islice(rows, _HEAD)]:
        numbers += [number for number, _ in some]
        faults = [None if row is not None else "not a JSON object" for _, row in some]
        for key, name in chosen.items():
            column = [None if row is None else row.get(name) for _, row in some]
            for place, value in enumerate(column):
                if value is not None and not isinstance(value, str):
                    faults[place] = faults[place] or f"{key} is {_named(value)}, neither text nor a number"
                    column[place] = str(value)[:80]
            columns[key].append(column)
        columns[FAULT].append(faults)
    index = pd.Index(np.asarray(numbers, np.int64))
    return pd.DataFrame({key: column.column() for key, column in columns.items()}, index=index), []


def _object(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line, parse_int=str, parse_float=str, parse_constant=_Constant)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class _Constant:
    """NaN or an infinity, which are not JSON."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


def _named(value: Any) -> str:
    kinds = {bool: "a truth value", list: "a list", dict: "an object"}
    return kinds.get(type(value), str(value))
