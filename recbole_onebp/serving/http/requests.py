"""Bodies of requests, checked by pydantic.  Their docstrings appear in ``/docs``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from recbole_onebp.serving.user_state import DEFAULT_RULE, Rule

__all__ = ["EventsRequest", "ExplainRequest", "HistoryRequest", "RecommendRequest", "SimilarRequest"]


def _integer_to_text(given: Any) -> Any:
    return str(given) if type(given) is int else given


def _check_encodable(text: str) -> str:
    text.encode()  # JSON may contain half a surrogate pair, which cannot be sent back
    return text


_Token = Annotated[
    str,
    Field(strict=True, min_length=1, max_length=256),
    BeforeValidator(_integer_to_text),
    AfterValidator(_check_encodable),
]
_Tokens = Annotated[list[_Token], Field(max_length=1000)]
_Filter = Annotated[list[_Token], Field(max_length=10_000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _ListRequest(_Request):
    k: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    """Length of the lists."""
    allow: _Filter | None = None
    """Choose from these items only."""
    deny: _Filter = []
    """Leave these items out."""


class RecommendRequest(_ListRequest):
    """Users to recommend items to."""

    users: _Tokens
    exclude_seen: bool = True
    """Leave out the items of each user's history."""


class HistoryRequest(_ListRequest):
    """Histories of new users, each in order."""

    histories: Annotated[list[_Tokens], Field(max_length=100)]
    exclude_seen: bool = True
    """Leave out the items of each history."""
    rule: Rule = DEFAULT_RULE
    """How items count: all the same (alike), weighted as in training (trained), or later ones more (recent)."""


class SimilarRequest(_ListRequest):
    """Items to find similar items for."""

    items: _Tokens


class ExplainRequest(_Request):
    """An item, and either a user or a history."""

    item: _Token
    user: _Token | None = None
    history: _Tokens | None = None
    rule: Rule = DEFAULT_RULE
    """How the items of the history count."""

    @model_validator(mode="after")
    def _check_one(self) -> ExplainRequest:
        if (self.user is None) == (self.history is None):
            raise ValueError("expected either user or history")
        return self


class Event(_Request):
    """A user interacted with an item."""

    user: _Token
    item: _Token


class EventsRequest(_Request):
    """Events in the order in which they happened."""

    events: Annotated[list[Event], Field(max_length=1000)]
