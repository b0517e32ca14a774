"""The method as functions of tensors: no RecBole, no state, no configuration.

Source: Chen and Wang, "One Backpropagation in Two Tower Recommendation Models", arXiv 2403.18227.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Duplicates", "fold_in", "info_nce", "moving_aggregate_", "popularity_weights", "spread"]

Duplicates = Literal["sequential", "last", "mean"]


def info_nce(pos_score: Tensor, neg_score: Tensor, temperature: float = 1.0) -> Tensor:
    """Softmax loss of each positive against its own negatives, averaged over the batch (paper, the loss module).

    ``mean_b -log( exp(pos_b / t) / (exp(pos_b / t) + sum_n exp(neg_bn / t)) )``, computed as logits and cross-entropy,
    so that no temperature overflows it.

    Args:
        pos_score: scores of the observed pairs, shape ``(B,)``.
        neg_score: scores of each pair's negatives, shape ``(B, N)``.
        temperature: t, greater than 0.

    Returns:
        The loss, a scalar tensor.

    Raises:
        ValueError: if the shapes do not fit or the temperature is not positive.
    """
    if pos_score.dim() != 1 or neg_score.dim() != 2 or len(pos_score) != len(neg_score):
        raise ValueError(
            f"expected pos_score (B,) and neg_score (B, N), got {tuple(pos_score.shape)} and {tuple(neg_score.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    logits = torch.cat([pos_score.unsqueeze(1), neg_score], dim=1) / temperature  # (B, 1 + N), the positive first
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@torch.no_grad()
def moving_aggregate_(
    user_table: Tensor, user: Tensor, item_e: Tensor, beta: float, duplicates: Duplicates = "sequential"
) -> None:
    """Move every user of a batch towards the items it took, in place (paper, the moving aggregation).

    For a user that occurs once: ``e_u <- beta e_u + (1 - beta) e_i``.  For one that occurs k times, with items
    ``i_1 .. i_k`` in batch order:

    - ``sequential`` applies all of them in turn: ``beta^k e_u + (1 - beta) sum_j beta^(k - j) e_{i_j}``;
    - ``last`` applies only the last pair, as the reference code's indexed assignment does;
    - ``mean`` takes one step towards their mean: ``beta e_u + (1 - beta) mean_j e_{i_j}``.

    Vectorised, and deterministic on CPU and GPU alike: rows are summed in batch order, never by atomics, and a user's
    row is written with one value.

    Args:
        user_table: encodings of all users, shape ``(U, d)``; changed in place.
        user: internal ids of the batch's users, shape ``(B,)``, in batch order.
        item_e: encodings of the items they took, shape ``(B, d)``.
        beta: what a user keeps of itself, 0 to 1.
        duplicates: the rule for a user that occurs more than once.

    Raises:
        ValueError: if beta is out of range, the rule is unknown or the shapes do not fit.
    """
    if item_e.shape != (len(user), user_table.shape[1]):
        raise ValueError(f"expected item_e {(len(user), user_table.shape[1])}, got {tuple(item_e.shape)}")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    if len(user) == 0:
        return
    user, order = user.sort(stable=True)  # groups the users, keeps batch order within each
    place = torch.arange(len(user), device=user.device)
    group = torch.cat([user.new_zeros(1), (user[1:] != user[:-1]).long()]).cumsum(0)
    # One group a user.  Shapes must not depend on their number, which a GPU would have to be waited for: the groups
    # that are left over are empty, and stand for the last user once more.
    count = torch.zeros_like(user).index_add_(0, group, torch.ones_like(user))
    start = count.cumsum(0) - count
    later = (start + count - 1)[group] - place  # how many pairs of the same user come after this one: k - j
    if duplicates == "sequential":
        weight, kept = (1 - beta) * beta ** later.to(item_e.dtype), beta ** count.to(item_e.dtype)
    elif duplicates == "last":
        weight, kept = (1 - beta) * (later == 0).to(item_e.dtype), item_e.new_full((len(user),), beta)
    elif duplicates == "mean":
        weight, kept = (1 - beta) / count[group].to(item_e.dtype), item_e.new_full((len(user),), beta)
    else:
        raise ValueError(f"duplicates must be sequential, last or mean, got {duplicates!r}")
    # A bag is one user's pairs: their weighted sum, in batch order.
    pulled = F.embedding_bag(order, item_e, start, mode="sum", per_sample_weights=weight)
    filled = torch.minimum(place, group[-1])
    row = torch.zeros_like(user).index_copy_(0, group, user)[filled]
    user_table.index_copy_(0, row, kept[filled].unsqueeze(1) * user_table[row] + pulled[filled])


@torch.no_grad()
def fold_in(item_e: Tensor, weights: Tensor | None = None) -> Tensor:
    """Encode a user never seen from the items it took: their (weighted) mean, the fixed point of the aggregation.

    Args:
        item_e: encodings of the user's items, shape ``(n, d)``, n at least 1.
        weights: one non-negative weight an item, shape ``(n,)``, not all zero; equal weights if None.

    Returns:
        The user's encoding, shape ``(d,)``.

    Raises:
        ValueError: if there is no item, or the weights do not fit.
    """
    if item_e.dim() != 2 or len(item_e) == 0:
        raise ValueError(f"expected item_e (n, d) with n >= 1, got {tuple(item_e.shape)}")
    if weights is None:
        return item_e.mean(dim=0)
    if weights.shape != (len(item_e),) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError(f"expected {len(item_e)} non-negative weights with a positive sum, got {weights.tolist()}")
    return (weights / weights.sum()).to(item_e.dtype) @ item_e


def popularity_weights(count: Tensor, alpha: float) -> Tensor:
    """What an item weighs in the aggregation: ``(count / mean count) ** -alpha``, the mean over items that occur.

    Args:
        count: how often each item occurs in train, shape ``(n_items,)``; one that does not weighs what one would that
            occurs once.
        alpha: greater than 0 favours rare items; 0 weighs all alike.

    Returns:
        Shape ``(n_items,)``.
    """
    occurs = count > 0
    mean = count.sum() / occurs.sum().clamp(min=1)
    return (count.clamp(min=1) / mean) ** -alpha


def spread(table: Tensor, over_all: Callable[[Tensor], Tensor] = lambda mean: mean) -> float:
    """How far apart the rows of ``table`` (n, d) point: 1 minus the squared length of the mean of the unit rows.

    Close to 1 when the directions cancel out, 0 when all rows point one way, that is, when the encodings have
    collapsed (it is 1 minus the mean cosine over all pairs of rows, each row with itself included).  Where the table is
    a part of one, ``over_all`` makes the mean of the whole from that of the part.
    """
    return float(1 - over_all(F.normalize(table, dim=1).mean(dim=0)).square().sum())
