"""Errors the user can fix, and errors of lost processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LostRankError", "UserError", "printable", "writing"]

_MAX_LENGTH = 2000


def printable(text: str) -> str:
    r"""``text`` with control characters and other unprintable ones escaped, safe to show on a terminal.

    Example:
        >>> printable("\x1b[2Jé")
        '\\x1b[2Jé'
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class UserError(Exception):
    r"""An error that the user can fix: a bad flag, configuration value or data file, or a missing package.

    The message is one line that says what is wrong, where, and what is allowed.  The command line prints it after
    ``error:`` and exits with code 2.  Long text from a file is truncated and control characters are escaped.

    Example:
        >>> str(UserError("epochs: -1 is not allowed:\n expected 0 or more"))
        'epochs: -1 is not allowed: expected 0 or more'
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message[: 2 * _MAX_LENGTH].split())
        line = printable(line)
        super().__init__(line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]} ...")


class LostRankError(RuntimeError):
    """Another process of the run has ended or does not answer."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which ``path`` is written: an ``OSError`` becomes a :class:`UserError` with its reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
