"""What a recommender computes, in plain float64 and for one user at a time."""

from __future__ import annotations

import numpy as np
import pytest

KINDS = [
    {"score": "dot"},
    {"score": "dot", "bias": True},
    {"score": "cosine"},
    {"score": "cosine", "bias": True, "dtype": "float16"},
    {"score": "dot", "alpha": 1.0},
    {"score": "cosine", "bias": True, "alpha": 0.5},
]


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
