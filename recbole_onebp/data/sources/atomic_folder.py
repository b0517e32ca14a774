"""A data set's folder: the atomic files and ``manifest.json``, which records their origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_onebp import __version__
from recbole_onebp.util.hashes import sha256

__all__ = ["counts", "is_complete", "write_manifest", "write_parts"]

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
        whole = [column for column in frame.select_dtypes("float") if (frame[column] % 1 == 0).all()]
        frame.astype(dict.fromkeys(whole, "int64")).to_csv(
            path,
            sep="\t",
            index=False,
            header=[f"{column}:{_TYPES[str(column)]}" for column in frame],
            lineterminator="\n",
        )


def write_manifest(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: ``content``, the SHA-256 of every file in the folder, and our version."""
    files = {path.name: {"sha256": sha256(path)} for path in sorted(folder.iterdir()) if path.is_file()}
    manifest = {"name": name, **content, "files": files, "recbole_onebp": __version__}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest and all files listed in it."""
    try:
        files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all((folder / file).is_file() for file in files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
