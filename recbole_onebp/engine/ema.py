"""Exponential moving averages of the trained tables: a model predicts with them.

The last steps of Adam move the tables to and fro; the average of these steps is nearer to the optimum, so a larger
learning rate serves as well and training is shorter.  Within an epoch the optimizer's state holds the average of a
table under ``ema``.  At the end of the epoch the two change places, so that the model has the average for validation,
checkpoints and prediction, and at the start of the next epoch they change back.

Source: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim., 1992; the
share that grows at first is that of TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from recbole_onebp.engine import adam

__all__ = ["KEY", "average", "change_places", "share_after"]

KEY = "ema"
"""Of the average in an optimizer's state of a parameter."""


def share_after(decay: float, epoch: int, step: int, n_steps: int) -> float | None:
    """The share of the old averages that is kept after a step; None after most steps, when nothing is averaged.

    Args:
        decay: the most that is kept.  At first nothing is, and then little, because the first tables are bad.
        epoch: its number, from 0.
        step: of this epoch, from 0.
        n_steps: number of steps in an epoch.

    Example:
        >>> [round(share_after(0.9, epoch, 49, 100), 2) for epoch in (0, 1, 1000)]
        [0.0, 0.18, 0.9]
        >>> share_after(0.9, 0, 50, 100)
    """
    every = adam.MOST_MISSED  # then all rows have made all steps
    if not decay or ((step + 1) % every and step + 1 != n_steps):
        return None
    number = epoch * -(-n_steps // every) + step // every
    return min(decay, number / (9 + number))


@torch.no_grad()
def average(optimizers: Iterable[torch.optim.Optimizer], kept: float) -> None:
    """Move the average of each table that has been trained towards the table."""
    for parameter, state in _trained(optimizers):
        if KEY not in state:
            state[KEY] = parameter.detach().clone()
        state[KEY].sub_(parameter).mul_(kept).add_(parameter)


@torch.no_grad()
def change_places(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Let each table that has an average change places with it."""
    for parameter, state in _trained(optimizers):
        if KEY in state:
            table = parameter.detach().clone()
            parameter.copy_(state[KEY])
            state[KEY].copy_(table)


def _trained(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The parameters that have made a step, with the optimizer's state of them."""
    for optimizer in optimizers:
        yield from ((parameter, state) for parameter, state in optimizer.state.items() if state)
