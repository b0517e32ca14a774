"""The method as functions of tensors: no RecBole, no state, no configuration.

Source: Chen and Wang, "One Backpropagation in Two Tower Recommendation Models", arXiv 2403.18227.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Duplicates",
    "bilateral_softmax",
    "fold_in",
    "info_nce",
    "moving_aggregate_",
    "popularity_weights",
    "spread",
]

Duplicates = Literal["sequential", "last", "mean"]


def info_nce(
    pos_score: Tensor, neg_score: Tensor, temperature: float = 1.0, pair_weight: Tensor | None = None
) -> Tensor:
    """Softmax loss of each positive against its own negatives, averaged over the batch (paper, the loss module).

    ``mean_b -log( exp(pos_b / t) / (exp(pos_b / t) + sum_n exp(neg_bn / t)) )``, computed as cross-entropy of logits,
    which does not overflow at any temperature.

    Args:
        pos_score: scores of the positive pairs, shape ``(B,)``.
        neg_score: scores of each pair's negatives, shape ``(B, N)``.
        temperature: t, greater than 0.
        pair_weight: factor of each pair's term in the mean, shape ``(B,)``; 1 if None.

    Returns:
        The loss, a scalar tensor.

    Raises:
        ValueError: if the shapes do not match or the temperature is not positive.

    Example:
        >>> info_nce(torch.tensor([1.0]), torch.tensor([[1.0]]))
        tensor(0.6931)
    """
    if pos_score.dim() != 1 or neg_score.dim() != 2 or len(pos_score) != len(neg_score):
        raise ValueError(
            f"expected pos_score (B,) and neg_score (B, N), got {tuple(pos_score.shape)} and {tuple(neg_score.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}")
    logits = torch.cat([pos_score.unsqueeze(1), neg_score], dim=1) / temperature  # (B, 1 + N), the positive first
    positive = logits.new_zeros(len(logits), dtype=torch.long)
    if pair_weight is None:
        return F.cross_entropy(logits, positive)
    return (pair_weight * F.cross_entropy(logits, positive, reduction="none")).mean()


def bilateral_softmax(
    pos_score: Tensor,
    neg_score: Tensor,
    temperature: float,
    negative_weight: float,
    pair_weight: Tensor | None = None,
) -> Tensor:
    """A softmax loss whose negatives weigh more: ``mean_b -pos_b / t + w * log sum_n exp(neg_bn / t)``.

    Unlike in :func:`info_nce`, the positive is not in the sum.  Source: Wu et al., "BSL: Understanding and Improving
    Softmax Loss for Recommendation", ICDE 2024.

    Args:
        pos_score: scores of the positive pairs, shape ``(B,)``.
        neg_score: scores of each pair's negatives, shape ``(B, N)``; those at -inf do not count.
        temperature: t, greater than 0.
        negative_weight: w.
        pair_weight: as in :func:`info_nce`.

    Returns:
        The loss, a scalar tensor.

    Example:
        >>> bilateral_softmax(torch.tensor([1.0]), torch.tensor([[0.0]]), 1.0, 1.25)
        tensor(-1.)
    """
    logits = neg_score / temperature
    negative = torch.where(logits.isfinite().any(dim=1), logits.logsumexp(dim=1), 0.0)
    loss = negative_weight * negative - pos_score / temperature
    return loss.mean() if pair_weight is None else (pair_weight * loss).mean()


@torch.no_grad()
def moving_aggregate_(
    user_table: Tensor, user: Tensor, item_e: Tensor, beta: float, duplicates: Duplicates = "sequential"
) -> None:
    """Move every user of a batch towards its items in the batch, in place (paper, the moving aggregation).

    For a user that occurs once: ``e_u <- beta e_u + (1 - beta) e_i``.  For a user that occurs k times, with items
    ``i_1 .. i_k`` in batch order:

    - ``sequential`` applies all of them in order: ``beta^k e_u + (1 - beta) sum_j beta^(k - j) e_{i_j}``;
    - ``last`` applies only the last pair, as the reference code's indexed assignment does;
    - ``mean`` takes one step towards their mean: ``beta e_u + (1 - beta) mean_j e_{i_j}``.

    The result is deterministic on CPU and GPU: rows are summed in batch order, without atomic operations.

    Args:
        user_table: embeddings of all users, shape ``(U, d)``; changed in place.
        user: internal ids of the batch's users, shape ``(B,)``, in batch order.
        item_e: embeddings of the items of these pairs, shape ``(B, d)``.
        beta: weight of the user's old embedding, 0 to 1.
        duplicates: the rule for users that occur more than once.

    Raises:
        ValueError: if beta is out of range, the rule is unknown or the shapes do not match.

    Example:
        >>> table = torch.zeros(2, 1)
        >>> moving_aggregate_(table, torch.tensor([1]), torch.tensor([[4.0]]), beta=0.75)
        >>> table.tolist()
        [[0.0], [1.0]]
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
    # One group per user.  Shapes must not depend on the number of users, because reading it would wait for the GPU.  So
    # there are B groups; the unused ones are empty and repeat the last user.
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
    # One bag per user: the weighted sum of its pairs, in batch order.
    pulled = F.embedding_bag(order, item_e, start, mode="sum", per_sample_weights=weight)
    filled = torch.minimum(place, group[-1])
    row = torch.zeros_like(user).index_copy_(0, group, user)[filled]
    user_table.index_copy_(0, row, kept[filled].unsqueeze(1) * user_table[row] + pulled[filled])


@torch.no_grad()
def fold_in(item_e: Tensor, weights: Tensor | None = None) -> Tensor:
    """The embedding of a new user: the (weighted) mean of its items, which is the fixed point of the aggregation.

    Args:
        item_e: embeddings of the user's items, shape ``(n, d)``, n at least 1.
        weights: one non-negative weight per item, shape ``(n,)``, not all zero; equal weights if None.

    Returns:
        The user's embedding, shape ``(d,)``.

    Raises:
        ValueError: if there is no item, or the weights are invalid.

    Example:
        >>> fold_in(torch.tensor([[0.0, 2.0], [4.0, 0.0]]))
        tensor([2., 1.])
    """
    if item_e.dim() != 2 or len(item_e) == 0:
        raise ValueError(f"expected item_e (n, d) with n >= 1, got {tuple(item_e.shape)}")
    if weights is None:
        return item_e.mean(dim=0)
    if weights.shape != (len(item_e),) or bool((weights < 0).any()) or not bool(weights.sum() > 0):
        raise ValueError(f"expected {len(item_e)} non-negative weights with a positive sum, got {weights.tolist()}")
    return (weights / weights.sum()).to(item_e.dtype) @ item_e


def popularity_weights(count: Tensor, alpha: float) -> Tensor:
    """Weight of each item in the aggregation: ``(count / mean count) ** -alpha``, the mean over items that occur.

    Args:
        count: occurrences of each item in train, shape ``(n_items,)``; 0 counts as 1.
        alpha: values above 0 favour rare items; 0 gives equal weights.

    Returns:
        The weights, shape ``(n_items,)``.

    Example:
        >>> popularity_weights(torch.tensor([0, 1, 3]), alpha=1.0)
        tensor([2.0000, 2.0000, 0.6667])
    """
    occurs = count > 0
    mean = count.sum() / occurs.sum().clamp(min=1)
    return (count.clamp(min=1) / mean) ** -alpha


def spread(table: Tensor, over_all: Callable[[Tensor], Tensor] = lambda mean: mean) -> float:
    """Spread of the directions of the rows: 1 minus the squared length of the mean of the unit rows.

    This is 1 minus the mean cosine over all pairs of rows, each row paired with itself included.  It is close to 1 when
    the directions cancel out, and 0 when all rows have the same direction, that is, when the embeddings have collapsed.

    Args:
        table: ``(n, d)``.
        over_all: where ``table`` is only a part of a table: computes the mean over the whole table from that over the
            part.

    Example:
        >>> spread(torch.tensor([[1.0, 0.0], [2.0, 0.0]])), spread(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        (0.0, 1.0)
    """
    return float(1 - over_all(F.normalize(table, dim=1).mean(dim=0)).square().sum())
