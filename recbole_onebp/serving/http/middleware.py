"""Checks of requests before they are parsed: host, origin, key, size and time; and bounds on what waits to be sent."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from recbole_onebp.serving.http.metrics import Metrics
from recbole_onebp.serving.http.origins import Origins
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.processes import n_cores

if TYPE_CHECKING:
    from recbole_onebp.serving.http.protocol import Connection

__all__ = ["OPEN_PATHS", "Guard", "Limits", "busy", "check_key"]

OPEN_PATHS = frozenset({"/", "/page.js", "/page.css", "/docs", "/health", "/ready"})
"""Paths that need no key."""

_JSON = re.compile(rb"application/json\s*(;.*)?", re.IGNORECASE | re.DOTALL)

_SENT_AT_A_TIME = 1 << 16

_WAITING = 8
"""Requests that may wait in each of several processes in any case."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests and answers."""

    body_bytes: int = 1 << 20
    seconds: float = 10.0
    """For receiving the request, again for answering it, and again for sending the answer."""
    rows: int = 20_000
    """Rows of an answer: users, histories or items asked, times k."""
    answer_bytes: int = 16 << 20
    memory_bytes: int = 64 << 20
    """Bodies that are being received or worked on, and answers that are being sent, of all requests together."""
    waiting: int = 64
    """Largest number of pending small read requests; limits of the same size apply to large read requests and to
    requests that write events."""
    threads: int = field(default_factory=lambda: max(2, n_cores()))
    """Threads for small read requests; ``threads // 2`` more (at least 1) serve large ones."""

    def divided(self, n_workers: int) -> Limits:
        """The share of each of several processes of a service.  Each can take the largest request and answer."""
        return replace(
            self,
            memory_bytes=max(self.memory_bytes // n_workers, self.body_bytes + self.answer_bytes),
            waiting=max(self.waiting // n_workers, _WAITING),
            threads=max(self.threads // n_workers, 1),
        )


def check_key(key: str | None) -> str | None:
    """The key if it can be sent in a header; None is no key.

    Raises:
        UserError: for an empty key, and one with blanks or other than ASCII letters.
    """
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        raise UserError(
            "RECBOLE_ONEBP_API_KEY: expected printable ASCII letters without blanks, at least one; unset it to serve "
            "without a key"
        )
    return key


class Guard:
    """ASGI middleware.  It refuses requests for other hosts, from foreign pages, without the key, too large or too
    slow, and counts all requests."""

    def __init__(self, app: Any, metrics: Metrics, api_key: str | None, limits: Limits, origins: Origins) -> None:
        self._app, self._metrics, self._limits, self._origins = app, metrics, limits, origins
        self._key = None if api_key is None else f"Bearer {api_key}".encode()
        self._held = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        try:
            await request.answer()
        finally:
            self._held -= request.held
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count(route, request.status, perf_counter() - request.start)

    def refusal(self, scope: Mapping[str, Any]) -> JSONResponse | None:
        """A refusal by the headers alone."""
        headers = dict(scope["headers"])
        host = headers.get(b"host")
        is_one = [name for name, _ in scope["headers"]].count(b"host") < 2  # the parser takes several
        if not (is_one and self._origins.allows_host(host)):
            return _refuse(403, "the Host header names another host; allow it with --allowed_hosts")
        if scope["method"] not in ("GET", "HEAD"):
            if not self._origins.allows_origin(headers.get(b"origin"), host):
                return _refuse(403, "requests from pages of other origins are refused; allow them with --allowed_hosts")
            if not _JSON.fullmatch(headers.get(b"content-type", b"")):
                return _refuse(415, "expected the header Content-Type: application/json")
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):  # in constant time
                words = "expected the header Authorization: Bearer KEY, with the key of this service"
                return _refuse(401, words, {"WWW-Authenticate": "Bearer"})
        if b"transfer-encoding" in headers:
            return _refuse(411, "expected the header Content-Length; chunks are not accepted", {"Connection": "close"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.body_bytes:
            words = f"the request is larger than {self._limits.body_bytes} bytes; ask for less at a time"
            return _refuse(413, words, {"Connection": "close"})
        return None

    def hold(self, n_bytes: int) -> bool:
        """Take memory for a request; whether there is enough."""
        if self._held + n_bytes > self._limits.memory_bytes:
            return False
        self._held += n_bytes
        return True


class _CutOffError(Exception):
    """The client went away before it had sent the whole request."""


class _Request:
    """One request on its way through the guard."""

    def __init__(self, guard: Guard, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        self._seconds = guard._limits.seconds
        self._first: Mapping[str, Any] = {}
        self._connection: Connection | None = scope.get("connection")
        self.status, self.held, self.start = 500, 0, perf_counter()

    async def answer(self) -> None:
        refusal = self._guard.refusal(self._scope)
        body = b""
        if refusal is None:
            try:
                # Waiting with a time limit takes a task, so what has arrived is read without.
                reading, connection = self._read(), self._connection
                body = await (
                    reading
                    if connection is not None and connection.has_arrived
                    else asyncio.wait_for(reading, self._seconds)
                )
            except asyncio.TimeoutError:
                refusal = _refuse(408, "the request did not arrive in time", {"Connection": "close"})
            except _BusyError:
                refusal = busy("the service has no memory for more requests; try again later", {"Connection": "close"})
            except _CutOffError:
                self.status = 499
                return
        self.start = perf_counter()
        await (refusal or self._guard._app)(self._scope, self._replay(body), self._deliver)

    async def _read(self) -> bytes:
        """The whole body."""
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            part = message.get("body", b"")
            if message["type"] == "http.disconnect":
                raise _CutOffError
            if not self._hold(len(part)):
                raise _BusyError
            body += part
            more = message.get("more_body", False)
        if len(body) != int(dict(self._scope["headers"]).get(b"content-length", b"0")):
            raise _CutOffError
        return bytes(body)

    def _hold(self, n_bytes: int) -> bool:
        is_held = self._guard.hold(n_bytes)
        self.held += n_bytes * is_held
        return is_held

    def _replay(self, body: bytes) -> Any:
        """ASGI's ``receive`` for a body that has been read already."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def next_message() -> Any:
            return messages.pop() if messages else await self._receive()

        return next_message

    async def _deliver(self, message: Mapping[str, Any]) -> None:
        """Send an answer in parts, so that one that nobody fetches is held back here, where it is counted."""
        if message["type"] == "http.response.start":
            self._first = message
            return
        body = message.get("body", b"")
        is_last = not message.get("more_body", False)
        # Changes that count are acknowledged in any case: these answers are short.
        if self._first and not self._hold(len(body)) and not self._is_change:
            refusal = busy("the service has no memory for more answers; try again later")
            self.status = refusal.status_code
            self._first = {}
            await refusal(self._scope, self._receive, self._send)
            return
        try:
            connection = self._connection
            if connection is not None and len(body) <= _SENT_AT_A_TIME and connection.takes_more:
                await self._send_parts(body, is_last)
            else:
                await asyncio.wait_for(self._send_parts(body, is_last), self._seconds)
        except asyncio.TimeoutError:
            if connection is not None:
                connection.abort()  # the client does not read

    @property
    def _is_change(self) -> bool:
        """Whether the request changes what is on the disk."""
        return self._scope["path"] == "/events" or (self._scope["path"] == "/items" and self._scope["method"] != "GET")

    async def _send_parts(self, body: bytes, is_last: bool) -> None:
        if self._first:
            self.status = self._first["status"]
            first, self._first = self._first, {}
            await self._send(first)
        view = memoryview(body)
        for start in range(0, max(len(body), 1), _SENT_AT_A_TIME):
            part = bytes(view[start : start + _SENT_AT_A_TIME])
            more = not is_last or start + _SENT_AT_A_TIME < len(body)
            await self._send({"type": "http.response.body", "body": part, "more_body": more})


class _BusyError(Exception):
    """There is no memory for this request."""


def busy(words: str, headers: Mapping[str, str] | None = None, status: int = 503) -> JSONResponse:
    """The answer to a request that may be sent again later."""
    return _refuse(status, words, {"Retry-After": "1", **(headers or {})})


def _refuse(status: int, words: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": words}, status, headers)
