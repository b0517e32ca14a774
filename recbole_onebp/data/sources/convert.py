"""Convert the user's own files to atomic files: read, filter and split, and count the rows at every step."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from logging import getLogger
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml

from recbole_onebp.data.categories import concat_frames
from recbole_onebp.data.item_embeddings import copy_embeddings
from recbole_onebp.data.sources.atomic_folder import (
    counts,
    read_items,
    refuse_strangers,
    with_all_items,
    write_items,
    write_manifest,
    write_parts,
)
from recbole_onebp.data.sources.catalogue import CATALOGUE
from recbole_onebp.data.sources.splits import by_order, by_ratio, by_time, cold_items, leave_one_out
from recbole_onebp.data.sources.tables import BadRow, Table, TableFormat, read, with_sums
from recbole_onebp.util.errors import UserError, printable, writing
from recbole_onebp.util.files import whole_folder
from recbole_onebp.util.hashes import sha256

__all__ = ["Conversion", "convert"]

_RECOMMENDED = (
    "the rows have times: --split=time_user tests on the latest rows of each user, as a recommender is used; "
    "--split=%s mixes what was earlier with what was later"
)
_BY_TIME = ("time_user", "time", "leave_one_out")
_SHOWN = 5
_PARTS = ("train", "valid", "test")
_PART = "part"
_PAIR = ["user_id", "item_id"]
_LONGEST_TEXT = 200
"""Of a row that is shown."""
_LONGEST_NAME = 200
"""Bytes; the names of the files are a little longer than that of the data set."""


@dataclass(frozen=True)
class Conversion:
    """How to convert: the steps in the order in which they are done."""

    form: TableFormat = field(default_factory=TableFormat)
    bad_rows: Literal["drop", "refuse"] = "drop"
    """Drop rows with a missing or unreadable id or value, or stop at the first."""
    min_rating: float | None = None
    """Drop rows with a lower rating."""
    duplicates: Literal["first", "last", "sum", "keep"] = "first"
    """Which of several rows of one user and item to keep, by time if there is one, else in the order of the file.  Of
    a given split, the first is that of train and the last that of test.  ``sum``: the first, with the sum of the
    ratings, which are counts then; of a given split, those of its part."""
    repeatable: bool = False
    """Keep all rows of a user and item, also where the split puts them into different parts, and set ``repeatable``."""
    k_core: int = 0
    """Drop users and items until each has at least this many rows."""
    split: Literal["none", "ratio", "leave_one_out", "time_user", "time", "cold_items"] = "none"
    """``none``: one file, which RecBole splits in each run.  ``time_user``: the latest rows of each user are held out.
    ``time``: all rows from one moment on.  ``cold_items``: all rows of a share of the items, and ``ratio`` for the rows
    of the others.  See :mod:`~recbole_onebp.data.sources.splits`."""
    ratios: Sequence[float] = (0.8, 0.1, 0.1)
    """Shares of train, validation and test."""
    seed: int = 2020
    """Seed of random splits."""

    def __post_init__(self) -> None:
        if len(self.ratios) != 3 or not all(0 < ratio < math.inf for ratio in self.ratios):
            raise UserError(f"--ratios {' '.join(map(str, self.ratios))}: expected three numbers above 0")
        if self.k_core < 0:
            raise UserError(f"--k_core {self.k_core}: expected 0 or more")
        if self.repeatable and self.duplicates in ("last", "sum"):
            raise UserError(f"--repeatable keeps all rows: nothing is left to --duplicates={self.duplicates}")
        if self.min_rating is not None and not math.isfinite(self.min_rating):
            raise UserError(f"--min_rating {self.min_rating}: expected a number")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: expected 0 to {2**32 - 1}")
        if self.form.max_mb is not None and self.form.max_mb < 1:
            raise UserError(f"--max_mb {self.form.max_mb}: expected at least 1")


def convert(
    files: Sequence[Path] | Mapping[str, Sequence[Path]],
    name: str,
    data_path: Path,
    conversion: Conversion | None = None,
    force: bool = False,
    items: Path | None = None,
) -> None:
    """Write the interactions of ``files`` as the data set ``data_path/name``, completely or not at all.

    Args:
        files: CSV, TSV, JSON lines, Parquet or GroupLens zip files, which are concatenated; or, for a split that is
            given, those of ``train``, ``test`` and perhaps ``valid``.
        name: name of the data set.
        data_path: folder of data sets, RecBole's key ``data_path``.
        conversion: how to filter and split.
        force: replace an existing data set.
        items: a ``.item`` file of RecBole's, with the features of the items; embeddings beside it come along.

    Raises:
        UserError: for a file or column that cannot be read, bad rows with ``bad_rows: refuse``, or an empty part.
    """
    conversion = conversion or Conversion()
    given = files if isinstance(files, Mapping) else {"all": files}
    if "all" not in given and conversion.split != "none":
        raise UserError(f"--split={conversion.split}: the files of --train and --test are split already")
    folder = data_path / name
    features = None if items is None else read_items(items)
    _check_name(name)
    with writing(folder):
        refuse_strangers(folder, force)
    steps: dict[str, int] = {}
    frame = _filter(_read(given, conversion, steps), conversion, steps)
    if "timestamp" in frame:  # RecBole reads times as 32-bit numbers, so rows a minute apart may have the same time
        frame = frame.sort_values("timestamp", kind="stable", ignore_index=True)
        tied = int(frame.duplicated(["user_id", "timestamp"], keep=False).sum())
        if tied and conversion.split in _BY_TIME:
            _note(steps, "rows with the time of another row of their user: in the order of the file", tied)
    elif conversion.split == "leave_one_out":
        getLogger().warning("--split=leave_one_out: there are no times, so the rows held out are random; name --time")
    if conversion.split in ("none", "ratio") and "timestamp" in frame and "all" in given:
        getLogger().info(_RECOMMENDED, conversion.split)
    parts = _split(frame, given, conversion)
    for part, rows in parts.items():
        if rows.empty and not (part == "valid" and "all" not in given):
            where = "" if part == "all" else f" for {part}"
            told = ", ".join(f"{count:,} {step}" for step, count in steps.items() if count or step == "rows read")
            raise UserError(f"{name}: no rows are left{where}: {told}")
        if part in ("valid", "test"):
            seen = [rows[key].isin(parts["train"][key]) for key in _PAIR]
            _note(steps, f"rows of {part} whose user or item is not in train", int((~(seen[0] & seen[1])).sum()))
    _check_overlap(parts, conversion, steps)
    final = counts(parts)
    load_col = {"inter": list(parts["all" if "all" in parts else "train"])}
    if features is not None:
        features, added = with_all_items(features, pd.concat([rows["item_id"] for rows in parts.values()]))
        if added:
            _note(steps, f"items without a row in {items}: they have no features", added)
        load_col["item"] = [title.partition(":")[0] for title in map(str, features)]
    settings: dict[str, object] = {"load_col": load_col}
    if "all" not in parts:
        settings["benchmark_filename"] = list(parts)
    if conversion.repeatable:
        settings["repeatable"] = True
    with writing(folder), whole_folder(folder, replace=force) as temporary:
        write_parts(temporary, name, parts)
        if items is not None and features is not None:
            write_items(temporary, name, features)
            copy_embeddings(items, temporary, name)
        (temporary / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        source = [
            {"from": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in [*chain.from_iterable(given.values()), *([] if items is None else [items])]
        ]
        write_manifest(
            temporary, name, {"source": source, "conversion": asdict(conversion), "steps": steps, "counts": final}
        )
    getLogger().info("%s: %s", name, ", ".join(f"{number:,} {what}" for what, number in final.items()))
    flags = (f"--dataset={name}", f"--data_path={data_path}", f"--config_files={folder / f'{name}.yaml'}")
    getLogger().info(
        "wrote %s; train on it by: recbole-onebp train --model=OneBP %s", folder, " ".join(map(shlex.quote, flags))
    )


def _check_name(name: str) -> None:
    if Path(name).name != name or name in ("", "..") or not name.isprintable():
        raise UserError(f"--name {name}: expected the name of a folder below --data_path")
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        raise UserError(f"--name {name[:40]}...: expected at most {_LONGEST_NAME} bytes")
    if name in {*CATALOGUE, "ml-100k"}:
        raise UserError(
            f"--name {name}: stands for another data set, which --dataset={name} would take; choose another"
        )


def _note(steps: dict[str, int], what: str, number: int) -> None:
    steps[what] = number
    getLogger().info("%12s  %s", f"{number:,}", what)


# ----------------------------------------------------------------------------------------------------------------- rows


def _read(given: Mapping[str, Sequence[Path]], conversion: Conversion, steps: dict[str, int]) -> pd.DataFrame:
    """All rows, of a given split with the number of their part."""
    tables: list[Table] = []
    files = [(part, file) for part, some in given.items() for file in some]
    for part, file in files:
        table = read(file, conversion.form)
        first = tables[0].frame if tables else table.frame
        if [*table.frame] != [name for name in first if name != _PART]:
            columns = (", ".join(str(name) for name in frame if name != _PART) for frame in (table.frame, first))
            raise UserError(f"{file}: its columns are {next(columns)}, those of {files[0][1]} {next(columns)}")
        if part != "all":
            table.frame[_PART] = np.int8(_PARTS.index(part))
        for remark in table.remarks:
            getLogger().warning("%s: %s", file, remark)
        tables.append(table)
    frame = concat_frames([table.frame for table in tables])
    bad = [table.bad for table in tables if len(table.bad)]
    n_bad = sum(map(len, bad))
    _note(steps, "rows read", len(frame) + n_bad)
    first_bad = [row for rows in bad for row in rows[:_SHOWN]][:_SHOWN]
    if bad and conversion.bad_rows == "refuse":
        raise UserError(f"{n_bad:,} bad rows, the first: {_shown(first_bad[0])}; --bad_rows=drop leaves them out")
    for reason, number in sorted(sum((rows.counts() for rows in bad), Counter[str]()).items()):
        _note(steps, f"bad rows left out: {reason}", number)
    for row in first_bad:
        getLogger().info("              %s", _shown(row))
    if n_bad > _SHOWN:
        getLogger().info("              ... and %s more", f"{n_bad - _SHOWN:,}")
    return frame


def _shown(row: BadRow) -> str:
    """With control characters escaped, and not too long."""
    return printable(f"{row.where}: {row.reason}: {row.text[:_LONGEST_TEXT]}")


def _filter(frame: pd.DataFrame, conversion: Conversion, steps: dict[str, int]) -> pd.DataFrame:
    if conversion.min_rating is not None:
        if "rating" not in frame:
            raise UserError("--min_rating: there is no column of ratings; name it by --rating")
        kept = frame[frame["rating"] >= conversion.min_rating]
        _note(steps, f"left out: rated below {conversion.min_rating:g}", len(frame) - len(kept))
        frame = kept
    if conversion.duplicates != "keep" and not conversion.repeatable:
        order = [key for key in (_PART, "timestamp") if key in frame]
        ordered = frame.sort_values(order, kind="stable") if order else frame
        how = f"the {conversion.duplicates} kept"
        if conversion.duplicates == "sum":
            if "rating" not in frame:
                raise UserError("--duplicates=sum: there is no column to add up; name it by --rating")
            of_part = [key for key in (_PART, *_PAIR) if key in frame]
            ordered, how = with_sums(ordered, of_part), "the first kept, with their sum"
        keep: Literal["first", "last"] = "last" if conversion.duplicates == "last" else "first"
        kept = ordered.drop_duplicates(_PAIR, keep=keep).sort_index()
        _note(steps, f"left out: the same user and item as another row, {how}", len(frame) - len(kept))
        frame = kept
    if conversion.k_core > 1:
        kept = _core(frame, conversion.k_core)
        _note(steps, f"left out: users and items with fewer than {conversion.k_core} rows", len(frame) - len(kept))
        frame = kept
    return frame.reset_index(drop=True)


def _core(frame: pd.DataFrame, k: int) -> pd.DataFrame:
    codes = [pd.factorize(frame[key])[0] for key in _PAIR]
    kept = np.arange(len(frame))
    while True:
        enough = np.logical_and.reduce([np.bincount(code[kept])[code[kept]] >= k for code in codes])
        if enough.all():
            return frame.iloc[kept]
        kept = kept[enough]


def _split(frame: pd.DataFrame, given: Mapping[str, Sequence[Path]], conversion: Conversion) -> dict[str, pd.DataFrame]:
    if _PART in frame:
        part = frame.pop(_PART).to_numpy()
    elif conversion.split == "none":
        return {"all": frame}
    elif conversion.split == "ratio":
        part = by_ratio(frame["user_id"], conversion.ratios, conversion.seed)
    elif conversion.split == "cold_items":
        part = cold_items(frame["user_id"], frame["item_id"], conversion.ratios, conversion.seed)
    elif conversion.split == "leave_one_out":
        part = leave_one_out(frame["user_id"], frame.get("timestamp"), conversion.seed)
    elif "timestamp" not in frame:
        raise UserError(f"--split={conversion.split}: there is no column of times; name it by --time")
    elif conversion.split == "time_user":
        part = by_order(frame["user_id"], frame["timestamp"].to_numpy(np.float64), conversion.ratios)
    else:
        part = by_time(frame["timestamp"], conversion.ratios)
    return {name: frame[part == number] for number, name in enumerate(_PARTS)}


def _check_overlap(parts: Mapping[str, pd.DataFrame], conversion: Conversion, steps: dict[str, int]) -> None:
    """Refuse pairs of a user and an item in more than one part, unless the user asked for that with ``repeatable``."""
    if len(parts) == 1 or (conversion.duplicates != "keep" and not conversion.repeatable):
        return
    codes = pd.concat(parts.values())[_PAIR]
    pairs = codes.groupby(_PAIR, sort=False, observed=True).ngroup().to_numpy()
    ends = np.cumsum([0, *map(len, parts.values())])
    found = {
        part: int(np.isin(pairs[ends[number] : ends[number + 1]], pairs[: ends[number]]).sum())
        for number, part in enumerate(parts)
        if number
    }
    if conversion.repeatable:
        for part, number in found.items():
            _note(steps, f"rows of {part} whose user and item are in an earlier part too", number)
    elif sum(found.values()):
        said = " and ".join(f"{number:,} rows of {part}" for part, number in found.items() if number)
        raise UserError(
            f"--duplicates=keep: {said} repeat a user and item of an earlier part, so the split leaks; leave out "
            "--duplicates, or add --repeatable to recommend items that users already have"
        )
