"""``recbole-onebp fit``: from a table of interactions to a bundle, trained on all rows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.plugin import import_hook
from recbole_onebp.util.errors import UserError

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    fit = commands.add_parser(
        "fit",
        help="train OneBP on all rows of a table, and write a bundle",
        description="Choose the number of epochs on the latest tenth of each user's rows (a random tenth without "
        "times), train on all rows, and write the bundle for lists. Set any configuration key with --key=value.",
        epilog="example: recbole-onebp fit purchases.csv bundle --user=customer --item=sku --time=when",
        allow_abbrev=False,
    )
    fit.add_argument("file", metavar="FILE", help="CSV, TSV, JSON lines or Parquet, with one interaction per row")
    fit.add_argument("bundle_dir", type=Path, metavar="BUNDLE_DIR")
    for flag in ("user", "item"):
        fit.add_argument(f"--{flag}", metavar="COLUMN", help="name of the column; default: a usual name")
    fit.add_argument("--time", metavar="COLUMN", help="the same; '': do not use times")
    fit.add_argument("--weight", metavar="COLUMN", help="a column of weights, such as numbers of plays")
    fit.add_argument(
        "--item_features", metavar="FILE", help="CSV, TSV, JSON lines or Parquet, with a row for each item"
    )
    fit.add_argument("--force", action="store_true", help="replace an earlier bundle")
    fit.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; ``rest`` are the arguments ``--key=value``."""
    settings = parse_overrides(rest)
    from recbole_onebp.serving.bundle import check_path

    for key in ("data", "on_epoch"):  # of fit in Python, whose values are not text
        if key in settings:
            raise UserError(f"--{key}: fit has no such key on the command line")
    check_path(arguments.bundle_dir, arguments.force)  # before minutes of training
    import_hook.require_recbole()
    from recbole_onebp.dataframe.training import fit

    given = {flag: getattr(arguments, flag) for flag in ("user", "item", "time", "weight", "item_features")}
    model = fit(arguments.file, **given, **settings)
    found = "  ".join(f"{name}: {value:.4f}" for name, value in model.result.valid.items())
    if found:
        print(f"on the rows that chose {model.result.epochs_run} epochs: {found}")
    model.save(arguments.bundle_dir, arguments.force)
    print(f"wrote {arguments.bundle_dir}; for lists: recbole-onebp recommend {arguments.bundle_dir}")
    return 0
