"""``recbole-onebp add-items``: a bundle with new items, without training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    add_items = commands.add_parser(
        "add-items",
        help="add new items to a bundle, from their features",
        description="Add new items to a bundle of a model with item_features, without training. The columns of the "
        "file are the id (item_id) and the fields of the bundle's items; several values of a field are separated as in "
        "the data set's .item file. JSON lines may have lists.",
        epilog="example: recbole-onebp add-items bundle items.csv",
        allow_abbrev=False,
    )
    add_items.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    add_items.add_argument("items", type=Path, metavar="ITEMS", help=".csv, .tsv or .jsonl")
    add_items.add_argument("--output", type=Path, metavar="DIR", help="write another bundle; default: replace this one")
    add_items.add_argument("--force", action="store_true", help="with --output: replace an existing bundle")
    add_items.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    from recbole_onebp.serving.batch import say
    from recbole_onebp.serving.extension import extend

    report, left_out = extend(arguments.bundle, arguments.items, arguments.output, arguments.force)
    for item, reason in report.refused.items():
        say(f"not added: item {item} {reason}", sys.stderr)
    for value in report.unknown:
        say(f"unknown value: {value}", sys.stderr)
    for name in left_out:
        print(f"left out: {name}, which has the old items only", file=sys.stderr)
    print(f"added {len(report.added)} items; wrote {arguments.output or arguments.bundle}")
    return 0
