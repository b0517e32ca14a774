"""``recbole-onebp recommend``: the best items of users, from a bundle."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_onebp.cli.overrides import refuse_unknown
from recbole_onebp.util.errors import UserError

__all__ = ["add", "run"]


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    recommend = commands.add_parser(
        "recommend",
        help="show or write the best items of users, from a bundle",
        description="Show the best items of users, or write them to a file. Writing uses all cores, and resumes when "
        "it is started again after an interruption.",
        epilog="examples: recbole-onebp recommend bundle --users=196,22; recbole-onebp recommend bundle --all_users "
        "--k=20 --out=batch.parquet",
        allow_abbrev=False,
    )
    recommend.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    whom = recommend.add_mutually_exclusive_group()  # one is required, see run
    whom.add_argument("--users", metavar="IDS", help="user ids, separated by commas; or a file, as in --users_file, "
                      "for ids with commas")  # fmt: skip
    whom.add_argument("--users_file", type=Path, metavar="FILE", help="file with one id per line")
    whom.add_argument("--all_users", action="store_true")
    whom.add_argument("--history", metavar="IDS", help="item ids of a new user's history, separated by commas; the "
                      "earliest first, where the model was trained on data in order")  # fmt: skip
    recommend.add_argument(
        "--rule", choices=("alike", "trained", "recent"),
        help="with --history: all items alike (default), weighted as in training, or the latest most; where the model "
        "has recency, later items count more by each of them",
    )  # fmt: skip
    recommend.add_argument("--k", type=int, default=10, help="number of items per user; default: 10")
    recommend.add_argument("--include_seen", action="store_true", help="include items of the user's history")
    recommend.add_argument("--allow", type=Path, metavar="FILE", help="recommend only these items, one id per line")
    recommend.add_argument("--deny", type=Path, metavar="FILE", help="do not recommend these items, one id per line")
    recommend.add_argument("--out", type=Path, metavar="FILE", help=".csv, .jsonl or .parquet; default: show the lists")
    recommend.add_argument("--jobs", type=int, metavar="N", help="with --out: processes; default: one per core")
    recommend.add_argument("--force", action="store_true", help="with --out: replace an existing file")
    recommend.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    if not arguments.all_users and {arguments.users, arguments.users_file, arguments.history} == {None}:
        raise UserError("for whom? Give --users=IDS, --users_file=FILE, --all_users or --history=IDS")
    from recbole_onebp.serving import batch
    from recbole_onebp.serving.user_state import DEFAULT_RULE

    if arguments.rule and arguments.history is None:
        raise UserError("--rule without --history: the rule says how a history becomes a user; leave --rule out")
    allow, deny = (None if file is None else tuple(batch.read_ids(file)) for file in (arguments.allow, arguments.deny))
    request = batch.Request(arguments.k, not arguments.include_seen, allow, deny or ())
    users_file = arguments.users_file
    if arguments.users and os.path.isfile(arguments.users):  # false for ids too long for the name of a file
        users_file = Path(arguments.users)
    users = users_file or _ids("--users", arguments.users)
    if arguments.out is None:
        history = _ids("--history", arguments.history)
        batch.show(arguments.bundle, users, history, request, arguments.rule or DEFAULT_RULE)
        return 0
    if arguments.history is not None:
        raise UserError("--out with --history: a history is shown, not written; leave --out out")
    written = batch.write_lists(
        arguments.bundle, users, arguments.out, request, jobs=arguments.jobs, force=arguments.force, show_progress=True
    )
    for item in written.unknown_items:
        batch.say(f"unknown item: {item}", sys.stderr)
    if written.n_unknown_users:
        print(f"unknown users: {written.n_unknown_users}, see {arguments.out}.unknown.txt", file=sys.stderr)
    print(f"wrote {arguments.out}")
    return 0


def _ids(flag: str, given: str | None) -> list[str] | None:
    ids = None if given is None else [part.strip() for part in given.split(",")]
    if ids and "" in ids:
        raise UserError(
            f"{flag}={(given or '')[:200]}: an id is empty; expected ids separated by commas, such as 196,22"
        )
    return ids
