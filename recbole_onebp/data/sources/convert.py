"""Convert the user's own files to atomic files: read, filter and split, and count the rows at every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml

from recbole_onebp.data.sources.atomic_folder import counts, write_manifest, write_parts
from recbole_onebp.data.sources.catalogue import CATALOGUE
from recbole_onebp.data.sources.splits import by_ratio, by_time, leave_one_out
from recbole_onebp.data.sources.tables import BadRow, TableFormat, read_table
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import whole_folder
from recbole_onebp.util.hashes import sha256

__all__ = ["Conversion", "convert"]

_SHOWN = 5


@dataclass(frozen=True)
class Conversion:
    """How to convert: the steps in the order in which they are done."""

    form: TableFormat = field(default_factory=TableFormat)
    bad_rows: Literal["drop", "refuse"] = "drop"
    """Drop rows with a missing or unreadable id or value, or stop at the first."""
    min_rating: float | None = None
    """Drop rows with a lower rating."""
    duplicates: Literal["first", "last", "keep"] = "first"
    """Which of several rows of one user and item to keep, by time if there is one, else in the order of the file."""
    k_core: int = 0
    """Drop users and items until each has at least this many rows."""
    split: Literal["none", "ratio", "leave_one_out", "time"] = "none"
    """``none``: one file, which RecBole splits in each run; see :mod:`~recbole_onebp.data.sources.splits`."""
    ratios: Sequence[float] = (0.8, 0.1, 0.1)
    """Shares of train, validation and test."""
    seed: int = 2020
    """Seed of random splits."""

    def __post_init__(self) -> None:
        if len(self.ratios) != 3 or min(self.ratios) <= 0:
            raise UserError(f"--ratios {' '.join(map(str, self.ratios))}: expected three numbers above 0")


def convert(
    files: Sequence[Path], name: str, data_path: Path, conversion: Conversion | None = None, force: bool = False
) -> None:
    """Write the interactions of ``files`` as the data set ``data_path/name``, completely or not at all.

    Args:
        files: CSV, TSV, Parquet or GroupLens zip files, which are concatenated.
        name: name of the data set.
        data_path: folder of data sets, RecBole's key ``data_path``.
        conversion: how to filter and split.
        force: replace an existing data set.

    Raises:
        UserError: for a file or column that cannot be read, bad rows with ``bad_rows: refuse``, or an empty part.
    """
    conversion = conversion or Conversion()
    folder = data_path / name
    if Path(name).name != name:
        raise UserError(f"--name {name}: expected the name of a folder below --data_path")
    if name in {*CATALOGUE, "ml-100k"}:
        raise UserError(
            f"--name {name}: stands for another data set, which --dataset={name} would take; choose another"
        )
    if folder.exists() and not force:
        raise UserError(f"{folder} exists already; --force replaces it, or choose another --name")
    steps: dict[str, int] = {}
    frame = _filter(_read(files, conversion, steps), conversion, steps)
    parts = _split(frame, conversion)
    for part, rows in parts.items():
        if rows.empty:
            raise UserError(
                f"{name}: no rows are left for {part} ({', '.join(f'{n:,} {s}' for s, n in steps.items())})"
            )
        if part in ("valid", "test"):
            seen = [rows[key].isin(parts["train"][key]) for key in ("user_id", "item_id")]
            _note(steps, f"rows of {part} whose user or item is not in train", int((~(seen[0] & seen[1])).sum()))
    final = counts(parts)
    settings: dict[str, object] = {"load_col": {"inter": list(frame)}}
    if conversion.split != "none":
        settings["benchmark_filename"] = list(parts)
    with writing(folder), whole_folder(folder, replace=force) as temporary:
        write_parts(temporary, name, parts)
        (temporary / f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        source = [{"from": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in files]
        write_manifest(
            temporary, name, {"source": source, "conversion": asdict(conversion), "steps": steps, "counts": final}
        )
    getLogger().info("%s: %s", name, ", ".join(f"{number:,} {what}" for what, number in final.items()))
    getLogger().info(
        "wrote %s; train on it by: recbole-onebp train --model=OneBP --dataset=%s --data_path=%s --config_files=%s",
        folder, name, data_path, folder / f"{name}.yaml",
    )  # fmt: skip


def _note(steps: dict[str, int], what: str, number: int) -> None:
    steps[what] = number
    getLogger().info("%12s  %s", f"{number:,}", what)


def _read(files: Sequence[Path], conversion: Conversion, steps: dict[str, int]) -> pd.DataFrame:
    frames: list[pd.DataFrame] = []
    bad: list[BadRow] = []
    for file in files:
        frame, wrong = read_table(file, conversion.form)
        if frames and list(frame) != list(frames[0]):
            columns, first = (", ".join(table.columns) for table in (frame, frames[0]))
            raise UserError(f"{file}: its columns are {columns}, those of {files[0]} {first}")
        frames.append(frame)
        bad += wrong
    frame = pd.concat(frames, ignore_index=True)
    _note(steps, "rows read", len(frame) + len(bad))
    if bad and conversion.bad_rows == "refuse":
        raise UserError(f"{len(bad):,} bad rows, the first: {_shown(bad[0])}; --bad_rows=drop leaves them out")
    for reason, number in sorted(Counter(row.reason for row in bad).items()):
        _note(steps, f"bad rows left out: {reason}", number)
    for row in bad[:_SHOWN]:
        getLogger().info("              %s", _shown(row))
    if len(bad) > _SHOWN:
        getLogger().info("              ... and %s more", f"{len(bad) - _SHOWN:,}")
    return frame


def _shown(row: BadRow) -> str:
    return f"{row.where}: {row.reason}: {row.text}"


def _filter(frame: pd.DataFrame, conversion: Conversion, steps: dict[str, int]) -> pd.DataFrame:
    if conversion.min_rating is not None:
        if "rating" not in frame:
            raise UserError("--min_rating: there is no column of ratings; name it by --rating")
        kept = frame[frame["rating"] >= conversion.min_rating]
        _note(steps, f"left out: rated below {conversion.min_rating:g}", len(frame) - len(kept))
        frame = kept
    if conversion.duplicates != "keep":
        ordered = frame.sort_values("timestamp", kind="stable") if "timestamp" in frame else frame
        kept = ordered.drop_duplicates(["user_id", "item_id"], keep=conversion.duplicates).sort_index()
        _note(steps, f"left out: the same user and item as another row, the {conversion.duplicates} kept",
              len(frame) - len(kept))  # fmt: skip
        frame = kept
    if conversion.k_core > 1:
        kept = _core(frame, conversion.k_core)
        _note(steps, f"left out: users and items with fewer than {conversion.k_core} rows", len(frame) - len(kept))
        frame = kept
    return frame.reset_index(drop=True)


def _core(frame: pd.DataFrame, k: int) -> pd.DataFrame:
    codes = [pd.factorize(frame[key])[0] for key in ("user_id", "item_id")]
    kept = np.arange(len(frame))
    while True:
        enough = np.logical_and.reduce([np.bincount(code[kept])[code[kept]] >= k for code in codes])
        if enough.all():
            return frame.iloc[kept]
        kept = kept[enough]


def _split(frame: pd.DataFrame, conversion: Conversion) -> dict[str, pd.DataFrame]:
    if conversion.split == "none":
        return {"all": frame}
    if conversion.split == "ratio":
        part = by_ratio(frame["user_id"], conversion.ratios, conversion.seed)
    elif conversion.split == "leave_one_out":
        part = leave_one_out(frame["user_id"], frame.get("timestamp"), conversion.seed)
    elif "timestamp" in frame:
        part = by_time(frame["timestamp"], conversion.ratios)
    else:
        raise UserError("--split=time: there is no column of times; name it by --time")
    return {name: frame[part == number] for number, name in enumerate(("train", "valid", "test"))}
