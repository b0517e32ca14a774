"""Weights of events and histories: through the service, in the store, and in stores of earlier formats."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.event_repair import repair
from recbole_onebp.serving.http.events import FILE, Event, EventStore
from recbole_onebp.serving.http.live import Live
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.events import make_earlier

EVENTS = [("u1", "i1", 300.0), ("new", "i2", 7.0), ("new", "i3"), ("u1", "i4"), ("new", "i5", 0.25)]


def as_body(events):
    names = ("user", "item", "weight")
    return {"events": [dict(zip(names, event, strict=False)) for event in events]}


def lists(answer):
    return [[(row["item"], row["score"]) for row in one["items"]] for one in answer.json()["lists"]]


def stored(folder):
    with closing(EventStore(folder)) as store:
        return [event for run in store.read() for event in run.events]


@pytest.fixture
def weighted(tmp_path):
    return made_bundle(tmp_path / "weighted", rule="mean", recency=0.5, local=1.0, weights="log1p")


@pytest.fixture
def weighted_live(weighted, tmp_path):
    live = Live(weighted, EventStore(tmp_path / "weighted.events"), memory_mb=30)
    yield live
    live.store.close()


def test_events_count_with_their_weights_also_when_compacted_and_replayed(client_of, weighted, weighted_live, tmp_path):
    client, rec = client_of(create_app(weighted_live)), Recommender.load(weighted)
    assert client.get("/health").json()["bundle"]["weights"]["transform"] == "log1p"
    assert client.post("/events", json=as_body(EVENTS)).json()["applied"] == len(EVENTS)
    rec.update(EVENTS)
    expected = rec.recommend(["u1", "new"])
    assert lists(client.post("/recommend", json={"users": ["u1", "new"]})) == expected
    plain = Recommender.load(weighted)
    plain.update(event[:2] for event in EVENTS)
    assert plain.recommend(["u1", "new"]) != expected
    for _ in range(2):  # from single events, then from histories
        with closing(EventStore(tmp_path / "weighted.events", join=True)) as store:
            again = Live(weighted, store, memory_mb=30)
            assert again.ask(lambda rec: rec.recommend(["u1", "new"])) == expected
        weighted_live.store.compact()


def test_histories_count_with_their_weights(client_of, weighted, weighted_live):
    client, rec = client_of(create_app(weighted_live)), Recommender.load(weighted)
    histories, weights = [["i1", "ghost", "i2"], ["i3"]], [[3, 1, 0.5], [2]]
    answer = client.post("/recommend_history", json={"histories": histories, "weights": weights})
    assert lists(answer) == rec.recommend_history(histories, weights=weights)
    assert lists(client.post("/recommend_history", json={"histories": histories, "weights": None})) != lists(answer)
    body = {"history": histories[0], "item": "i9", "weights": weights[0]}
    found = client.post("/explain", json=body).json()["contributions"]
    parts = rec.explain_history(histories[0], "i9", weights=weights[0]).contributions
    assert [(row["item"], row["value"]) for row in found] == parts


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/recommend_history", {"histories": [["i1", "i2"]], "weights": [[1]]}, "weights: 1 for a history of 2 items"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [[1], [2]]}, "weights: 2 lists for 1 histories"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [1]}, "weights.0: Input should be a valid list"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [[0]]}, "weights: 0 is no weight; expected a number"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [["1"]]}, "weights: 1 is no weight"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [["9" * 999] * 999]}, "weights: 999"),
        ("/recommend_history", {"histories": [["i1"]], "weights": [[1] * 1001]}, "weights.0: List should have at most"),
        ("/recommend_history", {"histories": [[1.5]]}, "histories: 1.5 is no id"),
        ("/explain", {"user": "u1", "item": "i1", "weights": [1]}, "weights are those of a history"),
        ("/explain", {"history": ["i2"], "item": "i1", "weights": [True]}, "weights: True is no weight"),
        ("/events", as_body([("u1", "i1", 0)]), "events.0.weight: Input should be greater than or equal to"),
        ("/events", as_body([("u1", "i1", 1e10)]), "events.0.weight: Input should be less than or equal to"),
        ("/events", as_body([("u1", "i1", "3")]), "events.0.weight: Input should be a valid number"),
    ],
)
def test_wrong_weights(client_of, weighted_live, path, body, message):
    response = client_of(create_app(weighted_live)).post(path, json=body)
    assert response.status_code == 422
    assert message in response.json()["error"]
    assert len(response.text) < 400
    assert weighted_live.store.end == 0


def test_a_bundle_without_weights_takes_none(client, live):
    message = "this bundle was trained without weights of interactions; leave them out"
    for path, body in (
        ("/events", as_body([("u1", "i1"), ("u1", "i2", 3)])),
        ("/recommend_history", {"histories": [["i1"]], "weights": [[3]]}),
        ("/explain", {"history": ["i1"], "item": "i2", "weights": [3]}),
    ):
        response = client.post(path, json=body)
        assert (response.status_code, response.json()["error"].partition(": ")[2]) == (422, message)
    assert live.store.end == 0


def test_the_next_bundle_may_have_no_weights(client_of, weighted, weighted_live):
    client = client_of(create_app(weighted_live))
    fresh = [event for event in EVENTS if event[0] == "new"]
    client.post("/events", json=as_body(fresh))
    made_bundle(weighted, seed=3, replace=True)
    assert client.post("/reload", json={}).json()["bundle"]["weights"] is None
    rec = Recommender.load(weighted)
    rec.update(event[:2] for event in fresh)
    assert lists(client.post("/recommend", json={"users": ["new"]})) == rec.recommend(["new"])


def test_a_retry_with_another_weight_is_a_retry(tmp_path):
    with closing(EventStore(tmp_path / "events")) as store:
        for weight, new in ((2.0, True), (3.0, False), (None, False)):
            events = [Event("u", "1", weight, id="a"), Event("u", "2", weight, time=5.0)]
            assert store.append("b", events).new == [new, new]
        store.compact()
    assert stored(tmp_path / "events") == [("u", "1", 2.0), ("u", "2", 2.0)]


def test_weights_are_merged_to_the_last_bit(tmp_path):
    events = [("u", "1"), ("u", "2", 1 / 3), ("u", "3"), ("u", "1", 1e9)]
    with closing(EventStore(tmp_path / "events")) as store:
        for event in events:
            store.append("b", [Event(*event)])
            store.compact()
        assert [run.events for run in store.read()] == [events]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("repaired", [False, True])
def test_stores_of_earlier_formats_are_taken_over(tmp_path, version, repaired):
    folder = tmp_path / "events"
    with closing(EventStore(folder)) as store:
        store.append("b", [Event("u", "1"), Event("u", "2")])
        store.compact(1)
    make_earlier(folder, version)
    if repaired:
        assert repair(folder)[0] == 2
    with closing(EventStore(folder)) as store:
        assert store.append("b", [Event("u", "3", 4.5)]).end == 3
    assert stored(folder) == [("u", "1"), ("u", "2"), ("u", "3", 4.5)]


def test_repair_keeps_weights(tmp_path):
    folder = tmp_path / "events"
    with closing(EventStore(folder)) as store:
        store.append("b", [Event("u", "1", 2.5), Event("v", "2")])
        store.compact()
        store.append("b", [Event("u", "3", 0.5), Event("u", "4")])
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.execute("DROP INDEX ids_by_time")
    repair(folder)
    assert stored(folder) == [("u", "1", 2.5), ("v", "2"), ("u", "3", 0.5), ("u", "4")]


@pytest.mark.parametrize(
    "change",
    [
        "PRAGMA ignore_check_constraints = 1; UPDATE events SET weight = -1",
        """INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '[["1", 0]]')""",
        """INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '[["1", 1, 1]]')""",
        """INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '[[1, 1]]')""",
        """INSERT INTO histories (bundle, user, items) VALUES (1, 'u', '["1", ["2", NaN]]')""",
    ],
)
def test_damaged_weights_are_refused(tmp_path, change):
    folder = tmp_path / "events"
    with closing(EventStore(folder)) as store:
        store.append("b", [Event("u", "1", 2.0)])
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.executescript(change)
    with pytest.raises(UserError, match=r"is damaged.*repair-events"):
        stored(folder)
