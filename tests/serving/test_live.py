"""The service while its bundle is replaced, its events are compacted, and many threads ask."""

from __future__ import annotations

import shutil
import threading
import time
from contextlib import closing

import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.ann import Index
from recbole_onebp.serving.bundle import read_bundle
from recbole_onebp.serving.http.app import create_app
from recbole_onebp.serving.http.events import Event, EventStore, StoreError
from recbole_onebp.serving.http.live import Live, ReadError
from recbole_onebp.serving.tables import Embeddings, ItemTable
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle


def pairs(items):
    return [(entry["item"], entry["score"]) for entry in items]


def test_a_new_bundle_gets_the_events_it_was_not_trained_on(client, live, bundle, tmp_path):
    first = Recommender.load(bundle)
    seen, fresh = first.history("u1")[0], first.recommend(["u1"])[0][0][0]
    client.post("/events", json={"events": [{"user": "u1", "item": item} for item in (seen, fresh, "i58")]})
    shutil.rmtree(bundle)
    made_bundle(bundle, n_items=90, seed=0)  # other embeddings, more items
    second = Recommender.load(bundle)
    trained = set(second.history("u1"))
    expected = [("u1", item) for item in (seen, fresh, "i58") if item not in trained]
    assert client.post("/reload", json={}).json()["items"] == 90
    second.update(expected)
    # Events recorded under the new bundle are applied even if it was trained on them.
    client.post("/events", json={"events": [{"user": "u1", "item": item} for item in trained]})
    second.update([("u1", item) for item in trained])
    answer = client.post("/recommend", json={"users": ["u1"]}).json()
    assert pairs(answer["lists"][0]["items"]) == second.recommend(["u1"])[0]
    live.store.close()
    live.store = EventStore(tmp_path / "events")
    again = Live(bundle, live.store, memory_mb=30)
    assert again.ask(lambda rec: rec.recommend(["u1"])) == second.recommend(["u1"])


def test_the_index_is_used_and_required_on_reload(client_of, tmp_path):
    pytest.importorskip("faiss")
    table = ItemTable(Embeddings(read_bundle(made_bundle(tmp_path / "made", n_items=500)).item_encodings), None)
    path = made_bundle(tmp_path / "new", n_items=500, others={"index.faiss": Index.build(table).save})
    with closing(EventStore(tmp_path / "events")) as store:
        live = Live(path, store, memory_mb=30, index="faiss")
        client = client_of(create_app(live))
        assert live.ask(lambda rec: rec._index is not None)
        answer = client.post("/recommend", json={"users": ["u1"]}).json()
        assert pairs(answer["lists"][0]["items"]) == Recommender.load(path, index="faiss").recommend(["u1"])[0]
        shutil.rmtree(path)
        made_bundle(path, n_items=500)
        response = client.post("/reload", json={})
        assert response.status_code == 422
        assert "has no index of faiss" in response.json()["error"]
        assert client.post("/recommend", json={"users": ["u1"]}).json() == answer


def test_a_damaged_bundle_is_refused_on_reload(client, bundle):
    before = client.post("/recommend", json={"users": ["u1"]}).json()
    (bundle / "manifest.json").write_text("{}")
    response = client.post("/reload", json={})
    assert response.status_code == 422
    assert "not the manifest of a bundle" in response.json()["error"]
    assert client.post("/recommend", json={"users": ["u1"]}).json() == before


def test_no_request_is_lost_while_the_bundle_is_replaced(client, live, bundle, tmp_path):
    """Requests and events continue while the bundle is replaced ten times, by requests and by the watcher."""
    stop, failed, taken = threading.Event(), [], []
    threading.Thread(target=live.watch, args=(0.01, stop), daemon=True).start()

    def go_on():
        number = 0
        while not stop.is_set():
            number += 1
            for path, body in (
                ("/recommend", {"users": ["u1"]}),
                ("/events", {"events": [{"user": "steady", "item": f"i{number % 60}"}]}),
            ):
                response = client.post(path, json=body)
                if response.status_code != 200:
                    failed.append(response.text)
            taken.append(f"i{number % 60}")

    thread = threading.Thread(target=go_on)
    thread.start()
    for seed in range(10):
        made_bundle(tmp_path / f"next{seed}", seed=seed)
        bundle.rename(tmp_path / f"old{seed}")
        (tmp_path / f"next{seed}").rename(bundle)
        if seed % 2:
            assert client.post("/reload", json={}).status_code == 200
        else:
            time.sleep(0.05)
    stop.set()
    thread.join()
    client.post("/reload", json={})
    assert not failed
    assert len(taken) > 10
    assert live.ask(lambda rec: rec.history("steady")) == taken


def test_many_events_are_compacted_while_served(live, bundle):
    live = Live(bundle, live.store, 30, compact_at=50)
    for number in range(200):
        live.record([Event("u1", f"i{number % 60}")])
    end = time.monotonic() + 10
    while live.store.n_waiting >= 50 and time.monotonic() < end:
        time.sleep(0.01)
    assert live.store.n_waiting < 50
    history = [f"i{number % 60}" for number in range(200)]
    assert live.recommender.history("u1")[-200:] == history
    assert Live(bundle, live.store, 30).recommender.history("u1")[-200:] == history


def test_a_compaction_that_fails_is_logged_and_tried_again_later(live, bundle, monkeypatch, caplog):
    def fail(up_to):
        raise StoreError("database or disk is full")

    live = Live(bundle, live.store, 30, compact_at=5)
    monkeypatch.setattr(live.store, "compact", fail)
    for number in range(20):
        live.record([Event("u1", f"i{number}")])
        time.sleep(0.01)
    assert [one.message for one in caplog.records] == ["the events cannot be compacted: database or disk is full"]
    assert live.store.end == 20


def test_a11_the_watcher_outlives_any_bundle(live, bundle, tmp_path, monkeypatch, caplog):
    """Each odd manifest is logged once, whatever error it brings about; the next sound bundle is served."""
    stop = threading.Event()
    thread = threading.Thread(target=live.watch, args=(0.01, stop), daemon=True)
    thread.start()
    before = live.recommender
    for error in (KeyError("score"), ValueError("x"), MemoryError(), RecursionError()):

        def fail(*args, error=error, **options):
            raise error

        monkeypatch.setattr(Recommender, "load", fail)
        caplog.clear()
        (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text() + " ")
        time.sleep(0.2)
        assert len([one for one in caplog.records if "the old one is kept" in one.message]) == 1
        assert live.recommender is before
        with pytest.raises(UserError, match=f"cannot be loaded: {type(error).__name__}"):
            live.reload()
    monkeypatch.undo()
    shutil.rmtree(bundle)
    made_bundle(bundle, n_items=90)
    end = time.monotonic() + 10
    while live.recommender.n_items != 90 and time.monotonic() < end:
        time.sleep(0.01)
    assert live.recommender.n_items == 90
    assert thread.is_alive()
    stop.set()
    thread.join()


def test_an_answer_sees_a_user_before_or_after_an_event(live, bundle):
    """Readers beside a writer: every answer is the one after a whole number of requests, with two events each."""
    steps = [[Event(user, f"i{2 * number}"), Event(user, f"i{2 * number + 1}")]
             for number in range(25) for user in ("u1", "new")]  # fmt: skip
    rec, allowed = Recommender.load(bundle), {"u1": [], "new": []}
    for step in [[], *steps]:
        rec.update([event[:2] for event in step])
        for user, answers in allowed.items():
            answers.append(rec.recommend([user], k=60)[0])
    stop, wrong, n_seen = threading.Event(), [], [0]

    def read():
        last = {"u1": 0, "new": 0}
        while not stop.is_set():
            for user, before in last.items():
                answer = live.ask(lambda rec, user=user: rec.recommend([user], k=60))[0]
                if answer not in allowed[user][before:]:
                    wrong.append(answer)
                n_seen[0] += 1
                live.ask(lambda rec: rec.explain("u1", "i5").residual + len(rec.history("new")) + len(rec.user_ids))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for step in steps:
        live.record(step)
        time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert n_seen[0] > 20
    assert live.recommender.recommend(["new"], k=60)[0] == allowed["new"][-1]


def test_a_replay_that_fails_in_the_middle_applies_no_event_twice(live, monkeypatch):
    def cut(*after):
        yield next(iter(read(*after)))
        raise UserError("disk I/O error")

    monkeypatch.setattr("recbole_onebp.serving.http.live._REPLAYED", 1)
    read, before = live.store.read, live.recommender.history("u1")
    for item in ("i1", "i2"):  # as another process of the service stores them
        live.store.append(live.recommender.bundle.key, [Event("u1", item)])
    monkeypatch.setattr(live.store, "read", cut)
    with pytest.raises(ReadError, match="disk I/O error"):
        live.catch_up()
    monkeypatch.setattr(live.store, "read", read)
    assert live.ask(lambda rec: rec.history("u1")) == [*before, "i1", "i2"]


def test_a_question_waits_for_no_event(live, monkeypatch):
    go_on, append = threading.Event(), live.store.append

    def slow(bundle, events):
        go_on.wait(10)
        return append(bundle, events)

    monkeypatch.setattr(live.store, "append", slow)
    thread = threading.Thread(target=live.record, args=([Event("u1", "i1")],))
    thread.start()
    assert len(live.ask(lambda rec: rec.recommend(["u1"]))[0]) == 10
    go_on.set()
    thread.join()
