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
    """When more are open, the oldest one without a request in progress is closed."""
    header_seconds: float = 10.0
    """From the first byte of a request, or from the opening of the connection, to the end of the headers."""


def limited_protocol(limits: ConnectionLimits) -> type[H11Protocol]:
    """A protocol class for ``uvicorn.Config(http=...)``; all its connections share the limits."""
    waiting: dict[_LimitedProtocol, None] = {}  # without a request in progress, the oldest first

    class Limited(_LimitedProtocol):
        _limits, _waiting = limits, waiting

    return Limited


class _LimitedProtocol(H11Protocol):
    _limits: ConnectionLimits
    _waiting: dict[_LimitedProtocol, None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_waiting()
        if len(self.connections) > self._limits.open:
            next(iter(self._waiting)).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in slices; after the headers of a chunked request nothing more is parsed: the app answers 411.

        A body in a million chunks of a byte costs seconds of parsing, and clients of a JSON API know its length.
        """
        if self._header_timer is None and not self._has_request:
            self._start_timer()
        for start in range(0, len(data), _SLICE):
            if self._is_refused or self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE])
            if self._has_request:
                self._end_waiting()
                if any(name == b"transfer-encoding" for name, _ in self.headers):
                    self._is_refused = True
                    self.flow.pause_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_refused:
            self.transport.close()
        elif not self.transport.is_closing():
            self._waiting[self] = None  # uvicorn's keep-alive timer is running; ours starts with the next byte

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _begin_waiting(self) -> None:
        self._waiting[self] = None
        self._start_timer()

    def _start_timer(self) -> None:
        self._header_timer = self.loop.call_later(self._limits.header_seconds, self.transport.abort)

    def _end_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
