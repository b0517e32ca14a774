"""The service: answers and refusals."""

from __future__ import annotations

import json
import socket
import threading
from urllib.parse import quote

import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.journal import Journal, JournalError
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.http.middleware import Limits


def pairs(items):
    return [(entry["item"], entry["score"]) for entry in items]


# ------------------------------------------------------------------------------------------------------------- answers


def test_lists(client, bundle):
    rec = Recommender.load(bundle)
    answer = client.post("/recommend", json={"users": ["u1", "nobody"], "k": 3, "deny": ["i1", "ghost"]}).json()
    expected = rec.recommend(["u1", "nobody"], k=3, deny=["i1"])
    assert [pairs(entry["items"]) for entry in answer["lists"]] == expected
    assert [entry["user"] for entry in answer["lists"]] == ["u1", "nobody"]
    assert answer["lists"][0]["items"][0]["title"] == f"Item {expected[0][0][0][1:]}"
    assert (answer["unknown_users"], answer["unknown_items"]) == (["nobody"], ["ghost"])

    answer = client.post("/recommend_history", json={"histories": [["i1", "i2"], ["ghost"]], "k": 4}).json()
    expected = rec.recommend_history([["i1", "i2"], ["ghost"]], k=4)
    assert [pairs(entry["items"]) for entry in answer["lists"]] == expected
    assert answer["unknown_items"] == ["ghost"]

    answer = client.post("/recommend_history", json={"histories": [["i1", "i2"]], "rule": "recent"}).json()
    assert pairs(answer["lists"][0]["items"]) == rec.recommend_history([["i1", "i2"]], rule="recent")[0]

    answer = client.post("/similar", json={"items": ["i1"], "k": 4, "allow": ["i2", "i3", "i4"]}).json()
    assert [pairs(entry["items"]) for entry in answer["lists"]] == rec.similar_items(
        ["i1"], 4, allow=["i2", "i3", "i4"]
    )


def test_explanations(client, bundle):
    rec = Recommender.load(bundle)
    answer = client.post("/explain", json={"user": "u1", "item": "i2"}).json()
    expected = rec.explain("u1", "i2")
    assert [(entry["item"], entry["value"]) for entry in answer["contributions"]] == expected.contributions
    assert (answer["score"], answer["residual"]) == (expected.score, expected.residual)
    answer = client.post("/explain", json={"history": ["i5", "ghost"], "item": "i2"}).json()
    assert answer["unknown_items"] == ["ghost"]
    answer = client.post("/explain", json={"history": ["i5", "i6"], "item": "i2", "rule": "recent"}).json()
    expected = rec.explain_history(["i5", "i6"], "i2", rule="recent")
    assert [(entry["item"], entry["value"]) for entry in answer["contributions"]] == expected.contributions
    for body in ({"user": "nobody", "item": "i2"}, {"user": "u1", "item": "ghost"}, {"history": [], "item": "i2"}):
        response = client.post("/explain", json=body)
        assert response.status_code == 404
        assert "know" in response.json()["error"]


def test_events_are_applied_and_replayed(client, live, bundle, tmp_path):
    events = [("u1", "i1"), ("new", "i2"), ("u1", "i3"), ("u1", "i1")]
    body = {"events": [{"user": user, "item": item} for user, item in [*events, ("u1", "ghost")]]}
    answer = client.post("/events", json=body).json()
    assert answer == {"applied": 4, "new_users": ["new"], "unknown_items": ["ghost"]}
    rec = Recommender.load(bundle)
    rec.update(events)
    expected = rec.recommend(["u1", "new"])
    found = client.post("/recommend", json={"users": ["u1", "new"]}).json()
    assert [pairs(entry["items"]) for entry in found["lists"]] == expected
    assert [entry["item"] for entry in client.get("/history", params={"user": "new"}).json()["items"]] == ["i2"]
    live.journal.close()
    journal = Journal(tmp_path / "events")
    again = Live(bundle, journal, memory_mb=30)
    assert again.n_replayed == 4
    assert again.ask(lambda rec: rec.recommend(["u1", "new"])) == expected
    journal.close()
    live.journal = Journal(tmp_path / "events")  # for the fixture to close


def test_searches_health_and_metrics(client):
    assert client.get("/items", params={"q": "ITEM 1"}).json()["items"][0] == {"item": "i1", "title": "Item 1"}
    assert len(client.get("/items", params={"q": "item"}).json()["items"]) == 20
    assert client.get("/users", params={"q": "u19"}).json() == {"users": ["u19"]}
    health = client.get("/health").json()
    assert (health["status"], health["users"], health["items"]) == ("ok", 20, 60)
    client.post("/recommend", json={"users": 3})
    client.get("/no/such")
    text = client.get("/metrics").text
    assert 'recbole_onebp_requests_total{endpoint="/items",status="200"} 2.0' in text
    assert 'recbole_onebp_requests_total{endpoint="/recommend",status="422"} 1.0' in text
    assert 'recbole_onebp_requests_total{endpoint="other",status="404"} 1.0' in text
    assert "recbole_onebp_users 20.0" in text
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/recommend", "/recommend_history", "/similar", "/explain", "/events", "/reload", "/health", "/metrics",
        "/history", "/items", "/users",
    }  # fmt: skip


def test_the_page_is_sent(client):
    assert "page.js" in client.get("/").text
    for file in ("/page.js", "/page.css"):
        response = client.get(file)
        assert response.status_code == 200
        assert response.headers["content-security-policy"] == "default-src 'self'"


# ------------------------------------------------------------------------------------------------------------ refusals

DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/recommend", b"", 422),
        ("/recommend", b"{", 422),
        ("/recommend", b"\xff\xfe\x00", 400),
        ("/recommend", b"[]", 422),
        ("/recommend", b'{"users": ' + DEEP + b"}", 400),
        ("/recommend", b'{"users": ["u1"], "k": NaN}', 422),
        ("/recommend", b'{"users": ["u1"], "k": 1e400}', 422),
        ("/recommend", b'{"users": ["u1"], "k": true}', 422),
        ("/recommend", b'{"users": ["u1"], "k": -1}', 422),
        ("/recommend", b'{"users": ["u1"], "k": ' + b"9" * 5000 + b"}", 400),
        ("/recommend", b'{"users": "u1"}', 422),
        ("/recommend", b'{"users": [NaN]}', 422),
        ("/recommend", b'{"users": [null]}', 422),
        ("/recommend", b'{"users": [[["u1"]]]}', 422),
        ("/recommend", b'{"users": [""]}', 422),
        ("/recommend", b'{"users": ["u1"], "K": 3}', 422),
        ("/recommend", json.dumps({"users": [f"u{n}" for n in range(10_000)]}).encode(), 422),
        ("/recommend", json.dumps({"users": ["x" * 10_000]}).encode(), 422),
        ("/recommend", b'{"users": ["u1"], "deny": "' + b"x" * (1 << 20) + b'"}', 413),
        ("/recommend_history", json.dumps({"histories": [["i1"]] * 101}).encode(), 422),
        ("/recommend_history", json.dumps({"histories": [["i1"] * 1001]}).encode(), 422),
        ("/recommend_history", b'{"histories": ["i1"]}', 422),
        ("/similar", b'{"items": {"i1": 1}}', 422),
        ("/explain", b'{"item": "i1"}', 422),
        ("/explain", b'{"item": "i1", "user": "u1", "history": ["i1"]}', 422),
        ("/events", b'{"events": [["u1", "i1"]]}', 422),
        ("/events", b'{"events": [{"user": "\\ud800", "item": "i1"}]}', 422),
        ("/events", b'{"events": [{"user": "u1"}]}', 422),
        ("/events", json.dumps({"events": [{"user": "u", "item": "i1"}] * 1001}).encode(), 422),
    ],
)
def test_hostile_requests(client, live, path, body, status):
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert len(response.text) < 300
    assert live.journal.bytes == 0
    assert client.post("/recommend", json={"users": ["u1"]}).status_code == 200


@pytest.mark.parametrize(
    "name", ["../manifest.json", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "u1\0", "😀", "<script>"]
)
def test_ids_are_not_interpreted(client, name):
    answer = client.post("/recommend", json={"users": [name]}).json()
    assert answer["unknown_users"] == [name]
    assert client.get(f"/page/{quote(name, safe='/.%')}").status_code == 404
    assert client.post("/events", json={"events": [{"user": name, "item": "i1"}]}).json()["new_users"] == [name]
    assert client.post("/recommend", json={"users": [name]}).json()["unknown_users"] == []


def test_the_key_is_required(live, client_of):
    client = client_of(create_app(live, api_key="secret"))
    assert client.get("/health").status_code == 200
    assert client.get("/").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"Authorization": "Bearer ü"}):
        raw = {name: value.encode() for name, value in headers.items()}
        response = client.post("/recommend", json={"users": ["u1"]}, headers=raw)
        assert response.status_code == 401
        assert "Authorization: Bearer" in response.json()["error"]
    response = client.post("/recommend", json={"users": ["u1"]}, headers={"Authorization": "Bearer secret"})
    assert response.status_code == 200
    assert client.get("/metrics").status_code == 401


def test_an_answer_that_takes_too_long(live, client_of):
    client = client_of(create_app(live, limits=Limits(seconds=0.1)))
    blocked = threading.Event()
    thread = threading.Thread(target=live.ask, args=(lambda _: blocked.wait(10),))
    thread.start()
    try:
        response = client.post("/recommend", json={"users": ["u1"]})
        assert response.status_code == 503
        assert "takes longer than allowed" in response.json()["error"]
    finally:
        blocked.set()
        thread.join()


def test_a_request_that_does_not_arrive(live, client_of):
    client = client_of(create_app(live, limits=Limits(seconds=0.2)))
    with socket.create_connection((client.base_url.host, client.base_url.port)) as slow:
        slow.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        slow.settimeout(10)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    with socket.create_connection((client.base_url.host, client.base_url.port)) as endless:
        endless.sendall(b"POST /recommend HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        endless.settimeout(10)
        for _ in range(20):
            endless.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert endless.recv(1000).startswith(b"HTTP/1.1 413")
    assert client.post("/recommend", json={"users": ["u1"]}).status_code == 200


def test_events_that_cannot_be_written_are_not_applied(client, live, monkeypatch):
    def fail(bundle, events):
        raise JournalError("No space left on device")

    before = client.post("/recommend", json={"users": ["u1"]}).json()
    monkeypatch.setattr(live.journal, "append", fail)
    response = client.post("/events", json={"events": [{"user": "u1", "item": before["lists"][0]["items"][0]["item"]}]})
    assert response.status_code == 503
    assert "were not applied: No space left" in response.json()["error"]
    assert client.post("/recommend", json={"users": ["u1"]}).json() == before
