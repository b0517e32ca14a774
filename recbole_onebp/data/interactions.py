"""Files of interactions, read column by column: text in chunks, Parquet and Arrow without a string for each row.

Token columns come as codes and a vocabulary (``pd.Categorical``), numbers as float64.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals
from tqdm import tqdm

from recbole_onebp.util.errors import UserError

__all__ = [
    "COLUMNAR",
    "categorical",
    "concat",
    "find",
    "has_rows",
    "header",
    "is_plain",
    "read",
    "read_text",
    "token_table",
    "with_objects",
]

COLUMNAR = (".parquet", ".arrow", ".csv")
"""What may follow ``<name>.inter``: a file, or a folder of Parquet or Arrow files."""

_CHUNK = 1 << 16
"""Lines that are read at a time."""
_BATCH = 1 << 20
"""Rows of one column that are read at a time."""


def find(folder: Path, stem: str) -> Path:
    """RecBole's ``<stem>.inter``, or, where there is none, the columnar file that stands for it.

    Raises:
        UserError: if several might.
    """
    atomic = folder / f"{stem}.inter"
    found = [path for suffix in COLUMNAR if (path := folder / f"{atomic.name}{suffix}").exists()]
    if atomic.is_file() or not found:
        return atomic
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name}: which one holds the interactions? keep one of them")
    return found[0]


def header(path: Path, ids: Sequence[str], encoding: str | None = None) -> dict[str, str]:
    """Columns of a columnar file, by the title that they would have in an atomic file.

    A column may be named as there, ``rating:float``.  If it is not, ids are tokens, and so is text in Parquet and
    Arrow; everything else is numbers.  Other columns of sequences and the like are left out.

    Args:
        path: as :func:`find` returns it.
        ids: names of the columns of user and item ids.
        encoding: of CSV.

    Returns:
        Title, such as ``user_id:token``, to the column's name in the file.

    Raises:
        UserError: for a file that cannot be read.
    """
    kinds = _csv_kinds(path, encoding) if path.suffix == ".csv" else _arrow_kinds(path)
    titles = {}
    for name, kind in kinds.items():
        if name.endswith((":token", ":float")):
            titles[name] = name
        elif kind is not None or name in ids:
            titles[f"{name}:{'token' if name in ids else kind}"] = name
    return titles


def has_rows(path: Path) -> bool:
    """Whether there is anything in a columnar file."""
    if path.suffix != ".csv":
        return bool(_row_count(path, _arrow_dataset(path)))
    with open(path, "rb") as lines:
        next(lines, b"")
        return bool(next(lines, b"").strip())


def read(path: Path, columns: dict[str, str], encoding: str | None = None, show_progress: bool = False) -> pd.DataFrame:
    """The columns of a columnar file.

    Args:
        path: as :func:`find` returns it.
        columns: a part of what :func:`header` returns.
        encoding: of CSV.
        show_progress: with a bar, should it take its time.

    Raises:
        UserError: for a value that is missing or no number, with its row from 1.
    """
    if path.suffix == ".csv":
        kinds = {name: str if title.endswith(":token") else np.float64 for title, name in columns.items()}
        try:
            frame = read_text(path, ",", kinds, encoding, show_progress, na_values=[""], keep_default_na=False)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        if frame is None:
            raise UserError(f"{path}: a row without an id or token; leave such rows out by recbole-onebp convert")
        return frame.set_axis(list(columns), axis=1)
    dataset = _arrow_dataset(path)
    with _bar(_row_count(path, dataset) * len(columns), show_progress, unit=" values") as bar:
        return pd.DataFrame(
            {title: _arrow_column(path, dataset, title, name, bar) for title, name in columns.items()}, copy=False
        )


# ----------------------------------------------------------------------------------------------------------------- text


_ODD = re.compile(rb'["\0]|\r(?!\n)')


def is_plain(path: Path, delimiter: str, encoding: str | None) -> bool:
    """Whether pandas' C engine reads this atomic file as its Python engine does, which RecBole uses."""
    if len(delimiter) > 1:  # a regular expression
        return False
    with open(path, encoding=encoding) as lines:
        titles, first = next(lines), next((line for line in lines if line.strip()), "")
        if first.count(delimiter) > titles.count(delimiter):
            return False
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if _ODD.search(block + file.read(1) if block.endswith(b"\r") else block):
                return False
    return True


def read_text(
    path: Path,
    delimiter: str,
    kinds: dict[str, Any],
    encoding: str | None,
    show_progress: bool = False,
    **options: Any,
) -> pd.DataFrame | None:
    """Columns of a text file, tokens as categories in order of first appearance; None if a token is missing.

    Args:
        path: of the file.
        delimiter: between columns.
        kinds: a column's name to ``str``, for tokens, or ``np.float64``.
        encoding: of the file; None: UTF-8.
        show_progress: with a bar, should it take its time.
        options: of ``pd.read_csv``.
    """
    ids: dict[str, defaultdict[str, int]] = {
        title: defaultdict(count().__next__) for title, kind in kinds.items() if kind is str
    }
    pieces: dict[str, list[npt.NDArray[Any]]] = {title: [] for title in kinds}
    as_objects = {title: object if title in ids else kind for title, kind in kinds.items()}
    with (
        open(path, "rb") as file,
        _bar(path.stat().st_size, show_progress, unit="B") as bar,
        pd.read_csv(
            file, sep=delimiter, usecols=list(kinds), dtype=as_objects, encoding=encoding, chunksize=_CHUNK, **options
        ) as chunks,
    ):
        for chunk in chunks:
            if chunk[list(ids)].isna().to_numpy().any():
                return None
            for title in kinds:
                column = chunk[title].to_numpy()
                if title in ids:
                    column = np.fromiter(map(ids[title].__getitem__, column), np.int32, len(column))
                pieces[title].append(column)
            bar.update(file.tell() - bar.n)
    frame = pd.DataFrame({title: np.concatenate(parts) for title, parts in pieces.items()}, copy=False)
    for title, tokens in ids.items():
        frame[title] = categorical(frame[title].to_numpy(), pd.Index([*tokens], dtype=object))
    return frame


def _csv_kinds(path: Path, encoding: str | None) -> dict[str, str | None]:
    try:
        with open(path, encoding=encoding or "utf-8-sig", newline="") as lines:
            names = next(csv.reader(lines), [])
    except UnicodeError:
        raise UserError(f"{path}: not text in {encoding or 'utf-8'}; set the key encoding to the file's own") from None
    except (OSError, csv.Error, LookupError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    return dict.fromkeys(names, "float")


# ---------------------------------------------------------------------------------------------------- Parquet and Arrow


def _arrow_dataset(path: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading {path.suffix[1:]} needs pyarrow: pip install 'recbole-onebp[parquet]'")
    import pyarrow
    from pyarrow import dataset

    try:
        return dataset.dataset(path, format=path.suffix[1:])
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not {path.suffix[1:]}: {error}") from None


def _row_count(path: Path, dataset: Any) -> int:
    import pyarrow

    try:
        return int(dataset.count_rows())
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not {path.suffix[1:]}: {error}") from None


def _arrow_kinds(path: Path) -> dict[str, str | None]:
    return {field.name: _kind(field.type) for field in _arrow_dataset(path).schema}


def _kind(type_: Any) -> str | None:
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_string(type_) or types.is_large_string(type_):
        return "token"
    numbers = types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_timestamp, types.is_date
    return "float" if any(is_kind(type_) for is_kind in numbers) else None


def _arrow_column(path: Path, dataset: Any, title: str, name: str, bar: tqdm[Any]) -> Any:
    import pyarrow as pa

    def values() -> Iterator[Any]:
        for batch in dataset.to_batches(columns=[name], batch_size=_BATCH):
            bar.update(len(batch))
            yield batch.column(0)

    type_ = dataset.schema.field(name).type
    try:
        column = pa.chunked_array(values(), type_)
        if pa.types.is_dictionary(type_):
            column = column.cast(type_.value_type)
        if title.endswith(":float"):
            return _as_numbers(column)
        return _as_tokens(column)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: column {name}: {error}") from None


def _as_numbers(column: Any) -> npt.NDArray[np.float64]:
    """Float64, dates as seconds since 1970; NaN where there is none."""
    import pyarrow as pa

    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(column.type):
        per_second = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.type.unit]
        return np.asarray(column.cast(pa.int64()).cast(pa.float64(), safe=False).to_numpy() / per_second)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def _as_tokens(column: Any) -> pd.Categorical:
    import pyarrow as pa

    if pa.types.is_floating(column.type) or pa.types.is_nested(column.type):
        raise pa.ArrowInvalid("ids and tokens are text or whole numbers; these are neither")
    if column.null_count:
        row = next(row for row, value in enumerate(column, start=1) if not value.is_valid)
        raise pa.ArrowInvalid(f"row {row} has none; leave such rows out by recbole-onebp convert")
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no rows
        return categorical(np.empty(0, np.int32), pd.Index([], dtype=object))
    codes = encoded.indices.to_numpy().astype(np.int32, copy=False)
    return categorical(codes, _arrow_index(encoded.dictionary.cast(pa.string())))


def _arrow_index(tokens: Any) -> pd.Index:
    import pyarrow as pa

    return pd.Index(pd.arrays.ArrowStringArray(pa.chunked_array([tokens])))


# --------------------------------------------------------------------------------------------------------- vocabularies


def categorical(codes: npt.NDArray[Any], tokens: pd.Index) -> pd.Categorical:
    """A column of tokens; ``tokens`` stays what it is, objects or Arrow's strings."""
    return pd.Categorical.from_codes(codes, tokens)


def concat(columns: Sequence[pd.Categorical]) -> pd.Categorical:
    """Columns one after the other, with one vocabulary."""
    if not all(_is_arrow(column) for column in columns):
        return union_categoricals([with_objects(column) for column in columns])
    import pyarrow as pa

    parts = [
        pa.DictionaryArray.from_arrays(
            pa.array(column.codes, pa.int32()), pa.array(column.categories.array, pa.string())
        )
        for column in columns
    ]
    both = pa.chunked_array(parts).combine_chunks()
    return categorical(both.indices.to_numpy(), _arrow_index(both.dictionary))


def with_objects(column: pd.Categorical) -> pd.Categorical:
    """The column with its vocabulary as Python strings."""
    return categorical(column.codes, pd.Index(column.categories, dtype=object)) if _is_arrow(column) else column


def _is_arrow(column: pd.Categorical) -> bool:
    return isinstance(column.categories.array, pd.arrays.ArrowStringArray)


def token_table(tokens: pd.Index) -> npt.NDArray[np.str_]:
    """Tokens by internal id, ``[PAD]`` first, as RecBole keeps them: ``(1 + n,)``, made without an object for each."""
    width = max(len("[PAD]"), int(tokens.str.len().max())) if len(tokens) else len("[PAD]")
    table = np.full(1 + len(tokens), "[PAD]", dtype=f"U{width}")
    for start in range(0, len(tokens), _BATCH):
        table[1 + start :][:_BATCH] = np.asarray(tokens[start : start + _BATCH], dtype=object)
    return table


def _bar(total: int, shown: bool, unit: str) -> tqdm[Any]:
    """Nothing of it is seen in the first seconds: small files have no bar."""
    return tqdm(total=total, unit=unit, unit_scale=True, ncols=100, desc="Read", delay=2, disable=not shown)
