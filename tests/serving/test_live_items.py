"""New and removed items in the service: durable, bounded, the same in every process and after a replay."""

from __future__ import annotations

import json
import logging
from contextlib import closing

import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.event_repair import repair
from recbole_onebp.serving.http.events import Event, EventStore
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.origins import Origins
from support.bundles import made_bundle
from support.events import make_earlier

NEW = {"item": "new", "features": {"genres": ["g1", "g3"], "studio": "s 1", "year": 1994, "title": "New film"}}


@pytest.fixture
def bundle(tmp_path):
    return made_bundle(tmp_path / "bundle", features=True, bias=True, rule="mean", recency=1.0, alpha=0.5)


def listed(client, **asked):
    answer = client.post("/recommend", json={"users": ["u1"], "k": 100, "exclude_seen": False, **asked}).json()
    return [(row["item"], row["score"]) for row in answer["lists"][0]["items"]]


def delete(client, *items, **options):
    return client.request("DELETE", "/items", json={"items": list(items)}, **options)


def state(live):
    """Everything that answers depend on."""
    rec = live.ask(lambda rec: rec)
    users = list(rec.user_ids)
    return (
        rec.item_ids, users, rec.recommend(users, k=100, exclude_seen=False), rec.similar_items(rec.item_ids, k=100),
        [rec.history(user) for user in users],
    )  # fmt: skip


def test_a_new_item_is_recommended_at_once_and_after_a_restart(client, live, bundle, tmp_path):
    answer = client.post("/items", json={"items": [NEW, {"item": "i3", "features": {"genres": "g1"}}]})
    assert answer.json() == {"added": ["new"], "refused": {"i3": "is in the bundle already"}, "unknown": []}
    rec = Recommender.load(bundle)
    rec.add_items({"new": NEW["features"]})
    assert listed(client) == rec.recommend(["u1"], k=100, exclude_seen=False)[0]
    assert client.get("/items?q=new f").json()["items"] == [{"item": "new", "title": "New film"}]
    assert client.get("/health").json()["items"] == 61
    events = [{"user": "u1", "item": "new"}, {"user": "fresh", "item": "new"}]
    assert client.post("/events", json={"events": events}).json()["applied"] == 2
    features = client.post("/explain", json={"user": "u1", "item": "new"}).json()["features"]
    assert {row["value"] for row in features} == {"g1", "g3", "s 1", "1994"}
    before = state(live)
    live.store.compact()
    live.store.close()
    live.store = EventStore(tmp_path / "events")
    assert state(Live(bundle, live.store, memory_mb=30)) == before


def test_a_removed_item_is_in_no_answer_until_it_comes_back(client, live, bundle):
    before = listed(client)
    gone = before[0][0]
    client.post("/events", json={"events": [{"user": "u1", "item": gone}]})
    before = listed(client)
    assert delete(client, gone, "ghost").json() == {"removed": [gone], "unknown": ["ghost"]}
    assert listed(client) == [pair for pair in before if pair[0] != gone]
    assert client.get(f"/items?q={gone}").json() == {"items": []}
    assert client.post("/explain", json={"user": "u1", "item": gone}).status_code == 404
    assert gone in [row["item"] for row in client.get("/history?user=u1").json()["items"]]
    answer = client.post("/events", json={"events": [{"user": "u1", "item": gone}]}).json()
    assert answer["unknown_items"] == [gone]
    assert state(Live(bundle, live.store, memory_mb=30)) == state(live)
    assert client.post("/items", json={"items": [{"item": gone}]}).json()["added"] == [gone]
    assert listed(client) == before
    assert state(Live(bundle, live.store, memory_mb=30)) == state(live)


def test_processes_that_join_come_to_the_same_state(live, bundle):
    """One process does not look while items come, are taken, go, and come back otherwise."""
    with closing(EventStore(live.store.folder, join=True)) as store:
        other = Live(bundle, store, memory_mb=30)
        live.add_items({"a": {"genres": ["g0"]}, "b": {"genres": ["g1"]}})
        live.record([Event("u1", "a"), Event("fresh", "b"), Event("u2", "i5")])
        assert state(other) == state(live)
        live.remove_items(["a", "i5"])
        live.add_items({"a": {"genres": ["g2"]}, "c": {"year": 2001}})
        live.record([Event("u3", "a"), Event("fresh", "c"), Event("newer", "a")])
        live.remove_items(["a", "c", "b"])
        live.add_items({"b": {}})
        assert state(other) == state(live)
        assert other.ask(lambda rec: rec.history("newer")) == ["a"]
        assert state(Live(bundle, live.store, memory_mb=30)) == state(live)


def test_another_bundle_keeps_what_it_can(live, bundle, caplog):
    live.add_items({"a": {"genres": ["g0"]}, "i70": {"genres": ["g1"]}, "b": {"studio": "s 1"}})
    live.remove_items(["i3", "i5"])
    live.add_items({"i5": {}})
    made_bundle(bundle, replace=True, n_items=90, features=True)  # with i70
    live.reload()
    rec = live.recommender
    assert (rec.n_items, rec.knows_item("a"), rec.knows_item("i3"), rec.knows_item("i5")) == (91, True, False, True)
    made_bundle(bundle, replace=True)  # without features
    with caplog.at_level(logging.WARNING):
        live.reload()
    assert live.recommender.n_items == 59
    assert {record.getMessage().split(":")[0] for record in caplog.records} == {
        f"item {item} is not added to this bundle" for item in ("a", "b", "i70")
    }


def test_items_are_bounded(client_of, live, bundle):
    live = Live(bundle, live.store, 30, max_new_items=2)
    client = client_of(create_app(live))
    assert client.post("/items", json={"items": [{**NEW, "item": str(n)} for n in range(2)]}).status_code == 200
    response = client.post("/items", json={"items": [{**NEW, "item": "third"}, {**NEW, "item": "1"}]})
    assert response.status_code == 507
    assert "takes at most 2 (--max_new_items); none was added" in response.json()["error"]
    delete(client, "0")  # its row stays
    assert client.post("/items", json={"items": [{**NEW, "item": "third"}]}).status_code == 507
    assert client.post("/items", json={"items": [{"item": "0"}]}).json()["added"] == ["0"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"items": [{"item": "x", "features": {"genre": "g1"}}]},
            "item x: no field 'genre'; the features of items",
        ),
        ({"items": [NEW, {"item": "x", "features": {"year": "late"}}]}, "item x: year: 'late' is not allowed"),
        ({"items": [{"item": "x", "features": {"genres": {"g1": 1}}}]}, "items.0.features.genres"),
        ({"items": [{"item": "x", "features": {"genres": [["g1"]]}}]}, "nested too deeply"),
        ({"items": [{"item": "x", "features": {"genres": [True]}}]}, "items.0.features.genres"),
        ({"items": [{"item": "x", "features": {"year": 1e999}}]}, "no JSON"),
        ({"items": [NEW, NEW]}, "item new occurs twice"),
        ({"items": [{"item": "x", "feature": {}}]}, "items.0.feature: Extra inputs are not permitted"),
        ({"items": [NEW] * 1001}, "items: List should have at most 1000 items"),
        ({"items": "x"}, "items: Input should be a valid list"),
    ],
)
def test_bad_items_are_one_line_and_change_nothing(client, live, body, message):
    content = json.dumps(body).encode()
    response = client.post("/items", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert message in response.json()["error"]
    assert live.recommender.n_items == 60
    assert not list(live.store.read())


def test_changes_need_json_the_key_and_the_same_origin(client_of, live):
    client = client_of(create_app(live, "secret", origins=Origins()))
    key = {"Authorization": "Bearer secret"}
    for method, body in (("POST", {"items": [NEW]}), ("DELETE", {"items": ["i1"]})):
        assert client.request(method, "/items", json=body).status_code == 401
        foreign = {**key, "Origin": "http://evil.example"}
        assert client.request(method, "/items", json=body, headers=foreign).status_code == 403
        assert client.request(method, "/items", content=b"{}", headers=key).status_code == 415
    assert live.recommender.n_items == 60
    assert client.post("/items", json={"items": [NEW]}, headers=key).status_code == 200
    assert delete(client, "i1", headers=key).json()["removed"] == ["i1"]
    assert set(client.get("/openapi.json", headers=key).json()["paths"]["/items"]) == {"get", "post", "delete"}


def test_stores_of_the_earlier_format_are_taken_and_repaired_stores_keep_items(live, bundle, tmp_path):
    folder = live.store.folder
    live.record([Event("u1", "i7")])
    live.store.close()
    make_earlier(folder, version=1)
    live.store = EventStore(folder)
    live = Live(bundle, live.store, memory_mb=30)
    live.add_items({"new": NEW["features"]})
    live.remove_items(["i3"])
    live.record([Event("u1", "new")])
    before = state(live)
    live.store.close()
    assert repair(folder)[0] == 2
    with closing(EventStore(folder)) as store:
        assert state(Live(bundle, store, memory_mb=30)) == before
