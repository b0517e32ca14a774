"""Logging: of a command, to stdout and to the run's log file; of a run in a notebook or script, to stderr."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

__all__ = ["shown", "start", "to_stdout"]

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler  # Python 3.10 cannot subscript it


class _Stdout(_Handler):
    """Stops printing, without an error, when the reader of stdout has gone (``| head``).  The file is complete."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            self.setStream(open(os.devnull, "w"))  # noqa: SIM115  stays open as long as the process
        else:
            super().handleError(record)


class _File(logging.FileHandler):
    """Does not report a full disk for every line: the run reports it once, when it cannot write its own files."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Plain(logging.Formatter):
    """Removes RecBole's colors."""

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR.sub("", super().format(record))


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """Do not report the ``OSError`` of a thread: TensorBoard's writer raises it again in the run at its next write."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def start(file: Path, level: str = "INFO", to_screen: bool = True) -> None:
    """Send all log messages to stdout and to a file.  RecBole's colors are kept only on a terminal.

    Args:
        file: the log file; messages are appended.
        level: RecBole's key ``state``: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        to_screen: false to write only the file.
    """
    line = "%(asctime)s %(levelname)-7s %(message)s"
    handlers: list[logging.Handler] = [_File(file, encoding="utf-8")]
    handlers[0].setFormatter(_Plain(line))
    if to_screen and sys.stdout is not None:  # it is None where the caller closed it
        handlers.append(_Stdout(sys.stdout))
        handlers[1].setFormatter((logging.Formatter if sys.stdout.isatty() else _Plain)(line, datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=handlers, force=True)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended


def to_stdout() -> None:
    """Send log messages to stdout as they are: for commands without a log file."""
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout, force=True)


@contextmanager
def shown(level: str) -> Iterator[None]:
    """Context in which log messages go to stderr, if nobody has configured logging; else nothing changes.

    RecBole logs to the root logger, which shows only warnings by default: a notebook would show neither loss nor
    metrics.  An application that configures logging later finds the root logger as it was.

    Args:
        level: RecBole's key ``state``.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    handler: _Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain("%(message)s"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
