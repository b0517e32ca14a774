"""The manifest of a bundle: read, and checked value by value, because a stranger may have written it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from recbole_onebp.serving.tables import LARGEST
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import plain_name, read_json
from recbole_onebp.weights import ALLOWED, LEAST, Transform
from recbole_onebp.weights import LARGEST as LARGEST_WEIGHT

__all__ = ["FORMAT", "LARGEST_RECENCY", "LARGEST_SIZE", "checksum_of", "format_version", "is_manifest", "read_manifest"]

FORMAT = "recbole_onebp bundle"
_VERSIONS = (1, 2, 3)
"""2 has a local term, 3 weights of interactions; programs that read earlier versions alone would leave them out of the
scores without a word."""
LARGEST_SIZE = 1 << 16
"""Largest dimension of embeddings."""
LARGEST_RECENCY = 100

_MAX_BYTES = 4 << 20
_MAX_FILES = 100
_REQUIRED = ("files", "model", "score", "aggregation", "embedding_size", "ordered", "title_field")


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the bundle at ``path``.

    Raises:
        UserError: if there is none, it is damaged or of another format version, or a value is not allowed.
    """
    file = path / "manifest.json"
    if not os.path.isfile(file):  # also for a name that is too long, or a folder that may not be read
        shown = str(path)[:500]
        if not os.path.isdir(path):
            what = "a file" if os.path.isfile(path) else "no such folder"
            raise UserError(f"{shown}: not a bundle: {what}; create one with recbole-onebp export RUN_DIR {shown}")
        if os.path.isfile(path / "config.yaml"):
            raise UserError(f"{shown}: not a bundle but a run; create one with recbole-onebp export {shown} BUNDLE_DIR")
        raise UserError(
            f"{shown}: not a bundle: there is no manifest.json; create one with recbole-onebp export RUN_DIR BUNDLE_DIR"
        )
    manifest = read_json(file, _MAX_BYTES)
    if not is_manifest(manifest):
        raise UserError(f"{file}: not the manifest of a bundle, or damaged")
    version = manifest.get("format_version")
    if type(version) is not int or version not in _VERSIONS:
        raise UserError(
            f"{path}: a bundle of format version {version!s:.40}; this recbole_onebp reads "
            f"{', '.join(map(str, _VERSIONS[:-1]))} and {_VERSIONS[-1]}: "
            "export the run again, or install the version of recbole_onebp that wrote it"
        )
    if manifest.get("checksum") != checksum_of(manifest):
        raise UserError(f"{file}: damaged: it does not match its checksum; export the bundle again")
    for key in _REQUIRED:
        if key not in manifest:
            raise UserError(f"{file}: has no {key}; export the bundle again")
    for key, (allowed, expected) in _VALUES.items():
        if not allowed(manifest.get(key)):
            raise UserError(f"{file}: {key}: {manifest.get(key)!r:.80} is not allowed; expected {expected}")
    for name in manifest["files"]:
        plain_name(name, file)
    return manifest


def is_manifest(content: Any) -> bool:
    """Whether a value is that of a ``manifest.json`` of ours, of any version."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def format_version(manifest: Mapping[str, Any]) -> int:
    """The version of the format that a bundle with these values needs."""
    if manifest.get("weights") is not None:
        return 3
    return 1 if manifest.get("local") is None else 2


def checksum_of(manifest: Mapping[str, Any]) -> str:
    """The checksum of all other values."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _is_text(value: Any) -> bool:
    return type(value) is str and value.isprintable() and len(value) <= 1000


def _is_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= _MAX_FILES
        and all(
            isinstance(file, dict)
            and _is_count(file.get("bytes"))
            and type(file.get("sha256")) is str
            and re.fullmatch("[0-9a-f]{64}", file["sha256"]) is not None
            for file in value.values()
        )
    )


def _is_aggregation(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and value.get("rule") in ("moving", "mean")
        and _is_number(value.get("beta"), 0, 1)
        and _is_number(value.get("alpha"), 0, math.nextafter(math.inf, 0))
        and _is_number(value.get("recency", 0), 0, LARGEST_RECENCY)
    )


def _is_local(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_number(value.get("weight"), 0, LARGEST)
        and value["weight"] > 0
        and _is_number(value.get("recency"), 0, LARGEST_RECENCY)
        and _is_count(value.get("neighbors"))
        and _is_number(value.get("reg"), 0, math.nextafter(math.inf, 0))
    )


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("transform") in get_args(Transform)
        and _is_number(value.get("default"), LEAST, LARGEST_WEIGHT)
    )


def _optional(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or allowed(value)


_COUNT = _optional(_is_count), "a whole number"
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "files": (_is_files, f"at most {_MAX_FILES} files with bytes and sha256"),
    "model": (_is_text, "the name of a model"),
    "score": (lambda value: value in ("dot", "cosine"), "dot or cosine"),
    "aggregation": (
        _is_aggregation,
        f"null, or rule moving or mean, beta from 0 to 1, alpha of at least 0 and recency from 0 to {LARGEST_RECENCY}",
    ),
    "embedding_size": (lambda value: _is_count(value) and 1 <= value <= LARGEST_SIZE, f"from 1 to {LARGEST_SIZE}"),
    "ordered": (lambda value: type(value) is bool, "true or false"),
    "title_field": (_optional(lambda value: type(value) is str), "null or the name of a field"),
    "local": (
        _optional(_is_local),
        f"null, or weight above 0, recency from 0 to {LARGEST_RECENCY}, a number of neighbors and reg of at least 0",
    ),
    "weights": (
        _optional(_is_weights),
        f"null, or a transform, one of {', '.join(get_args(Transform))}, and a default, {ALLOWED}",
    ),
    "created": (_optional(_is_text), "a time"),
    "dtype": (_optional(lambda value: value in ("float32", "float16")), "float32 or float16"),
    "n_users": _COUNT,
    "n_items": _COUNT,
    "n_interactions": _COUNT,
    "best_epoch": (_optional(lambda value: type(value) is int), "a whole number"),
    **{
        key: (_optional(lambda value: isinstance(value, dict)), "an object")
        for key in ("metrics", "data", "config", "versions", "ann")
    },
}
