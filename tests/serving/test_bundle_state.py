"""Events and new items, compared with plain float64 computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_onebp import Recommender
from recbole_onebp.functional import moving_aggregate_
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.oracle import KINDS, embedding, items_of, shares_of, unit

EVENTS = st.lists(
    st.tuples(st.sampled_from(["u0", "u1", "u7", "new", "newer"]), st.integers(0, 59).map("i{}".format)), max_size=60
)


def whole_rows(rec, *users):
    return rec._user_rows(rec._users, np.array(users), rec._items)


def state(rec):
    return [(user, rec.history(user), whole_rows(rec, number)[0].tolist()) for number, user in enumerate(rec.user_ids)]


@settings(max_examples=60, deadline=None)
@given(events=EVENTS, cuts=st.lists(st.integers(0, 60), max_size=5), kind=st.sampled_from(KINDS), data=st.data())
def test_update_equals_single_events(tmp_path_factory, events, cuts, kind, data):
    """In one call, in several, or one by one: equal to the last bit, and equal to the formula."""
    beta, rule = data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])), data.draw(st.sampled_from(["moving", "mean"]))
    path = made_bundle(tmp_path_factory.mktemp("update") / "bundle", beta=beta, rule=rule, **kind)
    keep = 1 if rule == "mean" else beta
    whole, cut, single = (Recommender.load(path, verify=False) for _ in range(3))
    report = whole.update(events)
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), 60], strict=True):
        cut.update(events[first:last])
    for event in events:
        single.update([event])
    assert state(whole) == state(cut) == state(single)
    assert (report.applied, report.unknown) == (len(events), [])
    assert report.new_users == [user for user in dict.fromkeys(user for user, _ in events) if "new" in user]

    items = shares_of(whole)
    for user, _, row in state(whole):
        taken = [int(item[1:]) for name, item in events if name == user]
        if user in report.new_users:
            weights = float(keep) ** np.arange(len(taken))[::-1]
            expected = weights @ items_of(whole)[taken] / weights.sum()
        elif rule == "mean":
            n = len(whole.trained_history(user))
            expected = (n * embedding(whole, user) + items[taken].sum(axis=0)) / (n + len(taken))
        else:
            expected = embedding(whole, user)
            for item in taken:
                expected = beta * expected + (1 - beta) * items[item]
        assert row == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_update_equals_the_rule_of_training(tmp_path, alpha):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", beta=0.8, alpha=alpha))
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 20, 500), rng.integers(0, 60, 500)
    table = torch.from_numpy(np.array(rec.bundle.user_encodings))
    item_e = torch.from_numpy(shares_of(rec)[item].astype(np.float32))
    moving_aggregate_(table, torch.from_numpy(user), item_e, 0.8, "sequential")
    rec.update([(f"u{u}", f"i{i}") for u, i in zip(user, item, strict=True)])
    assert rec._users.rows(np.arange(20)) == pytest.approx(table.numpy(), abs=1e-6)


def test_items_of_events_are_left_out(rec):
    (top, second), *_ = rec.recommend(["u3"], k=2)
    assert rec.update([("u3", top[0])]).applied == 1
    answers = rec.recommend(["u3"], k=60)
    assert top[0] not in dict(answers[0])
    assert rec.history("u3")[-1] == top[0]
    assert second[0] in dict(answers[0])


def test_a_new_user_equals_the_folded_in_history(rec):
    history = ["i5", "i9", "i5", "i30"]
    report = rec.update([("new", item) for item in history])
    assert report.new_users == ["new"]
    assert rec.recommend(["new"], k=8) == rec.recommend_history([history], k=8)
    assert rec.user_ids[-1] == "new"


def test_events_with_unknown_items_are_ignored(rec):
    before = state(rec)
    report = rec.update([("u1", "ghost"), ("new", "ghost"), ("u1", "phantom"), ("u1", "ghost")])
    assert (report.applied, report.new_users, report.unknown) == (0, [], ["ghost", "phantom"])
    assert state(rec) == before
    with pytest.raises(UserError):
        rec.update([("u1", "i1"), ("u1", None)])
    assert state(rec) == before


@pytest.mark.parametrize("recency", [0.0, 0.5])
def test_no_events_change_nothing(tmp_path, recency):
    """The service asks so whether users can be updated at all."""
    rec = Recommender.load(made_bundle(tmp_path / "bundle", rule="mean", recency=recency))
    before = state(rec)
    report = rec.update([])
    assert (report.applied, report.new_users, report.unknown) == (0, [], [])
    assert state(rec) == before


def test_add_items(rec):
    report = rec.add_items({"fresh": ["u1", "u2", "nobody"], "i3": ["u1"], "orphan": ["nobody"], 77: ["u5"]})
    assert report.added == ["fresh", "77"]
    assert report.refused == {"i3": "is in the bundle already", "orphan": "none of its users is in the bundle"}
    assert report.unknown == ["nobody"]
    assert rec.n_items == 62
    assert rec.title("fresh") == ""
    assert rec.history("u1")[-1] == "fresh"
    assert "fresh" not in dict(rec.recommend(["u1"], k=100)[0])
    # It points in the mean direction of its users, who are updated by it.
    cosine = dict(rec.similar_items(["fresh"], k=100)[0])
    mean = unit(embedding(rec, "u1")) + unit(embedding(rec, "u2"))
    directions = unit(rec.bundle.item_encodings.astype(np.float64))
    assert cosine["i7"] == pytest.approx(directions[7] @ unit(mean), abs=1e-3)
    score = dict(rec.recommend(["u2"], k=100, exclude_seen=False)[0])
    moved = whole_rows(rec, 2)[0].astype(np.float64)
    item_e, bias = rec._items.embeddings.rows(np.array([60]))[0], rec._items.bias
    if rec.bundle.manifest["score"] == "cosine":
        moved = unit(moved)
        assert np.linalg.norm(item_e) == pytest.approx(1, abs=1e-6)
    assert score["fresh"] == pytest.approx(item_e @ moved + (0 if bias is None else bias[60]), abs=1e-6)
    assert rec.update([("u9", "fresh")]).applied == 1
    assert rec.explain("u9", "fresh").contributions


def test_a_new_item_has_the_length_of_similarly_popular_items(tmp_path):
    """Here items without users have long embeddings, the others short ones."""
    history = np.tile(np.arange(100, dtype=np.int32), 2)
    item_e = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    item_e /= np.linalg.norm(item_e, axis=1, keepdims=True) / np.repeat([1, 5], [100, 200])[:, None]
    bias = np.repeat([2, -3], [100, 200]).astype(np.float32)
    path = made_bundle(
        tmp_path / "bundle", n_users=2, n_items=300, item_encodings=item_e, item_bias=bias, history_item=history,
        history_start=np.array([0, 100, 200]),
    )  # fmt: skip
    rec = Recommender.load(path)
    rec.add_items({"fresh": ["u0", "u1"]})
    assert np.linalg.norm(rec._items.embeddings.rows(np.array([300]))) == pytest.approx(1, abs=1e-5)
    assert rec._items.bias[300] == 2


def test_the_weight_of_a_new_item(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", rule="mean", alpha=0.5, score="cosine"))
    count = np.bincount(rec.bundle.history_item, minlength=60)
    rec.add_items({"fresh": ["u0", "u1", "u2"]})
    weight = rec._item_weight[60]
    assert weight == rec.bundle.item_weight[np.flatnonzero(count == 3)[0]]
    # Users are updated with this weight.
    before, n = rec.bundle.user_encodings[0], len(rec.trained_history("u0"))
    item_e = rec._items.embeddings.rows(np.array([60]))[0]
    assert whole_rows(rec, 0)[0] == pytest.approx((n * before + weight * item_e) / (n + 1), abs=1e-6)
