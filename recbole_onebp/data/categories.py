"""Columns of tokens as ``pd.Categorical``: a code per row, and a vocabulary of Python or Arrow strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import union_categoricals

__all__ = ["arrow_index", "as_categorical", "categorical", "concat_columns", "concat_frames", "token_table"]

_BATCH = 1 << 20
"""Tokens that are copied at a time."""


def categorical(codes: npt.NDArray[Any], tokens: pd.Index) -> pd.Categorical:
    """A column of tokens; ``tokens`` keeps its type, Python or Arrow strings."""
    return pd.Categorical.from_codes(codes, tokens)


def arrow_index(tokens: Any) -> pd.Index:
    """A pyarrow array of strings as a pandas index, without a copy."""
    import pyarrow as pa

    return pd.Index(pd.arrays.ArrowStringArray(pa.chunked_array([tokens])))


def as_categorical(column: Any) -> pd.Categorical:
    """A column with Python strings as its vocabulary, which may be categorical already."""
    if isinstance(column, pd.Categorical):
        if column.categories.dtype == object:
            return column
        return categorical(column.codes, pd.Index(column.categories, dtype=object))
    codes, tokens = pd.factorize(np.asarray(column, object))
    return categorical(codes, pd.Index(tokens, dtype=object))


def concat_columns(columns: Sequence[pd.Categorical]) -> pd.Categorical:
    """Columns one after the other, with one vocabulary."""
    if not all(map(_is_arrow, columns)):
        return union_categoricals([as_categorical(column) for column in columns])
    import pyarrow as pa

    parts = [
        pa.DictionaryArray.from_arrays(
            pa.array(column.codes, pa.int32()), pa.array(column.categories.array, pa.string())
        )
        for column in columns
    ]
    both = pa.chunked_array(parts).combine_chunks()
    return categorical(both.indices.to_numpy(), arrow_index(both.dictionary))


def concat_frames(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """``pd.concat`` that keeps categorical columns categorical although their categories differ."""
    joined = {
        name: concat_columns([frame[name].array for frame in frames])
        for name in frames[0]
        if all(name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype) for frame in frames)
    }
    whole = pd.concat([frame.drop(columns=list(joined)) for frame in frames], ignore_index=True)
    order = dict.fromkeys(name for frame in frames for name in frame)
    for name, column in joined.items():
        whole[name] = column
    return whole[list(order)]


def _is_arrow(column: pd.Categorical) -> bool:
    return isinstance(column.categories.array, pd.arrays.ArrowStringArray)


def token_table(tokens: pd.Index) -> npt.NDArray[np.str_]:
    """RecBole's table of tokens by internal id, ``(1 + n,)``, ``[PAD]`` first, made in batches to save memory."""
    width = max(len("[PAD]"), int(tokens.str.len().max())) if len(tokens) else len("[PAD]")
    table = np.full(1 + len(tokens), "[PAD]", dtype=f"U{width}")
    for start in range(0, len(tokens), _BATCH):
        table[1 + start :][:_BATCH] = np.asarray(tokens[start : start + _BATCH], dtype=object)
    return table
