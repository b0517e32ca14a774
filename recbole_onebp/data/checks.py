"""Checks of atomic and columnar files before RecBole reads them: one line that says what is wrong and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_onebp.config.suggest import nearest
from recbole_onebp.data.interactions import COLUMNAR, InteractionFiles, Table
from recbole_onebp.data.text_table import TextTable
from recbole_onebp.util.errors import UserError

__all__ = ["check_dataset", "check_files", "ignores_times"]


def check_files(config: Config) -> None:
    """Check the data set's files: they exist and are not empty, have the columns of ``load_col``, an id in every
    interaction, and numbers in columns of numbers.

    For OneBP small files are parsed on the way, and :class:`~recbole_onebp.data.dataset.OneBPDataset` uses the result.

    Raises:
        UserError: names the file, the line or column, and what is expected.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    if not folder.is_dir():
        if Path(name).is_file():
            raise UserError(f"data set {name}: is a file; recbole-onebp convert {name} makes a data set of it")
        beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        remedy = f"set data_path to the folder that holds {name}/, or use ml-100k, which comes with RecBole"
        raise UserError(f"data set {name}: no folder {folder}{nearest(name, beside) or f'; {remedy}'}")
    parts, ids = config["benchmark_filename"], [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]
    files = InteractionFiles(config)
    for number, table in enumerate(files.tables):
        if not table.path.exists():
            packed = [path for suffix in (".gz", ".zst") if (path := Path(f"{table.path}{suffix}")).exists()]
            hint = f"; unpack {packed[0]}, or give it to recbole-onebp convert" if packed else ""
            if (of_convert := folder / f"{name}.yaml").exists() and not parts:
                hint = f"; it is in parts: add --config_files={of_convert}"
            raise UserError(f"data set {name}: no file {table.path}{hint}")
        # Of three parts. A third one of another name that is empty is rather the validation part, in the wrong place.
        may_be_empty = len(files.tables) == 3 and (number == 1 or (number == 2 and parts[2] == "test"))
        _check_table(table, "inter", ids, config, files, may_be_empty)
    for kind in ("user", "item"):
        path = folder / f"{name}.{kind}"
        if path.is_file() and (config["load_col"] is None or kind in config["load_col"]):
            _check_table(TextTable(path, config["field_separator"], config["encoding"]), kind, [], config)
    time, wanted = config["TIME_FIELD"], (config["load_col"] or {}).get("inter", "*")
    if parts is None and config["eval_args"]["order"] == "TO" and wanted != "*" and time not in wanted:
        raise UserError(f"eval_args.order: TO sorts by {time}, which load_col leaves out; add it, or use order: RO")
    if config["model"] == "OneBP":
        files.leave_with(config)


def ignores_times(config: Config) -> bool:
    """Whether interactions that have times are split at random.

    A model then learns what came after the interactions that it is tested on, so its metrics are too high.
    """
    if config["benchmark_filename"] is not None or config["eval_args"]["order"] != "RO":
        return False
    titles = InteractionFiles(config).tables[0].titles([])
    return config["TIME_FIELD"] in {title.rpartition(":")[0] for title in titles}


def _check_table(
    table: Table,
    kind: str,
    ids: list[str],
    config: Config,
    files: InteractionFiles | None = None,
    may_be_empty: bool = False,
) -> None:
    """Check one file; the values are not checked again if the cache holds what was made of them."""
    columnar = table.path.suffix in COLUMNAR
    if columnar and config["model"] != "OneBP":
        raise UserError(
            f"{table.path}: {config['model']} reads only RecBole's atomic files; recbole-onebp convert makes them from "
            "columnar ones"
        )
    if not columnar:
        _check_header(table, config["field_separator"])
    names = table.titles(ids)
    titles = {title.rpartition(":")[0]: title for title in names}
    wanted = _wanted(kind, titles, config)
    hint = "" if columnar else f", with {config['field_separator']!r} as field_separator"
    _check_columns(table.path, ids, wanted, titles, hint)
    if not table.has_rows():
        if may_be_empty:  # validation or test
            return
        what = "interactions" if kind == "inter" else "rows"
        raise UserError(f"{table.path}: no {what}{'' if columnar else ' below the header'}")
    if isinstance(table, TextTable) and (files is None or files.cached is None):
        # Of a columnar file the ids are checked even where load_col leaves them out.
        chosen = dict.fromkeys([*ids, *wanted] if columnar else wanted)
        columns = {titles[column]: names[titles[column]] for column in chosen}
        id_titles = [titles[column] for column in ids]
        if files is not None and config["model"] == "OneBP":
            table.check(columns, id_titles)
        else:
            table.check_rows(columns, id_titles)


def _wanted(kind: str, columns: Iterable[str], config: Config) -> list[str]:
    # None and "*" both mean all columns, as in RecBole.
    listed: Any = "*" if config["load_col"] is None else config["load_col"].get(kind, [])
    return list(columns) if listed == "*" else listed


def _check_header(table: Table, separator: str) -> None:
    assert isinstance(table, TextTable)
    header, _ = table.first_lines
    if not header:
        raise UserError(f"{table.path}: empty; expected a header such as user_id:token item_id:token")
    if header.startswith("\ufeff"):
        raise UserError(f"{table.path}: begins with a byte order mark; set encoding: utf-8-sig")
    if not all(title.rpartition(":")[0] for title in header.split(separator)):
        raise UserError(f"{table.path}, line 1: {header!r}: expected columns as name:type, separated by {separator!r}")


def _check_columns(path: Path, ids: list[str], wanted: list[str], titles: Mapping[str, str], hint: str) -> None:
    for column in [*ids, *wanted]:
        if column not in titles:
            raise UserError(f"{path}: no column {column}; it has {', '.join(titles) or 'none'}{hint}")
    for column in ids:
        if titles[column] != f"{column}:token":
            raise UserError(f"{path}, line 1: {titles[column]}: ids are tokens; write {column}:token")


def check_dataset(config: Config, dataset: Any) -> None:
    """Check the data set that RecBole made of the files: at least two items, and an unseen item for each user.

    Raises:
        UserError: for fewer than two items, or a user who has interacted with all of them.
    """
    if dataset.item_num < 3:  # includes the padding row
        raise UserError(
            f"data set {config['dataset']}: {dataset.item_num - 1} item is left after filtering; a recommender needs "
            "at least 2"
        )
    if not _draws_free_items(config):
        return
    inter, user, item = dataset.inter_feat, dataset.uid_field, dataset.iid_field
    # Only users with enough rows, repeated items included, are looked at closely.
    busy = np.bincount(inter[user], minlength=dataset.user_num) >= dataset.item_num - 1
    if not busy.any():
        return
    pairs = inter.loc[busy[inter[user]], [user, item]].drop_duplicates()
    full = np.flatnonzero(np.bincount(pairs[user], minlength=dataset.user_num) == dataset.item_num - 1)
    if len(full):
        token = dataset.id2token(user, full[0])
        raise UserError(
            f"data set {config['dataset']}: user {token} has interacted with all {dataset.item_num - 1} items, so no "
            'negative can be drawn; leave such users out by user_inter_num_interval: "[0,N]"'
        )


def _draws_free_items(config: Config) -> bool:
    """Whether negatives are drawn for a user from the items that it has not interacted with."""
    if config["repeatable"] and config["model"] != "OneBP":
        return False
    modes = config["eval_args"]["mode"].values()
    shared = config["model"] == "OneBP" and config["negatives"] == "shared"
    in_training = not shared and config["train_neg_sample_args"]["distribution"] != "none"
    return in_training or any(mode.startswith(("uni", "pop")) for mode in modes)
