"""Rows of a small table in a CSV, TSV or JSON lines file, one at a time, each with the place where it stands."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import read_text

__all__ = ["DELIMITERS", "JSON_LINES", "read_rows"]

_MAX_BYTES = 1 << 30
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row is, and its values by column: texts, or in JSON lines any values.

    Args:
        path: a file of at most 1 GiB; its ending is its format.

    Raises:
        UserError: for a file that cannot be read, and for a bad row when its turn comes, with its line.
    """
    suffix = path.suffix.lower()
    if suffix not in (*DELIMITERS, *JSON_LINES):
        raise UserError(f"{path}: expected a file that ends in {', '.join((*DELIMITERS, *JSON_LINES))}")
    # Not splitlines: texts may hold other letters that end a line there, such as U+2028.
    plain = path.resolve() if path.is_symlink() else path  # the caller's own file, which may be a link
    lines = StringIO(read_text(plain, _MAX_BYTES).removeprefix("\ufeff"), newline="")
    if suffix in JSON_LINES:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}, line {number}", _object(f"{path}, line {number}", line)
        return
    reader = csv.reader(lines, delimiter=DELIMITERS[suffix], strict=True)
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
