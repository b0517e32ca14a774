"""Explanations: a score as the sum of what each item of the user's history adds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recbole_onebp.serving.local_table import LocalTable
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.tables import TINY, Float32Array, Float64Array, ItemTable, dots, unit_rows
from recbole_onebp.serving.user_state import Aggregation, Users
from recbole_onebp.util.ids import BundleRow, BundleRows

__all__ = ["Composition", "ScoreParts", "compose_history", "compose_user", "split_score"]


class Composition(NamedTuple):
    """A user as a weighted sum of items, ``e = sum_j weight_j e_j + rest``."""

    items: BundleRows
    """(n,); an item may occur more than once."""
    weights: Float64Array
    """(n,)"""
    strength: Float64Array | None
    """Weights of the interactions, ``(n,)``, for the local term; None if they have none."""


class ScoreParts(NamedTuple):
    """``score = bias + sum of towers + sum of local + residual``."""

    score: float
    bias: float
    items: BundleRows
    """The items of the history, each once, by the sum of both parts, largest first; ``(m,)``."""
    towers: Float64Array
    """(m,)"""
    local: Float64Array
    """(m,); zero without a local term."""
    residual: float


def compose_user(users: Users, user: BundleRow, item_weight: Float32Array | None) -> Composition:
    """The history of a user with weights.

    Args:
        users: all users.
        user: the user.
        item_weight: weight of each item for trained users, ``(n_items,)``; 1 if None.
    """
    items, weights = users.items(user), np.concatenate(users.weights(user))
    if item_weight is not None and users.is_trained(user):
        weights *= item_weight[items]
    return Composition(items, weights, users.strengths(user))


def compose_history(
    items: BundleRows,
    item_weight: Float32Array | None,
    aggregation: Aggregation,
    given: Float64Array | None = None,
) -> Composition:
    """A history ``(n,)``, n > 0, with its weights in :func:`~recbole_onebp.serving.user_state.fold_in`."""
    weights = aggregation.weights(len(items), given)
    weights /= weights.sum()
    if item_weight is not None:
        weights *= item_weight[items]
    return Composition(items, weights, aggregation.strengths(given))


def split_score(
    table: ItemTable,
    cosine: bool,
    user_e: Float32Array,
    composition: Composition,
    target: BundleRow,
    local: LocalTable | None,
) -> ScoreParts:
    """Split the score of a user and an item into parts.

    Args:
        table: the items.
        cosine: whether scores are cosines.
        user_e: the user's embedding, ``(1, d)``, as it is stored.
        composition: the history of the user, with weights.
        target: the item.
        local: the local term; None if there is none.
    """
    items, weights, strength = composition
    length = max(float(np.linalg.norm(user_e.astype(np.float64))), TINY) if cosine else 1.0
    target_e = table.embeddings.rows(np.full(len(items), target))
    parts = weights * dots(table.embeddings.rows(items), target_e) / length
    distinct, place = np.unique(items, return_inverse=True)
    of_towers = np.asarray(np.bincount(place.reshape(-1), weights=parts, minlength=len(distinct)), np.float64)
    of_local = np.zeros(len(distinct))
    if local is not None:
        having, added = local.contributions(items, target, strength)
        of_local[np.searchsorted(distinct, having)] = added
    contributions = of_towers + of_local
    order = np.lexsort((distinct, -contributions))
    bias = 0.0 if table.bias is None else float(table.bias[target])
    scorer = Scorer(table, unit_rows(user_e) if cosine else user_e, local, [items], strengths=[strength])
    score = float(scorer.pairs(np.array([0]), np.array([target]))[0])
    residual = score - bias - float(contributions.sum())
    return ScoreParts(score, bias, distinct[order], of_towers[order], of_local[order], residual)
