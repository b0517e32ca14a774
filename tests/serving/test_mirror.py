"""Items that no training knows move towards their users, and users follow such items."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_onebp import Recommender
from recbole_onebp.serving.mirror import BIAS_PRIOR, PRIOR
from support.bundles import made_bundle
from support.oracle import unit

ITEMS = {"a": {"genres": ["g1"]}, "b": {"genres": ["g0", "g2"], "year": 2000}, "c": {"studio": "s 1"}}
KINDS = [
    {"score": "cosine", "bias": True, "rule": "mean", "recency": 1.0},
    {"score": "dot", "bias": True, "rule": "mean", "alpha": 0.5},
    {"score": "dot", "rule": "moving", "beta": 0.9},
]
EVENTS = st.lists(
    st.tuples(st.sampled_from(["u0", "u1", "u7", "new", "newer"]), st.sampled_from([*"abc", "i3", "i9", "i30"])),
    max_size=25,
)


def loaded(path, **kind):
    return Recommender.load(made_bundle(path / "bundle", features=True, **kind))


def rows(rec):
    """Embeddings of all users and items, and the biases."""
    table = rec._items
    users = rec._user_rows(rec._users, np.arange(rec.n_users), table)
    items = table.embeddings.rows(np.arange(len(table)))
    order = np.argsort(rec.user_ids)
    return users[order].tolist(), items.tolist(), None if table.bias is None else table.bias.tolist()


def by_definition(rec, events):
    """The embeddings of the added items in float64: of what they are made, and of the users who took them."""
    n_items = len(rec.bundle.item_ids)
    fresh = Recommender(rec.bundle)
    fresh.add_items(ITEMS)
    prior = fresh._items.embeddings.rows(np.arange(n_items, n_items + 3)).astype(np.float64)
    users = rec._users.rows(np.arange(rec.n_users)).astype(np.float64)  # without the added items
    for place, item in enumerate(ITEMS):
        takers = sorted({rec.user_ids.index(user) for user, taken in events if taken == item})
        if not takers:
            continue
        directions = [unit(users[row]) if users[row].any() else users[row] for row in takers]
        like = rec._catalogue.estimator.alike(len(takers))
        length = (PRIOR * np.linalg.norm(prior[place]) + len(takers) * like.length) / (PRIOR + len(takers))
        prior[place] = length * unit(PRIOR * unit(prior[place]) + np.sum(directions, axis=0))
    return prior


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, cut=st.integers(0, 25), kind=st.sampled_from(KINDS), data=st.data())
def test_the_order_of_users_and_of_calls_makes_no_difference(tmp_path_factory, events, cut, kind, data):
    """To the last bit: what counts is each user's own order, which a compacted store keeps."""
    path = tmp_path_factory.mktemp("mirror")
    whole = loaded(path, **kind)
    whole.add_items(ITEMS)
    whole.update(events)
    by_user = sorted(events, key=lambda event: event[0])
    for order in ([events[:cut], events[cut:]], [[event] for event in events], [by_user]):
        other = Recommender(whole.bundle)
        other.add_items(ITEMS)
        for part in order:
            other.update(part)
        assert rows(other) == rows(whole)
    found = whole._items.embeddings.rows(np.arange(60, 63))
    np.testing.assert_allclose(found, by_definition(whole, events), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_moves_from_its_features_to_its_users(tmp_path, kind):
    rec = loaded(tmp_path, **kind)
    rec.add_items(ITEMS)
    (first,) = rec._items.embeddings.rows(np.array([60])).astype(np.float64)
    trained = rec._items.embeddings.rows(np.arange(60))
    users = [f"u{n}" for n in range(20)]
    target = unit(sum(unit(rec.bundle.user_encodings[n].astype(np.float64)) for n in range(20)))
    closeness = [unit(first) @ target]
    for user in users:
        rec.update([(user, "a")])
        (now,) = rec._items.embeddings.rows(np.array([60])).astype(np.float64)
        closeness.append(unit(now) @ target)
    assert closeness[-1] > closeness[0] + 0.2
    assert unit(first) @ unit(now) < 1
    if rec._items.bias is not None:
        like = rec._catalogue.estimator.alike(20).bias
        prior = Recommender(rec.bundle)
        prior.add_items(ITEMS)
        expected = (BIAS_PRIOR * prior._items.bias[60] + 20 * like) / (BIAS_PRIOR + 20)
        assert rec._items.bias[60] == pytest.approx(expected, abs=1e-6)
    # Trained items stay, to the last bit; an event that repeats counts for the user, but not for the item.
    untrained = rec._catalogue.follows(np.arange(60))
    np.testing.assert_array_equal(rec._items.embeddings.rows(np.arange(60))[~untrained], trained[~untrained])
    n_users = rec._catalogue.mirror.n_users(60)
    rec.update([("u3", "a")])
    assert rec._catalogue.mirror.n_users(60) == n_users == 20


@pytest.mark.parametrize("kind", KINDS)
def test_users_follow_the_items_that_move(tmp_path, kind):
    rec = loaded(tmp_path, **kind)
    rec.add_items(ITEMS)
    rec.update([("u1", "a"), ("new", "i3"), ("new", "a"), ("only", "b")])
    before = rec.recommend(["u1", "new", "only"], k=5)
    rec.update([(f"u{n}", item) for n in range(2, 20) for item in "ab"])
    after = rec.recommend(["u1", "new", "only"], k=5)
    assert all(one != other for one, other in zip(before, after, strict=True))
    # A new user is the history folded in, and its explanations leave no rest.
    if kind["rule"] == "mean" or kind.get("recency"):
        for user in ("new", "only"):
            assert rec.recommend([user], k=60) == rec.recommend_history([rec.history(user)], k=60)
    for user in ("new", "only"):
        for item in ("c", "i5", "b"):
            explained = rec.explain(user, item)
            assert abs(explained.residual) < 1e-5
            assert explained.score == rec.score([user], [item])[0]


def test_items_of_the_bundle_that_training_does_not_know_follow_too(tmp_path):
    rec = loaded(tmp_path, **KINDS[0])
    untrained = np.flatnonzero(np.bincount(rec.bundle.history_item, minlength=60) == 0)
    item = f"i{untrained[0]}"
    before = rec._items.embeddings.rows(np.arange(60))
    rec.update([("u1", item), ("u2", item), ("u2", "i1")])
    changed = np.flatnonzero((rec._items.embeddings.rows(np.arange(60)) != before).any(axis=1))
    assert changed.tolist() == [untrained[0]]
    assert rec.score(["u1"], [item])[0] == dict(rec.recommend(["u1"], k=60, exclude_seen=False)[0])[item]


def test_without_features_no_item_of_the_bundle_moves(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", score="cosine", rule="mean"))
    before = rec._items.embeddings.rows(np.arange(60))
    rec.update([(f"u{n % 20}", f"i{n}") for n in range(60)])
    np.testing.assert_array_equal(rec._items.embeddings.rows(np.arange(60)), before)
    # An item that was made of its users goes on with them.
    rec.add_items({"fresh": ["u1"]})
    (first,) = rec._items.embeddings.rows(np.array([60]))
    rec.update([("u5", "fresh")])
    (second,) = rec._items.embeddings.rows(np.array([60])).astype(np.float64)
    q = [unit(rec._users.rows(np.array([n]))[0].astype(np.float64)) for n in (1, 5)]
    np.testing.assert_allclose(first, q[0], atol=0.2)
    np.testing.assert_allclose(second, unit(q[0] + q[1]), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_explained_by_its_features(tmp_path, kind):
    """They add up to the towers' part of the score; with users, the rest comes from these."""
    rec = loaded(tmp_path, **kind)
    rec.add_items(ITEMS)
    rec.update([("new", "i3"), ("new", "i4")])

    def towers(explained):
        return sum(part.tower for part in explained.parts) + explained.residual

    explained = rec.explain("new", "b")
    assert {(part.name, part.value) for part in explained.features} == {
        ("genres", "g0"), ("genres", "g2"), ("year", "2000"),
    }  # fmt: skip
    assert sum(part.score for part in explained.features) == pytest.approx(towers(explained), abs=1e-5)
    rec.update([("u1", "b"), ("u7", "b")])
    user_e = rec._user_rows(rec._users, np.array([rec.user_ids.index("new")]), rec._items)[0].astype(np.float64)
    user_e = unit(user_e) if kind["score"] == "cosine" else user_e
    takers = unit(rec._users.rows(np.array([1, 7])).astype(np.float64)).sum(axis=0)
    fresh = Recommender(rec.bundle)
    fresh.add_items(ITEMS)
    now, prior = (one._items.embeddings.rows(np.array([61]))[0].astype(np.float64) for one in (rec, fresh))
    rest = np.linalg.norm(now) * user_e @ takers / np.linalg.norm(takers + PRIOR * unit(prior))
    explained = rec.explain("new", "b")
    assert sum(part.score for part in explained.features) == pytest.approx(towers(explained) - rest, abs=1e-5)
    assert rec.explain("new", rec.history("u1")[0]).features == []
