"""Features of items that are in memory: a table with a row for each item and a column for each feature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.data.sources.atomic_folder import write_items
from recbole_onebp.data.sources.forms import TableFormat, usual_columns
from recbole_onebp.data.sources.frames import column_of, raw_columns, refuse_bad, table_of
from recbole_onebp.data.sources.tables import misread, sift
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.table_rows import DELIMITERS, JSON_LINES, read_rows

__all__ = ["ItemTable", "read_item_table"]

_ITEM = "item_id"
_TAKEN = ("user_id", _ITEM, "rating", "timestamp")
_SEPARATORS = (" ", "|", ";", ",", "\x1f")
"""The first of them that occurs in no value stands between the values of an item in a file."""
_BETWEEN = "|"
"""Between several values of a cell of a CSV or TSV file."""
_LONGEST_SHOWN = 80
_MANY = (list, tuple, set, frozenset, np.ndarray)


@dataclass
class ItemTable:
    """Features of items as a data set's folder holds them."""

    columns: pd.DataFrame
    """As texts, called as in atomic files: ``item_id:token``, ``genres:token_seq``, ``year:float``."""
    embeddings: dict[str, pd.Series] = field(default_factory=dict)
    """Field -> arrays of equal lengths, by the ids of their items."""
    separator: str = " "
    """Between the values of an item."""

    @property
    def fields(self) -> list[str]:
        """Names of the features that are columns."""
        return [str(title).partition(":")[0] for title in self.columns][1:]

    def write(self, folder: Path, name: str) -> None:
        """Write the ``.item`` file of the data set ``name``, and the embeddings beside it."""
        write_items(folder, name, self.columns)
        for feature, arrays in self.embeddings.items():
            np.save(folder / f"{name}.{feature}.npy", np.stack([*arrays]).astype(np.float32))
            (folder / f"{name}.{feature}.ids").write_text("".join(f"{one}\n" for one in arrays.index), encoding="utf-8")


def read_item_table(data: Any, item: str | None, name: str = "item_features") -> ItemTable:
    """Read features of items.

    A number is a number, a text one value, a list of texts or whole numbers several values, and a list of other numbers
    a ready embedding.  Missing entries, empty texts and empty lists are no value.

    In a CSV or TSV file a column whose cells are all numbers or empty holds numbers.  ``|`` stands between several
    values of a cell.

    Args:
        data: a table of pandas, polars or pyarrow, or the path of a CSV, TSV, JSON lines or Parquet file.
        item: name of the column of items; None, or without such a column, it is looked up by its usual names.
        name: of the data, for messages.

    Raises:
        UserError: names the column, the row and the value.
    """
    if isinstance(data, list):
        raise UserError(
            f"{name}: {str(data)[:_LONGEST_SHOWN]}: expected a table with a row for each item, such as a DataFrame"
        )
    is_text = isinstance(data, (str, Path)) and Path(data).suffix.lower() in DELIMITERS
    table, names = table_of(_read_file(Path(data), name) if isinstance(data, (str, Path)) else data, name)
    if not len(table):
        raise UserError(f"{name}: the table has no rows")
    key = item if item in names else usual_columns(names).get(_ITEM)
    if key is None:
        raise UserError(
            f"{name}: which column is the item? call it {item or _ITEM}; its columns are {', '.join(names)}"
        )
    ids = _ids(column_of(table, names.index(key)), key, name)
    found = ItemTable(pd.DataFrame({f"{_ITEM}:token": ids}))
    texts: dict[str, list[list[str]]] = {}
    for place, feature in enumerate(names):
        if feature == key:
            continue
        where = f"{name}: {feature}"
        if names.count(feature) > 1 or feature in _TAKEN or not set(":\t\n\r/\\\0").isdisjoint(feature) or not feature:
            raise UserError(f"{where}: a feature cannot be called so; rename the column")
        column = _typed(column_of(table, place)) if is_text else column_of(table, place)
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            found.columns[f"{feature}:float"] = _numbers(column, where)
            continue
        kind, values = _values(column, where)
        if kind == "embedding":
            arrays = pd.Series(values, index=ids).dropna()
            lengths = {len(one) for one in arrays}
            if len(lengths) > 1:
                raise UserError(
                    f"{where}: embeddings of {', '.join(map(str, sorted(lengths)))} numbers; give equal lengths"
                )
            found.embeddings[feature] = arrays
        elif kind == "token":
            found.columns[f"{feature}:token"] = ["" if one is None else one for one in values]
        else:
            texts[feature] = [one or [] for one in values]
            found.columns[f"{feature}:token_seq"] = ""  # in the order of the table
    letters = {letter for many in texts.values() for one in many for letter in "".join(one)}
    wanted = (_BETWEEN, *_SEPARATORS) if is_text else _SEPARATORS  # new items are written as these are
    free = [separator for separator in wanted if separator not in letters]
    if not free:
        raise UserError(f"{name}: values of lists have all of {' '.join(_SEPARATORS[1:4])} and blanks in them")
    found.separator = free[0]
    for feature, many in texts.items():
        found.columns[f"{feature}:token_seq"] = [found.separator.join(one) for one in many]
    if len(found.columns.columns) == 1 and not found.embeddings:
        raise UserError(f"{name}: no column but {key}; expected features beside it")
    return found


def _read_file(path: Path, name: str) -> Any:
    """The table of a file; the cells of a CSV or TSV file are texts."""
    suffix = path.suffix.lower()
    if suffix not in {*DELIMITERS, *JSON_LINES, ".parquet"}:
        raise UserError(
            f"{name}: {str(path)[-_LONGEST_SHOWN:]}: expected a table with a row for each item, such as a DataFrame, "
            "or the path of a .csv, .tsv, .jsonl or .parquet file"
        )
    try:
        if suffix == ".parquet":
            return _read_parquet(path)
        return pd.DataFrame([row for _, row in read_rows(path)], dtype=object if suffix in DELIMITERS else None)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _read_parquet(path: Path) -> Any:
    if find_spec("pyarrow") is None:
        raise UserError(f"{path}: needs pyarrow: pip install 'recbole-onebp[parquet]'")
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's own are among them
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def _typed(cells: pd.Series) -> pd.Series:
    """Cells of a file as numbers, lists of texts or texts."""
    filled = cells.str.strip() != ""
    try:
        return pd.to_numeric(cells.where(filled)).astype(float)
    except ValueError:
        if cells.str.contains(_BETWEEN, regex=False).any():
            return cells.map(lambda cell: [one for part in cell.split(_BETWEEN) if (one := part.strip())])
        return cells


def _ids(column: pd.Series, key: str, name: str) -> list[str]:
    table = sift(raw_columns({_ITEM: column}), f"{name}, row", name, TableFormat({_ITEM: key}, in_python=True))
    refuse_bad(table, name)
    ids = table.frame[_ITEM].astype(object)
    if (again := ids.duplicated()).any():
        raise UserError(f"{name}, row {int(again.argmax())} (counted from 0): item {ids[again].iloc[0]} again")
    return [*ids]


def _numbers(column: pd.Series, where: str) -> list[str]:
    """Numbers as texts, empty where one is missing."""
    numbers = column.astype("Float64").to_numpy(np.float64, na_value=np.nan)
    if (infinite := np.isinf(numbers)).any():
        raise UserError(f"{where}, row {int(infinite.argmax())} (counted from 0): expected finite numbers")
    return ["" if np.isnan(one) else repr(one) for one in numbers.tolist()]


def _values(column: pd.Series, where: str) -> tuple[str, list[Any]]:
    """The kind of a column, and each entry: a text, a list of texts or an array; None where there is none."""
    entries = [_entry(one) for one in column.astype(object)]
    kinds = {kind for kind, _ in entries if kind}
    if len(kinds) != 1 or not kinds <= {"token", "token_seq", "embedding"}:
        seen: set[str] = set()
        for row, (kind, _) in enumerate(entries):
            seen |= {kind} if kind else set()
            if len(seen) > 1 or kind == "other":
                value = str(column.iloc[row])[:_LONGEST_SHOWN]
                raise UserError(
                    f"{where}, row {row} (counted from 0): {value!r}: expected a column of numbers, of texts, of lists "
                    "of texts, or of lists of numbers"
                )
        raise UserError(f"{where}: no entry has a value; leave the column out")
    kind, values = kinds.pop(), [value for _, value in entries]
    if kind != "embedding":
        _refuse_misread(([one] if kind == "token" else one for one in values if one is not None), where)
    return kind, values


def _entry(value: Any) -> tuple[str, Any]:
    if isinstance(value, str):
        return ("token", value) if value.strip() else ("", None)
    if not isinstance(value, _MANY):
        return ("", None) if pd.isna(value) else ("other", None)
    many = value.tolist() if isinstance(value, np.ndarray) else [*value]
    if not many:
        return "", None
    if all(isinstance(one, (str, int, np.integer)) and not isinstance(one, bool) for one in many):
        texts = [text for text in map(str, many) if text.strip()]
        texts = sorted(texts) if isinstance(value, (set, frozenset)) else texts
        return ("token_seq", [*dict.fromkeys(texts)]) if texts else ("", None)
    if all(isinstance(one, (float, int, np.floating, np.integer)) and not isinstance(one, bool) for one in many):
        array: npt.NDArray[np.float64] = np.array(many, np.float64)
        return ("embedding", array) if np.isfinite(array).all() else ("other", None)
    return "other", None


def _refuse_misread(values: Iterable[list[str]], where: str) -> None:
    texts = [*dict.fromkeys(text for one in values for text in one)]
    if (wrong := misread(texts)).any():
        raise UserError(
            f"{where}: RecBole would not read {texts[int(wrong.argmax())][:_LONGEST_SHOWN]!r} back; rename it"
        )
