"""``recbole-onebp repair-events``: keep what can be read of damaged events."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    repair = commands.add_parser(
        "repair-events",
        help="keep what can be read of a service's damaged events",
        description="Copy what can be read of a service's damaged events into a new file. The damaged file is kept "
        "beside it. Restore a backup instead if there is one: damaged events cannot be read back.",
        epilog="example: recbole-onebp repair-events bundle.events",
        allow_abbrev=False,
    )
    repair.add_argument("events", type=Path, metavar="DIR", help="folder of the events")
    repair.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    from recbole_onebp.serving.http.event_repair import repair

    n_kept, damaged = repair(arguments.events)
    print(f"kept {n_kept} events in {arguments.events}; the damaged file is {damaged}")
    return 0
