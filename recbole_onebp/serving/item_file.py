"""New items in a file of the caller's: CSV, TSV or JSON lines, with the fields of a bundle's items as columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from recbole_onebp.config.suggest import nearest
from recbole_onebp.serving.content import ItemContent
from recbole_onebp.serving.tokens import as_new_token
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token
from recbole_onebp.util.untrusted import read_text

__all__ = ["read_items"]

_MAX_BYTES = 1 << 30
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


def read_items(path: Path, key: str, fields: Sequence[str], content: ItemContent) -> dict[Token, dict[str, Any]]:
    """The fields of each item of a file.

    A text that stands for several values is split as in the data set that the model was trained on.  Empty cells are
    values that the item does not have.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file.
        key: the column of the ids.
        fields: the columns of the bundle's items, which are shown.
        content: the fields of which embeddings are made.

    Raises:
        UserError: for a file that cannot be read, and for the first fault, with its line and column.
    """
    known, lines = list(dict.fromkeys([*fields, *content.names])), dict[Token, str]()
    items: dict[Token, dict[str, Any]] = {}
    for where, row in _rows(path):
        for name in row:
            if name not in (key, *known):
                hint = nearest(str(name), [key, *known])
                raise UserError(
                    f"{where}: unknown column {str(name)[:80]!r}{hint}; known are {key}, {', '.join(known)}"
                )
        item = as_new_token(row.get(key), f"{where}, column {key}")
        if item in lines:
            raise UserError(f"{where}, column {key}: item {item} is also in {lines[item]}")
        lines[item] = where
        given = {name: value for name, value in row.items() if name != key and value not in ("", None, [])}
        items[item] = {
            name: content.values(name, value) if isinstance(value, str) and name in content.names else value
            for name, value in given.items()
        }
        try:
            content.encode(item, {name: value for name, value in items[item].items() if name in content.names})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not items:
        raise UserError(f"{path}: holds no item")
    return items


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and its values by column."""
    suffix = path.suffix.lower()
    if suffix not in (*_SEPARATORS, *_JSON_LINES):
        raise UserError(f"{path}: expected a file that ends in {', '.join((*_SEPARATORS, *_JSON_LINES))}")
    # Not splitlines: texts may hold other letters that end a line there, such as U+2028.
    lines = StringIO(read_text(path, _MAX_BYTES).removeprefix("\ufeff"), newline="")
    if suffix in _JSON_LINES:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}, line {number}", _object(f"{path}, line {number}", line)
        return
    reader = csv.reader(lines, delimiter=_SEPARATORS[suffix], strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}, line 1: column {twice!r} occurs twice")
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if cells and len(cells) != len(names):
                raise UserError(f"{where}: has {len(cells)} columns; expected {len(names)}, as in line 1")
            if cells:
                yield where, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON: {error}") from None
    if not isinstance(row, dict):
        raise UserError(f'{where}: expected an object, such as {{"item_id": "7"}}')
    return row
