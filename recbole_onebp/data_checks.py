"""What can be wrong with atomic files, said in one line before RecBole reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config

from recbole_onebp.errors import UserError

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
    for file in [f"{name}.inter"] if parts is None else [f"{name}.{part}.inter" for part in parts]:
        if not (folder / file).is_file():
            raise UserError(f"data set {name}: no file {folder / file}")
        _check_table(folder / file, "inter", ids, config)
    for kind in ("user", "item"):
        path = folder / f"{name}.{kind}"
        if path.is_file() and (config["load_col"] is None or kind in config["load_col"]):
            _check_table(path, kind, [], config)
    time, wanted = config["TIME_FIELD"], (config["load_col"] or {}).get("inter", "*")
    if parts is None and config["eval_args"]["order"] == "TO" and wanted != "*" and time not in wanted:
        raise UserError(f"eval_args.order: TO sorts by {time}, which load_col leaves out; add it, or use order: RO")


def _check_table(path: Path, kind: str, ids: list[str], config: Config) -> None:
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
    # None and "*" both stand for all columns, as with RecBole.
    listed = "*" if config["load_col"] is None else config["load_col"].get(kind, [])
    wanted = list(columns) if listed == "*" else listed
    for column in [*ids, *wanted]:
        if column not in columns:
            raise UserError(
                f"{path}: no column {column}; it has {', '.join(columns)}, taking {separator!r} as field_separator"
            )
    for column in ids:
        if columns[column] != "token":
            raise UserError(f"{path}, line 1: {column}:{columns[column]}: ids are tokens; write {column}:token")
    if not has_rows:
        raise UserError(f"{path}: no {'interactions' if kind == 'inter' else 'rows'} below the header")
    titles = {column: f"{column}:{columns[column]}" for column in wanted}
    checked = {column: title for column, title in titles.items() if title.endswith(":float") or column in ids}
    if not checked:
        return
    try:
        with pd.read_csv(
            path, sep=separator, usecols=list(checked.values()), encoding=encoding, dtype=object, chunksize=_CHUNK
        ) as chunks:
            for chunk in chunks:
                _check_values(path, chunk.rename(columns=lambda title: title.rpartition(":")[0]), ids)
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
    pairs = inter.loc[busy[inter[user]], [user, item]].drop_duplicates()
    full = np.flatnonzero(np.bincount(pairs[user], minlength=dataset.user_num) == dataset.item_num - 1)
    if len(full):
        token = dataset.id2token(user, full[0])
        raise UserError(
            f"data set {config['dataset']}: user {token} has taken all {dataset.item_num - 1} items, so no negative "
            'can be drawn for it; leave such users out by user_inter_num_interval: "[0,N]"'
        )
