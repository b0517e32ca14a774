"""Read the user's own files of interactions (CSV, TSV, Parquet, GroupLens archives) and report bad rows."""

from __future__ import annotations

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from recbole_onebp.util.errors import UserError

__all__ = ["BadRow", "TableFormat", "read_table"]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".data": "\t", ".dat": "::"}
_USUAL = {
    "user_id": {"user", "userid", "uid"},
    "item_id": {"item", "itemid", "iid", "movie", "movieid", "product", "productid"},
    "rating": {"rating"},
    "timestamp": {"timestamp", "time"},
}
_FLAGS = {"user_id": "--user", "item_id": "--item", "rating": "--rating", "timestamp": "--time"}
_POSITIONS = {"user_id": "1", "item_id": "2", "rating": "3", "timestamp": "4"}
_GROUPLENS = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}
_MOST_UNPACKED = 100
"""Limit of the ratio of unpacked to packed size of an archive; interactions have about five."""
_ONE_CHARACTER = "\x1f"
"""Replaces separators such as ``::``, which pandas' fast parser does not support."""


_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, struct.error, UnicodeDecodeError)
"""Errors of zipfile for a damaged archive, an encrypted one or an unknown compression (both RuntimeError)."""


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


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    where: str
    reason: str
    text: str


def read_table(path: Path, form: TableFormat) -> tuple[pd.DataFrame, list[BadRow]]:
    """Read the interactions of a file.

    Returns:
        (n, 2 to 4): ``user_id`` and ``item_id`` (str) and optionally ``rating`` and ``timestamp`` (float; dates as
        seconds since 1970), in the order of the file; and the rows that are left out, each with its reason.

    Raises:
        UserError: for a file that cannot be read, or a missing column.
    """
    try:
        if path.suffix == ".zip":
            raw, unit = _read_grouplens(path, form)
        elif path.suffix in (".parquet", ".pq"):
            raw, unit = _read_parquet(path, form), "row"
        else:
            raw, unit = _read_text(path.read_bytes(), str(path), path.suffix, form), "line"
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return _sift(raw, f"{path}, {unit}")


# ---------------------------------------------------------------------------------------------------------------- files


def _read_grouplens(path: Path, form: TableFormat) -> tuple[pd.DataFrame, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if PurePosixPath(name).name in _GROUPLENS]
            if len(members) != 1:
                raise UserError(
                    f"{path}: expected a GroupLens archive with one of {', '.join(_GROUPLENS)}; it has "
                    f"{', '.join(archive.namelist()[:5])}; unpack it and name the file"
                )
            # zipfile unpacks no more than this size, even if the archive declares a wrong one.
            if archive.getinfo(members[0]).file_size > _MOST_UNPACKED * path.stat().st_size:
                raise UserError(f"{path}: {members[0]} unpacks to more than {_MOST_UNPACKED} times its size")
            content = archive.read(members[0])
    except _DAMAGED as error:
        raise UserError(f"{path}: not a zip file that can be read: {error}") from None
    name = PurePosixPath(members[0]).name
    header = name == "ratings.csv"
    known = TableFormat({} if header else _POSITIONS, _GROUPLENS[name], header)
    return _read_text(content, f"{path}/{members[0]}", "", known), f"line of {name}"


def _read_parquet(path: Path, form: TableFormat) -> pd.DataFrame:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'recbole-onebp[parquet]'")
    from pyarrow import ArrowException, parquet

    try:
        chosen = _choose(str(path), parquet.read_schema(path).names, form)
        table = parquet.read_table(path, columns=list(dict.fromkeys(chosen.values())))
        raw = table.to_pandas(ignore_metadata=True)
    except ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None
    frame = raw[list(chosen.values())].set_axis(list(chosen), axis=1).set_axis(range(1, len(raw) + 1))
    for key in ("user_id", "item_id"):
        if pd.api.types.is_float_dtype(frame[key]):  # whole numbers with missing values among them
            frame[key] = frame[key].astype("Int64")
        frame[key] = frame[key].astype("string").astype(object)
    return frame


def _read_text(content: bytes, where: str, suffix: str, form: TableFormat) -> pd.DataFrame:
    separator = form.separator or _SEPARATORS.get(suffix)
    if separator is None:
        raise UserError(f"{where}: which character separates its columns? give it by --sep")
    try:
        text = content.decode("utf-8-sig" if form.encoding.lower() in ("utf-8", "utf8") else form.encoding)
    except UnicodeError:
        raise UserError(f"{where}: not text in {form.encoding}; give its own by --encoding") from None
    except LookupError:
        raise UserError(f"--encoding {form.encoding}: Python does not know it") from None
    if len(separator) > 1:
        text, separator = text.replace(separator, _ONE_CHARACTER), _ONE_CHARACTER
    settings: dict[str, Any] = {"sep": separator, "dtype": str, "keep_default_na": False, "na_values": [""]}
    try:
        first = pd.read_csv(io.StringIO(text), header=None, nrows=1, **settings).iloc[0].fillna("")
        names = [str(name) for name in (first if form.header else range(1, len(first) + 1))]
        chosen = _choose(where, names, form)
        # An empty first row makes room for one more column, in which a row with too many fields shows: with usecols,
        # the parser itself does not report such rows.
        raw = pd.read_csv(
            io.StringIO(separator * len(names) + "\n" + text),
            header=None,
            usecols=[*(names.index(column) for column in chosen.values()), len(names)],
            skiprows=[1] if form.header else [],
            skip_blank_lines=False,
            **settings,
        )
    except (pd.errors.EmptyDataError, IndexError):  # IndexError: only blank lines
        raise UserError(f"{where}: empty") from None
    except UserError:
        raise
    except (ValueError, OverflowError) as error:  # a ParserError is one
        raise UserError(f"{where}: {error}") from None
    raw.index += int(form.header)  # now the number of the line
    frame = pd.DataFrame({**{key: raw[names.index(column)] for key, column in chosen.items()}, "more": raw[len(names)]})
    return frame[frame.notna().any(axis=1)]


def _choose(where: str, names: list[str], form: TableFormat) -> dict[str, str]:
    """Our name -> the file's column."""
    listed = f"its columns are {', '.join(names)}"
    chosen = {key: column for key, column in form.columns.items() if column}
    if unknown := [column for column in chosen.values() if column not in names]:
        raise UserError(f"{where}: no column {unknown[0]}; {listed}")
    for key, usual in _USUAL.items():
        fitting = [name for name in names if name.partition(":")[0].replace("_", "").lower() in usual]
        if key not in form.columns and len(fitting) == 1:
            chosen[key] = fitting[0]
        elif key not in chosen and key in ("user_id", "item_id"):
            hint = "" if form.header else ", by their numbers"
            raise UserError(f"{where}: which column is the {key[:4]}? name it by {_FLAGS[key]}{hint}; {listed}")
    if len(set(chosen.values())) < len(chosen):
        raise UserError(
            f"{where}: one column cannot have two meanings: {', '.join(f'{k}={v}' for k, v in chosen.items())}"
        )
    return {key: chosen[key] for key in _USUAL if key in chosen}


# ----------------------------------------------------------------------------------------------------------------- rows


def _sift(raw: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[BadRow]]:
    reason = pd.Series(None, index=raw.index, dtype=object)
    frame = raw.drop(columns="more", errors="ignore")
    for wrong, said in _faults(raw, frame):
        reason[reason.isna() & wrong] = said
    bad = reason.notna()
    rows = [
        BadRow(
            f"{where} {row}",
            str(reason[row]),
            " | ".join("" if pd.isna(v) else str(v) for v in raw.loc[row]).rstrip(" |"),
        )
        for row in raw.index[bad]
    ]
    return frame[~bad].reset_index(drop=True), rows


def _faults(raw: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple[pd.Series, str]]:
    """Masks of bad rows with their reason; converts the columns of numbers in ``frame``."""
    if "more" in raw:
        yield raw["more"].notna(), "more fields than columns"
    for key in frame:
        yield frame[key].isna(), f"no {key}"
    for key in frame.columns.intersection(["rating", "timestamp"]):
        frame[key] = _seconds(frame[key]) if key == "timestamp" else pd.to_numeric(frame[key], errors="coerce")
        yield ~frame[key].astype(np.float64).abs().lt(np.inf), f"{key} is no number"
    for key in ("user_id", "item_id"):
        yield frame[key].isin(_misread(frame[key].dropna().unique())), f"RecBole would not read this {key} back"


def _seconds(values: pd.Series) -> pd.Series:
    if pd.api.types.is_datetime64_any_dtype(values):
        dates = pd.to_datetime(values, utc=True)
    else:
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.notna().any() or values.isna().all():
            return numbers.astype(np.float64)
        dates = pd.to_datetime(values, utc=True, errors="coerce", format="ISO8601")
    return (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def _misread(ids: Any) -> set[str]:
    """The ids that RecBole would read differently from an atomic file: NA, null and other words for missing values,
    and what its parser splits."""
    written = pd.DataFrame({"id": ids, "beside": "x"}).to_csv(sep="\t", index=False, lineterminator="\n")
    read = pd.read_csv(io.StringIO(written), delimiter="\t", dtype=str, engine="python")["id"]
    if len(read) != len(ids):  # a line break in an id shifts all that follow: check such ids separately
        return {value for value in ids if set(value) & set("\r\n")} | _misread(
            [value for value in ids if not set(value) & set("\r\n")]
        )
    return {value for value, back in zip(ids, read, strict=True) if value != back}
