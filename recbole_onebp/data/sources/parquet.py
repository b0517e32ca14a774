"""Read a Parquet file row group by row group; ids never become numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.data.arrow_table import as_numbers
from recbole_onebp.data.sources.forms import FAULT, TableFormat, Text, choose
from recbole_onebp.data.sources.unpack import bound
from recbole_onebp.util.errors import UserError

__all__ = ["EXACT", "read_parquet", "whole_number"]

_BATCH = 1 << 16
_BYTES_PER_VALUE = 8
EXACT = {16: 2**11, 32: 2**24, 64: 2**53}
"""Below this all whole numbers are different floats of so many bits."""
_SHOWN = 5
"""Values of a wrong type that are shown."""


def read_parquet(path: Path, content: bytes | None, form: TableFormat) -> pd.DataFrame:
    """The chosen columns by our names, by the number of the row.

    Args:
        path: the file.
        content: its bytes, if it was compressed as a whole.
        form: which columns.
    """
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: reading Parquet needs pyarrow: pip install 'recbole-onebp[parquet]'")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        source = path if content is None else io.BytesIO(content)
        with parquet.ParquetFile(source) as file:
            schema = file.schema_arrow
            chosen = choose(str(path), schema.names, form)
            ids = (chosen[key] for key in ("user_id", "item_id"))
            texts = [name for name in ids if _is_text(schema.field(name).type)]
            metadata = file.metadata
            _check_size(path, metadata, [*chosen.values()], form.max_mb)
        source = path if content is None else io.BytesIO(content)
        with parquet.ParquetFile(source, read_dictionary=texts) as file:
            return _read(file, chosen)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None
    except (ValueError, OverflowError, KeyError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read: {error}") from None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _check_size(path: Path, metadata: Any, columns: Sequence[str], max_mb: int | None) -> None:
    """Row groups may say that they are small and still hold millions of rows: both are counted."""
    size = metadata.num_rows * len(columns) * _BYTES_PER_VALUE
    largest = 0
    for group in range(metadata.num_row_groups):
        parts = metadata.row_group(group)
        chunks = (parts.column(number) for number in range(parts.num_columns))
        read = [part.total_uncompressed_size for part in chunks if part.path_in_schema.split(".")[0] in columns]
        largest = max(largest, sum(read))
    bound(str(path), max(size, largest), max_mb)


def _read(file: Any, chosen: dict[str, str]) -> pd.DataFrame:
    import pyarrow as pa

    texts = {key: Text() for key in ("user_id", "item_id")}
    numbers: dict[str, list[Any]] = {key: [] for key in chosen if key not in texts}
    faults = Text()
    for batch in file.iter_batches(batch_size=_BATCH, columns=list(chosen.values())):
        batch.validate(full=True)  # damaged pages may refer to texts that the dictionary does not have
        fault = np.full(len(batch), None, dtype=object)
        for key, name in chosen.items():
            column = batch.column(batch.schema.names.index(name))
            if key in texts:
                _add_ids(texts[key], column, key, fault)
            else:
                numbers[key].append(_values(column))
        faults.append(fault)
    columns: dict[str, Any] = {}
    for key in chosen:
        if key in texts:
            columns[key] = texts[key].column()
        else:
            columns[key] = pd.concat(numbers[key], ignore_index=True) if numbers[key] else pd.Series([], dtype=float)
    frame = pd.DataFrame({**columns, FAULT: faults.column()}, copy=False)
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    frame.attrs["ids_are_typed"] = True
    if "timestamp" in chosen:
        kind = file.schema_arrow.field(chosen["timestamp"]).type
        frame.attrs["times_are_seconds"] = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    return frame


def _add_ids(texts: Text, column: Any, key: str, fault: npt.NDArray[np.object_]) -> None:
    """Text and whole numbers as text; a fault for whatever else, in the rows that hold it."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        if _is_text(column.type.value_type):
            codes = column.indices.cast(pa.int32()).fill_null(-1).to_numpy(zero_copy_only=False)
            texts.append_coded(codes, column.dictionary.to_pylist())
            return
        column = column.cast(column.type.value_type)
    kind = column.type
    if _is_text(kind) or str(kind) == "string_view" or pa.types.is_null(kind):
        texts.append(column.to_pylist())
    elif pa.types.is_integer(kind):
        encoded = column.dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        texts.append_coded(codes, encoded.dictionary.cast(pa.string()).to_pylist())
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        values = column.to_pylist()
        exact = EXACT[kind.bit_width] if pa.types.is_floating(kind) else None
        said = [whole_number(value, exact) for value in values]
        texts.append([text for text, _ in said])
        _mark(fault, [f"{key} {wrong}" if wrong else None for _, wrong in said])
    else:
        is_given = column.is_valid().to_numpy(zero_copy_only=False)
        shown = [str(column[int(row)])[:80] for row in np.flatnonzero(is_given)[:_SHOWN]]
        values = np.full(len(column), None, dtype=object)
        values[is_given] = shown + ["..."] * (int(is_given.sum()) - len(shown))
        texts.append(values)
        _mark(
            fault,
            [f"{key} is {_named(kind)}, neither text nor a whole number" if given else None for given in is_given],
        )


def _named(kind: Any) -> str:
    text = str(kind).partition("<")[0]
    return {"bool": "a truth value", "list": "a list", "large_list": "a list", "struct": "a struct"}.get(
        text, f"of type {text}"
    )


def whole_number(value: Any, exact: int | None) -> tuple[str | None, str | None]:
    """A float or decimal as a whole number, and what is wrong with it."""
    if value is None or value != value:  # NaN: pandas' sign for a missing number
        return None, None
    if exact is not None and abs(value) >= exact:
        wrong = "has more digits than a float holds; write it as text or an integer"
        return repr(value), "is infinite" if math.isinf(value) else wrong
    if value % 1:
        return str(value), "is no whole number"
    return str(int(value)), None


def _mark(fault: npt.NDArray[np.object_], said: Sequence[str | None]) -> None:
    for row, text in enumerate(said):
        if text is not None and fault[row] is None:
            fault[row] = text


def _values(column: Any) -> pd.Series:
    """Ratings or times: numbers, seconds of dates, or text that is looked at later."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return pd.Series(as_numbers(column))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pd.Series(column.to_numpy(zero_copy_only=False))
    if _is_text(kind) or str(kind) == "string_view" or pa.types.is_null(kind):
        return pd.Series(column.to_pylist(), dtype=object)
    given = column.is_valid().to_numpy(zero_copy_only=False)
    return pd.Series([_named(kind) if is_there else None for is_there in given], dtype=object)
