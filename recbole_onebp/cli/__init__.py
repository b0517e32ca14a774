"""The command line: ``recbole-onebp train``, ``compare``, ``tune``, ..., and ``run_recbole_onebp.py``.

Each command is a module with two functions: ``add`` adds it to the parser, ``run`` runs it and returns the exit code.

Exit codes: 0 success; 2 an error that the user can fix, reported in one line that starts with ``error:``; 1 a bug, or
a lost process; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import sys
from collections.abc import Sequence
from typing import NoReturn

from recbole_onebp import __version__
from recbole_onebp.cli import (
    add_items,
    compare,
    convert,
    doctor,
    export,
    fetch,
    fit,
    inspect,
    recommend,
    repair_events,
    serve,
    train,
    tune,
)
from recbole_onebp.config.suggest import nearest
from recbole_onebp.plugin import import_hook
from recbole_onebp.util.errors import LostRankError, UserError
from recbole_onebp.util.processes import share_cores

__all__ = ["main", "make_parser"]

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
"""A full disk.  Any write can fail this way, also in RecBole and TensorBoard."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.+)' \(choose from (.+)\)", message)
        hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise UserError(f"{message}{hint or f'; see {self.prog} --help'}")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="recbole-onebp", description="One-backpropagation two-tower recommendation for RecBole.")
    parser.add_argument("--version", action="version", version=f"recbole-onebp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everything = (
        train,
        fit,
        compare,
        tune,
        fetch,
        convert,
        inspect,
        export,
        add_items,
        recommend,
        serve,
        repair_events,
        doctor,
    )
    for command in everything:
        command.add(commands)
    for of_one in commands.choices.values():
        of_one.set_defaults(usage=of_one.format_usage)  # refuse_unknown finds the nearest flag there
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its arguments; by default those of this process.

    Returns:
        The exit code.
    """
    share_cores()
    try:
        arguments, rest = make_parser().parse_known_args(argv)
        arguments.given = sys.argv[1:] if argv is None else list(argv)
        code = int(arguments.run(arguments, rest))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))  # all ranks have the same error: only one prints "error:"
        print(f"rank {rank}: {error}" if rank else f"error: {error}", file=sys.stderr)
    except LostRankError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the rest of the buffer
        return 1
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        print(f"error: {error.filename or 'a file'} cannot be written: {error.strerror}", file=sys.stderr)
    except ImportError as error:
        if error.msg != import_hook.missing_recbole():
            raise
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(
            "interrupted; the last checkpoint, if any, is intact: repeat the command with --resume=RUN_DIR to continue",
            file=sys.stderr,
        )
        return 130
    return 2


def _stdout_is_closed() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    if not hasattr(select, "poll"):  # on Windows
        return False
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))
