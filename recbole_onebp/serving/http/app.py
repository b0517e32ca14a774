"""The service: what is asked over HTTP, checked, answered and counted."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator
from starlette.exceptions import HTTPException

from recbole_onebp import __version__
from recbole_onebp.serving.http.journal import JournalError
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.recommender import DEFAULT_RULE, Answers, Explanation, Recommender, Rule, UnknownIdError
from recbole_onebp.util.errors import UserError

__all__ = ["Limits", "create_app"]

_T = TypeVar("_T")

_PAGE = Path(__file__).parent / "page"
_FOUND = 20
"""Users or items that a search returns at most."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask of the service."""

    body_bytes: int = 1 << 20
    seconds: float = 10.0
    """For sending a request, and again for working on it."""


# ------------------------------------------------------------------------------------------------------------ requests


def _digits(given: Any) -> Any:
    return str(given) if type(given) is int else given


def _encodable(text: str) -> str:
    text.encode()  # JSON may hold half a surrogate pair, which no answer could
    return text


_Id = Annotated[
    str, Field(strict=True, min_length=1, max_length=256), BeforeValidator(_digits), AfterValidator(_encodable)
]
_Ids = Annotated[list[_Id], Field(max_length=1000)]
_Filter = Annotated[list[_Id], Field(max_length=10_000)]
_K = Annotated[StrictInt, Field(ge=1, le=1000)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Filters(_Request):
    k: _K = 10
    allow: _Filter | None = None
    """Choose from these items only."""
    deny: _Filter = []
    """Leave these items out."""


class RecommendRequest(_Filters):
    """Whom to recommend to."""

    users: _Ids
    exclude_seen: bool = True


class HistoryRequest(_Filters):
    """What users never seen have taken, each in order."""

    histories: Annotated[list[_Ids], Field(max_length=100)]
    exclude_seen: bool = True
    rule: Rule = DEFAULT_RULE
    """How a history becomes a user: its items all alike; weighed as in training; or the latest counting most."""


class SimilarRequest(_Filters):
    """To which items others are wanted."""

    items: _Ids


class ExplainRequest(_Request):
    """An item, and a user or a history."""

    item: _Id
    user: _Id | None = None
    history: _Ids | None = None
    rule: Rule = DEFAULT_RULE
    """Of the history."""

    @model_validator(mode="after")
    def _one(self) -> ExplainRequest:
        if (self.user is None) == (self.history is None):
            raise ValueError("expected either user or history")
        return self


class Event(_Request):
    """Somebody took something."""

    user: _Id
    item: _Id


class EventsRequest(_Request):
    """Events in the order in which they happened."""

    events: Annotated[list[Event], Field(max_length=1000)]


# ----------------------------------------------------------------------------------------------------------- endpoints


class _Service:
    """The endpoints.  What takes time is done by threads, so that none waits for another's."""

    def __init__(self, live: Live, seconds: float) -> None:
        self._live, self._seconds = live, seconds
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="ask")
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "recbole_onebp_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "recbole_onebp_request_seconds", "Seconds from the whole request to the answer.", ["endpoint"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10), registry=self.registry,
        )  # fmt: skip
        self._events = Counter(
            "recbole_onebp_events", "Events by what came of them.", ["outcome"], registry=self.registry
        )
        for name, help_text, value in (
            ("recbole_onebp_users", "Users that the service knows.", lambda: live.ask(lambda rec: rec.n_users)),
            ("recbole_onebp_items", "Items that the service knows.", lambda: live.ask(lambda rec: rec.n_items)),
            ("recbole_onebp_journal_bytes", "Size of the events on disk.", lambda: live.journal.bytes),
        ):
            Gauge(name, help_text, registry=self.registry).set_function(value)

    async def _do(self, work: Callable[[], _T]) -> _T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        return await asyncio.wait_for(future, self._seconds)

    async def _ask(self, question: Callable[[Recommender], _T]) -> _T:
        return await self._do(lambda: self._live.ask(question))

    async def _lists(self, asked: str, things: list[Any], question: Callable[[Recommender], Answers]) -> dict[str, Any]:
        """What a question returns, a list for each thing asked, with titles."""

        def work(rec: Recommender) -> dict[str, Any]:
            answers = question(rec)
            lists = [
                {asked: thing, "items": _items(rec, answer, "score")}
                for thing, answer in zip(things, answers, strict=True)
            ]
            return {"lists": lists, "unknown_users": answers.unknown_users, "unknown_items": answers.unknown_items}

        return await self._ask(work)

    async def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """The best items of users."""
        return await self._lists("user", request.users, lambda rec: rec.recommend(**dict(request)))

    async def recommend_history(self, request: HistoryRequest) -> dict[str, Any]:
        """The best items of users never seen, from what they have taken."""
        return await self._lists("history", request.histories, lambda rec: rec.recommend_history(**dict(request)))

    async def similar(self, request: SimilarRequest) -> dict[str, Any]:
        """The items closest to some items."""
        return await self._lists("item", request.items, lambda rec: rec.similar_items(**dict(request)))

    async def explain(self, request: ExplainRequest) -> dict[str, Any]:
        """Which of a user's items pull an item up for it."""

        def question(rec: Recommender) -> dict[str, Any]:
            if request.user is not None:
                return _explanation(rec, rec.explain(request.user, request.item))
            return _explanation(rec, rec.explain_history(request.history or [], request.item, request.rule))

        return await self._ask(question)

    async def events(self, request: EventsRequest) -> dict[str, Any]:
        """Move users by what they took.  Once this is answered the events are on the disk."""
        update = await self._do(lambda: self._live.record([(event.user, event.item) for event in request.events]))
        self._events.labels("applied").inc(update.applied)
        self._events.labels("unknown_item").inc(len(request.events) - update.applied)
        return {"applied": update.applied, "new_users": update.new_users, "unknown_items": update.unknown}

    async def history(self, user: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """What a user has taken."""
        return await self._ask(
            lambda rec: {
                "user": user,
                "items": [{"item": item, "title": rec.title(item)} for item in rec.history(user)],
            }
        )

    async def items(self, q: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """Items whose id or title contains a text."""
        return {"items": await self._ask(lambda rec: _found_items(rec, q))}

    async def users(self, q: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """Users whose id begins with a text."""
        return {"users": await self._ask(lambda rec: _found_users(rec, q))}

    async def reload(self) -> dict[str, Any]:
        """Load the bundle anew and serve it; the old one answers until that is done."""
        # Not under the time limit: a large bundle takes its time, and nobody waits for it.
        await asyncio.get_running_loop().run_in_executor(self._threads, self._live.replace)
        return await self.health()

    async def health(self) -> dict[str, Any]:
        """Whether the service answers, and from what."""
        return await self._ask(
            lambda rec: {
                "status": "ok",
                "version": __version__,
                "bundle": {
                    "key": rec.bundle.key,
                    **{name: rec.bundle.manifest.get(name) for name in ("created", "aggregation", "ordered")},
                },
                "users": rec.n_users,
                "items": rec.n_items,
            }
        )

    async def metrics(self) -> Response:
        """Counts and latencies in Prometheus's format."""
        return Response(await self._do(lambda: generate_latest(self.registry)), media_type=CONTENT_TYPE_LATEST)


def _items(rec: Recommender, pairs: list[tuple[str, float]], value: str) -> list[dict[str, Any]]:
    return [{"item": item, "title": rec.title(item), value: number} for item, number in pairs]


def _explanation(rec: Recommender, explanation: Explanation) -> dict[str, Any]:
    return {
        "score": explanation.score,
        "bias": explanation.bias,
        "residual": explanation.residual,
        "contributions": _items(rec, explanation.contributions, "value"),
        "unknown_items": explanation.unknown,
    }


def _found_users(rec: Recommender, text: str) -> list[str]:
    return list(islice((user for user in rec.user_ids if user.startswith(text)), _FOUND))


def _found_items(rec: Recommender, text: str) -> list[dict[str, str]]:
    text = text.casefold()
    found = ((item, rec.title(item)) for item in rec.item_ids)
    named = ({"item": item, "title": title} for item, title in found if text in title.casefold() or text == item)
    return list(islice(named, _FOUND))


# ----------------------------------------------------------------------------------------------------------------- app


def create_app(live: Live, api_key: str | None = None, limits: Limits | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        live: what answers.
        api_key: asked for as ``Authorization: Bearer KEY``, except for the page and ``/health``; none if None.
        limits: of what may be asked.
    """
    limits = limits or Limits()
    service = _Service(live, limits.seconds)
    app = FastAPI(title="recbole_onebp", version=__version__, description="Recommendations from a bundle.")
    endpoints = {
        "POST": ("recommend", "recommend_history", "similar", "explain", "events", "reload"),
        "GET": ("health", "history", "items", "users"),
    }
    for method, names in endpoints.items():
        for name in names:
            app.add_api_route(f"/{name}", getattr(service, name), methods=[method], response_model=None)
    app.add_api_route("/metrics", service.metrics, response_class=Response, response_model=None)
    for path, file in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        app.add_api_route(path, _sender(_PAGE / file), methods=["GET"], include_in_schema=False)

    for error, status in _STATUS.items():
        app.add_exception_handler(error, _teller(status))
    app.add_exception_handler(HTTPException, _tell_of_http)
    app.add_middleware(_Guard, service=service, api_key=api_key, limits=limits)
    return app


_STATUS: dict[type[Exception], int] = {
    RequestValidationError: 422,
    UserError: 422,
    UnknownIdError: 404,
    JournalError: 503,
    asyncio.TimeoutError: 503,
}


def _teller(status: int) -> Callable[[Any, Exception], Any]:
    async def tell(_request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": _words(error)}, status)

    return tell


async def _tell_of_http(_request: Any, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


def _words(error: Exception) -> str:
    if isinstance(error, RequestValidationError):  # without the input, which may be anything
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    if isinstance(error, asyncio.TimeoutError):
        return "this takes longer than is allowed; ask for less at a time"
    if isinstance(error, JournalError):
        return f"the events could not be written, and do not count: {error}"
    return str(error)


_HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def _sender(file: Path) -> Callable[[], Any]:
    async def send() -> FileResponse:
        return FileResponse(file, headers=_HEADERS)

    return send


class _Guard:
    """Before anything is parsed: the key, the size and the time of a request; after it: what came of it, counted."""

    _OPEN = frozenset({"/", "/page.js", "/page.css", "/health"})

    def __init__(self, app: Any, service: _Service, api_key: str | None, limits: Limits) -> None:
        self._app, self._service, self._limits = app, service, limits
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def sending(message: Mapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        start = perf_counter()
        try:
            refusal, body = await self._body(scope, receive)
            start = perf_counter()
            if refusal:
                await refusal(scope, receive, sending)
            else:
                await self._app(scope, _once(body, receive), sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._service.requests.labels(route, str(status)).inc()
            self._service.latency.labels(route).observe(perf_counter() - start)

    async def _body(self, scope: dict[str, Any], receive: Any) -> tuple[JSONResponse | None, bytes]:
        """A refusal, or the body of the request."""
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in self._OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                told = {"error": "expected the header Authorization: Bearer KEY, with the service's key"}
                return JSONResponse(told, 401, {"WWW-Authenticate": "Bearer"}), b""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return self._too_large(), b""
        try:
            body = await asyncio.wait_for(self._read(receive), self._limits.seconds)
        except asyncio.TimeoutError:
            return JSONResponse({"error": "the request did not arrive in time"}, 408, {"Connection": "close"}), b""
        return (self._too_large(), b"") if len(body) > self._limits.body_bytes else (None, body)

    async def _read(self, receive: Any) -> bytes:
        """The body, or as much of it as is too much."""
        body, more = b"", True
        while more and len(body) <= self._limits.body_bytes:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    def _too_large(self) -> JSONResponse:
        told = {"error": f"the request is larger than {self._limits.body_bytes} bytes; ask for less at a time"}
        return JSONResponse(told, 413, {"Connection": "close"})


def _once(body: bytes, receive: Any) -> Any:
    """A request's messages: its body, whole, then what else comes."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return messages.pop() if messages else await receive()

    return next_message
