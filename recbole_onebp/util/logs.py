"""Logging of a command: to stdout and to the run's log file, as RecBole words it."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

__all__ = ["start"]

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


if TYPE_CHECKING:
    _Handler = logging.StreamHandler[TextIO]
else:
    _Handler = logging.StreamHandler  # which Python 3.10 cannot subscript


class _Stdout(_Handler):
    """Goes on in silence when nobody reads any more, as after ``| head``; the file has everything."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            self.setStream(open(os.devnull, "w"))  # noqa: SIM115  as long as the process
        else:
            super().handleError(record)


class _File(logging.FileHandler):
    """Says nothing of a full disk, line after line: the run that cannot be written does, once."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _COLOR.sub("", super().format(record))


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer ends on a full disk; the run hears of it, and tells, when it gives it more to write."""
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def start(file: Path, level: str = "INFO", to_screen: bool = True) -> None:
    """Send everything that is logged to stdout and to ``file``; RecBole's colours stay where a person looks on.

    Args:
        file: the log file; added to.
        level: RecBole's key ``state``: DEBUG, INFO, WARNING, ERROR or CRITICAL.
        to_screen: false for the file alone.
    """
    line = "%(asctime)s %(levelname)-7s %(message)s"
    to_stdout, to_file = _Stdout(sys.stdout), _File(file, encoding="utf-8")
    to_stdout.setFormatter((logging.Formatter if sys.stdout.isatty() else _Plain)(line, datefmt="%H:%M:%S"))
    to_file.setFormatter(_Plain(line))
    logging.basicConfig(level=level, handlers=[to_stdout, to_file] if to_screen else [to_file], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _thread_ended
