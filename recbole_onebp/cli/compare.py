"""``recbole-onebp compare``: train several models on one split, and report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.plugin import import_hook
from recbole_onebp.util import logs

__all__ = ["add", "compare_files", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    compare = commands.add_parser(
        "compare",
        help="train models with several seeds on one split, and write a report",
        description="Train models on one split, each run in its own process, and write a report. Finished runs are "
        "not repeated. Set any key, of the file or of all models, with --key=value.",
        epilog="example: recbole-onebp compare properties/compare/quick.yaml --output_dir=out --jobs=2",
        allow_abbrev=False,
    )
    compare.add_argument("config_files", nargs="+", metavar="CONFIG.yaml", help="later files override earlier ones")
    compare.add_argument("--output_dir", metavar="DIR", help="default: runs/compare-CONFIG")
    compare.add_argument("--jobs", type=int, metavar="N", help="number of runs at a time; default: 1")
    compare.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; ``rest`` are the arguments ``--key=value``."""
    import_hook.require_recbole()

    from recbole_onebp.config.files import file_names

    given = {key: value for key in ("output_dir", "jobs") if (value := getattr(arguments, key)) is not None}
    overrides = {**parse_overrides(rest), **given}
    more = file_names(overrides.pop("config_files", None))  # as `train` takes them
    return compare_files([*arguments.config_files, *more], overrides)


def compare_files(files: Sequence[str], overrides: dict[str, Any]) -> int:
    """Run the comparison of YAML files, and log to stdout.

    Returns:
        The exit code.
    """
    from recbole_onebp.experiments.compare import compare

    logs.to_stdout()
    compare(files, overrides)
    return 0
