"""The files of a data set's interactions: RecBole's atomic files, or columnar files in their place."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from recbole_onebp.data.arrow_table import ArrowTable
from recbole_onebp.data.cache import DataCache, State
from recbole_onebp.data.text_table import TextTable
from recbole_onebp.util.errors import UserError

__all__ = ["COLUMNAR", "InteractionFiles", "Table", "find", "row_of", "tables_of"]

COLUMNAR = (".parquet", ".arrow", ".csv")
"""What may follow ``<name>.inter``: a file, or a folder of Parquet or Arrow files."""

Table = TextTable | ArrowTable


def row_of(table: Table, number: int) -> str:
    """Where a row is in its file, for messages; ``number`` counts from 0."""
    return f"row {number + 1}" if table.path.suffix in COLUMNAR else f"line {number + 2}"


def find(folder: Path, stem: str) -> Path:
    """RecBole's ``<stem>.inter``, or, if there is none, the columnar file in its place.

    Raises:
        UserError: if there are several of these.
    """
    atomic = folder / f"{stem}.inter"
    found = [path for suffix in COLUMNAR if (path := folder / f"{atomic.name}{suffix}").exists()]
    if atomic.is_file() or not found:
        return atomic
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1].name}: which one holds the interactions? keep one of them")
    return found[0]


class InteractionFiles:
    """The tables of interactions of a data set under one configuration, and their cache.

    :func:`~recbole_onebp.data.checks.check_files` opens the files and leaves them with the configuration;
    :class:`~recbole_onebp.data.dataset.OneBPDataset` takes them from there, so that they are read once.
    """

    def __init__(self, config: Any) -> None:
        folder, name = Path(config["data_path"]), config["dataset"]
        self.tables = tables_of(config)
        features = [path for kind in ("user", "item") if (path := folder / f"{name}.{kind}").exists()]
        self.cache = DataCache(config, [table for table in self.tables if table.path.exists()], features)

    def __getstate__(self) -> dict[str, Any]:
        """Arrays of the cache stay out of copies and pickles of a configuration."""
        return {key: value for key, value in vars(self).items() if key != "cached"}

    @cached_property
    def cached(self) -> State | None:
        """The data set as the cache has it, if it does."""
        return self.cache.load()

    def leave_with(self, config: Any) -> None:
        """Keep these for the data set that will be made with ``config``."""
        config.interaction_files = self

    @classmethod
    def take_from(cls, config: Any) -> InteractionFiles:
        """What was left with ``config``, once; else the files are opened anew."""
        return vars(config).pop("interaction_files", None) or cls(config)


def tables_of(config: Any) -> list[Table]:
    """The files of a data set's interactions: one, or one for each of ``benchmark_filename``."""
    folder, name, parts = Path(config["data_path"]), config["dataset"], config["benchmark_filename"]
    stems = [name] if parts is None else [f"{name}.{part}" for part in parts]
    return [_table(find(folder, stem), config) for stem in stems]


def _table(path: Path, config: Any) -> Table:
    if path.suffix in (".parquet", ".arrow"):
        return ArrowTable(path)
    is_csv = path.suffix == ".csv"
    return TextTable(path, "," if is_csv else config["field_separator"], config["encoding"], is_csv)
