"""Read interactions that are in memory: pandas, polars, pyarrow and other data frames, and sparse matrices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from recbole_onebp.data.sources.forms import FAULT, TableFormat, Text, choose, usual_columns
from recbole_onebp.data.sources.parquet import EXACT, whole_number
from recbole_onebp.data.sources.tables import Table, read, sift
from recbole_onebp.data.sources.times import since_1970
from recbole_onebp.util.errors import UserError

__all__ = ["STORED", "column_of", "raw_columns", "read_interactions", "refuse_bad", "table_of"]

STORED = "data"
"""What the values of a sparse matrix are called, as in scipy."""
_IDS = ("user_id", "item_id")
_DATES = ("datetime64", "datetime", "date")
_LONGEST_SHOWN = 80


def read_interactions(data: Any, columns: Mapping[str, str], name: str = "data") -> Table:
    """Users, items and times of whatever holds interactions.

    Ids are text or whole numbers: ``1``, ``1.0`` and ``"1"`` are the same.  Times are dates, numbers or texts, see
    :func:`~recbole_onebp.data.sources.times.seconds`.  Weights are numbers above 0, and come out as ``rating``.  Other
    columns, ratings among them, are not read.

    Args:
        data: a pandas, polars or pyarrow table, or anything with ``__arrow_c_stream__`` or ``__dataframe__``; a path
            to a file that ``recbole-onebp convert`` reads; or a scipy sparse matrix, whose rows are users and whose
            columns are items.
        columns: ``user_id``, ``item_id`` and ``timestamp`` -> the column's name.  A missing one is looked up by its
            usual names; of two columns with other names the first holds users.  A time given as ``""`` is not read.
            ``rating`` names the column of weights; of a matrix it is :data:`STORED`, its values.
        name: of the data, for messages.

    Returns:
        Good and bad rows; rows are counted from 0, but rows and lines of a file from 1.

    Raises:
        UserError: for data of another kind, or a missing column.
    """
    form = TableFormat({"rating": "", **columns}, weights=bool(columns.get("rating")), in_python=True)
    if isinstance(data, (str, Path)):
        return read(Path(data), form)
    if sp.issparse(data):
        return _of_matrix(data, columns, name)
    table, names = table_of(data, name)
    if len(names) == 2 and not {*_IDS} & (columns.keys() | usual_columns(names).keys()):
        form = replace(form, columns={**form.columns, **dict(zip(_IDS, names, strict=True))})
    raw = raw_columns({key: column_of(table, names.index(column)) for key, column in choose(name, names, form).items()})
    return sift(raw, f"{name}, row", name, form)


def refuse_bad(table: Table, name: str) -> None:
    """Raise :class:`UserError` for the first bad row of a table, if there is one."""
    if not table.bad:
        return
    first = table.bad[0]
    counted = " (counted from 0)" if first.where.startswith(f"{name}, row") else ""  # lines and rows of files: from 1
    others = f"; {len(table.bad):,} rows are bad" if len(table.bad) > 1 else ""
    raise UserError(
        f"{first.where}{counted}: {first.reason}: values {first.text or 'none'}{others}; correct or leave out such rows"
    )


def table_of(data: Any, name: str) -> tuple[Any, list[str]]:
    """A pandas frame as it is, any other as a pyarrow table; and the names of its columns."""
    if isinstance(data, pd.DataFrame):
        return data, [*map(str, data.columns)]
    if not (hasattr(data, "__arrow_c_stream__") or hasattr(data, "__dataframe__")) or isinstance(data, pd.Series):
        raise UserError(
            f"{name}: {type(data).__name__} is no table: expected a DataFrame of pandas or polars, a pyarrow Table, a "
            "scipy sparse matrix, or the path of a file"
        )
    if find_spec("pyarrow") is None:
        raise UserError(f"{name}: a {type(data).__name__} needs pyarrow: pip install 'recbole-onebp[parquet]'")
    import pyarrow as pa
    from pyarrow import interchange

    table = pa.table(data) if hasattr(data, "__arrow_c_stream__") else interchange.from_dataframe(data)
    return table, [*map(str, table.column_names)]


def column_of(table: Any, place: int) -> pd.Series:
    """A column of what :func:`table_of` returns."""
    if isinstance(table, pd.DataFrame):
        return table.iloc[:, place]
    import pyarrow as pa

    column = table.column(place)
    is_coded = pa.types.is_dictionary(column.type)
    kind = column.type.value_type if is_coded else column.type
    if str(kind) == "string_view":  # polars' strings, which few functions know
        kind = pa.large_string()
    if is_coded:
        column = pa.chunked_array([chunk.dictionary.cast(kind).take(chunk.indices) for chunk in column.chunks], kind)
    else:
        column = column.cast(kind)
    return pd.Series(pd.arrays.ArrowExtensionArray(column))


def _of_matrix(data: Any, columns: Mapping[str, str], name: str) -> Table:
    has_weights = columns.get("rating") == STORED
    if columns and not (has_weights and len(columns) == 1):
        raise UserError(
            f"{name}: a sparse matrix has no columns to name: its rows are users, its columns are items, and "
            f'weight="{STORED}" stands for its values'
        )
    matrix = sp.coo_array(data.tocsr())  # by user, then by item
    kept = matrix.data != 0
    if not has_weights and (matrix.data[kept] != 1).any():
        message = '%s: the values are not used: each entry that is not 0 counts the same; weight="%s" uses them'
        getLogger().warning(message, name, STORED)
    ids = {
        key: pd.Categorical.from_codes(codes[kept], pd.RangeIndex(n).astype(str))
        for key, codes, n in zip(_IDS, (matrix.row, matrix.col), matrix.shape, strict=True)
    }
    raw = pd.DataFrame({**ids, "rating": matrix.data[kept]} if has_weights else ids)
    raw.attrs["ids_are_typed"] = True
    return sift(raw, f"{name}, entry", name, TableFormat(columns, weights=True))


# -------------------------------------------------------------------------------------------------------------- columns


def raw_columns(given: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Columns by our names as :func:`~recbole_onebp.data.sources.tables.sift` takes them: ids as text, and in
    :data:`~recbole_onebp.data.sources.forms.FAULT` what is wrong with those of other types."""
    fault: Any = None
    columns: dict[str, Any] = {}
    dates = False
    for key, column in given.items():
        if key in _IDS:
            columns[key], wrong = _ids(column, key)
            fault = wrong if fault is None else np.where(pd.isna(fault), wrong, fault)
        elif key == "rating":
            columns[key] = column.astype(object) if pd.api.types.is_extension_array_dtype(column) else column.array
        else:
            columns[key], dates = _times(column)
    raw = pd.DataFrame({**columns, FAULT: fault}, copy=False)
    raw.attrs.update(ids_are_typed=True, times_are_seconds=dates)
    return raw


def _ids(column: pd.Series, key: str) -> tuple[pd.Categorical, npt.NDArray[np.object_]]:
    """Ids as text, and for each row what is wrong with its id, None if nothing is."""
    kind: Any = column.dtype
    values: Any
    try:
        codes, values = pd.factorize(column)
    except TypeError:  # lists and other values that are not hashable
        codes, values = np.arange(len(column)), column.to_numpy(object)
    exact = EXACT.get(kind.itemsize * 8) if kind.kind == "f" else EXACT[64]
    said = [_id(value, exact) for value in values.tolist()]
    ids = Text()
    ids.append_coded(codes, [text for text, _ in said])
    wrong = np.array([None if fault is None else f"{key} {fault}" for _, fault in said] + [None], object)
    return ids.column(), wrong[codes]


def _id(value: Any, exact: int | None) -> tuple[str | None, str | None]:
    if isinstance(value, str):
        return value, None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), None
    if isinstance(value, (float, Decimal)):
        return whole_number(value, exact if isinstance(value, float) else None)
    kind = "a truth value" if isinstance(value, bool) else f"of type {type(value).__name__}"
    return str(value)[:_LONGEST_SHOWN], f"is {kind}, neither text nor a whole number"


def _times(column: pd.Series) -> tuple[Any, bool]:
    """Times, and whether they are seconds already."""
    if pd.api.types.is_datetime64_any_dtype(column) or pd.api.types.infer_dtype(column, skipna=True) in _DATES:
        return since_1970(pd.to_datetime(column, utc=True, errors="coerce")), True
    return column.astype(object) if pd.api.types.is_extension_array_dtype(column) else column.array, False
