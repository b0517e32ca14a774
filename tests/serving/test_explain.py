"""Explanations: the parts of a score add up."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_onebp import Recommender
from support.bundles import made_bundle
from support.oracle import KINDS, items_of, shares_of


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
