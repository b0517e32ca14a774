"""``recbole-onebp tune``: search hyper-parameters on validation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import parse_overrides
from recbole_onebp.plugin import import_hook

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    tune = commands.add_parser(
        "tune",
        help="search hyper-parameters on validation",
        description="Search the spaces of a YAML file, or resume such a search. Set keys of all models with "
        "--key=value.",
        epilog="example: recbole-onebp tune properties/tune/quick.yaml --trials=5",
        allow_abbrev=False,
    )
    tune.add_argument("config", type=Path, metavar="CONFIG.yaml")
    tune.add_argument("--output_dir", type=Path, metavar="DIR", help="default: runs/tune-<name of the file>")
    tune.add_argument("--trials", type=int, metavar="N", help="number of trials per model; default: the file's")
    tune.add_argument("--jobs", type=int, default=1, metavar="N", help="number of models at a time; default: 1")
    tune.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; ``rest`` are the arguments ``--key=value``."""
    overrides = parse_overrides(rest)
    if arguments.trials is not None:
        overrides["trials"] = arguments.trials
    import_hook.require_recbole()

    from recbole_onebp.experiments.tune.search import tune

    tune(arguments.config, overrides, arguments.output_dir, arguments.jobs)
    return 0
