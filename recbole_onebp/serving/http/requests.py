"""Bodies of requests, checked by pydantic.  Their docstrings appear in ``/docs``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator
from pydantic.json_schema import models_json_schema

from recbole_onebp.serving.user_state import DEFAULT_RULE, Rule

__all__ = [
    "EventsRequest",
    "ExplainRequest",
    "HistoryRequest",
    "RecommendRequest",
    "ReloadRequest",
    "SimilarRequest",
    "json_schemas",
]


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


class Request(BaseModel):
    """A JSON object without unknown names."""

    model_config = ConfigDict(extra="forbid")


class ListRequest(Request):
    """A request for lists."""

    k: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    """Length of the lists."""
    allow: _Filter | None = None
    """Choose from these items only."""
    deny: _Filter = []
    """Leave these items out."""


class RecommendRequest(ListRequest):
    """Users to recommend items to."""

    users: _Tokens
    exclude_seen: bool = True
    """Leave out the items of each user's history."""


class HistoryRequest(ListRequest):
    """Histories of new users, each in order."""

    histories: Annotated[list[_Tokens], Field(max_length=100)]
    exclude_seen: bool = True
    """Leave out the items of each history."""
    rule: Rule = DEFAULT_RULE
    """How items count: all the same (alike), weighted as in training (trained), or later ones more (recent)."""


class SimilarRequest(ListRequest):
    """Items to find similar items for."""

    items: _Tokens


class ExplainRequest(Request):
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


class EventEntry(Request):
    """A user interacted with an item."""

    user: _Token
    item: _Token
    id: _Token | None = None
    """An event whose id is known already is a retry and does not count again."""
    time: Annotated[float, Field(allow_inf_nan=False, strict=True)] | None = None
    """When it happened, in seconds.  Without an id, user, item and time identify the event."""


class EventsRequest(Request):
    """Events in the order in which they happened."""

    events: Annotated[list[EventEntry], Field(max_length=1000)]


class ReloadRequest(Request):
    """An empty object."""


def json_schemas() -> dict[str, Any]:
    """The JSON schemas of all requests by name, for OpenAPI."""
    models = (EventsRequest, ExplainRequest, HistoryRequest, RecommendRequest, ReloadRequest, SimilarRequest)
    _, made = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return dict(made["$defs"])
