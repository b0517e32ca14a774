"""The bundle: a folder of arrays and JSON files with everything a recommender needs, and no code.

    manifest.json           format version, model, configuration, metrics, data, versions; size and SHA-256 of each file
    item_encodings.npy      (n_items, d) float32 or float16; unit length where scores are cosines
    item_bias.npy           (n_items,) float32, added to the item's score; only if items have a bias
    item_weight.npy         (n_items,) float32, weight of the item in its users; only if the weights differ
    user_encodings.npy      (n_users, d), the embeddings at the end of training
    history_start.npy       (n_users + 1,) int64: the train items of user u are history_item[start[u] : start[u + 1]]
    history_item.npy        (n_interactions,) int32
    item_ids.json           tokens in the order of the rows
    user_ids.json           the same for users
    item_fields.json        {field: [one value per item]}; only if the data set has an item file
    index.faiss             for approximate search; only with --ann=faiss
    scorer.onnx             only with --onnx
    MODEL_CARD.md           a text to be edited; it has no checksum

There is no padding row.  Items and users are sorted by token, as numbers if all tokens are plain numbers.
"Encoding" in the names of files is the embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import whole_folder
from recbole_onebp.util.hashes import sha256

__all__ = ["FORMAT_VERSION", "Bundle", "read_bundle", "read_fields", "write_bundle"]

FORMAT_VERSION = 1
_FORMAT = "recbole_onebp bundle"
_IDS = {"item": "item_ids.json", "user": "user_ids.json"}
_ENCODINGS = (np.float32, np.float16)


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
    if path.exists() and not (replace and (path / "manifest.json").is_file()):
        raise UserError(
            f"{path}: exists already and is not a bundle; choose another folder"
            if replace or not (path / "manifest.json").is_file()
            else f"{path}: exists already; choose another folder, or replace it with --force"
        )
    with writing(path), whole_folder(path, replace=replace) as folder:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        for name, value in texts.items():
            (folder / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        for name, write in (others or {}).items():
            write(folder / name)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(folder.iterdir())}
        content = {"format": _FORMAT, "format_version": FORMAT_VERSION, **manifest, "files": files}
        content["checksum"] = _checksum(content)
        (folder / "manifest.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
        for file in folder.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())


def read_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Open a bundle.

    Args:
        path: the folder.
        verify: compare every file with its checksum, which reads all files.  Without, only sizes and shapes are
            checked.

    Raises:
        UserError: if the folder is not a bundle, has an unknown format version, is incomplete or damaged.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    for name, file in manifest["files"].items():
        _check_file(path / name, file, verify)
    ids = {kind: _read_ids(path / name) for kind, name in _IDS.items() if name in manifest["files"]}
    if len(ids) < len(_IDS):
        raise UserError(f"{path}: incomplete: the manifest does not list {' or '.join(_IDS.values())}")
    n_items, n_users, size = len(ids["item"]), len(ids["user"]), manifest["embedding_size"]

    def values(name: str) -> npt.NDArray[np.float32] | None:
        return _read_array(path / name, (n_items,), np.float32) if name in manifest["files"] else None

    start = _read_array(path / "history_start.npy", (n_users + 1,), np.int64)
    return Bundle(
        path=path,
        manifest=manifest,
        item_ids=ids["item"],
        user_ids=ids["user"],
        item_encodings=_read_array(path / "item_encodings.npy", (n_items, size), *_ENCODINGS),
        item_bias=values("item_bias.npy"),
        item_weight=values("item_weight.npy"),
        user_encodings=_read_array(path / "user_encodings.npy", (n_users, size), *_ENCODINGS),
        history_start=start,
        history_item=_read_array(path / "history_item.npy", (int(start[-1]),), np.int32),
    )


def read_fields(bundle: Bundle) -> dict[str, list[str]]:
    """Columns of the data set's item file: for each field one value per item.  Empty if there is no item file.

    Raises:
        UserError: if the file is damaged.
    """
    path = bundle.path / "item_fields.json"
    if path.name not in bundle.manifest["files"]:
        return {}
    fields = _read_json(path)
    n_items = len(bundle.item_ids)
    if not isinstance(fields, dict) or any(
        not _is_list_of_str(value) or len(value) != n_items for value in fields.values()
    ):
        raise UserError(f"{path}: damaged: expected fields with {n_items} values each")
    return fields


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / "manifest.json").is_file():
        raise UserError(
            f"{path}: not a bundle: there is no manifest.json; create one with recbole-onebp export RUN_DIR {path}"
        )
    manifest = _read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise UserError(f"{path / 'manifest.json'}: not the manifest of a bundle, or damaged")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: a bundle of format version {version}; this recbole_onebp reads version {FORMAT_VERSION}: export "
            "the run again, or install the version of recbole_onebp that wrote it"
        )
    if manifest.get("checksum") != _checksum(manifest):
        raise UserError(f"{path / 'manifest.json'}: damaged: it does not match its checksum; export the bundle again")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_file(path: Path, file: Mapping[str, Any], verify: bool) -> None:
    try:
        size = path.stat().st_size
        same = size == file["bytes"] and (not verify or sha256(path) == file["sha256"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; export the bundle again") from None
    if not same:
        what = "its checksum differs from" if size == file["bytes"] else f"{size} bytes instead of {file['bytes']} in"
        raise UserError(f"{path}: damaged: {what} the manifest; export the bundle again")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not JSON: {error}") from None


def _is_list_of_str(value: Any) -> bool:
    return isinstance(value, list) and all(type(text) is str for text in value)


def _read_ids(path: Path) -> list[str]:
    ids: Sequence[str] = _read_json(path)
    if not _is_list_of_str(ids) or len(set(ids)) < len(ids):
        raise UserError(f"{path}: damaged: expected a list of distinct ids")
    return list(ids)


def _read_array(path: Path, shape: tuple[int, ...], *dtypes: type[np.generic]) -> npt.NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r" if 0 not in shape else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if array.shape != shape or array.dtype not in dtypes or not array.flags.c_contiguous:
        names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise UserError(f"{path}: {array.dtype.name} {array.shape}; expected {names} {shape}")
    return array.view(np.ndarray)  # np.memmap only makes indexing slower
