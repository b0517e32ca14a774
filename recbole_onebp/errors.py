"""What a user can mend, and what ends a run from outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Bad input: a flag, a config value, a data file, a missing extra.

    The message is one line that says what, where, and what would be right; the command line prints it after
    ``error:`` and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class LostRankError(RuntimeError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one line why ``path`` cannot be written: no room, no right, no such folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
