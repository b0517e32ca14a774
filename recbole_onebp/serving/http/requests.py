"""Bodies of requests, checked by pydantic.  Their docstrings appear in ``/docs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import models_json_schema
from pydantic_core import from_json

from recbole_onebp.serving.recommender import Similarity
from recbole_onebp.serving.user_state import DEFAULT_RULE, Rule
from recbole_onebp.util.errors import UserError
from recbole_onebp.weights import ALLOWED, LARGEST, LEAST

__all__ = [
    "EventsRequest",
    "ExplainRequest",
    "HistoryRequest",
    "NewItemsRequest",
    "RecommendRequest",
    "ReloadRequest",
    "RemovedItemsRequest",
    "SimilarRequest",
    "describe",
    "json_schemas",
    "parse",
]

_BRACKETS = 20_000
"""Most opening brackets of a request, those in texts included.  Making a million lists takes a second."""

_NAMES, _ENTRIES, _TEXT = 16, 10_000, 256
"""Most names of an object, entries of a list, and letters of a text in a request."""


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
_Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
_Value = _Token | _Number | Annotated[list[_Token | _Number], Field(max_length=10_000)]
_Weight = Annotated[float, Field(ge=LEAST, le=LARGEST, allow_inf_nan=False, strict=True)]
_Weights = Annotated[list[_Weight], Field(max_length=1000)]
_Filter = Annotated[list[_Token], Field(max_length=10_000)]


class Request(BaseModel):
    """A JSON object without unknown names."""

    model_config = ConfigDict(extra="forbid")
    deepest: ClassVar[int] = 2
    """Levels of lists and objects inside the object."""
    lists_hold_ids: ClassVar[bool] = True
    """Those of ``weights`` excepted."""


_Model = TypeVar("_Model", bound=Request)


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
    weights: Annotated[list[_Weights], Field(max_length=100)] | None = None
    """A weight for each item of each history, where the bundle was trained on weights of interactions."""


class SimilarRequest(ListRequest):
    """Items to find similar items for."""

    items: _Tokens
    by: Similarity = "tower"
    """By the cosine of their embeddings (tower), or by the scores that an item gives to others (local)."""


class ExplainRequest(Request):
    """An item, and either a user or a history."""

    item: _Token
    user: _Token | None = None
    history: _Tokens | None = None
    rule: Rule = DEFAULT_RULE
    """How the items of the history count."""
    weights: _Weights | None = None
    """A weight for each item of the history."""

    @model_validator(mode="after")
    def _check_one(self) -> ExplainRequest:
        if (self.user is None) == (self.history is None):
            raise ValueError("expected either user or history")
        if self.history is None and self.weights is not None:
            raise ValueError("weights are those of a history")
        return self


class EventEntry(Request):
    """A user interacted with an item."""

    user: _Token
    item: _Token
    id: _Token | None = None
    """An event whose id is known already is a retry and does not count again."""
    time: Annotated[float, Field(allow_inf_nan=False, strict=True)] | None = None
    """When it happened, in seconds.  Without an id, user, item and time identify the event."""
    weight: _Weight | None = None
    """How much it counts, where the bundle was trained on weights of interactions; without one, as the median there."""


class EventsRequest(Request):
    """Events in the order in which they happened."""

    events: Annotated[list[EventEntry], Field(max_length=1000)]


class ItemEntry(Request):
    """A new item."""

    item: _Token
    features: Annotated[dict[str, _Value], Field(max_length=100)] = {}
    """Fields, as in the data set; several values of one are a list.  Without: an item comes back as it was."""


class NewItemsRequest(Request):
    """New items, or removed ones that come back."""

    deepest: ClassVar[int] = 4
    lists_hold_ids: ClassVar[bool] = False
    items: Annotated[list[ItemEntry], Field(max_length=1000)]

    @model_validator(mode="after")
    def _check_once(self) -> NewItemsRequest:
        names = [one.item for one in self.items]
        if len(set(names)) < len(names):
            raise ValueError(f"item {next(name for name in names if names.count(name) > 1)} occurs twice")
        return self


class RemovedItemsRequest(Request):
    """Items to remove."""

    items: _Tokens


class ReloadRequest(Request):
    """An empty object."""


def parse(model: type[_Model], body: bytes) -> _Model:
    """A request from JSON, in time that does not depend on how many faults it has.

    Raises:
        UserError: for the first fault; without long input.
    """
    if body.count(b"[") + body.count(b"{") > _BRACKETS:
        raise UserError(f"the request has more than {_BRACKETS} lists and objects; send less at a time")
    try:
        given = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"the request is no JSON: {error}") from None
    _check(given, "the request", 0, model)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError(describe(error.errors(include_url=False, include_input=False)[0])) from None


def describe(error: Mapping[str, Any]) -> str:
    """An error of pydantic in one line, without long input."""
    where = ".".join(str(part)[:_TEXT] for part in error["loc"] if part not in ("body", "query"))
    return f"{where}: {error['msg'][:_TEXT]}" if where else str(error["msg"][:_TEXT])


def _check(value: Any, where: str, depth: int, model: type[Request]) -> None:
    """Refuse what no request has: pydantic would list a fault for each of a million entries."""
    most = _NAMES if isinstance(value, dict) else _ENTRIES if isinstance(value, list) else _TEXT
    if isinstance(value, (dict, list, str)) and len(value) > most:
        raise UserError(f"{where}: has a length of {len(value)}; at most {most} is allowed")
    if isinstance(value, (dict, list)):
        if depth > model.deepest:
            raise UserError(f"{where}: is nested too deeply")
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in entries:
            place = str(name)[:_TEXT] if depth == 0 else where
            if isinstance(value, list):
                _check_entry(inner, place, model)
            _check(inner, place, depth + 1, model)


def _check_entry(entry: Any, where: str, model: type[Request]) -> None:
    """Refuse what is neither a list nor what lists of a member hold."""
    if where == "weights" and not isinstance(entry, list):
        if type(entry) not in (int, float) or not LEAST <= entry <= LARGEST:
            raise UserError(f"{where}: {str(entry)[:_TEXT]} is no weight; expected {ALLOWED}")
    elif model.lists_hold_ids and (isinstance(entry, (bool, float)) or entry is None or entry == ""):
        raise UserError(f"{where}: {entry!r} is no id; expected text or an integer")


def json_schemas() -> dict[str, Any]:
    """The JSON schemas of all requests by name, for OpenAPI."""
    models = (
        EventsRequest, ExplainRequest, HistoryRequest, NewItemsRequest, RecommendRequest, ReloadRequest,
        RemovedItemsRequest, SimilarRequest,
    )  # fmt: skip
    _, made = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return dict(made["$defs"])
