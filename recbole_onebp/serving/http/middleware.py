"""Checks of requests before they are parsed: key, size and time."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from fastapi.responses import JSONResponse

from recbole_onebp.serving.http.metrics import Metrics

__all__ = ["Guard", "Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of a request."""

    body_bytes: int = 1 << 20
    seconds: float = 10.0
    """For receiving the request, and again for answering it."""


class Guard:
    """ASGI middleware.  It refuses requests without the key, too large or too slow, and counts all requests."""

    _OPEN = frozenset({"/", "/page.js", "/page.css", "/health"})
    """Paths that need no key."""

    def __init__(self, app: Any, metrics: Metrics, api_key: str | None, limits: Limits) -> None:
        self._app, self._metrics, self._limits = app, metrics, limits
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def send_and_note_status(message: Mapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        start = perf_counter()
        try:
            refusal, body = await self._check(scope, receive)
            start = perf_counter()
            if refusal:
                await refusal(scope, receive, send_and_note_status)
            else:
                await self._app(scope, _replay(body, receive), send_and_note_status)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(perf_counter() - start)

    async def _check(self, scope: dict[str, Any], receive: Any) -> tuple[JSONResponse | None, bytes]:
        """A refusal, or the body of the request."""
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in self._OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):  # in constant time
                error = {"error": "expected the header Authorization: Bearer KEY, with the key of this service"}
                return JSONResponse(error, 401, {"WWW-Authenticate": "Bearer"}), b""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limits.body_bytes:
            return self._too_large(), b""
        try:
            body = await asyncio.wait_for(self._read(receive), self._limits.seconds)
        except asyncio.TimeoutError:
            return JSONResponse({"error": "the request did not arrive in time"}, 408, {"Connection": "close"}), b""
        return (self._too_large(), b"") if len(body) > self._limits.body_bytes else (None, body)

    async def _read(self, receive: Any) -> bytes:
        """The body; reading stops once it is too large."""
        body, more = b"", True
        while more and len(body) <= self._limits.body_bytes:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    def _too_large(self) -> JSONResponse:
        error = {"error": f"the request is larger than {self._limits.body_bytes} bytes; ask for less at a time"}
        return JSONResponse(error, 413, {"Connection": "close"})


def _replay(body: bytes, receive: Any) -> Any:
    """ASGI's ``receive`` for a body that has been read already."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Any:
        return messages.pop() if messages else await receive()

    return next_message
