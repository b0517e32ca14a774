"""Items that come and go: removed, brought back, and added while others ask."""

from __future__ import annotations

import re
import threading

import numpy as np
import pytest

from recbole_onebp import Recommender
from recbole_onebp.serving.ann import Index
from recbole_onebp.serving.answers import RemovedItems, UnknownIdError
from recbole_onebp.serving.tables import Embeddings, ItemTable
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle


def asked(rec):
    """Every answer that can name items, with none of them excluded."""
    everybody = list(rec.user_ids)
    return [
        *rec.recommend(everybody, k=100, exclude_seen=False),
        *rec.recommend(["u1"], k=100, exclude_seen=False, allow=[f"i{n}" for n in range(60)]),
        *rec.recommend_history([["i1", "i2"]], k=100, exclude_seen=False),
        *rec.similar_items(["i1", "i2"], k=100),
    ]


def test_a_removed_item_is_in_no_answer_and_comes_back_the_same(rec):
    before, n_items = asked(rec), rec.n_items
    history = rec.history("u1")
    gone = [history[0], "i7"]
    assert rec.remove_items([*gone, "ghost", "i7", "ghost"]) == RemovedItems(list(dict.fromkeys(gone)), ["ghost"])
    assert asked(rec) == [[pair for pair in answer if pair[0] not in gone] for answer in before]
    assert rec.n_items == n_items - 2
    assert not rec.knows_item("i7")
    assert not set(gone) & set(rec.item_ids)
    assert rec.title("i7") == ""
    # In questions it is unknown.
    assert np.isnan(rec.score(["u1"], ["i7"])[0])
    assert rec.similar_items(["i7"]).unknown == ["i7"]
    assert rec.recommend(["u1"], allow=["i7"]).unknown == ["i7"]
    assert rec.recommend_history([["i7"]]).unknown == ["i7"]
    assert rec.update([("u1", "i7")]).unknown == ["i7"]
    with pytest.raises(UnknownIdError, match="item 'i7'"):
        rec.explain("u1", "i7")
    # Histories keep it, and users stay what it made of them.
    assert rec.history("u1") == history
    assert history[0] in dict(rec.explain("u1", "i5").contributions)

    assert rec.add_items({item: [] for item in gone}).added == gone
    assert asked(rec) == before
    assert list(rec.item_ids) == [f"i{n}" for n in range(60)]


def test_a_trained_item_comes_back_as_training_made_it(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", features=True))
    before = rec._items.embeddings.rows(np.arange(60))
    item = rec.history("u3")[0]
    rec.remove_items([item])
    assert rec.add_items({item: {"genres": "g1"}}).added == [item]
    np.testing.assert_array_equal(rec._items.embeddings.rows(np.arange(60)), before)
    rec.remove_items([item])
    assert rec.add_items({item: ["u1"]}).added == [item]
    assert rec.history("u1")[-1] == item


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_an_added_item_that_was_removed_is_made_anew(tmp_path, score):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", features=True, score=score, bias=True))
    rec.add_items({"a": {"genres": ["g1"]}, "b": {"genres": ["g2"]}})
    first = dict(rec.similar_items(["b"], k=100)[0])
    rec.update([("u1", "b"), ("u1", "a")])
    rec.remove_items(["a"])
    assert rec.add_items({"a": {"genres": ["nothing"]}}).refused == {"a": "has no value that counts in the bundle"}
    assert not rec.knows_item("a")
    rec.add_items({"a": {"genres": ["g2"]}})
    assert rec.n_items == 62
    assert rec.history("u1")[-1] == "a"
    assert dict(rec.similar_items(["b"], k=100)[0])["a"] == pytest.approx(1) != first["a"]
    assert rec._items.bias[60] == rec._items.bias[61]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"": ["u1"]}, "item: '' is no id"),
        ({"a\nb": ["u1"]}, "is no id; expected 1 to 256 printable letters"),
        ({"good": ["u1"], "x" * 257: ["u1"]}, "is no id"),
        (["n9"], "items: expected a mapping of ids to users or fields, got list"),
        (None, "items: expected a mapping of ids to users or fields, got NoneType"),
    ],
)
def test_a_bad_id_adds_nothing(rec, items, said):
    for method in (rec.add_items, rec.check_items):
        with pytest.raises(UserError, match=re.escape(said)):
            method(items)
    assert rec.n_added_items == 0


def test_a_bad_id_removes_nothing(rec):
    with pytest.raises(UserError, match="item: None is no id"):
        rec.remove_items(["i1", None])
    with pytest.raises(UserError, match="items: expected a list, got 'i1'"):
        rec.remove_items("i1")
    assert rec.knows_item("i1")


def test_local_scores_and_an_index_leave_removed_items_out(tmp_path):
    pytest.importorskip("faiss")
    kind = {"n_items": 500, "local": 3.0, "rule": "mean"}
    made = Recommender.load(made_bundle(tmp_path / "made", **kind)).bundle
    table = ItemTable(Embeddings(made.item_encodings), None)
    path = made_bundle(tmp_path / "bundle", **kind, others={"index.faiss": Index.build(table).save})
    exact, fast = Recommender.load(path), Recommender.load(path, index="faiss")
    gone = [item for item, _ in exact.recommend(["u1"], k=5)[0]]
    item = next(item for item in exact.item_ids if exact.similar_items([item], by="local")[0])
    gone.append(exact.similar_items([item], by="local")[0][0][0])
    for rec in (exact, fast):
        rec.remove_items(gone)
        assert not set(gone) & {item for item, _ in rec.recommend(["u1"], k=400)[0]}
        assert not set(gone) & set(dict(rec.similar_items([item], by="local")[0]))
        assert not set(gone) & set(dict(rec.similar_items([item])[0]))


@pytest.mark.parametrize("moment", ["a token is shown", "the table is replaced", "tokens are looked up"])
def test_an_item_can_be_asked_for_as_soon_as_its_token_is_found(tmp_path, monkeypatch, moment):
    """An item that another thread adds in the middle of a question has a name and all its rows, whatever is asked."""
    path = made_bundle(tmp_path / "bundle", features=True, score="dot", bias=True, alpha=0.5)
    rec = Recommender.load(path)
    rec.update([("u1", "i3")])
    n_added = [0]

    def add():
        n_added[0] += 1
        rec.add_items({f"x{n_added[0]}": {"genres": ["g1"], "year": 1990}})
        return f"x{n_added[0]}"

    def ask_for(item):
        for rule in ("alike", "trained", "recent"):
            assert rec.recommend_history([["i1", item]], k=200, rule=rule)[0]
            assert rec.explain_history(["i1", item], "i2", rule).contributions
        assert rec.similar_items([item], k=3)[0]
        assert np.isfinite(rec.score(["u1"], [item]))
        assert rec.explain("u1", item).features

    tokens = rec._item_tokens
    if moment == "a token is shown":
        show = tokens.show

        def show_and_ask(given):
            show(given)
            for token in given:
                ask_for(token)

        monkeypatch.setattr(tokens, "show", show_and_ask)
        add()
    elif moment == "the table is replaced":
        replace = rec._catalogue._replace

        def replace_and_ask(table):
            replace(table)
            for lists in asked(rec):
                assert all(item in rec._item_tokens for item, _ in lists)

        monkeypatch.setattr(rec._catalogue, "_replace", replace_and_ask)
        add()
    else:
        find, is_adding = tokens.find, []

        def add_and_find(given):
            if not is_adding:
                is_adding.append(True)
                add()
                is_adding.clear()
            return find(given)

        monkeypatch.setattr(tokens, "find", add_and_find)
        for rule in ("alike", "trained", "recent"):
            assert rec.recommend_history([["i1", f"x{n_added[0] + 1}"]], k=200, rule=rule)[0]
            assert rec.explain_history(["i1", f"x{n_added[0] + 1}"], "i2", rule).contributions
        assert rec.similar_items([f"x{n_added[0] + 1}"], k=3)[0]
    assert n_added[0]


def test_others_ask_while_items_come_and_go(tmp_path):
    """No answer fails, or names an item before it is there or after it has gone."""
    rec = Recommender.load(made_bundle(tmp_path / "bundle", features=True, score="dot", bias=True, alpha=0.5))
    stop, faults, n_asked = threading.Event(), [], [0]

    def ask():
        while not stop.is_set():
            try:
                rec.recommend(["u1", "new"], k=200, exclude_seen=False, deny=["x1"])
                rec.recommend_history([["i1", "x5", "x6"]], k=200)
                rec.similar_items(["i1", "x3"], k=200)
                rec.score(["u1", "new"], ["x2", "x7"])
                for item in ("x4", "x8"):
                    if rec.knows_item(item):
                        rec.explain("u1", item)
                n_asked[0] += 1
            except UnknownIdError:
                pass
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(60):
        rec.add_items({f"x{number}": {"genres": [f"g{number % 4}"], "year": 1980 + number}})
        rec.update([("u1", f"x{number}"), ("new", f"x{number}")])
        rec.remove_items([f"x{number - 1}"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert n_asked[0] > 3
    assert rec.n_items == 61
