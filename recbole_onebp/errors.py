"""The one exception for what a user can mend."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: a flag, a config value, a data file, a missing extra.

    The message is one line that says what, where, and what would be right; the command line prints it after
    ``error:`` and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
