"""The bundle: a folder of arrays and JSON files with everything a recommender needs, and no code.

    manifest.json           format version, model, configuration, metrics, data, versions; size and SHA-256 of each file
    item_encodings.npy      (n_items, d) float32 or float16; unit length where scores are cosines
    item_bias.npy           (n_items,) float32, added to the item's score; only if items have a bias
    item_weight.npy         (n_items,) float32, weight of the item in its users; only if the weights differ
    user_encodings.npy      (n_users, d), the embeddings at the end of training
    local.indptr.npy        (n_items + 1,) int64; only if the model has a local term, see serving/local_table.py: item i
                            has the entries from indptr[i] to indptr[i + 1] - 1
    local.indices.npy       (n,) int32, the item of each entry, ascending for each i; never i itself
    local.values.npy        (n,) float32, what i adds to the score of this item
    history_start.npy       (n_users + 1,) int64: the train items of user u are history_item[start[u] : start[u + 1]]
    history_item.npy        (n_interactions,) int32
    history_weight.npy      (n_interactions,) float32, as in the data; only if interactions have weights
    item_ids.json           tokens in the order of the rows
    user_ids.json           the same for users
    item_fields.json        {field: [one value per item]}; only if the data set has an item file
    value_encodings.npy     (n_values, d) float32, of the values of the features of items; only if items have features
    value_bias.npy          (n_values,) float32; only if items have features and a bias
    item_values.json        the fields of these features, see :mod:`~recbole_onebp.serving.content`
    index.faiss             for approximate search; only with --ann=faiss
    scorer.onnx             only with --onnx
    MODEL_CARD.md           a text to be edited; it has no checksum

There is no padding row.  Items and users are sorted by token, as numbers if all tokens are plain numbers.
"Encoding" in the names of files is the embedding.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.local_table import LOCAL_FILES, LocalTable
from recbole_onebp.serving.manifest import FORMAT, checksum_of, format_version, is_manifest, read_manifest
from recbole_onebp.serving.tables import LARGEST
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import MARKER, is_claimed, restore, whole_folder
from recbole_onebp.util.hashes import sha256, sha256_of
from recbole_onebp.util.untrusted import blocks, map_array, open_plain, read_json
from recbole_onebp.weights import ALLOWED, LEAST
from recbole_onebp.weights import LARGEST as LARGEST_OF_INTERACTION

__all__ = [
    "LARGEST_WEIGHT",
    "LEAST_WEIGHT",
    "Bundle",
    "check_path",
    "copy_bundle",
    "read_bundle",
    "read_fields",
    "write_bundle",
]

LARGEST_WEIGHT = 1e9
"""Largest weight of an item."""
LEAST_WEIGHT = float(np.finfo(np.float32).smallest_subnormal)
"""Smallest weight of an item: above 0."""

_ENCODINGS = (np.float32, np.float16)
_REQUIRED = (
    "item_encodings.npy", "user_encodings.npy", "history_start.npy", "history_item.npy", "item_ids.json",
    "user_ids.json",
)  # fmt: skip
_CARD = "MODEL_CARD.md"
_OPTIONAL = (
    "item_bias.npy", "item_weight.npy", "history_weight.npy", *LOCAL_FILES, "item_fields.json", "value_encodings.npy",
    "value_bias.npy", "item_values.json", "index.faiss", "index.hnswlib", "scorer.onnx",
)  # fmt: skip
_NAMES = frozenset({MARKER, "manifest.json", _CARD, *_REQUIRED, *_OPTIONAL})

_ID_BYTES, _FIELD_BYTES = 1 << 10, 1 << 14
"""Bytes of JSON that an id, or the fields of an item, may take on average."""
_MORE_BYTES, _MORE_VALUES = 1 << 16, 10_000
_OTHER_BYTES = 1 << 26


@dataclass(frozen=True)
class Bundle:
    """An open bundle.  Arrays are named after their files.  They are read-only and memory-mapped."""

    path: Path
    manifest: dict[str, Any]
    item_ids: list[str]
    user_ids: list[str]
    item_encodings: npt.NDArray[np.floating]
    item_bias: npt.NDArray[np.float32] | None
    item_weight: npt.NDArray[np.float32] | None
    user_encodings: npt.NDArray[np.floating]
    history_start: npt.NDArray[np.int64]
    history_item: npt.NDArray[np.int32]
    history_weight: npt.NDArray[np.float32] | None
    local: LocalTable | None

    @property
    def key(self) -> str:
        """Identifies the bundle: the checksum of its manifest, which holds the checksums of all files."""
        return self.manifest["checksum"]

    @property
    def cosine(self) -> bool:
        """Whether scores are cosines; else they are dot products."""
        return self.manifest["score"] == "cosine"


def write_bundle(
    path: Path,
    manifest: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    texts: Mapping[str, Any],
    card: str,
    replace: bool = False,
    others: Mapping[str, Callable[[Path], object]] | None = None,
) -> None:
    """Write a bundle.  The folder appears when it is complete.

    Args:
        path: the folder.
        manifest: its values; format, files and checksum are added.
        arrays: by file name without ``.npy``.
        texts: values for JSON files, by file name without ``.json``.
        card: ``MODEL_CARD.md``.
        replace: replace an earlier bundle at ``path``.
        others: functions that write other files, by file name.

    Raises:
        UserError: if it cannot be written, or the folder exists and must not be replaced.
    """
    with _new_bundle(path, replace) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        for name, value in texts.items():
            (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        for name, write in (others or {}).items():
            write(folder / name)
        written = sorted(file for file in folder.iterdir() if file.name != MARKER)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in written}
        content = {"format": FORMAT, "format_version": format_version(manifest), **manifest, "files": files}
        content["checksum"] = checksum_of(content)
        (folder / "manifest.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / _CARD).write_text(card, encoding="utf-8")


def copy_bundle(bundle: Bundle, path: Path, replace: bool = False) -> None:
    """Write the files of an open bundle to another folder, which appears when it is complete.

    Raises:
        UserError: if it cannot be written, or the folder exists and must not be replaced.
    """
    with _new_bundle(path, replace) as folder:
        for name in ("manifest.json", _CARD, *bundle.manifest["files"]):
            shutil.copyfile(bundle.path / name, folder / name)


def check_path(path: Path, replace: bool) -> None:
    """Raise :class:`UserError` if a bundle cannot be written to ``path``, or there is something not to be replaced."""
    with writing(path):
        restore(path)
        if os.path.lexists(path):
            _check_replaceable(path)
            if not replace:
                raise UserError(f"{path}: exists already; choose another, or replace it with --force (force=True)")


@contextmanager
def _new_bundle(path: Path, replace: bool) -> Iterator[Path]:
    """A folder to fill, which becomes the bundle at ``path``."""
    check_path(path, replace)
    with writing(path), whole_folder(path, replace, "bundle") as folder:
        yield folder
        for file in folder.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def _check_replaceable(path: Path) -> None:
    """Refuse to replace anything but a bundle, or a bundle in which somebody keeps files of their own."""
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: exists already and is not a folder; choose another name")
    names = {file.name for file in path.iterdir()}
    try:
        ours = is_claimed(path, "bundle") or is_manifest(read_json(path / "manifest.json"))
    except UserError:
        ours = False  # a damaged bundle of an earlier version has the names of one
    if not ours and not names.issuperset(_REQUIRED):
        raise UserError(f"{path}: exists already and is not a bundle; choose another folder")
    others = sorted(name for name in names if name not in _NAMES or (path / name).is_dir())
    if others:
        raise UserError(f"{path}: holds {others[0]}, which is no part of a bundle; move it, or choose another folder")


def read_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle.

    Whatever the files hold, it is checked before it is used: names, sizes and shapes first, then checksums, then
    values.  Files are plain files in the folder; links are not followed.

    Args:
        path: the folder.
        verify: compare every file with its checksum, which reads all files.

    Raises:
        UserError: if the folder is not a bundle, has an unknown format version, is incomplete or damaged.
    """
    path = Path(path)
    with suppress(OSError):
        restore(path, idle_seconds=10)
    manifest = read_manifest(path)
    files = manifest["files"]
    for name in _REQUIRED:
        if name not in files:
            raise UserError(f"{path}: incomplete: the manifest does not list {name}")
    for name in files:
        _check_size(path / name, files[name]["bytes"])

    size = manifest["embedding_size"]
    item_e = _embeddings(path / "item_encodings.npy", size)
    if manifest["score"] == "cosine" and not _has_unit_rows(item_e):
        raise UserError(f"{path / 'item_encodings.npy'}: expected rows of length 1, because scores are cosines")
    user_e = _embeddings(path / "user_encodings.npy", size)
    n_items, n_users = len(item_e), len(user_e)
    for name in files:
        _check_enormous(path / name, files[name]["bytes"], n_items, n_users, size)
    start = map_array(path / "history_start.npy", (n_users + 1,), np.int64)
    history = map_array(path / "history_item.npy", (-1,), np.int32)
    _check_history(path, start, history, n_items)
    bias, weight = (
        map_array(path / name, (n_items,), np.float32) if name in files else None
        for name in ("item_bias.npy", "item_weight.npy")
    )
    if bias is not None and not _within(bias, -LARGEST, LARGEST):
        raise UserError(f"{path / 'item_bias.npy'}: has values beyond {LARGEST:g}; export the bundle again")
    if weight is not None and not _within(weight, LEAST_WEIGHT, LARGEST_WEIGHT):
        raise UserError(f"{path / 'item_weight.npy'}: expected weights above 0 and up to {LARGEST_WEIGHT:g}")
    of_history = _history_weight(path, manifest, len(history))
    local = LocalTable.read(path, manifest, n_items)
    for key, count in (("n_items", n_items), ("n_users", n_users), ("n_interactions", len(history))):
        if manifest.get(key) not in (None, count):
            raise UserError(f"{path / 'manifest.json'}: {key}: {manifest[key]}, but the arrays have {count}")
    for name, dtype in (("item_encodings.npy", item_e.dtype), ("user_encodings.npy", user_e.dtype)):
        if manifest.get("dtype") not in (None, dtype.name):
            raise UserError(f"{path / name}: {dtype.name}, but the manifest says {manifest['dtype']}")
    if verify:
        for name in files:
            _check_hash(path / name, files[name]["sha256"])
    return Bundle(
        path=path,
        manifest=manifest,
        item_ids=_read_ids(path / "item_ids.json", n_items),
        user_ids=_read_ids(path / "user_ids.json", n_users),
        item_encodings=item_e,
        item_bias=bias,
        item_weight=weight,
        user_encodings=user_e,
        history_start=start,
        history_item=history,
        history_weight=of_history,
        local=local,
    )


def read_fields(bundle: Bundle) -> dict[str, list[str]]:
    """Columns of the data set's item file: for each field one value per item.  Empty if there is no item file.

    Raises:
        UserError: if the file is damaged.
    """
    path = bundle.path / "item_fields.json"
    if path.name not in bundle.manifest["files"]:
        return {}
    n_items = len(bundle.item_ids)
    fields = read_json(
        path, _MORE_BYTES + _FIELD_BYTES * n_items, max_values=_MORE_VALUES + _FIELD_BYTES // 32 * n_items
    )
    if (
        not isinstance(fields, dict)
        or not _is_list_of_text(list(fields))
        or not all(_is_list_of_text(value) and len(value) == n_items for value in fields.values())
    ):
        raise UserError(f"{path}: damaged: expected fields with {n_items} values each")
    title = bundle.manifest["title_field"]
    if title is not None and title not in fields:
        raise UserError(f"{path}: has no field {title[:80]!r}, the title_field of manifest.json")
    return fields


def _check_size(path: Path, size: int) -> None:
    with open_plain(path) as file:
        found = os.fstat(file.fileno()).st_size
    if found != size:
        raise UserError(f"{path}: damaged: {found} bytes instead of {size} in the manifest; export the bundle again")


def _check_enormous(path: Path, found: int, n_items: int, n_users: int, size: int) -> None:
    """Refuse a file that is much larger than its items or users need, before it is read."""
    most = {
        "item_ids.json": _ID_BYTES * n_items,
        "user_ids.json": _ID_BYTES * n_users,
        "item_fields.json": _FIELD_BYTES * n_items,
    }.get(path.name, _OTHER_BYTES + n_items * (1024 + 16 * size))
    if not (path.suffix == ".npy" and path.name in _NAMES) and found > _MORE_BYTES + most:
        raise UserError(f"{path}: has {found} bytes; at most {_MORE_BYTES + most} are read")


def _check_hash(path: Path, sha256_in_manifest: str) -> None:
    with open_plain(path) as file:
        try:
            same = sha256_of(file) == sha256_in_manifest
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}; export the bundle again") from None
    if not same:
        raise UserError(f"{path}: damaged: its checksum differs from the manifest; export the bundle again")


def _embeddings(path: Path, size: int) -> npt.NDArray[np.floating]:
    array = map_array(path, (-1, size), *_ENCODINGS)
    if not _within(array, -LARGEST, LARGEST):
        raise UserError(f"{path}: has values beyond {LARGEST:g}; export the bundle again")
    return array


def _within(array: npt.NDArray[Any], least: float, most: float) -> bool:
    return all(least <= float(block.min()) and float(block.max()) <= most for block in blocks(array))


def _has_unit_rows(array: npt.NDArray[np.floating]) -> bool:
    """Whether each row has length 1, up to the rounding of float16, or is zero."""
    for block in blocks(array):
        squared = np.square(block, dtype=np.float32).sum(axis=1)
        if not bool(((np.abs(squared - 1) < 0.02) | (squared == 0)).all()):
            return False
    return True


def _check_history(path: Path, start: npt.NDArray[np.int64], item: npt.NDArray[np.int32], n_items: int) -> None:
    ends = int(start[0]), int(start[-1])
    if ends != (0, len(item)) or bool((start[1:] < start[:-1]).any()):
        raise UserError(
            f"{path / 'history_start.npy'}: expected numbers that ascend from 0 to {len(item)}, the length of "
            "history_item.npy; export the bundle again"
        )
    if not _within(item, 0, n_items - 1):
        raise UserError(f"{path / 'history_item.npy'}: expected rows of the {n_items} items; export the bundle again")


def _history_weight(path: Path, manifest: Mapping[str, Any], n: int) -> npt.NDArray[np.float32] | None:
    """The weights of the n interactions; None if they have none."""
    file = path / "history_weight.npy"
    if (manifest.get("weights") is None) != (file.name not in manifest["files"]):
        raise UserError(f"{path}: the manifest has only one of weights and {file.name}; export the bundle again")
    if file.name not in manifest["files"]:
        return None
    weight = map_array(file, (n,), np.float32)
    if not _within(weight, LEAST, LARGEST_OF_INTERACTION):
        raise UserError(f"{file}: expected weights that are each {ALLOWED}; export the bundle again")
    return weight


def _is_list_of_text(value: Any) -> bool:
    if not isinstance(value, list) or not all(type(text) is str for text in value):
        return False
    try:  # a lone surrogate can neither be printed nor written
        "".join(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_ids(path: Path, count: int) -> list[str]:
    most_values = _MORE_VALUES + _ID_BYTES // 32 * count
    ids: list[str] = read_json(path, _MORE_BYTES + _ID_BYTES * count, max_values=most_values)
    if not _is_list_of_text(ids) or len(ids) != count or len(set(ids)) < count:
        raise UserError(f"{path}: damaged: expected a list of {count} distinct ids")
    return ids
