"""The recommender, compared with plain float64 computations for one user at a time."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import recbole_onebp
from recbole_onebp import Recommender
from recbole_onebp.functional import fold_in as torch_fold_in
from recbole_onebp.functional import moving_aggregate_
from recbole_onebp.serving.bundle_state import BundleState
from recbole_onebp.serving.search import Excluded, best_items
from recbole_onebp.serving.tables import Embeddings, ItemTable
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle

KINDS = [
    {"score": "dot"},
    {"score": "dot", "bias": True},
    {"score": "cosine"},
    {"score": "cosine", "bias": True, "dtype": "float16"},
    {"score": "dot", "alpha": 1.0},
    {"score": "cosine", "bias": True, "alpha": 0.5},
]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def rec(request, tmp_path):
    return Recommender.load(made_bundle(tmp_path / "bundle", **request.param))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def scores_of(rec, user_e):
    """Scores of all items for an embedding (d,), in float64."""
    bundle = rec.bundle
    if bundle.manifest["score"] == "cosine":
        user_e = unit(user_e.astype(np.float64))
    scores = bundle.item_encodings.astype(np.float64) @ user_e
    return scores if bundle.item_bias is None else scores + bundle.item_bias


def items_of(rec):
    """The items that new users aggregate, in float64."""
    return rec.bundle.item_encodings.astype(np.float64)


def shares_of(rec):
    """The weighted items that trained users aggregate, in float64."""
    weight = rec.bundle.item_weight
    return items_of(rec) if weight is None else items_of(rec) * weight[:, None]


def best(rec, user_e, k, without=()):
    """The k best items by float64 scores."""
    scores = scores_of(rec, user_e)
    left = [n for n in np.argsort(-scores, kind="stable") if f"i{n}" not in without]
    return [(f"i{n}", pytest.approx(scores[n], abs=1e-6)) for n in left[:k]]


def embedding(rec, user):
    return rec.bundle.user_encodings[int(user[1:])].astype(np.float64)


# --------------------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("k", [1, 7, 60, 1000])
def test_recommend(rec, k):
    users = [f"u{n}" for n in (3, 0, 19)]
    for user, answer in zip(users, rec.recommend(users, k=k), strict=True):
        assert answer == best(rec, embedding(rec, user), k, without=rec.history(user))
    for user, answer in zip(users, rec.recommend(users, k=k, exclude_seen=False), strict=True):
        assert answer == best(rec, embedding(rec, user), k)


def test_filters(rec):
    odd, low = {f"i{n}" for n in range(1, 60, 2)}, {f"i{n}" for n in range(30)}
    (answer,) = rec.recommend(["u4"], k=9, allow=low, deny=odd)
    assert answer == best(rec, embedding(rec, "u4"), 9, without=odd | set(rec.history("u4")) | set(rec.item_ids[30:]))
    assert rec.recommend(["u4"], allow=[]) == [[]]
    assert rec.recommend(["u4"], allow=rec.history("u4")) == [[]]
    (answer,) = rec.recommend(["u4"], k=3, deny=rec.item_ids)
    assert answer == []


def test_unknown_ids_are_reported_one_by_one(rec):
    answers = rec.recommend(["u1", "nobody", "u2", "nobody", 7], k=2, allow=["i1", "i2", "ghost"], deny=["phantom"])
    assert [len(answer) > 0 for answer in answers] == [True, False, True, False, False]
    assert answers.unknown_users == ["nobody", "7"]
    assert answers.unknown_items == ["phantom", "ghost"]
    assert answers.unknown == ["nobody", "7", "phantom", "ghost"]
    answers = rec.recommend_history([["i1", "ghost"], ["phantom"], [], ["i2"]], k=3)
    assert [len(answer) for answer in answers] == [3, 0, 0, 3]
    assert answers.unknown == ["ghost", "phantom"]
    assert answers[0] == rec.recommend_history([["i1"]], k=3)[0]
    assert rec.similar_items(["i1", "ghost"], k=2)[1] == []
    assert rec.history("nobody") == []
    assert rec.recommend([]) == []


def test_recommend_history_is_the_mean_of_its_items(tmp_path):
    """For every rule: with equal weights, with those of training, and with later items counting more."""
    histories = [["i5"], ["i9", "i3", "i44"], [f"i{n}" for n in range(20)]]
    for number, (kind, aggregation, beta) in enumerate(
        (kind, *aggregation) for kind in KINDS for aggregation in (("moving", 0.9), ("mean", 1))
    ):
        rec = Recommender.load(made_bundle(tmp_path / str(number), rule=aggregation, **kind))
        for rule, table, keep in (
            ("alike", items_of(rec), beta),
            ("trained", shares_of(rec), beta),
            ("recent", items_of(rec), 0.8),
        ):
            for history, answer in zip(histories, rec.recommend_history(histories, k=6, rule=rule), strict=True):
                weights = torch.tensor([keep**age for age in reversed(range(len(history)))])
                items = torch.from_numpy(table[[int(item[1:]) for item in history]])
                assert answer == best(rec, torch_fold_in(items, weights).numpy(), 6, without=history)
        assert rec.recommend_history(histories, k=6) == rec.recommend_history(histories, k=6, rule="alike")


@pytest.mark.parametrize("rule", ["alike", "trained", "recent"])
def test_a_history_is_explained_by_its_rule(rec, rule):
    history = ["i9", "i3", "i44", "i3"]
    (answer,) = rec.recommend_history([history], k=60, rule=rule)
    explanation = rec.explain_history(history, "i7", rule=rule)
    assert explanation.score == dict(answer)["i7"]
    assert explanation.residual == pytest.approx(0, abs=1e-6)


def test_similar_items(rec):
    directions = unit(rec.bundle.item_encodings.astype(np.float64))
    for item, answer in zip(["i8", "i0"], rec.similar_items(["i8", "i0"], k=5), strict=True):
        cosines = directions @ directions[int(item[1:])]
        order = [n for n in np.argsort(-cosines, kind="stable") if f"i{n}" != item]
        assert answer == [(f"i{n}", pytest.approx(cosines[n], abs=1e-3)) for n in order[:5]]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda rec: rec.recommend("u1"), "users: expected a list, got 'u1'"),
        (lambda rec: rec.recommend_history(["i1", "i2"]), "history: expected a list, got 'i1'"),
        (lambda rec: rec.recommend(["u1"], k=0), "k: 0 is not allowed"),
        (lambda rec: rec.recommend(["u1"], k=2.5), "k: 2.5 is not allowed"),
        (lambda rec: rec.recommend([1.5]), "user: 1.5 is no id"),
        (lambda rec: rec.recommend([None]), "user: None is no id"),
        (lambda rec: rec.recommend(["u1"], deny="i1"), "deny: expected a list"),
        (
            lambda rec: rec.recommend_history([["i1"]], rule="last"),
            "rule: 'last' is not allowed; expected one of alike",
        ),
        (lambda rec: rec.update([("u1", "i1", "i2")]), "is no pair of a user and an item"),
        (lambda rec: rec.update(["u1"]), "is no pair"),
        (lambda rec: rec.explain("nobody", "i1"), "user 'nobody': the bundle does not know it"),
        (lambda rec: rec.explain("u1", "ghost"), "item 'ghost': the bundle does not know it"),
        (lambda rec: rec.explain_history(["ghost"], "i1"), "knows none of its items"),
        (lambda rec: Recommender.load(rec.bundle.path, memory_mb=0), "memory_mb: 0 is not allowed"),
    ],
)
def test_invalid_arguments(tmp_path, ask, words):
    rec = Recommender.load(made_bundle(tmp_path / "bundle"))
    with pytest.raises(UserError) as error:
        ask(rec)
    assert words in str(error.value)


def test_users_trained_by_gradient_cannot_be_updated(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", aggregates=False))
    assert len(rec.recommend(["u1"], k=3)[0]) == 3
    for ask in (lambda: rec.update([("u1", "i1")]), lambda: rec.recommend_history([["i1"]])):
        with pytest.raises(UserError, match="backprop: two"):
            ask()


# ----------------------------------------------------------------------------------------------------- exact and stable


def test_lists_do_not_depend_on_the_batch_to_the_last_bit(tmp_path):
    """With 3,000 items and d = 67 the last bits of the matrix product depend on its shape."""
    path = made_bundle(tmp_path / "bundle", n_users=97, n_items=3000, size=67, bias=True)
    rec = Recommender.load(path)
    items = rec.bundle.item_encodings
    alone = np.vstack([row[None] @ items.T for row in rec.bundle.user_encodings])
    assert (alone != rec.bundle.user_encodings @ items.T).any()

    users, histories = list(rec.user_ids), [rec.history(user) for user in rec.user_ids]
    whole, folded = rec.recommend(users, k=50), rec.recommend_history(histories, k=50)
    similar = rec.similar_items(rec.item_ids[:40], k=50)
    for other in (
        Recommender.load(path, memory_mb=0.001, threads=1),
        Recommender.load(path, memory_mb=0.3, threads=3),
    ):
        assert other.recommend(users, k=50) == whole
        assert other.recommend_history(histories, k=50) == folded
    for number, user in enumerate(users):
        assert rec.recommend([user], k=50) == [whole[number]]
        assert rec.recommend_history([histories[number]], k=50) == [folded[number]]
    assert [rec.similar_items([item], k=50)[0] for item in rec.item_ids[:40]] == similar
    assert rec.recommend(users, k=50, allow=rec.item_ids) == whole


def test_equal_scores_keep_the_order_of_the_bundle(tmp_path):
    rng = np.random.default_rng(1)
    kinds = rng.normal(size=(5, 8)).astype(np.float32)
    which = rng.integers(0, 5, 2000)
    path = made_bundle(tmp_path / "bundle", n_items=2000, item_encodings=kinds[which])
    for answer in Recommender.load(path).recommend([f"u{n}" for n in range(20)], k=700, exclude_seen=False):
        score = dict(answer)
        ordered = sorted(score, key=lambda item: (-score[item], int(item[1:])))
        assert [item for item, _ in answer] == ordered
        assert len(set(score.values())) <= 5


def test_all_scores_are_equal(tmp_path):
    """Every item is a candidate, more than one block of candidates."""
    zeros = np.zeros((20, 8), np.float32)
    rec = Recommender.load(made_bundle(tmp_path / "bundle", n_items=90_000, user_encodings=zeros), memory_mb=100)
    answers = rec.recommend([f"u{n}" for n in range(20)], k=4, exclude_seen=False)
    assert answers == [[(f"i{n}", 0.0) for n in range(4)]] * 20


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_best_items_against_a_full_sort(data):
    """Scores with many near and exact ties; the oracle sorts all of them, in float64."""
    n_items, n_users = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scale = data.draw(st.sampled_from([1e-20, 1.0, 1e15]))
    item_e = (rng.integers(-2, 3, (n_items, 3)) * scale * (1 + 1e-7 * rng.integers(0, 2, (n_items, 1)))).astype("f4")
    user_e = rng.integers(-2, 3, (n_users, 3)).astype("f4") * np.float32(1 / 3)
    bias = rng.integers(-1, 2, n_items).astype("f4") if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 320))
    seen = [rng.choice(n_items, rng.integers(0, n_items + 1), replace=False) for _ in range(n_users)]
    for_all = rng.choice(n_items, rng.integers(0, n_items // 3 + 1), replace=False)
    excluded = Excluded.of(seen, for_all)
    found = best_items(user_e, ItemTable(Embeddings(item_e), bias), k, excluded, memory_mb=0.01, threads=2)
    for row in range(n_users):
        score = (item_e.astype(np.float64) * user_e[row]).sum(axis=1) + (0 if bias is None else bias)
        left = np.setdiff1d(np.arange(n_items), np.concatenate((seen[row], for_all)))
        expected = left[np.argsort(-score[left], kind="stable")][:k]
        part = slice(found.start[row], found.start[row + 1])
        assert found.item[part].tolist() == expected.tolist()
        assert found.score[part].tolist() == score[expected].tolist()


# -------------------------------------------------------------------------------------------------------------- update

EVENTS = st.lists(
    st.tuples(st.sampled_from(["u0", "u1", "u7", "new", "newer"]), st.integers(0, 59).map("i{}".format)), max_size=60
)


def state(rec):
    users = rec._users
    return [
        (user, rec.history(user), users.rows(np.array([number]))[0].tolist())
        for number, user in enumerate(rec.user_ids)
    ]


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


# ------------------------------------------------------------------------------------------------------------- explain


def total(explanation):
    return explanation.bias + explanation.residual + sum(value for _, value in explanation.contributions)


def test_explanations_add_up_to_the_score(rec):
    rec.update([("u3", "i1"), ("u3", "i2"), ("u3", "i1"), ("new", "i7"), ("new", "i8"), ("new", "i7")])
    for user in ("u2", "u3", "new"):
        score = dict(rec.recommend([user], k=60, exclude_seen=False)[0])
        for item in ("i0", "i7", "i59"):
            explanation = rec.explain(user, item)
            assert explanation.score == score[item]
            assert total(explanation) == pytest.approx(score[item], abs=1e-9)
            assert {name for name, _ in explanation.contributions} == set(rec.history(user))
            values = [value for _, value in explanation.contributions]
            assert values == sorted(values, reverse=True)


def test_a_folded_in_user_has_no_residual(tmp_path):
    for number, kind in enumerate(KINDS):
        rec = Recommender.load(made_bundle(tmp_path / str(number), **kind))
        history = ["i4", "i5", "i4", "i9"]
        explanation = rec.explain_history([*history, "ghost"], "i7")
        assert explanation.residual == pytest.approx(0, abs=1e-6)
        assert explanation.unknown == ["ghost"]
        rec.update([("new", item) for item in history])
        assert rec.explain("new", "i7").contributions == explanation.contributions
        item_e, weights = items_of(rec), 0.9 ** np.array([3, 2, 1, 0])
        user_e = weights @ item_e[[4, 5, 4, 9]] / weights.sum()
        length = np.linalg.norm(user_e) if kind["score"] == "cosine" else 1
        of_i9 = weights[3] / weights.sum() * item_e[9] @ item_e[7] / length
        assert dict(explanation.contributions)["i9"] == pytest.approx(of_i9, abs=1e-6)


def test_a_trained_user_of_unchanged_items_has_no_residual(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "first", alpha=0.5))
    items = shares_of(rec).astype(np.float32)
    users = np.stack([items[[int(item[1:]) for item in rec.history(user)]].mean(axis=0) for user in rec.user_ids])
    for rule in ("moving", "mean"):
        rec = Recommender.load(made_bundle(tmp_path / rule, user_encodings=users, rule=rule, alpha=0.5))
        rec.update([("u3", "i1"), ("u3", "i2")])
        for user in ("u2", "u3"):
            assert rec.explain(user, "i7").residual == pytest.approx(0, abs=1e-6)


# ----------------------------------------------------------------------------------------------------------- add_items


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
    moved = rec._users.rows(np.array([2]))[0].astype(np.float64)
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
    assert rec._users.rows(np.array([0]))[0] == pytest.approx((n * before + weight * item_e) / (n + 1), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- numpy alone


def test_the_examples_of_the_docstrings(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle"))
    examples = doctest.DocTestFinder().find(BundleState) + doctest.DocTestFinder().find(Recommender)
    public = {name for name in dir(Recommender) if not name.startswith("_") and callable(getattr(Recommender, name))}
    assert {test.name.split(".")[-1] for test in examples if test.examples} == public
    for test in examples:
        test.globs["rec"] = Recommender.load(rec.bundle.path)
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_only_numpy_is_needed(tmp_path):
    """With only this package and numpy on the path."""
    made_bundle(tmp_path / "bundle")
    site = tmp_path / "site"
    site.mkdir()
    (site / "recbole_onebp").symlink_to(Path(recbole_onebp.__file__).parent)
    for folder in Path(np.__file__).parent.parent.glob("numpy*"):
        (site / folder.name).symlink_to(folder)
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "from recbole_onebp import Recommender\n"
        "print(time.perf_counter() - start)\n"
        "from importlib.util import find_spec\n"
        "assert not any(map(find_spec, ['torch', 'recbole', 'wrapt', 'pandas', 'scipy']))\n"
        "rec = Recommender.load('bundle')\n"
        "answers = rec.recommend_history([['i5', 'i9']], k=3)\n"
        "rec.update([('u1', 'i1')]), rec.explain('u1', 'i2'), rec.similar_items(['i1']), rec.add_items({'x': ['u1']})\n"
        "print(answers[0][0][0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert found[1] == Recommender.load("bundle").recommend_history([["i5", "i9"]], k=3)[0][0][0]
    assert float(found[0]) < 3  # a tenth of that on a free core


def test_serving_imports_nothing_heavy():
    code = (
        "import sys, recbole_onebp.serving; heavy = {'torch', 'recbole', 'pandas', 'scipy', 'numba', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
