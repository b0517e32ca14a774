"""uvicorn's HTTP/1.1 protocol with bounds on slow, idle and chunked connections, which uvicorn does not have."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection", "ConnectionLimits", "limited_protocol"]

_SLICE = 4096
"""Bytes parsed at a time, so that no connection keeps the event loop for long."""

_HEADER_BYTES = 1 << 16
"""Most bytes from the beginning of a request to the end of its headers, counted in slices.  The parser has no bound."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds on connections."""

    open: int = 512
    """When more are open, those are closed whose clients have kept the service waiting for the longest time: with a
    request, with the rest of one, or with fetching the answer."""
    header_seconds: float = 10.0
    """From the first byte of a request, or from the opening of the connection, to the end of the headers."""
    closing_seconds: float = 10.0
    """For what is left to send when a connection is closed."""


def limited_protocol(limits: ConnectionLimits) -> type[HttpToolsProtocol]:
    """A protocol class for ``uvicorn.Config(http=...)``; all its connections share the limits."""

    class Limited(Connection):
        _limits = limits

    return Limited


class Connection(HttpToolsProtocol):
    """A connection with bounds; ``scope["connection"]`` of its requests."""

    _limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = self._is_aborted = False
        self._since = 0.0
        self._rest: list[bytes] = []
        self._is_in_headers, self._header_bytes, self._body_left = False, 0, 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._abort_in(self._limits.header_seconds)
        if len(self.connections) > self._limits.open:
            ours = (one for one in self.connections if isinstance(one, Connection))
            waited_for = sorted((one for one in ours if one._keeps_us_waiting), key=lambda one: one._since)
            for one in waited_for[: max(1, self._limits.open // 32)]:  # several, because sorting takes a while
                one.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in slices.  What follows requests that wait for their turn is kept, and parsed when they have been
        answered; after the headers of a chunked request nothing more is parsed: the app answers 411.

        A body in a million chunks of a byte costs seconds of parsing, and clients of a JSON API know its length.
        """
        if self._timer is None and not self._has_request:
            self._abort_in(self._limits.header_seconds)
        for start in range(0, len(data), _SLICE):
            if self._is_refused or self.transport.is_closing():
                return
            if self.pipeline:
                self._rest.append(data[start:])
                self.flow.pause_reading()
                return
            self._parse(data[start : start + _SLICE])
            if self._is_in_headers and self._header_bytes > _HEADER_BYTES:
                self.send_400_response(f"the headers are larger than {_HEADER_BYTES} bytes")

    def _parse(self, data: bytes) -> None:
        if self._body_left:
            self._take_body(data)
            return
        self._header_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # Some clients offer HTTP/2 with their first request.  The parser takes its body for another protocol.
            self._take_body(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _take_body(self, data: bytes) -> None:
        taken = data[: self._body_left]
        if taken:
            self._body_left -= len(taken)
            self.on_body(taken)
            self.on_message_complete()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._abort_in(self._limits.closing_seconds)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._is_in_headers = False
        self._stop_timer()
        self.scope["connection"] = self
        super().on_headers_complete()
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            self._is_refused = True
            self.flow.pause_reading()
        if self.parser.should_upgrade():  # which we do not do
            self.cycle.keep_alive = False
            self._body_left = int(dict(self.headers).get(b"content-length", b"0"))

    def on_message_complete(self) -> None:
        if not self._body_left:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        self._since = self.loop.time()
        if self._is_refused and is_last:
            self.transport.close()
        if self.transport.is_closing():  # which waits until everything is sent
            self._abort_in(self._limits.closing_seconds)
        elif self._rest and not self.pipeline:
            rest, self._rest = b"".join(self._rest), []
            self.data_received(rest)

    @property
    def has_arrived(self) -> bool:
        """Whether the body of the last request that arrived is complete."""
        return not self.cycle.more_body

    @property
    def takes_more(self) -> bool:
        """Whether the client has been sent everything so far, so that a short answer need not wait for it to read."""
        return bool(self.transport.get_write_buffer_size() == 0)

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _keeps_us_waiting(self) -> bool:
        """Whether the client has to do something next."""
        is_worked_on = self._has_request and not self.cycle.more_body and not self.cycle.response_started
        return not is_worked_on and not self._is_aborted

    def abort(self) -> None:
        """Close the connection without sending what is left."""
        self._is_aborted = True
        self.transport.abort()

    def _abort_in(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
