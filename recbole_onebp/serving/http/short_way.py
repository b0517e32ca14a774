"""The way of questions and events to their endpoint, past FastAPI's routing, which takes as long as finding a list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

__all__ = ["Endpoint", "ErrorHandlers", "ShortWay", "body_route"]

ErrorHandlers = Mapping[type[Exception], Callable[[Any, Any], Awaitable[Response]]]
"""By the class of the error.  As in starlette, the handler of the closest class counts."""

Endpoint = Callable[[bytes], Awaitable[Response]]
"""From the body of a request to its answer."""


def body_route(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint as a route of FastAPI, which describes it, and refuses other methods."""

    async def route(request: Request) -> Response:
        return await endpoint(await request.body())

    route.__doc__, route.__name__ = endpoint.__doc__, endpoint.__name__
    return route


class ShortWay:
    """ASGI middleware behind the guard, which has read the whole body."""

    def __init__(
        self, app: Any, routes: Mapping[str, APIRoute], endpoints: Mapping[str, Endpoint], handlers: ErrorHandlers
    ) -> None:
        """Answer POST to the paths of ``endpoints``, and pass everything else on to ``app``."""
        self._app, self._routes, self._endpoints, self._handlers = app, routes, endpoints, handlers

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = self._routes[scope["path"]]
        message = await receive()
        try:
            response = await endpoint(message["body"])
        except tuple(self._handlers) as error:
            handler = next(self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers)
            response = await handler(Request(scope), error)
        await response(scope, receive, send)
