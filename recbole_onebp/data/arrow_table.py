"""Interactions in a Parquet or Arrow file, or a folder of them, read without a string for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from recbole_onebp.data.categories import arrow_index, categorical
from recbole_onebp.data.text_table import columnar_titles, progress_bar
from recbole_onebp.util.errors import UserError

__all__ = ["ArrowTable", "as_numbers"]

_BATCH = 1 << 20
"""Rows of one column that are read at a time."""


class ArrowTable:
    """A table in Parquet or Arrow; the schema says which columns are text and which are numbers."""

    content = None
    """Only text is held in memory as it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    @cached_property
    def _dataset(self) -> Any:
        form = self.path.suffix[1:]
        if find_spec("pyarrow") is None:
            raise UserError(f"{self.path}: reading {form} needs pyarrow: pip install 'recbole-onebp[parquet]'")
        from pyarrow import dataset

        with self._errors(f"not {form}: "):
            return dataset.dataset(self.path, format=form)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        import pyarrow

        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise UserError(f"{self.path}: {what}{error}") from None

    @cached_property
    def _n_rows(self) -> int:
        dataset = self._dataset
        with self._errors(f"not {self.path.suffix[1:]}: "):
            return int(dataset.count_rows())

    def titles(self, ids: Sequence[str]) -> dict[str, str]:
        """See :meth:`~recbole_onebp.data.text_table.TextTable.titles`."""
        return columnar_titles({field.name: _kind(field.type) for field in self._dataset.schema}, ids)

    def has_rows(self) -> bool:
        """Whether there is a row."""
        return self._n_rows > 0

    def read(self, columns: Mapping[str, str], show_progress: bool = False) -> pd.DataFrame:
        """See :meth:`~recbole_onebp.data.text_table.TextTable.read`."""
        with progress_bar(self._n_rows * len(columns), show_progress, unit=" values") as bar:
            return pd.DataFrame({title: self._column(title, name, bar) for title, name in columns.items()}, copy=False)

    def _column(self, title: str, name: str, bar: tqdm[Any]) -> Any:
        import pyarrow as pa

        def values() -> Iterator[Any]:
            for batch in self._dataset.to_batches(columns=[name], batch_size=_BATCH):
                batch.validate(full=True)  # Arrow itself follows offsets and codes of a damaged file unchecked
                bar.update(len(batch))
                yield batch.column(0)

        type_ = self._dataset.schema.field(name).type
        with self._errors(f"column {name}: "):
            column = pa.chunked_array(values(), type_)
            if pa.types.is_dictionary(type_):
                column = column.cast(type_.value_type)
            return as_numbers(column) if title.endswith(":float") else _as_tokens(column)


def _kind(type_: Any) -> str | None:
    from pyarrow import types

    if types.is_dictionary(type_):
        type_ = type_.value_type
    if types.is_string(type_) or types.is_large_string(type_):
        return "token"
    numbers = types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_timestamp, types.is_date
    return "float" if any(is_kind(type_) for is_kind in numbers) else None


def as_numbers(column: Any) -> npt.NDArray[np.float64]:
    """Float64; dates become seconds since 1970, missing values NaN."""
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

    kind = column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"
    is_whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0)
    if not (is_text or is_whole or pa.types.is_null(kind)):
        raise pa.ArrowInvalid(
            f"ids and tokens are text or whole numbers; these are of type {kind}; recbole-onebp convert reads whole "
            "numbers and shows the others row by row"
        )
    if column.null_count:
        row = next(row for row, value in enumerate(column, start=1) if not value.is_valid)
        raise pa.ArrowInvalid(f"row {row} has none; leave such rows out by recbole-onebp convert")
    encoded = column.dictionary_encode().combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):  # of no rows
        return categorical(np.empty(0, np.int32), pd.Index([], dtype=object))
    codes = encoded.indices.to_numpy().astype(np.int32, copy=False)
    return categorical(codes, arrow_index(encoded.dictionary.cast(pa.string())))
