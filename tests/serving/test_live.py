"""The service while its bundle is replaced, and its journal compacted."""

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
from recbole_onebp.serving.http.journal import Journal
from recbole_onebp.serving.http.live import Live
from recbole_onebp.serving.tables import Embeddings, ItemTable
from support.bundles import made_bundle


def pairs(items):
    return [(entry["item"], entry["score"]) for entry in items]


def test_a_new_bundle_gets_the_events_it_was_not_trained_on(client, live, bundle, tmp_path):
    first = Recommender.load(bundle)
    seen, fresh = first.history("u1")[0], first.recommend(["u1"])[0][0][0]
    client.post("/events", json={"events": [{"user": "u1", "item": item} for item in (seen, fresh, "i77")]})
    shutil.rmtree(bundle)
    made_bundle(bundle, n_items=90, seed=0)  # other embeddings, more items
    second = Recommender.load(bundle)
    trained = set(second.history("u1"))
    expected = [("u1", item) for item in (seen, fresh, "i77") if item not in trained]
    assert client.post("/reload").json()["items"] == 90
    second.update(expected)
    # Events recorded under the new bundle are applied even if it was trained on them.
    client.post("/events", json={"events": [{"user": "u1", "item": item} for item in trained]})
    second.update([("u1", item) for item in trained])
    answer = client.post("/recommend", json={"users": ["u1"]}).json()
    assert pairs(answer["lists"][0]["items"]) == second.recommend(["u1"])[0]
    live.journal.close()
    live.journal = Journal(tmp_path / "events")
    again = Live(bundle, live.journal, memory_mb=30)
    assert again.ask(lambda rec: rec.recommend(["u1"])) == second.recommend(["u1"])


def test_the_index_is_used_and_required_on_reload(client_of, tmp_path):
    pytest.importorskip("faiss")
    table = ItemTable(Embeddings(read_bundle(made_bundle(tmp_path / "made", n_items=500)).item_encodings), None)
    path = made_bundle(tmp_path / "new", n_items=500, others={"index.faiss": Index.build(table).save})
    with closing(Journal(tmp_path / "events")) as journal:
        live = Live(path, journal, memory_mb=30, index="faiss")
        client = client_of(create_app(live))
        assert live.ask(lambda rec: rec._index is not None)
        answer = client.post("/recommend", json={"users": ["u1"]}).json()
        assert pairs(answer["lists"][0]["items"]) == Recommender.load(path, index="faiss").recommend(["u1"])[0]
        shutil.rmtree(path)
        made_bundle(path, n_items=500)
        response = client.post("/reload")
        assert response.status_code == 422
        assert "has no index of faiss" in response.json()["error"]
        assert client.post("/recommend", json={"users": ["u1"]}).json() == answer


def test_a_damaged_bundle_is_refused_on_reload(client, bundle):
    before = client.post("/recommend", json={"users": ["u1"]}).json()
    (bundle / "manifest.json").write_text("{}")
    response = client.post("/reload")
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
            assert client.post("/reload").status_code == 200
        else:
            time.sleep(0.05)
    stop.set()
    thread.join()
    client.post("/reload")
    assert not failed
    assert len(taken) > 10
    assert live.ask(lambda rec: rec.history("steady")) == taken


def test_a_full_journal_is_compacted_while_served(bundle, tmp_path):
    journal = Journal(tmp_path / "small", segment_bytes=2000)
    live = Live(bundle, journal, memory_mb=30)
    for number in range(200):
        live.record([("u1", f"i{number % 60}")])
    live.compact()
    assert len(list((tmp_path / "small").glob("*.log"))) == 2
    assert journal.bytes < 6000
    assert live.ask(lambda rec: len(rec.history("u1")) - len(rec.trained_history("u1"))) == 200
    journal.close()
