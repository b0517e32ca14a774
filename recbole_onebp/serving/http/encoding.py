"""Answers as JSON, in the thread that made them: a large one would stop the event loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

from recbole_onebp.util.errors import UserError

try:
    orjson: Any = import_module("orjson")
except ModuleNotFoundError:
    orjson = None

__all__ = ["check_size", "encode"]

_AT_A_TIME = 16
"""Entries of a list that are encoded at a time."""

_ROW_BYTES = 32
"""Room for the names and numbers in a row, apart from its text."""


def encode(answer: Mapping[str, Any]) -> bytes:
    """An object as UTF-8 JSON.

    Lists in it are encoded part by part: an encoder does not let go of Python's lock, and the event loop needs it.
    """
    members = (_dump(name) + b":" + _value(value) for name, value in answer.items())
    return b"{" + b",".join(members) + b"}"


def _value(value: Any) -> bytes:
    if not isinstance(value, list):
        return _dump(value)
    parts = (_dump(value[start : start + _AT_A_TIME])[1:-1] for start in range(0, len(value), _AT_A_TIME))
    return b"[" + b",".join(parts) + b"]"


def _dump(value: Any) -> bytes:
    if orjson is not None:
        try:
            return bytes(orjson.dumps(value))
        except orjson.JSONEncodeError:  # half a surrogate pair in a title, which only json can write
            pass
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def check_size(texts: Iterable[str], max_bytes: int) -> None:
    """Refuse an answer that holds too much text, before it is encoded.

    Args:
        texts: ids and titles of the rows of the answer.
        max_bytes: allowed, counted before letters are escaped.

    Raises:
        UserError: if it would be larger.
    """
    size = sum((1 if text.isascii() else 4) * len(text) + _ROW_BYTES for text in texts)
    if size > max_bytes:
        raise UserError(f"the answer has about {size} bytes; at most {max_bytes} are sent: ask for less at a time")
