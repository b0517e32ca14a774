"""``recbole-onebp serve``: answer over HTTP, from a bundle."""

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
    serve = commands.add_parser(
        "serve",
        help="answer over HTTP, from a bundle",
        description="Serve a bundle over HTTP, with a page to try it on and /docs. New events update their users at "
        "once, and are on disk before they are acknowledged. If RECBOLE_ONEBP_API_KEY is set, requests need that key.",
        epilog="example: recbole-onebp serve bundle --port=8000",
        allow_abbrev=False,
    )
    serve.add_argument("bundle", type=Path, metavar="BUNDLE_DIR")
    serve.add_argument("--events", type=Path, metavar="DIR", help="folder of the events; default: BUNDLE_DIR.events")
    serve.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, only this machine")
    serve.add_argument("--port", type=int, default=8000, help="default: 8000; 0: a free one")
    serve.add_argument("--watch", type=float, metavar="SECONDS", help="check for a new bundle this often, and serve it")
    serve.add_argument("--memory_mb", type=float, default=30, help="memory for scores at a time; default: 30")
    serve.add_argument("--index", choices=("faiss",), help="search approximately, with the index of export --ann")
    serve.add_argument(
        "--allowed_hosts",
        default="",
        metavar="NAME,NAME",
        help="names in the Host header of requests, in addition to loopback names and --host; * allows all",
    )
    serve.add_argument(
        "--max_new_users", type=int, default=200_000, help="users that events may add to the bundle's; default: 200000"
    )
    serve.add_argument(
        "--max_new_items", type=int, default=10_000, help="items that may be added to the bundle's; default: 10000"
    )
    serve.add_argument("--workers", type=int, help="processes that answer; default: one per core, at most 8")
    serve.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    from recbole_onebp.serving.http.server import Service, serve

    service = Service(
        arguments.bundle, arguments.events, arguments.host, arguments.port, arguments.watch, arguments.memory_mb,
        arguments.index, tuple(filter(None, arguments.allowed_hosts.split(","))), arguments.max_new_users,
        arguments.workers, max_new_items=arguments.max_new_items,
    )  # fmt: skip
    try:
        serve(service)
    except KeyboardInterrupt:
        print("stopped; all events that were answered are kept", file=sys.stderr)
        return 130
    return 0
