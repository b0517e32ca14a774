"""Engines: what runs an epoch of OneBP.

``reference`` is RecBole's own loop over :class:`~recbole_onebp.model.OneBP` under autograd, and not in this package.
``fast`` is :class:`FusedEngine` on the CPU, in several processes :class:`ShardedEngine`, and :class:`DeviceEngine` on
CUDA.
"""

from __future__ import annotations

from typing import Protocol

import torch
from recbole.config import Config
from torch import Tensor

from recbole_onebp.distributed.ranks import current
from recbole_onebp.engine.schedule import Batch, Progress, Schedule
from recbole_onebp.model import OneBP

__all__ = ["Batch", "Engine", "Schedule", "make_engine", "why_not_fast"]


class Engine(Protocol):
    """Trains a model in place."""

    @property
    def loss(self) -> float | Tensor:
        """The sum of the mean losses of the epoch's steps so far."""
        ...

    def train_epoch(self, epoch: int, progress: Progress = iter, done: int = 0, loss: float = 0.0) -> float:
        """Train on every pair once, or on those after ``done`` steps with ``loss``; return the epoch's loss."""
        ...


def why_not_fast(recbole_config: Config, model: OneBP) -> str | None:
    """What in this run the fast engine does not do, in words; None if it can train it."""
    config = model.config
    if config.learner not in ("adam", "sparse_adam"):
        return f"learner: {config.learner} (it has adam and sparse_adam)"
    if config.negatives == "per_pair" and config.train_neg_sample_args.dynamic:
        return "train_neg_sample_args.dynamic: True"
    if recbole_config["enable_amp"]:
        return "enable_amp: True"
    if recbole_config["clip_grad_norm"]:
        return "clip_grad_norm"
    if recbole_config["device"].type not in ("cpu", "cuda"):
        return f"device {recbole_config['device']}"
    return None


def make_engine(model: OneBP, optimizer: torch.optim.Optimizer, schedule: Schedule) -> Engine:
    """The fast engine for the device that the model lies on."""
    if model.item_table.device.type == "cuda":
        from recbole_onebp.engine.cuda import DeviceEngine

        return DeviceEngine(model, optimizer, schedule, current())
    if current().is_distributed:
        from recbole_onebp.engine.cpu_sharded import ShardedEngine

        return ShardedEngine(model, optimizer, schedule, current())
    from recbole_onebp.engine.cpu import FusedEngine  # here, because numba takes its time to import

    return FusedEngine(model, optimizer, schedule)
