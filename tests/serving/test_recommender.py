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

import recbole_onebp
from recbole_onebp import Recommender
from recbole_onebp.functional import fold_in as torch_fold_in
from recbole_onebp.serving.bundle_state import BundleState
from recbole_onebp.serving.changing_items import ChangingItems
from recbole_onebp.util.errors import UserError
from support.bundles import made_bundle
from support.oracle import KINDS, best, embedding, items_of, shares_of, unit


@pytest.mark.parametrize("k", [1, 7, 60, 1000])
def test_recommend(rec, k):
    users = [f"u{n}" for n in (3, 0, 19)]
    for user, answer in zip(users, rec.recommend(users, k=k), strict=True):
        assert answer == best(rec, embedding(rec, user), k, without=rec.history(user))
    for user, answer in zip(users, rec.recommend(users, k=k, exclude_seen=False), strict=True):
        assert answer == best(rec, embedding(rec, user), k)


def test_a21_a_k_beyond_all_numbers(rec):
    assert rec.recommend(["u1"], k=10**30) == rec.recommend(["u1"], k=60)
    assert rec.similar_items(["i1"], k=10**30) == rec.similar_items(["i1"], k=60)


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
        (lambda rec: rec.update([("u1", "i1", 1, 2)]), "is no pair of a user and an item"),
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


def test_threads_are_at_least_one(tmp_path):
    with pytest.raises(UserError, match="threads: 0 is not allowed: expected at least 1"):
        Recommender.load(made_bundle(tmp_path / "bundle"), threads=0)


def test_c15_scores_of_chosen_pairs(rec):
    """The same numbers as in a list, to the last bit, in any order; unknown ids are NaN and reported."""
    rec.update([("new", "i3"), ("new", "i4"), ("u1", "i9")])
    users = [f"u{n % 20}" for n in range(500)] + ["new"] * 60
    items = [f"i{n * 7 % 60}" for n in range(500)] + list(rec.item_ids)
    scores = rec.score(users, items)
    assert (scores.dtype, scores.shape, scores.unknown) == (np.float64, (560,), [])
    lists = {user: dict(rec.recommend([user], k=60, exclude_seen=False)[0]) for user in set(users)}
    assert scores.tolist() == [lists[user][item] for user, item in zip(users, items, strict=True)]
    scores = rec.score(["u1", "nobody", "u2", 7], ["ghost", "i1", "i5", "i5"])
    assert np.isnan(scores).tolist() == [True, True, False, True]
    assert (scores.unknown_users, scores.unknown_items) == (["nobody", "7"], ["ghost"])
    assert rec.score([], []).shape == (0,)
    with pytest.raises(UserError, match="2 users and 1 items; expected a user for each item"):
        rec.score(["u1", "u2"], ["i1"])
    with pytest.raises(UserError, match="users: expected a list"):
        rec.score("u1", ["i1"])


def test_users_trained_by_gradient_cannot_be_updated(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle", aggregates=False))
    assert len(rec.recommend(["u1"], k=3)[0]) == 3
    for ask in (lambda: rec.update([("u1", "i1")]), lambda: rec.recommend_history([["i1"]])):
        with pytest.raises(UserError, match="backprop: two"):
            ask()


def test_the_examples_of_the_docstrings(tmp_path):
    rec = Recommender.load(made_bundle(tmp_path / "bundle"))
    examples = [
        test for part in (BundleState, ChangingItems, Recommender) for test in doctest.DocTestFinder().find(part)
    ]
    public = {name for name in dir(Recommender) if not name.startswith("_") and callable(getattr(Recommender, name))}
    assert {test.name.split(".")[-1] for test in examples if test.examples} == public
    for test in examples:
        test.globs["rec"] = Recommender.load(rec.bundle.path)
        assert doctest.DocTestRunner().run(test).failed == 0, test.name


def test_only_numpy_is_needed(tmp_path):
    """With only this package and numpy on the path."""
    made_bundle(tmp_path / "bundle", local=0.5)
    site = tmp_path / "site"
    site.mkdir()
    (site / "recbole_onebp").symlink_to(Path(recbole_onebp.__file__).parent)
    for folder in Path(np.__file__).parent.parent.glob("numpy*"):
        (site / folder.name).symlink_to(folder)
    code = (
        "import sys, time\n"
        "start = time.process_time()\n"
        "from recbole_onebp import Recommender\n"
        "print(time.process_time() - start)\n"
        "from importlib.util import find_spec\n"
        "assert not any(map(find_spec, ['torch', 'recbole', 'wrapt', 'pandas', 'scipy']))\n"
        "rec = Recommender.load('bundle')\n"
        "answers = rec.recommend_history([['i5', 'i9']], k=3)\n"
        "rec.update([('u1', 'i1')]), rec.explain('u1', 'i2'), rec.add_items({'x': ['u1']})\n"
        "rec.similar_items(['i1']), rec.similar_items(['i1'], by='local')\n"
        "print(answers[0][0][0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert found[1] == Recommender.load("bundle").recommend_history([["i5", "i9"]], k=3)[0][0][0]
    assert float(found[0]) < 2  # seconds of CPU time; about 0.3 on a free core


def test_serving_imports_nothing_heavy():
    code = (
        "import sys, recbole_onebp.serving; heavy = {'torch', 'recbole', 'pandas', 'scipy', 'numba', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
