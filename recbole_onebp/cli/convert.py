"""``recbole-onebp convert``: turn tables of interactions into a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown
from recbole_onebp.util import logs

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    convert = commands.add_parser(
        "convert",
        help="convert CSV, TSV, Parquet or a GroupLens zip to RecBole's atomic files",
        description="Convert files with one interaction per row to a data set for --dataset.",
        epilog="example: recbole-onebp convert ratings.csv --name=mine --user=customer --item=sku --min_rating=4 "
        "--k_core=5 --split=ratio",
        allow_abbrev=False,
    )
    convert.add_argument("files", nargs="+", type=Path, metavar="FILE")
    convert.add_argument("--name", help="name of the data set; default: the name of the first file")
    convert.add_argument("--data_path", type=Path, default=Path("dataset"), metavar="DIR", help="default: dataset")
    for flag in ("user", "item"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="name of the column; with --no_header its number, "
                             "from 1")  # fmt: skip
    for flag in ("rating", "time"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="the same; a row without a value is a bad row; '': "
                             "do not read the column")  # fmt: skip
    convert.add_argument("--sep", help="column separator, such as ';', '\\t' or '::'; default: by the file suffix")
    convert.add_argument("--no_header", action="store_true", help="the first line is a row")
    convert.add_argument("--encoding", default="utf-8")
    convert.add_argument("--bad_rows", choices=("drop", "refuse"), default="drop", help="default: drop, and show them")
    convert.add_argument("--min_rating", type=float, help="drop rows with a lower rating")
    convert.add_argument("--duplicates", choices=("first", "last", "keep"), default="first",
                         help="which row of a user and item to keep; default: first")  # fmt: skip
    convert.add_argument("--k_core", type=int, default=0, help="minimum number of rows per user and per item")
    convert.add_argument("--split", choices=("none", "ratio", "leave_one_out", "time"), default="none",
                         help="default: none, so RecBole splits the data in each run")  # fmt: skip
    convert.add_argument("--ratios", nargs=3, type=float, default=(0.8, 0.1, 0.1), metavar=("TRAIN", "VALID", "TEST"))
    convert.add_argument("--seed", type=int, default=2020, help="seed of the split")
    convert.add_argument("--force", action="store_true", help="replace an existing data set")
    convert.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest)
    from recbole_onebp.data.sources.convert import Conversion, convert
    from recbole_onebp.data.sources.tables import TableFormat

    logs.to_stdout()
    given = {"user_id": arguments.user, "item_id": arguments.item, "rating": arguments.rating}
    form = TableFormat(
        columns={key: column for key, column in {**given, "timestamp": arguments.time}.items() if column is not None},
        separator=arguments.sep.replace("\\t", "\t") if arguments.sep else None,
        header=not arguments.no_header,
        encoding=arguments.encoding,
    )
    conversion = Conversion(
        form=form,
        bad_rows=arguments.bad_rows,
        min_rating=arguments.min_rating,
        duplicates=arguments.duplicates,
        k_core=arguments.k_core,
        split=arguments.split,
        ratios=arguments.ratios,
        seed=arguments.seed,
    )
    name = arguments.name or arguments.files[0].stem
    convert(arguments.files, name, arguments.data_path, conversion, arguments.force)
    return 0
