"""The k best items of each user from a matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_onebp.util.errors import UserError

__all__ = ["top_items"]


def top_items(scores: Tensor, k: int) -> Tensor:
    """The k best scored columns of each row, best first.

    Ties are resolved by ``torch.topk``, as in RecBole.

    Args:
        scores: ``(B, n)``, floating point.
        k: at most n.

    Returns:
        Columns, ``(B, k)``, int64, on the device of the scores.

    Raises:
        UserError: if a row contains NaN.

    Example:
        >>> top_items(torch.tensor([[0.1, 0.9, 0.5]]), k=2)
        tensor([[1, 2]])
    """
    values, items = torch.topk(scores, k)  # NaN ranks first
    is_nan = values[:, 0].isnan()
    if is_nan.any():
        raise UserError(
            f"evaluation: {int(is_nan.sum())} of {len(scores)} users have scores that are not a number; the model has "
            "diverged, a lower learning_rate may help"
        )
    return items
