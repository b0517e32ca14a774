"""uvicorn's HTTP/1.1 protocol with bounds on slow, idle and chunked connections, which uvicorn does not have."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ConnectionLimits", "limited_protocol"]

_SLICE = 4096
"""Bytes parsed at a time, so that no connection keeps the event loop for long."""


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


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """A protocol class for ``uvicorn.Config(http=...)``; all its connections share the limits."""

    class Limited(_LimitedProtocol):
        _limits = limits

    return Limited


class _LimitedProtocol(H11Protocol):
    _limits: ConnectionLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = self._is_aborted = False
        self._since = 0.0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._abort_in(self._limits.header_seconds)
        if len(self.connections) > self._limits.open:
            ours = (one for one in self.connections if isinstance(one, _LimitedProtocol))
            waited_for = sorted((one for one in ours if one._keeps_us_waiting), key=lambda one: one._since)
            for one in waited_for[: max(1, self._limits.open // 32)]:  # several, because sorting takes a while
                one._abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in slices; after the headers of a chunked request nothing more is parsed: the app answers 411.

        A body in a million chunks of a byte costs seconds of parsing, and clients of a JSON API know its length.
        """
        if self._timer is None and not self._has_request:
            self._abort_in(self._limits.header_seconds)
        for start in range(0, len(data), _SLICE):
            if self._is_refused or self.transport.is_closing():
                return
            before = self.cycle
            super().data_received(data[start : start + _SLICE])
            if self.cycle is not before:  # the headers are complete; the app has not begun yet
                self.scope["abort"] = self._abort
                self._stop_timer()
                if any(name == b"transfer-encoding" for name, _ in self.headers):
                    self._is_refused = True
                    self.flow.pause_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()
        if self._is_refused:
            self.transport.close()
        if self.transport.is_closing():  # which waits until everything is sent
            self._abort_in(self._limits.closing_seconds)

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _keeps_us_waiting(self) -> bool:
        """Whether the client has to do something next."""
        is_worked_on = self._has_request and not self.cycle.more_body and not self.cycle.response_started
        return not is_worked_on and not self._is_aborted

    def _abort(self) -> None:
        self._is_aborted = True
        self.transport.abort()

    def _abort_in(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
