"""The endpoints of the service.  Their docstrings appear in ``/docs``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any, TypeVar

from fastapi import Query
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from recbole_onebp import __version__
from recbole_onebp.serving.answers import Answers, Explanation, NewItems, RemovedItems
from recbole_onebp.serving.http import requests
from recbole_onebp.serving.http.encoding import check_size, encode
from recbole_onebp.serving.http.events import Event, StoreError
from recbole_onebp.serving.http.live import Live, Recorded
from recbole_onebp.serving.http.metrics import Metrics
from recbole_onebp.serving.http.middleware import Limits
from recbole_onebp.serving.http.threads import Threads
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token

__all__ = ["Endpoints"]

_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=requests.Request)

_FOUND = 20
"""Maximum number of users or items that a search returns."""

_LARGE_BYTES = 4096
"""Size from which on a request counts as large: it asks for many users, or with long filters."""

_CHECKED_SECONDS = 1.0
"""How long the result of a check of the disk is used."""


class Endpoints:
    """One method for each endpoint.  Threads parse requests, do the work and encode answers: nothing of that may block
    the event loop."""

    def __init__(self, live: Live, metrics: Metrics, limits: Limits) -> None:
        self._live, self._metrics, self._limits = live, metrics, limits
        self._threads = Threads(limits.threads, limits.waiting, limits.seconds)
        self._checked, self._fault = float("-inf"), ""

    # ---------------------------------------------------------------------------------------------------------- answers

    async def recommend(self, body: bytes) -> Response:
        """The best items of users."""
        return await self._lists(body, requests.RecommendRequest, "users", "user", Recommender.recommend)

    async def recommend_history(self, body: bytes) -> Response:
        """The best items of new users, from their histories."""
        ask = Recommender.recommend_history
        return await self._lists(body, requests.HistoryRequest, "histories", "history", ask)

    async def similar(self, body: bytes) -> Response:
        """The most similar items of items."""
        return await self._lists(body, requests.SimilarRequest, "items", "item", Recommender.similar_items)

    async def explain(self, body: bytes) -> Response:
        """What each item of a user's history adds to the score of an item."""

        def work(rec: Recommender, asked: requests.ExplainRequest) -> dict[str, Any]:
            if asked.user is not None:
                return self._explanation(rec, rec.explain(asked.user, asked.item))
            return self._explanation(
                rec, rec.explain_history(asked.history or [], asked.item, asked.rule, asked.weights)
            )

        return await self._post(body, requests.ExplainRequest, work)

    async def history(self, user: Annotated[str, Query(max_length=256)]) -> Response:
        """The history of a user: train interactions, then events in order; the latest ones if it is long."""

        def work(rec: Recommender) -> dict[str, Any]:
            items = rec.history(user)[-self._limits.rows :]
            return {"user": user, "items": self._titled(rec, [{"item": item} for item in items])}

        return await self._get(work)

    async def items(self, q: Annotated[str, Query(max_length=256)]) -> Response:
        """Items whose title contains a text, or whose id is the text."""
        return await self._get(lambda rec: {"items": self._titled(rec, _found_items(rec, q))})

    async def users(self, q: Annotated[str, Query(max_length=256)]) -> Response:
        """Users whose id starts with a text."""
        return await self._get(lambda rec: {"users": _found_users(rec, q)})

    # ----------------------------------------------------------------------------------------------------------- events

    async def events(self, body: bytes) -> Response:
        """Update users by their interactions.

        An event counts when it is acknowledged: it is on the disk then.  One that was not acknowledged may be sent
        again; with an ``id``, or a ``time``, it counts once however often it is sent.  ``new`` tells for each event
        whether it counts now.  Events of unknown items are not stored.  An event may have a ``weight`` where the bundle
        was trained on weights of interactions.
        """

        def work() -> Recorded:
            entries = requests.parse(requests.EventsRequest, body).events
            return self._live.record([Event(one.user, one.item, one.weight, one.id, one.time) for one in entries])

        recorded = await self._threads.record(work)
        applied = sum(recorded.new)
        self._metrics.events.labels("applied").inc(applied)
        self._metrics.events.labels("not_new").inc(len(recorded.new) - applied)
        return _json(
            encode(
                {
                    "applied": applied,
                    "new": recorded.new,
                    "new_users": recorded.new_users,
                    "unknown_items": recorded.unknown,
                }
            )
        )

    # ------------------------------------------------------------------------------------------------------------ items

    async def add_items(self, body: bytes) -> Response:
        """Add new items from their features, or bring removed ones back.

        They count when this is acknowledged: they are on the disk then, and in all answers from now on.  ``refused``
        says why others were not added, and ``unknown`` names the values of features that the bundle does not know.
        """

        def work() -> NewItems:
            entries = requests.parse(requests.NewItemsRequest, body).items
            return self._live.add_items({one.item: one.features for one in entries})

        return _json(encode(asdict(await self._threads.record(work))))

    async def remove_items(self, body: bytes) -> Response:
        """Remove items from all answers, until they are added again.  Histories keep them."""

        def work() -> RemovedItems:
            return self._live.remove_items(requests.parse(requests.RemovedItemsRequest, body).items)

        return _json(encode(asdict(await self._threads.record(work))))

    # ----------------------------------------------------------------------------------------------------------- reload

    async def reload(self, body: bytes) -> Response:
        """Load the bundle again and serve it.  The old one answers until the new one is ready.

        One is loaded at a time, and one request may wait for its turn; others get 429.
        """
        requests.parse(requests.ReloadRequest, body or b"{}")
        await self._threads.load(self._live.reload)
        return await self.health()

    # ----------------------------------------------------------------------------------------------------------- health

    async def health(self) -> Response:
        """Whether the service answers, and which bundle it serves."""
        rec = self._live.recommender
        about = {
            name: rec.bundle.manifest.get(name) for name in ("created", "aggregation", "local", "ordered", "weights")
        }
        return _json(
            encode(
                {
                    "status": "ok",
                    "version": __version__,
                    "bundle": {"key": rec.bundle.key, **about},
                    "users": rec.n_users,
                    "items": rec.n_items,
                }
            )
        )

    async def ready(self) -> Response:
        """Whether events can be written now; 503 if not."""
        await self._threads.check(self._check)
        answer = {"status": "events cannot be written", "error": self._fault} if self._fault else {"status": "ready"}
        return _json(encode(answer), 503 if self._fault else 200)

    def _check(self) -> None:
        """Try to write, at most once a second."""
        if time.monotonic() < self._checked + _CHECKED_SECONDS:
            return
        try:
            self._live.store.check_writable()
            self._fault = ""
        except StoreError as error:
            self._fault = str(error)
        self._checked = time.monotonic()

    async def metrics(self) -> Response:
        """Counters and latencies in Prometheus's format."""
        return Response(await self._threads.ask(self._metrics.text), media_type=CONTENT_TYPE_LATEST)

    # ---------------------------------------------------------------------------------------------------------- helpers

    async def _get(self, work: Callable[[Recommender], Any]) -> Response:
        return _json(await self._threads.ask(lambda: encode(self._live.ask(work))))

    async def _post(self, body: bytes, model: type[_Model], work: Callable[[Recommender, _Model], Any]) -> Response:
        def answer() -> bytes:
            asked = requests.parse(model, body)
            return encode(self._live.ask(lambda rec: work(rec, asked)))

        return _json(await self._threads.ask(answer, len(body) > _LARGE_BYTES))

    async def _lists(
        self, body: bytes, model: type[requests.ListRequest], many: str, one: str, ask: Callable[..., Answers]
    ) -> Response:
        """The lists that a question returns, with titles; ``many`` and ``one`` name what was asked for."""

        def work(rec: Recommender, asked: requests.ListRequest) -> dict[str, Any]:
            what: Sequence[Any] = getattr(asked, many)
            if len(what) * asked.k > self._limits.rows:
                raise UserError(
                    f"{len(what)} {many} times k = {asked.k} are {len(what) * asked.k} rows; at most "
                    f"{self._limits.rows} are allowed: ask for at most {self._limits.rows // asked.k} {many} at a time"
                )
            answers = ask(rec, **dict(asked))
            rows = [[{"item": item, "score": score} for item, score in answer] for answer in answers]
            self._titled(rec, [row for answer in rows for row in answer])
            lists = [{one: name, "items": answer} for name, answer in zip(what, rows, strict=True)]
            return {"lists": lists, "unknown_users": answers.unknown_users, "unknown_items": answers.unknown_items}

        return await self._post(body, model, work)

    def _explanation(self, rec: Recommender, explanation: Explanation) -> dict[str, Any]:
        rows = [
            {"item": part.item, "value": value, "tower": part.tower, "local": part.local}
            for part, (_, value) in zip(explanation.parts, explanation.contributions, strict=True)
        ]
        return {
            "score": explanation.score,
            "bias": explanation.bias,
            "residual": explanation.residual,
            "contributions": self._titled(rec, rows),
            "unknown_items": explanation.unknown,
            "features": [{"field": one.name, "value": one.value, "score": one.score} for one in explanation.features],
        }

    def _titled(self, rec: Recommender, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the title to each row."""
        for row in rows:
            row["title"] = rec.title(row["item"])
        check_size((text for row in rows for text in (row["item"], row["title"])), self._limits.answer_bytes)
        return rows


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _found_users(rec: Recommender, text: str) -> list[Token]:
    return list(islice((user for user in rec.user_ids if user.startswith(text)), _FOUND))


def _found_items(rec: Recommender, text: str) -> list[dict[str, Any]]:
    text = text.casefold()
    found = ({"item": item} for item in rec.item_ids if text in rec.title(item).casefold() or text == item)
    return list(islice(found, _FOUND))
