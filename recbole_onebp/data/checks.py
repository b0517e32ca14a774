"""What can be wrong with atomic files, said in one line before RecBole reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config

from recbole_onebp.data import interactions
from recbole_onebp.data.cache import DataCache
from recbole_onebp.util.errors import UserError

__all__ = ["check_dataset", "check_files"]

_CHUNK = 1 << 16
"""Lines that are read at a time."""


def check_files(config: Config) -> None:
    """Check the atomic files: there, not empty, with the columns that are asked for, an id in every interaction and
    numbers where they belong.

    Raises:
        UserError: names the file, the line or column, and what would be right.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    if not folder.is_dir():
        raise UserError(
            f"data set {name}: no folder {folder}; set data_path to the folder that holds {name}/, or use ml-100k, "
            "which RecBole carries"
        )
    parts, ids = config["benchmark_filename"], [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]
    checked = DataCache(config).load() is not None  # before it was kept
    for stem in [name] if parts is None else [f"{name}.{part}" for part in parts]:
        path = interactions.find(folder, stem)
        if not path.exists():
            raise UserError(f"data set {name}: no file {path}")
        if path.suffix in interactions.COLUMNAR:
            _check_columnar(path, ids, config, checked)
        else:
            _check_table(path, "inter", ids, config, checked)
    for kind in ("user", "item"):
        path = folder / f"{name}.{kind}"
        if path.is_file() and (config["load_col"] is None or kind in config["load_col"]):
            _check_table(path, kind, [], config, checked=False)
    time, wanted = config["TIME_FIELD"], (config["load_col"] or {}).get("inter", "*")
    if parts is None and config["eval_args"]["order"] == "TO" and wanted != "*" and time not in wanted:
        raise UserError(f"eval_args.order: TO sorts by {time}, which load_col leaves out; add it, or use order: RO")


def _check_columnar(path: Path, ids: list[str], config: Config, checked: bool) -> None:
    """The columns, and of CSV the values too: in Parquet and Arrow these are what the schema says."""
    if config["model"] != "OneBP":
        raise UserError(
            f"{path}: {config['model']} reads RecBole's atomic files alone; recbole-onebp convert makes them from "
            "columnar ones"
        )
    titles = interactions.header(path, ids, config["encoding"])
    columns = dict(title.rpartition(":")[::2] for title in titles)
    names = {title.rpartition(":")[0]: name for title, name in titles.items()}
    wanted = _wanted("inter", columns, config)
    _check_columns(path, ids, wanted, columns)
    if not interactions.has_rows(path):
        raise UserError(f"{path}: no interactions")
    if path.suffix == ".csv" and not checked:
        read = {names[name]: name for name in dict.fromkeys([*ids, *wanted]) if name in ids or columns[name] == "float"}
        # All columns: of some, pandas lets a row with more fields than columns pass.
        options = {"usecols": None, "keep_default_na": False, "na_values": [""]}
        _check_contents(path, read, ids, ",", config["encoding"] or "utf-8-sig", **options)


def _wanted(kind: str, columns: Iterable[str], config: Config) -> list[str]:
    # None and "*" both stand for all columns, as with RecBole.
    listed: Any = "*" if config["load_col"] is None else config["load_col"].get(kind, [])
    return list(columns) if listed == "*" else listed


def _check_columns(path: Path, ids: list[str], wanted: list[str], columns: Mapping[str, str], hint: str = "") -> None:
    """Columns by name, with their types."""
    for column in [*ids, *wanted]:
        if column not in columns:
            raise UserError(f"{path}: no column {column}; it has {', '.join(columns) or 'none'}{hint}")
    for column in ids:
        if columns[column] != "token":
            raise UserError(f"{path}, line 1: {column}:{columns[column]}: ids are tokens; write {column}:token")


def _check_table(path: Path, kind: str, ids: list[str], config: Config, checked: bool) -> None:
    separator, encoding = config["field_separator"], config["encoding"] or "utf-8"
    try:
        with open(path, encoding=encoding) as file:
            header = file.readline().rstrip("\r\n")
            has_rows = bool(file.readline().strip())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except LookupError:
        raise UserError(f"encoding: {encoding!r} is not one that Python knows") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in {encoding}; set the key encoding to the file's own") from None
    if not header:
        raise UserError(f"{path}: empty; expected a header such as user_id:token item_id:token")
    if header.startswith("\ufeff"):
        raise UserError(f"{path}: begins with a byte order mark; set encoding: utf-8-sig")
    columns = dict(column.rpartition(":")[::2] for column in header.split(separator))
    if "" in columns:
        raise UserError(f"{path}, line 1: {header!r}: expected columns as name:type, separated by {separator!r}")
    wanted = _wanted(kind, columns, config)
    _check_columns(path, ids, wanted, columns, f", taking {separator!r} as field_separator")
    if not has_rows:
        raise UserError(f"{path}: no {'interactions' if kind == 'inter' else 'rows'} below the header")
    titles = {f"{column}:{columns[column]}": column for column in wanted}
    read = {title: column for title, column in titles.items() if title.endswith(":float") or column in ids}
    if read and not checked:
        _check_contents(path, read, ids, separator, encoding)


def _check_contents(
    path: Path, columns: Mapping[str, str], ids: list[str], separator: str, encoding: str, **options: Any
) -> None:
    """Columns of a text file, given as its title for them and their names."""
    options = {"usecols": list(columns), **options}
    try:
        with pd.read_csv(path, sep=separator, encoding=encoding, dtype=object, chunksize=_CHUNK, **options) as chunks:
            for chunk in chunks:
                if not isinstance(chunk.index, pd.RangeIndex):  # taken from a first column without a name
                    raise UserError(f"{path}, line 2: more fields than columns")
                _check_values(path, chunk[list(columns)].rename(columns=columns), ids)
    except pd.errors.ParserError as error:
        raise UserError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in {encoding}; set the key encoding to the file's own") from None


def _check_values(path: Path, table: pd.DataFrame, ids: list[str]) -> None:
    for column, values in table.items():
        if column in ids:
            wrong, expected = values.isna(), "an id"
        else:
            wrong, expected = pd.to_numeric(values, errors="coerce").isna() & values.notna(), "a number"
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            line = table.index[row] + 2  # chunks are numbered through the file, from 0 below the header
            raise UserError(f"{path}, line {line}: {column} is {values.iloc[row]!r}, expected {expected}")


def check_dataset(config: Config, dataset: Any) -> None:
    """Check what RecBole made of the files: something to choose from, and something left to choose.

    Raises:
        UserError: for fewer than two items, or a user that has taken every item.
    """
    if dataset.item_num < 3:  # the padding row is one of them
        raise UserError(
            f"data set {config['dataset']}: {dataset.item_num - 1} item is left after filtering; a recommender needs "
            "at least 2"
        )
    if (config["train_neg_sample_args"] or {}).get("distribution", "none") == "none":
        return
    inter, user, item = dataset.inter_feat, dataset.uid_field, dataset.iid_field
    busy = np.bincount(inter[user], minlength=dataset.user_num) >= dataset.item_num - 1  # if only by repeating items
    if not busy.any():
        return
    pairs = inter.loc[busy[inter[user]], [user, item]].drop_duplicates()
    full = np.flatnonzero(np.bincount(pairs[user], minlength=dataset.user_num) == dataset.item_num - 1)
    if len(full):
        token = dataset.id2token(user, full[0])
        raise UserError(
            f"data set {config['dataset']}: user {token} has taken all {dataset.item_num - 1} items, so no negative "
            'can be drawn for it; leave such users out by user_inter_num_interval: "[0,N]"'
        )
