"""A data set's folder: the atomic files and ``manifest.json``, which records their origin."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_onebp import __version__
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.hashes import sha256
from recbole_onebp.util.untrusted import read_json

__all__ = [
    "counts",
    "is_complete",
    "is_unordered",
    "read_items",
    "read_manifest",
    "refuse_strangers",
    "with_all_items",
    "write_items",
    "write_manifest",
    "write_parts",
]

_TYPES = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}


def counts(parts: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Number of users and items over all parts, and of interactions in each part."""
    users, items = (pd.concat([frame[key] for frame in parts.values()]).nunique() for key in ("user_id", "item_id"))
    return {"users": users, "items": items, **{part: len(frame) for part, frame in parts.items()}}


def write_parts(folder: Path, name: str, parts: Mapping[str, pd.DataFrame]) -> None:
    """Write each part as an atomic file, ``<name>.<part>.inter``, or ``<name>.inter`` for the part ``all``.

    Args:
        folder: an existing folder.
        name: name of the data set.
        parts: name -> frame (n, 2 to 4) with columns ``user_id``, ``item_id`` and optionally ``rating`` and
            ``timestamp``.
    """
    for part, frame in parts.items():
        path = folder / (f"{name}.inter" if part == "all" else f"{name}.{part}.inter")
        is_whole = {column: frame[column] % 1 == 0 for column in frame.select_dtypes("float")}
        whole = [column for column, found in is_whole.items() if (found & (frame[column].abs() < 2**53)).all()]
        frame.astype(dict.fromkeys(whole, "int64")).to_csv(
            path,
            sep="\t",
            index=False,
            header=[f"{column}:{_TYPES[str(column)]}" for column in frame],
            lineterminator="\n",
        )


def read_items(path: Path) -> pd.DataFrame:
    """The features of items in a ``.item`` file, as texts, for :func:`write_items`.

    Raises:
        UserError: for a file without item ids, with another header, or with an item twice.
    """
    try:
        items = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: {error}") from None
    for title in map(str, items):
        if not re.fullmatch(r"[^:]+:(token|token_seq|float|float_seq)", title):
            raise UserError(f"{path}, line 1: {title!r}: expected name:type with token, token_seq, float or float_seq")
    if "item_id:token" not in items:
        raise UserError(f"{path}, line 1: no column item_id:token")
    twice = items["item_id:token"].duplicated()
    if twice.any():
        raise UserError(f"{path}, line {int(twice.argmax()) + 2}: item {items['item_id:token'][twice].iloc[0]} again")
    return items


def with_all_items(items: pd.DataFrame, ids: pd.Series) -> tuple[pd.DataFrame, int]:
    """Features as of :func:`read_items` with a row, empty but for the id, for each of these items that has none.

    RecBole drops the interactions of items without a row.

    Returns:
        The features, and the number of rows that were added.
    """
    missing = pd.Index(ids.unique()).difference(pd.Index(items["item_id:token"]), sort=False)
    rows = pd.DataFrame({"item_id:token": missing}).reindex(columns=items.columns, fill_value="")
    return pd.concat([items, rows], ignore_index=True), len(missing)


def write_items(folder: Path, name: str, items: pd.DataFrame) -> None:
    """Write ``<name>.item``, the features of the items.

    Args:
        folder: an existing folder.
        name: name of the data set.
        items: its columns are called as in atomic files, ``item_id:token``, ``genres:token_seq``, ...
    """
    items.to_csv(folder / f"{name}.item", sep="\t", index=False, lineterminator="\n")


def write_manifest(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: ``content``, the SHA-256 of every file in the folder, and our version."""
    files = {path.name: {"sha256": sha256(path)} for path in sorted(folder.iterdir()) if path.is_file()}
    manifest = {"name": name, **content, "files": files, "recbole_onebp": __version__}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest and all files listed in it."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / file).is_file() for file in files)
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return False


def is_unordered(folder: Path) -> bool:
    """Whether the manifest of a folder lacks the word that its interactions are in order of time."""
    try:
        return not read_manifest(folder).get("ordered")
    except (OSError, UserError, AttributeError):
        return False


def refuse_strangers(folder: Path, force: bool) -> None:
    """Check that a data set can be written to ``folder``: that nothing is there, or only what we made.

    Raises:
        UserError: if the folder exists and ``force`` is not set, or if it holds anything that our manifest does not
            list.
    """
    if not os.path.lexists(folder):
        return
    if not force:
        raise UserError(f"{folder} exists already; --force replaces it, or choose another --name")
    made = "which recbole-onebp did not make; --force replaces only data sets that it made: move it away"
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"{folder} is a link or a file, {made}")
    found = sorted(path.name for path in folder.iterdir())
    if not found:
        return
    try:
        manifest = read_manifest(folder)
        listed = {*manifest["files"], "manifest.json", ".cache"} if "recbole_onebp" in manifest else None
    except (UserError, KeyError, TypeError):
        listed = None
    if listed is None:
        raise UserError(f"{folder} holds {', '.join(found[:3])} and no manifest.json of a data set, {made}")
    if others := [name for name in found if name not in listed]:
        raise UserError(f"{folder / others[0]} is in the way, {made}")


def read_manifest(folder: Path) -> Any:
    """What :func:`write_manifest` wrote."""
    return read_json(folder / "manifest.json")
