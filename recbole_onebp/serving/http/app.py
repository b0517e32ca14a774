"""The service as an ASGI application: routes, errors and the page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from recbole_onebp import __version__
from recbole_onebp.serving.answers import UnknownIdError
from recbole_onebp.serving.http.endpoints import Endpoints
from recbole_onebp.serving.http.journal import JournalError
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.metrics import Metrics
from recbole_onebp.serving.http.middleware import Guard, Limits
from recbole_onebp.util.errors import UserError

__all__ = ["create_app"]

_PAGE = Path(__file__).parent / "page"

_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_STATUS: dict[type[Exception], int] = {
    RequestValidationError: 422,
    UserError: 422,
    UnknownIdError: 404,
    JournalError: 503,
    asyncio.TimeoutError: 503,
}


def create_app(live: Live, api_key: str | None = None, limits: Limits | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        live: the recommender that answers.
        api_key: required as ``Authorization: Bearer KEY``, except for the page and ``/health``; no key if None.
        limits: size and time of requests; the defaults if None.
    """
    limits = limits or Limits()
    metrics = Metrics(live)
    endpoints = Endpoints(live, metrics, limits.seconds)
    app = FastAPI(title="recbole_onebp", version=__version__, description="Recommendations from a bundle.")
    for method, names in {
        "POST": ("recommend", "recommend_history", "similar", "explain", "events", "reload"),
        "GET": ("health", "history", "items", "users"),
    }.items():
        for name in names:
            app.add_api_route(f"/{name}", getattr(endpoints, name), methods=[method], response_model=None)
    app.add_api_route("/metrics", endpoints.metrics, response_class=Response, response_model=None)
    for path, file in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        app.add_api_route(path, _file_route(_PAGE / file), methods=["GET"], include_in_schema=False)

    for error, status in _STATUS.items():
        app.add_exception_handler(error, _error_handler(status))
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_middleware(Guard, metrics=metrics, api_key=api_key, limits=limits)
    return app


def _file_route(file: Path) -> Callable[[], Any]:
    async def send() -> FileResponse:
        return FileResponse(file, headers=_PAGE_HEADERS)

    return send


def _error_handler(status: int) -> Callable[[Any, Exception], Any]:
    async def handle(_request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": _message(error)}, status)

    return handle


async def _handle_http_exception(_request: Any, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


def _message(error: Exception) -> str:
    if isinstance(error, RequestValidationError):  # without the input, which may be long or hostile
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    if isinstance(error, asyncio.TimeoutError):
        return "the answer takes longer than allowed; ask for less at a time"
    if isinstance(error, JournalError):
        return f"the events could not be written and were not applied: {error}"
    return str(error)
