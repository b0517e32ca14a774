"""Ready embeddings of items, of a text or a picture for example: files beside the ``.item`` file of a data set.

``NAME.FIELD.npy`` holds an array of numbers, and ``NAME.FIELD.ids`` the id of the item of each row, one a line.
"""

from __future__ import annotations

import hashlib
import shutil
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import blocks, map_array, open_plain, read_text

__all__ = ["copy_embeddings", "embedding_digests", "embedding_files", "read_embeddings", "reads_features"]

_MOST_ID_BYTES = 1 << 30


def reads_features(config: Any) -> bool:
    """Whether a run reads features of items."""
    return config["item_features"] not in (None, "none")


def embedding_files(folder: Path, name: str) -> dict[str, Path]:
    """The ``.npy`` files of a data set, by the names of their fields, in the order of these."""
    found = sorted(path for path in folder.glob("*.npy") if path.name.startswith(f"{name}."))
    return {path.stem[len(name) + 1 :]: path for path in found}


def embedding_digests(dataset: Any) -> dict[str, str]:
    """A summary of each of these files that a run on RecBole's data set may read, to notice that they have changed."""
    found: dict[str, str] = {}
    if not reads_features(dataset.config):
        return found
    for field, path in embedding_files(Path(dataset.dataset_path), dataset.dataset_name).items():
        digest = hashlib.sha256(read_text(path.with_suffix(".ids"), _MOST_ID_BYTES).encode())
        digest.update(_array(path).data)
        found[f"embeddings {field}"] = f"SHA-256 {digest.hexdigest()[:16]}"
    return found


def copy_embeddings(items: Path, folder: Path, name: str) -> None:
    """Copy the embeddings beside a ``.item`` file into the folder of the data set ``name``.

    Raises:
        UserError: for a link, or ids that are not there.
    """
    for field, path in embedding_files(items.parent, items.stem).items():
        for suffix in (".npy", ".ids"):
            with open_plain(path.with_suffix(suffix)) as source, open(folder / f"{name}.{field}{suffix}", "xb") as file:
                shutil.copyfileobj(source, file)


def read_embeddings(path: Path, tokens: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The embeddings of the items of a data set.

    Args:
        path: the ``.npy`` file; the ``.ids`` file is beside it.
        tokens: the ids of the items, ``(n_items,)``; the first one is RecBole's padding.

    Returns:
        A row for each item, ``(n_items, d)``, zero where there is none; and whether there is one, ``(n_items,)``.

    Raises:
        UserError: for files that do not fit each other, an id twice, numbers that are not finite, or no item at all.
    """
    array, ids = _array(path), _ids(path.with_suffix(".ids"))
    if len(ids) != len(array):
        raise UserError(f"{path.with_suffix('.ids')}: {len(ids)} ids for the {len(array)} rows of {path.name}")
    first = 0
    for block in blocks(array):
        if not (fits := (np.abs(block) <= np.finfo(np.float32).max).all(axis=1)).all():
            row = first + int(fits.argmin())
            raise UserError(f"{path}: row {row} (from 0), of item {ids[row]}: a value is not a finite float32 number")
        first += len(block)
    item = 1 + pd.Index(tokens[1:]).get_indexer(ids)  # 0: not in the data set
    rows, has_row = np.zeros((len(tokens), array.shape[1])), np.zeros(len(tokens), dtype=bool)
    rows[item[item > 0]], has_row[item[item > 0]] = array[item > 0], True
    if not has_row.any():
        raise UserError(f"{path.with_suffix('.ids')}: none of its ids is an item of the data set, such as {tokens[1]}")
    message = "%s: %d of %d items have a row; %d rows are of other items"
    getLogger().info(message, path.name, has_row.sum(), len(tokens) - 1, (item == 0).sum())
    return rows, has_row


def _array(path: Path) -> npt.NDArray[Any]:
    array = map_array(path, (-1, -1), np.float16, np.float32, np.float64, finite=False)
    if array.size == 0:
        raise UserError(f"{path}: {array.dtype} {array.shape} is empty; expected a row for each item")
    return array


def _ids(path: Path) -> list[str]:
    ids = [line.removesuffix("\r") for line in read_text(path, _MOST_ID_BYTES).removesuffix("\n").split("\n")]
    if (place := next((place for place, one in enumerate(ids, 1) if not one), None)) is not None:
        raise UserError(f"{path}, line {place}: empty; expected the id of an item")
    again = pd.Index(ids).duplicated()
    if again.any():
        raise UserError(f"{path}, line {int(again.argmax()) + 1}: item {ids[int(again.argmax())]} again")
    return ids
