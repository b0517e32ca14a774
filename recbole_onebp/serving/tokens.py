"""From tokens to rows and back, and the checks of ids that callers pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recbole_onebp.serving.answers import UnknownIdError
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, BundleRows, Token, TokenLike
from recbole_onebp.weights import ALLOWED, LARGEST, LEAST

_NUMBERS = (int, float, np.integer, np.floating)

__all__ = ["LONGEST_ID", "TokenTable", "as_event", "as_list", "as_new_token", "as_token", "as_weight"]

LONGEST_ID = 256
"""Letters of the id of a new item."""


class TokenTable:
    """The tokens of all users, or of all items, in the order of their rows.

    Attributes:
        tokens: the token of each row.
        rows: the row of each token that is not hidden.
        hidden: the row of each hidden token: lookups do not find it, but its row still has a name.
    """

    def __init__(self, tokens: Iterable[Token], kind: str) -> None:
        """Index the tokens; ``kind`` names them in error messages: ``user`` or ``item``."""
        self.tokens = list(tokens)
        self._kind = kind
        self.rows = {token: row for row, token in enumerate(self.tokens)}
        self.hidden: dict[Token, BundleRow] = {}

    def __contains__(self, token: Token) -> bool:
        return token in self.rows

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: Token) -> None:
        """Append a token that is not in the table.  It is hidden, so that its row can be filled before it is found."""
        self.tokens.append(token)
        self.hidden[token] = len(self.tokens) - 1

    def hide(self, tokens: Iterable[Token]) -> None:
        """Hide tokens of the table."""
        for token in tokens:
            self.hidden[token] = self.rows.pop(token)

    def show(self, tokens: Iterable[Token]) -> None:
        """Undo :meth:`hide`."""
        for token in tokens:
            self.rows[token] = self.hidden.pop(token)

    @property
    def shown(self) -> Sequence[Token]:
        """The tokens that are not hidden, in the order of their rows."""
        return [token for token in self.tokens if token not in self.hidden] if self.hidden else self.tokens

    def get(self, given: TokenLike) -> BundleRow | None:
        """The row of a token, None if it is unknown."""
        return self.rows.get(as_token(given, self._kind))

    def row(self, given: TokenLike) -> BundleRow:
        """The row of a token.

        Raises:
            UnknownIdError: if it is unknown.
        """
        row = self.get(given)
        if row is None:
            raise UnknownIdError(f"{self._kind} {as_token(given, self._kind)!r}: the bundle does not know it")
        return row

    def find(self, given: Iterable[TokenLike]) -> tuple[BundleRows, list[Token]]:
        """The rows of tokens, -1 for the unknown; and the unknown tokens, each once."""
        tokens = [as_token(one, self._kind) for one in given]
        rows = np.array([self.rows.get(token, -1) for token in tokens], np.int64)
        unknown = dict.fromkeys(token for token, row in zip(tokens, rows.tolist(), strict=True) if row < 0)
        return rows, list(unknown)

    def of(self, rows: BundleRows) -> list[Token]:
        """The tokens of rows."""
        return [self.tokens[row] for row in rows.tolist()]


def as_token(given: Any, kind: str) -> Token:
    """A token from text or an integer.

    Raises:
        UserError: for anything else.
    """
    if isinstance(given, str):
        return str(given)
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return str(int(given))
    raise UserError(f"{kind}: {given!r} is no id; expected text or an integer")


def as_new_token(given: Any, where: str) -> Token:
    """A token that may join the table.

    Raises:
        UserError: for anything but 1 to 256 printable letters, or an integer.
    """
    token = str(given) if type(given) is int else given
    if not isinstance(token, str) or not token or len(token) > LONGEST_ID or not token.isprintable():
        raise UserError(f"{where}: {str(given)[:80]!r} is no id; expected 1 to {LONGEST_ID} printable letters")
    return token


def as_list(given: Any, name: str) -> Iterable[Any]:
    """Refuse a single string, which would be read as a list of letters.

    Raises:
        UserError: for a string, or anything that is not iterable.
    """
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"{name}: expected a list, got {given!r}")
    return given


def as_event(event: Any) -> tuple[TokenLike, TokenLike, float | None]:
    """The user, the item and the weight of an event; None if it has no weight.

    Raises:
        UserError: for anything else.
    """
    if isinstance(event, (str, bytes)) or not isinstance(event, Sequence) or len(event) not in (2, 3):
        raise UserError(f"events: {event!r} is no pair of a user and an item, and no weight behind")
    return event[0], event[1], as_weight(event[2], f"events: {event!r}") if len(event) == 3 else None


def as_weight(given: Any, where: str) -> float:
    """The weight of an interaction.

    Raises:
        UserError: for anything but a number that is allowed.
    """
    if isinstance(given, bool) or not isinstance(given, _NUMBERS) or not LEAST <= given <= LARGEST:
        raise UserError(f"{where}: {given!r} is no weight: expected {ALLOWED}")
    return float(given)
