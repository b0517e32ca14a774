"""The service as an ASGI application: routes, errors and the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from recbole_onebp import __version__
from recbole_onebp.serving.answers import UnknownIdError
from recbole_onebp.serving.http.docs_page import docs_page
from recbole_onebp.serving.http.endpoints import Endpoints
from recbole_onebp.serving.http.events import StoreError
from recbole_onebp.serving.http.live import Live, ReadError, TooManyItemsError, TooManyUsersError
from recbole_onebp.serving.http.metrics import Metrics
from recbole_onebp.serving.http.middleware import Guard, Limits, busy, check_key
from recbole_onebp.serving.http.origins import Origins
from recbole_onebp.serving.http.requests import describe, json_schemas
from recbole_onebp.serving.http.short_way import Endpoint, ErrorHandlers, ShortWay, body_route
from recbole_onebp.serving.http.threads import BusyError, LateError
from recbole_onebp.util.errors import UserError

__all__ = ["create_app"]

_PAGE = Path(__file__).parent / "page"

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_STATUS: dict[type[Exception], int] = {
    RequestValidationError: 422,
    UserError: 422,
    UnknownIdError: 404,
    StoreError: 503,
    ReadError: 503,
    TooManyUsersError: 507,
    TooManyItemsError: 507,
}

_BODIES = {
    "recommend": "RecommendRequest",
    "recommend_history": "HistoryRequest",
    "similar": "SimilarRequest",
    "explain": "ExplainRequest",
    "events": "EventsRequest",
    "reload": "ReloadRequest",
}

_LONGEST = 200
"""Letters of a request that an error message repeats."""


def create_app(
    live: Live, api_key: str | None = None, limits: Limits | None = None, origins: Origins | None = None
) -> FastAPI:
    """The service as an ASGI application.

    Args:
        live: the recommender that answers.
        api_key: required as ``Authorization: Bearer KEY``, except for the pages, ``/health`` and ``/ready``; no key if
            None.
        limits: of requests and answers; the defaults if None.
        origins: the hosts under which it may be addressed; loopback names if None.

    Raises:
        UserError: if the key cannot be sent in a header.
    """
    limits, api_key = limits or Limits(), check_key(api_key)
    metrics = Metrics(live)
    endpoints = Endpoints(live, metrics, limits)
    app = FastAPI(
        title="recbole_onebp", version=__version__, description="Recommendations from a bundle.", docs_url=None,
        redoc_url=None,
    )  # fmt: skip
    for name, model in _BODIES.items():
        _add_route(app, "POST", f"/{name}", getattr(endpoints, name), model, required=name != "reload")
    _add_route(app, "POST", "/items", endpoints.add_items, "NewItemsRequest")
    _add_route(app, "DELETE", "/items", endpoints.remove_items, "RemovedItemsRequest")
    for name in ("health", "ready", "history", "items", "users", "metrics"):
        app.add_api_route(f"/{name}", getattr(endpoints, name), response_class=Response, response_model=None)
    _describe(app)
    for path, (kind, content) in {
        "/": ("text/html", (_PAGE / "index.html").read_bytes()),
        "/page.js": ("text/javascript", (_PAGE / "page.js").read_bytes()),
        "/page.css": ("text/css", (_PAGE / "page.css").read_bytes()),
        "/docs": ("text/html", docs_page(app.openapi()).encode()),
    }.items():
        app.add_api_route(path, _page_route(kind, content), methods=["GET"], include_in_schema=False)

    handlers: ErrorHandlers = {error: _error_handler(status) for error, status in _STATUS.items()}
    handlers = {**handlers, HTTPException: _handle_http_exception, BusyError: _handle_busy, LateError: _handle_busy}
    for error, handler in handlers.items():
        app.add_exception_handler(error, handler)
    routes = {route.path: route for route in app.routes if isinstance(route, APIRoute)}
    direct = {f"/{name}": getattr(endpoints, name) for name in _BODIES}
    app.add_middleware(ShortWay, routes=routes, endpoints=direct, handlers=handlers)
    app.add_middleware(Guard, metrics=metrics, api_key=api_key, limits=limits, origins=origins or Origins())
    return app


def _add_route(app: FastAPI, method: str, path: str, endpoint: Endpoint, model: str, required: bool = True) -> None:
    """A route for requests with a body, which is of a model of ``requests``."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    extra = {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}
    app.add_api_route(
        path, body_route(endpoint), methods=[method], response_class=Response, response_model=None, openapi_extra=extra
    )


def _describe(app: FastAPI) -> None:
    """Put the bodies of requests, which our threads parse, into the OpenAPI schema."""
    described = app.openapi()
    described.setdefault("components", {}).setdefault("schemas", {}).update(json_schemas())
    app.openapi = lambda: described


def _page_route(kind: str, content: bytes) -> Callable[[], Any]:
    async def send() -> Response:
        return Response(content, headers=_PAGE_HEADERS, media_type=kind)

    return send


def _error_handler(status: int) -> Callable[[Any, Exception], Any]:
    async def handle(_request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": _message(error)}, status)

    return handle


async def _handle_http_exception(_request: Any, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": _short(str(error.detail))}, error.status_code, error.headers)


async def _handle_busy(request: Any, error: Exception) -> JSONResponse:
    return busy(str(error), status=429 if request.url.path == "/reload" else 503)


def _message(error: Exception) -> str:
    if isinstance(error, RequestValidationError):
        return describe(error.errors()[0])
    if isinstance(error, StoreError):
        return _short(f"the events could not be written and do not count: {error}")
    return _short(str(error))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
