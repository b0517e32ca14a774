"""``recbole-onebp convert``: turn tables of interactions into a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    convert = commands.add_parser(
        "convert",
        help="convert CSV, TSV, JSON lines, Parquet or a GroupLens zip to RecBole's atomic files",
        description="Convert files with one interaction per row to a data set for --dataset. Files may be compressed "
        "(.gz, .zst, .bz2, .xz).",
        epilog="examples: recbole-onebp convert ratings.csv --name=mine --user=customer --item=sku --min_rating=4 "
        "--k_core=5 --split=ratio; recbole-onebp convert --train a.csv --valid b.csv --test c.csv --name=mine",
        allow_abbrev=False,
    )
    convert.add_argument("files", nargs="*", type=Path, metavar="FILE")
    for part in ("train", "valid", "test"):
        convert.add_argument(f"--{part}", nargs="+", type=Path, metavar="FILE", help=f"the {part} part of a split of "
                             "your own" + ("; may be left out" if part == "valid" else ""))  # fmt: skip
    convert.add_argument("--name", help="name of the data set; default: the name of the first file")
    convert.add_argument("--data_path", type=Path, default=Path("dataset"), metavar="DIR", help="default: dataset")
    for flag in ("user", "item"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="name of the column; with --no_header its number, "
                             "from 1")  # fmt: skip
    for flag in ("rating", "time"):
        convert.add_argument(f"--{flag}", metavar="COLUMN", help="the same; a row without a value is a bad row; '': "
                             "do not read the column")  # fmt: skip
    convert.add_argument("--time_format", metavar="FORMAT", help="s, ms, us or ns since 1970, or as of strptime, such "
                         "as '%%d/%%m/%%Y %%H:%%M'; default: numbers, ISO, and what is not ambiguous")  # fmt: skip
    convert.add_argument("--whole_ids", action="store_true", help="read ids of text such as 17850.0 as 17850")
    convert.add_argument("--sep", help="column separator, such as ';', '\\t' or '::'; default: by the file suffix")
    convert.add_argument("--no_header", action="store_true", help="the first line is a row")
    convert.add_argument("--encoding", default="utf-8")
    convert.add_argument("--bad_rows", choices=("drop", "refuse"), default="drop", help="default: drop, and show them")
    convert.add_argument("--min_rating", type=float, help="drop rows with a lower rating")
    convert.add_argument("--duplicates", choices=("first", "last", "sum", "keep"), default="first",
                         help="which row of a user and item to keep; default: first; sum: the first, with the sum of "
                         "the ratings, such as numbers of plays; keep: all of them, which is refused if a split then "
                         "puts one pair into two parts")  # fmt: skip
    convert.add_argument("--repeatable", action="store_true", help="keep all rows, whatever the split, and let users "
                         "be recommended items that they already have (RecBole's key repeatable)")  # fmt: skip
    convert.add_argument("--k_core", type=int, default=0, help="minimum number of rows per user and per item")
    convert.add_argument("--split", default="none",
                         choices=("none", "ratio", "leave_one_out", "time_user", "time", "cold_items"),
                         help="default: none, so RecBole splits the data in each run; time_user: the latest rows of "
                         "each user are held out; time: all rows from one moment on; cold_items: all rows of a share "
                         "of the items")  # fmt: skip
    convert.add_argument("--ratios", nargs=3, type=float, metavar=("TRAIN", "VALID", "TEST"), help="shares of the "
                         "parts, scaled to sum to 1; default: 0.8 0.1 0.1")  # fmt: skip
    convert.add_argument("--seed", type=int, default=2020, help="seed of the split")
    convert.add_argument("--items", type=Path, metavar="FILE", help="features of the items, as RecBole's .item file; "
                         "embeddings beside it (NAME.FIELD.npy, NAME.FIELD.ids) come along")  # fmt: skip
    convert.add_argument("--max_mb", type=int, metavar="N", help="largest file in MB, after unpacking; default: 1000, "
                         "and 100 times the size of a compressed file")  # fmt: skip
    convert.add_argument("--force", action="store_true", help="replace a data set that was made by this program")
    convert.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    from recbole_onebp.data.sources.convert import Conversion, convert
    from recbole_onebp.data.sources.tables import TableFormat
    from recbole_onebp.data.sources.unpack import dataset_name

    logs.to_stdout()
    files = _files(arguments)
    if arguments.ratios is not None and arguments.split in ("none", "leave_one_out"):
        raise UserError(f"--ratios: nothing to share out with --split={arguments.split}")
    given = {"user_id": arguments.user, "item_id": arguments.item, "rating": arguments.rating}
    form = TableFormat(
        columns={key: column for key, column in {**given, "timestamp": arguments.time}.items() if column is not None},
        separator=arguments.sep.replace("\\t", "\t") if arguments.sep else None,
        header=not arguments.no_header,
        encoding=arguments.encoding,
        time_format=arguments.time_format,
        whole_ids=arguments.whole_ids,
        max_mb=arguments.max_mb,
    )
    conversion = Conversion(
        form=form,
        bad_rows=arguments.bad_rows,
        min_rating=arguments.min_rating,
        duplicates=arguments.duplicates,
        repeatable=arguments.repeatable,
        k_core=arguments.k_core,
        split=arguments.split,
        **({} if arguments.ratios is None else {"ratios": arguments.ratios}),
        seed=arguments.seed,
    )
    name = arguments.name or dataset_name(next(iter(files.values()))[0])
    convert(files, name, arguments.data_path, conversion, arguments.force, arguments.items)
    return 0


def _files(arguments: argparse.Namespace) -> dict[str, list[Path]]:
    """The files of each part, or of ``all``."""
    parts = {part: getattr(arguments, part) for part in ("train", "valid", "test") if getattr(arguments, part)}
    if arguments.files and parts:
        raise UserError(f"{arguments.files[0]}: give files, or --train and --test, not both")
    if parts and not {"train", "test"} <= set(parts):
        raise UserError("--train and --test: give both; --valid may be left out")
    if not parts and not arguments.files:
        raise UserError("give files to convert, or --train and --test; see recbole-onebp convert --help")
    return parts or {"all": arguments.files}
