"""Engines: they run the steps of an epoch of OneBP.

``reference`` is RecBole's training loop with autograd, and not in this package. ``fast`` is :class:`FusedEngine` on the
CPU, :class:`TowerEngine` there for items with features, :class:`ShardedEngine` and :class:`ShardedTowerEngine` the same
in several processes, and on CUDA :class:`DeviceEngine` and :class:`DeviceTowerEngine`.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.config.settings import RunSettings
from recbole_onebp.distributed.ranks import current
from recbole_onebp.engine.schedule import Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["Engine", "Schedule", "make_engine", "why_not_fast"]


class Engine(Protocol):
    """Trains a model in place."""

    @property
    def loss(self) -> float | Tensor:
        """Sum of the mean losses of this epoch's steps so far."""
        ...

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once.

        Args:
            epoch: its number, from 0.
            progress: wraps the iterable of the steps.
            done: steps of this epoch that are already done; training continues after them.
            loss: the sum of the losses of those steps.

        Returns:
            The sum of the mean losses of all steps.
        """
        ...


def why_not_fast(settings: RunSettings, config: OneBPConfig) -> str | None:
    """The first setting that the fast engine does not support; None if it supports them all."""
    if config.learner not in ("adam", "sparse_adam"):
        return f"learner: {config.learner} (it has adam and sparse_adam)"
    if config.negatives == "per_pair" and config.train_neg_sample_args.dynamic:
        return "train_neg_sample_args.dynamic: True"
    if settings.enable_amp:
        return "enable_amp: True"
    if settings.clip_grad_norm:
        return "clip_grad_norm"
    if settings.device.type not in ("cpu", "cuda"):
        return f"device {settings.device}"
    return None


def make_engine(
    model: OneBP,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    value_optimizer: torch.optim.Optimizer | None = None,
) -> Engine:
    """The fast engine for the device of the model, and its tower if it has one."""
    on_cuda = model.item_table.device.type == "cuda"
    if value_optimizer is not None:
        if on_cuda:
            from recbole_onebp.engine.cuda_tower import DeviceTowerEngine

            return DeviceTowerEngine(model, optimizer, schedule, value_optimizer, current())
        from recbole_onebp.engine.cpu_tower import ShardedTowerEngine, TowerEngine

        if current().is_distributed:
            return ShardedTowerEngine(model, optimizer, schedule, current(), value_optimizer)
        return TowerEngine(model, optimizer, schedule, value_optimizer)
    if on_cuda:
        from recbole_onebp.engine.cuda import DeviceEngine

        return DeviceEngine(model, optimizer, schedule, current())
    if current().is_distributed:
        from recbole_onebp.engine.cpu_sharded import ShardedEngine

        return ShardedEngine(model, optimizer, schedule, current())
    from recbole_onebp.engine.cpu import FusedEngine  # imported here because numba is slow to import

    return FusedEngine(model, optimizer, schedule)
