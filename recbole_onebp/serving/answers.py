"""What the methods of a recommender return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token

__all__ = [
    "Answers",
    "Explanation",
    "FeaturePart",
    "NewItems",
    "Part",
    "RemovedItems",
    "Scores",
    "UnknownIdError",
    "Update",
]


class UnknownIdError(UserError):
    """The only user or item of a request is unknown.  Methods that accept many ids report unknown ones instead.

    Example:
        >>> raise UnknownIdError("user nobody: the bundle does not know it")
        Traceback (most recent call last):
        ...
        recbole_onebp.serving.answers.UnknownIdError: user nobody: the bundle does not know it
    """


class Answers(list[list[tuple[Token, float]]]):
    """A list of (item, score) pairs, best first, for each user, history or item asked; empty where it is unknown.

    Attributes:
        unknown_users: the users that the bundle does not contain, each once, in the order asked.
        unknown_items: the same for items, in histories and filters too.

    Example:
        >>> answers = Answers([[("i7", 0.9), ("i2", 0.4)], []], unknown_users=["nobody"], unknown_items=[])
        >>> [item for item, _ in answers[0]], answers[1], answers.unknown
        (['i7', 'i2'], [], ['nobody'])
    """

    def __init__(
        self, lists: Iterable[list[tuple[Token, float]]], unknown_users: list[Token], unknown_items: list[Token]
    ) -> None:
        super().__init__(lists)
        self.unknown_users = unknown_users
        self.unknown_items = unknown_items

    @property
    def unknown(self) -> list[Token]:
        """All unknown ids, users first."""
        return self.unknown_users + self.unknown_items


class Scores(np.ndarray[Any, np.dtype[np.float64]]):
    """A float64 array with the score of each pair asked; NaN where the user or the item is unknown.

    Attributes:
        unknown_users: the users that the bundle does not contain, each once, in the order asked.
        unknown_items: the same for items.

    Example:
        >>> scores = np.array([0.9, np.nan]).view(Scores)
        >>> scores.unknown_items = ["nothing"]
        >>> float(np.nanmax(scores)), scores.unknown
        (0.9, ['nothing'])
    """

    unknown_users: Sequence[Token] = ()
    unknown_items: Sequence[Token] = ()

    @property
    def unknown(self) -> list[Token]:
        """All unknown ids, users first."""
        return [*self.unknown_users, *self.unknown_items]


class Part(NamedTuple):
    """What an item of a history adds to a score, by the two parts of the model."""

    item: Token
    tower: float
    """By the user's embedding, of which it is a part."""
    local: float
    """By the local term, which knows single pairs of items; 0 where the bundle has none."""


class FeaturePart(NamedTuple):
    """What a feature of an item adds to a score."""

    name: str
    """The field."""
    value: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """The parts of a score: ``score = bias + residual + sum of contributions``.

    Example:
        >>> parts = [Part("i5", tower=0.5, local=0.25), Part("i9", tower=0.25, local=0.0)]
        >>> contributions = [(part.item, part.tower + part.local) for part in parts]
        >>> explanation = Explanation(1.125, 0.125, contributions, parts, residual=0.0, unknown=[])
        >>> explanation.score == explanation.bias + explanation.residual + sum(x for _, x in explanation.contributions)
        True
    """

    score: float
    bias: float
    """The item's bias, the same for all users."""
    contributions: list[tuple[Token, float]]
    """What each item of the user's history adds, largest first."""
    parts: list[Part]
    """The same, split: a contribution is ``tower + local``."""
    residual: float
    """The rest.  It is 0, up to rounding, for a folded-in user, who is the weighted mean of the history.  A trained
    user was computed from earlier versions of the items, so there is a rest."""
    unknown: list[Token]
    """Items of the history that the bundle does not contain."""
    features: list[FeaturePart] = field(default_factory=list)
    """Of an item that no training knows: what its features add to the score, largest first.  What is left of the
    towers' part comes from the users who took the item."""


@dataclass(frozen=True)
class Update:
    """The result of applying events.

    Example:
        >>> Update(applied=2, new_users=["new"], unknown=["nothing"])
        Update(applied=2, new_users=['new'], unknown=['nothing'])
    """

    applied: int
    """Number of events that changed a user."""
    new_users: list[Token]
    unknown: list[Token]
    """Items that the bundle does not contain.  Their events are ignored."""


@dataclass(frozen=True)
class NewItems:
    """The result of adding items.

    Example:
        >>> NewItems(added=["i1"], refused={"i2": "nobody in the bundle has it"}, unknown=[]).refused["i2"]
        'nobody in the bundle has it'
    """

    added: list[Token]
    refused: dict[Token, str]
    """Items that were not added, with the reason."""
    unknown: list[Token]
    """Users that the bundle does not contain.  They are ignored."""


@dataclass(frozen=True)
class RemovedItems:
    """The result of removing items.

    Example:
        >>> RemovedItems(removed=["i1"], unknown=["nothing"]).unknown
        ['nothing']
    """

    removed: list[Token]
    unknown: list[Token]
    """Items that are not in the bundle, or were removed before."""
