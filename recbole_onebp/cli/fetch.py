"""``recbole-onebp fetch``: get a data set by name."""

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
    fetch = commands.add_parser(
        "fetch",
        help="get a data set by name, verify it, and add a validation part",
        description="Get gowalla, yelp2018, amazon-book, onebp-ml-100k, onebp-ml-1m, citeulike, or a data set that "
        "RecBole downloads.",
        epilog="example: recbole-onebp fetch gowalla --from=copy_of_gowalla",
        allow_abbrev=False,
    )
    fetch.add_argument("name", metavar="NAME")
    fetch.add_argument("--from", dest="source", type=Path, metavar="DIR", help="a folder with the published files, or "
                       "with train.* and test.*")  # fmt: skip
    fetch.add_argument(
        "--url",
        metavar="BASE",
        help="a mirror, with the files at BASE/path; http(s)://[user:password@]"
        "server/path, and what stands before @ is never shown",
    )
    fetch.add_argument("--pins", type=Path, metavar="FILE", help="lines of 'path: git blob id or SHA-256'")
    fetch.add_argument("--data_path", type=Path, default=Path("dataset"), metavar="DIR", help="default: dataset")
    fetch.add_argument("--max_mb", type=int, default=1000, metavar="N", help="largest file in MB; default: 1000")
    fetch.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for each file; default: 3600")
    fetch.add_argument("--valid", choices=("last", "random"), help="train pairs of each user for validation; "
                       "default: the last ones where the files are in order of time, else random ones")  # fmt: skip
    fetch.add_argument("--valid_share", type=float, metavar="SHARE", help="default: 0.1")
    fetch.add_argument("--force", action="store_true", help="replace a data set that was made by this program")
    fetch.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    from recbole_onebp.data.sources.download import Limits
    from recbole_onebp.data.sources.fetch import fetch

    logs.to_stdout()
    limits = Limits(arguments.max_mb, arguments.timeout)
    fetch(
        arguments.name, arguments.data_path, arguments.source, arguments.url, arguments.pins, arguments.force, limits,
        arguments.valid, arguments.valid_share,
    )  # fmt: skip
    return 0
