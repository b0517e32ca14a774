"""What can be wrong with atomic files, said in one line before RecBole reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config

from recbole_onebp.errors import UserError

__all__ = ["check_dataset", "check_files"]


def check_files(config: Config) -> None:
    """Check the interaction files: there, not empty, with the columns that are asked for, numbers where they belong.

    Raises:
        UserError: names the file, the line or column, and what would be right.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    if not folder.is_dir():
        raise UserError(
            f"data set {name}: no folder {folder}; set data_path to the folder that holds {name}/, or use ml-100k, "
            "which RecBole carries"
        )
    parts = config["benchmark_filename"]
    names = [f"{name}.inter"] if parts is None else [f"{name}.{part}.inter" for part in parts]
    for path in (folder / file for file in names):
        if not path.is_file():
            raise UserError(f"data set {name}: no file {path}")
        _check_interactions(path, config)


def _check_interactions(path: Path, config: Config) -> None:
    separator, encoding = config["field_separator"], config["encoding"] or "utf-8"
    try:
        with open(path, encoding=encoding) as file:
            header = file.readline().rstrip("\r\n")
            has_rows = bool(file.readline().strip())
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in {encoding}; set the key encoding to the file's own") from None
    if not header:
        raise UserError(f"{path}: empty; expected a header such as user_id:token{separator}item_id:token".expandtabs(1))
    columns = dict(column.rpartition(":")[::2] for column in header.split(separator))
    if "" in columns or not columns:
        raise UserError(f"{path}, line 1: {header!r}: expected columns as name:type, separated by {separator!r}")
    # None and "*" both stand for all columns, as with RecBole.
    listed = (config["load_col"] or {"inter": "*"}).get("inter", [])
    wanted = list(columns) if listed == "*" else listed
    for column in [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], *wanted]:
        if column not in columns:
            raise UserError(f"{path}: no column {column}; it has {', '.join(columns)}")
    if not has_rows:
        raise UserError(f"{path}: no interactions below the header")
    for column, kind in columns.items():
        if kind == "float" and column in wanted:
            _check_numbers(path, column, f"{column}:{kind}", separator, encoding)


def _check_numbers(path: Path, column: str, title: str, separator: str, encoding: str) -> None:
    values = pd.read_csv(path, sep=separator, usecols=[title], encoding=encoding, dtype={title: str})[title]
    wrong = np.flatnonzero(pd.to_numeric(values, errors="coerce").isna() & values.notna())
    if len(wrong):
        raise UserError(f"{path}, line {wrong[0] + 2}: {column} is {values.iloc[wrong[0]]!r}, expected a number")


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
    pairs = dataset.inter_feat[[dataset.uid_field, dataset.iid_field]].drop_duplicates()
    taken = np.bincount(pairs[dataset.uid_field], minlength=dataset.user_num)
    full = np.flatnonzero(taken == dataset.item_num - 1)
    if len(full):
        user = dataset.id2token(dataset.uid_field, full[0])
        raise UserError(
            f"data set {config['dataset']}: user {user} has taken all {dataset.item_num - 1} items, so no negative "
            'can be drawn for it; leave such users out by user_inter_num_interval: "[0,N]"'
        )
