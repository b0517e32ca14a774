"""The endpoints of the service.  Their docstrings appear in ``/docs``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Query
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from recbole_onebp import __version__
from recbole_onebp.serving.answers import Answers, Explanation
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.metrics import Metrics
from recbole_onebp.serving.http.requests import (
    EventsRequest,
    ExplainRequest,
    HistoryRequest,
    RecommendRequest,
    SimilarRequest,
)
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.ids import Token

__all__ = ["Endpoints"]

_T = TypeVar("_T")

_FOUND = 20
"""Maximum number of users or items that a search returns."""


class Endpoints:
    """One method for each endpoint.  The work is done in threads, so that a slow request does not block the others."""

    def __init__(self, live: Live, metrics: Metrics, seconds: float) -> None:
        """Answer from ``live``, each request in at most ``seconds``."""
        self._live, self._metrics, self._seconds = live, metrics, seconds
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="ask")

    async def _do(self, work: Callable[[], _T]) -> _T:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        return await asyncio.wait_for(future, self._seconds)

    async def _ask(self, question: Callable[[Recommender], _T]) -> _T:
        return await self._do(lambda: self._live.ask(question))

    async def _lists(self, kind: str, asked: list[Any], question: Callable[[Recommender], Answers]) -> dict[str, Any]:
        """The lists that a question returns, with titles; ``kind`` names what was asked for."""

        def work(rec: Recommender) -> dict[str, Any]:
            answers = question(rec)
            lists = [
                {kind: one, "items": _with_titles(rec, answer, "score")}
                for one, answer in zip(asked, answers, strict=True)
            ]
            return {"lists": lists, "unknown_users": answers.unknown_users, "unknown_items": answers.unknown_items}

        return await self._ask(work)

    async def recommend(self, request: RecommendRequest) -> dict[str, Any]:
        """The best items of users."""
        return await self._lists("user", request.users, lambda rec: rec.recommend(**dict(request)))

    async def recommend_history(self, request: HistoryRequest) -> dict[str, Any]:
        """The best items of new users, from their histories."""
        return await self._lists("history", request.histories, lambda rec: rec.recommend_history(**dict(request)))

    async def similar(self, request: SimilarRequest) -> dict[str, Any]:
        """The most similar items of items."""
        return await self._lists("item", request.items, lambda rec: rec.similar_items(**dict(request)))

    async def explain(self, request: ExplainRequest) -> dict[str, Any]:
        """What each item of a user's history adds to the score of an item."""

        def question(rec: Recommender) -> dict[str, Any]:
            if request.user is not None:
                return _explanation(rec, rec.explain(request.user, request.item))
            return _explanation(rec, rec.explain_history(request.history or [], request.item, request.rule))

        return await self._ask(question)

    async def events(self, request: EventsRequest) -> dict[str, Any]:
        """Update users by their interactions.  The events are on the disk before the answer is sent."""
        update = await self._do(lambda: self._live.record([(event.user, event.item) for event in request.events]))
        self._metrics.events.labels("applied").inc(update.applied)
        self._metrics.events.labels("unknown_item").inc(len(request.events) - update.applied)
        return {"applied": update.applied, "new_users": update.new_users, "unknown_items": update.unknown}

    async def history(self, user: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """The history of a user."""
        return await self._ask(
            lambda rec: {
                "user": user,
                "items": [{"item": item, "title": rec.title(item)} for item in rec.history(user)],
            }
        )

    async def items(self, q: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """Items whose title contains a text, or whose id is the text."""
        return {"items": await self._ask(lambda rec: _found_items(rec, q))}

    async def users(self, q: Annotated[str, Query(max_length=256)]) -> dict[str, Any]:
        """Users whose id starts with a text."""
        return {"users": await self._ask(lambda rec: _found_users(rec, q))}

    async def reload(self) -> dict[str, Any]:
        """Load the bundle again and serve it.  The old one answers until the new one is ready."""
        # No time limit: loading a large bundle is slow, and blocks nobody.
        await asyncio.get_running_loop().run_in_executor(self._threads, self._live.replace)
        return await self.health()

    async def health(self) -> dict[str, Any]:
        """Whether the service answers, and which bundle it serves."""
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
        """Counters and latencies in Prometheus's format."""
        return Response(await self._do(self._metrics.text), media_type=CONTENT_TYPE_LATEST)


def _with_titles(rec: Recommender, pairs: list[tuple[Token, float]], value: str) -> list[dict[str, Any]]:
    return [{"item": item, "title": rec.title(item), value: number} for item, number in pairs]


def _explanation(rec: Recommender, explanation: Explanation) -> dict[str, Any]:
    return {
        "score": explanation.score,
        "bias": explanation.bias,
        "residual": explanation.residual,
        "contributions": _with_titles(rec, explanation.contributions, "value"),
        "unknown_items": explanation.unknown,
    }


def _found_users(rec: Recommender, text: str) -> list[Token]:
    return list(islice((user for user in rec.user_ids if user.startswith(text)), _FOUND))


def _found_items(rec: Recommender, text: str) -> list[dict[str, str]]:
    text = text.casefold()
    titled = ((item, rec.title(item)) for item in rec.item_ids)
    found = ({"item": item, "title": title} for item, title in titled if text in title.casefold() or text == item)
    return list(islice(found, _FOUND))
