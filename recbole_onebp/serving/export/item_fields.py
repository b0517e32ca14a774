"""The columns of a data set's item file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token

__all__ = ["read_item_fields"]


def read_item_fields(config: Any, item_ids: Sequence[Token]) -> dict[str, list[str]]:
    """All columns of the item file but the id, as text: a value for each item, empty where the file has no row.

    The run itself may have loaded other columns, or none.

    Raises:
        UserError: if the file has no column of ids.
    """
    path = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding=config["encoding"])
        text.encode()  # an encoding may give letters that no file can hold
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    lines = text.split("\n")
    names = [column.split(":")[0] for column in lines[0].split(config["field_separator"])]
    key = config["ITEM_ID_FIELD"]
    if key not in names:
        raise UserError(f"{path}: the first line has no column {key}; it has {', '.join(names) or 'none'}")
    rows = [line.split(config["field_separator"]) for line in lines[1:]]
    by_id = {row[names.index(key)]: row for row in rows if len(row) == len(names)}
    empty = [""] * len(names)
    described = [by_id.get(item, empty) for item in item_ids]
    return {name: [row[place] for row in described] for place, name in enumerate(names) if name != key}
