"""The features of a data set's items as sparse matrices, from RecBole's ``.item`` file and ready embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from recbole.utils import FeatureType
from sklearn.preprocessing import normalize

from recbole_onebp.data.item_embeddings import embedding_files, read_embeddings
from recbole_onebp.util.errors import UserError

__all__ = ["ItemField", "item_fields"]

_TOKENS = (FeatureType.TOKEN, FeatureType.TOKEN_SEQ)


@dataclass(frozen=True)
class ItemField:
    """A field of the items.

    Attributes:
        name: its name in the ``.item`` file.
        matrix: ``(n_items, n_values)``, float32.  Tokens: rows of unit length, in which a value weighs the more the
            fewer items have it (TF-IDF).  Numbers: a column each, the distance from the mean, so that the root mean
            square of the lengths of all rows is 1.  Items without a row in a file of embeddings have an empty one.
        tokens: the values, ``(n_values,)``; None for numbers.
        weight: of each value, ``(n_values,)``: of tokens before rows are scaled, of numbers the factor of the distance.
        mean: of numbers, ``(n_values,)``; None for tokens.
        separator: what stands between the values of an item in the data set's file; None if an item has one value.
    """

    name: str
    matrix: sp.csr_array
    tokens: npt.NDArray[np.str_] | None
    weight: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32] | None
    separator: str | None


def item_fields(dataset: Any, wanted: Literal["all"] | Sequence[str] = "all") -> list[ItemField]:
    """The fields of the items of a data set.

    Args:
        dataset: RecBole's data set, built; row i of a matrix is its item i, and row 0 (padding) is empty.
        wanted: names of fields, or ``all`` that are loaded, and all embeddings.

    Raises:
        UserError: if nothing is loaded, for a field that is not there or twice, and for numbers that are not finite.

    Example:
        >>> run = recbole_onebp.build("ContentKNN", "ml-100k", config_dict={"item_features": ["class"]})
        >>> [(field.name, field.matrix.shape) for field in item_fields(run.dataset, ["class"])]
        [('class', (1683, 19))]
    """
    features, name = dataset.item_feat, dataset.dataset_name
    loaded = [] if features is None else [field for field in features.columns if field != dataset.iid_field]
    files = embedding_files(Path(dataset.dataset_path), name)
    if twice := [field for field in loaded if field in files]:
        raise UserError(f"{files[twice[0]]}: {name}.item has a field {twice[0]} too; rename one of them")
    if not loaded and not files:
        raise UserError(f"item_features: no feature of the items is loaded: data set {name} needs a file {name}.item")
    every = [*loaded, *files]
    chosen = every if wanted == "all" else [*wanted]
    for field in chosen:
        if field not in every:
            raise UserError(f"item_features: there is no field {field}; loaded are {', '.join(every)}")
    return [_embeddings(dataset, field, files[field]) if field in files else _field(dataset, field) for field in chosen]


def _embeddings(dataset: Any, name: str, path: Path) -> ItemField:
    rows, has_row = read_embeddings(path, dataset.field2id_token[dataset.iid_field])
    return _numbers(name, rows, has_row, dataset.config["seq_separator"])


def _field(dataset: Any, name: str) -> ItemField:
    kind, column = dataset.field2type[name], dataset.item_feat[name].numpy()
    is_list = kind in (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
    separator = dataset.config["seq_separator"] if is_list else None
    if kind in _TOKENS:
        ids = column.reshape(len(column), -1).copy()
        ids[0] = 0  # RecBole gives the padding row a value
        row, place = np.nonzero(ids)
        values, code = np.unique(ids[row, place], return_inverse=True)
        matrix = sp.csr_array((np.ones(len(row), np.float32), (row, code)), shape=(len(ids), len(values)))
        weight = np.log((len(ids) - 1) / np.bincount(matrix.indices, minlength=len(values))).astype(np.float32)
        matrix.data = weight[matrix.indices]
        return ItemField(
            name, normalize(matrix), dataset.id2token(name, values).astype(np.str_), weight, None, separator
        )
    # RecBole adds the number of the bucket as a last axis where it discretises numbers.
    numbers = column[..., 0] if column.ndim == 2 + (kind == FeatureType.FLOAT_SEQ) else column
    dense = numbers.reshape(len(numbers), -1).astype(np.float64)
    if not np.isfinite(dense[1:]).all():
        item = dataset.id2token(dataset.iid_field, 1 + int(np.flatnonzero(~np.isfinite(dense[1:]).all(axis=1))[0]))
        raise UserError(f"item_features: {name} of item {item} is not a finite number")
    return _numbers(name, dense, np.arange(len(dense)) > 0, separator)


def _numbers(name: str, dense: npt.NDArray[np.float64], has_row: npt.NDArray[np.bool_], sep: str | None) -> ItemField:
    """A field of numbers ``(n_items, d)``, which are changed, from the items that have them."""
    mean = dense[has_row].mean(axis=0)
    dense -= mean
    dense[~has_row] = 0
    factor = np.float32(1 / (np.sqrt((dense**2).sum(axis=1)[has_row].mean()) or 1))
    matrix = sp.csr_array(dense.astype(np.float32) * factor)
    return ItemField(name, matrix, None, np.full(len(mean), factor), mean.astype(np.float32), sep)
