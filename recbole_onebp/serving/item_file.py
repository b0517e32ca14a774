"""New items in a file of the caller's: CSV, TSV or JSON lines, with the fields of a bundle's items as columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.config.suggest import nearest
from recbole_onebp.serving.content import ItemContent
from recbole_onebp.serving.tokens import as_new_token
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token
from recbole_onebp.util.table_rows import read_rows

__all__ = ["read_items"]


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
    for where, row in read_rows(path):
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
