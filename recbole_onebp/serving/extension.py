"""A bundle with more items, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.answers import NewItems
from recbole_onebp.serving.bundle import Bundle, read_bundle, read_fields, write_bundle
from recbole_onebp.serving.item_file import read_items
from recbole_onebp.serving.local_table import LOCAL_FILES
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token
from recbole_onebp.util.untrusted import read_json, read_text

__all__ = ["extend"]

_LEFT_OUT = ("index.faiss", "index.hnswlib", "scorer.onnx")
"""Files that know the old items only."""
_WRITTEN = ("format", "format_version", "files", "checksum", "ann")
"""Values of a manifest that are made anew, or belong to a file that is left out."""


def extend(
    bundle_dir: Path, items: Path, output: Path | None = None, force: bool = False
) -> tuple[NewItems, list[str]]:
    """Write a bundle that has the items of a file too, behind the old ones.

    Args:
        bundle_dir: the bundle.
        items: a ``.csv``, ``.tsv`` or ``.jsonl`` file; see :func:`~recbole_onebp.serving.item_file.read_items`.
        output: the folder to write; None replaces the bundle, in one step.
        force: replace a bundle at ``output``.

    Returns:
        What was added and what was not, and the files of the bundle that were left out.

    Raises:
        UserError: if the bundle or the file cannot be read, no item can be added, or nothing can be written; then
            everything stays as it is.
    """
    bundle = read_bundle(bundle_dir)
    rec, fields = Recommender(bundle), read_fields(bundle)
    content = rec._catalogue.estimator.content
    rows = read_items(items, (bundle.manifest.get("config") or {}).get("ITEM_ID_FIELD", "item_id"), [*fields], content)
    report = rec.add_items(rows)
    if not report.added:
        item, reason = next(iter(report.refused.items()))
        raise UserError(f"{items}: no item can be added: item {item} {reason}")
    manifest = {key: value for key, value in bundle.manifest.items() if key not in _WRITTEN}
    write_bundle(
        bundle_dir if output is None else output,
        {**manifest, "n_items": rec.n_items},
        _arrays(bundle, rec),
        _texts(bundle, rec, fields, report.added),
        read_text(bundle.path / "MODEL_CARD.md"),
        replace=force or output is None,
    )
    return report, [name for name in _LEFT_OUT if name in bundle.manifest["files"]]


def _arrays(bundle: Bundle, rec: Recommender) -> dict[str, npt.NDArray[Any]]:
    """All arrays, with rows for the new items."""
    names = [name for name in bundle.manifest["files"] if name.endswith(".npy")]
    arrays = {name.removesuffix(".npy"): np.load(bundle.path / name, mmap_mode="r") for name in names}
    old, table = arrays["item_encodings"], rec._items
    new = table.embeddings.rows(np.arange(len(old), len(table)))
    arrays["item_encodings"] = np.concatenate((old, new.astype(old.dtype)))
    for name, values in (("item_bias", table.bias), ("item_weight", rec._item_weight)):
        if values is not None:
            arrays[name] = values
    start = LOCAL_FILES[0].removesuffix(".npy")
    if start in arrays:
        arrays[start] = np.concatenate((arrays[start], np.full(len(new), arrays[start][-1])))
    return arrays


def _texts(bundle: Bundle, rec: Recommender, fields: dict[str, list[str]], added: list[Token]) -> dict[str, Any]:
    """The JSON files but the manifest, with entries for the new items."""
    names = [name for name in bundle.manifest["files"] if name.endswith(".json")]
    texts = {name.removesuffix(".json"): read_json(bundle.path / name, 1 << 30, max_values=1 << 25) for name in names}
    texts["item_ids"] = list(rec.item_ids)
    if fields:
        described = [rec.fields(item) for item in added]
        texts["item_fields"] = {name: [*values, *(one[name] for one in described)] for name, values in fields.items()}
    return texts
