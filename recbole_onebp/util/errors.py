"""What a user can mend, and what ends a run from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 2000


class UserError(ValueError):
    """Bad input: a flag, a config value, a data file, a missing extra.

    The message is one line that says what, where, and what would be right; the command line prints it after
    ``error:`` and exits with 2.  What a file has put into it neither runs on nor steers a terminal.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message[: 2 * _LONGEST].split())
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ...")


class LostRankError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line why ``path`` cannot be written: no room, no right, no such folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
