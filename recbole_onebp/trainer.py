"""RecBole's trainer, that also moves OneBP's users and watches their encodings."""

from __future__ import annotations

from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from torch import Tensor

from recbole_onebp.errors import UserError
from recbole_onebp.functional import spread
from recbole_onebp.model import OneBP

__all__ = ["OneBPTrainer"]

_COLLAPSED = 1e-3
"""Below this spread all users point the same way: their lists are one list."""


class OneBPTrainer(Trainer):
    """Trains OneBP: gradient steps by RecBole's loop, and the moving aggregation around it.

    The users move after each optimizer step (``aggregation: step``), with the item encodings that the step has left,
    or once after each epoch (``aggregation: epoch``); a step that AMP skipped moves nobody, and neither does
    evaluation.

    Attributes:
        encoding_stats: of the last epoch: ``user_norm`` and ``item_norm``, the mean lengths of the encodings, and
            ``user_spread``, see :func:`~recbole_onebp.functional.spread`.
    """

    def __init__(self, config: Config, model: OneBP) -> None:
        """Take over the model.

        Raises:
            UserError: for RecBole's distributed mode: it broadcasts rank 0's buffers at every step, and the users that
                the other ranks have moved would be lost.
        """
        if not config["single_spec"]:
            raise UserError("nproc: OneBP trains in one process; RecBole's distributed mode would lose user updates")
        super().__init__(config, model)
        self.encoding_stats: dict[str, float] = {}
        self._batch: Interaction | None = None
        if model.hyper.backprop == "one":
            model.users_will_be_moved()
            if model.hyper.aggregation == "step":
                self.optimizer.register_step_post_hook(self._move_users)

    def _loss_of_batch(self, interaction: Interaction) -> Tensor:
        self._batch = interaction
        return self.model.calculate_loss(interaction)

    def _move_users(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # Where an optimizer unscales by itself (fused Adam), GradScaler calls its step even when gradients
        # overflowed, and the step is skipped inside: then this hook runs, though no item has moved.
        overflowed = getattr(optimizer, "found_inf", None)
        if self._batch is not None and not (overflowed is not None and bool(overflowed)):
            self.model.move_users(self._batch)
        self._batch = None

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        loss = super()._train_epoch(train_data, epoch_idx, loss_func or self._loss_of_batch, show_progress)
        if self.model.hyper.aggregation == "epoch":
            self.model.move_all_users()
        self._watch(epoch_idx)
        return loss

    @torch.no_grad()
    def _watch(self, epoch_idx: int) -> None:
        """Log the shape of the encodings, and say so when they collapse."""
        users, items = self.model.user_table[1:], self.model.item_table[1:]
        self.encoding_stats = {
            "user_norm": float(users.norm(dim=1).mean()),
            "item_norm": float(items.norm(dim=1).mean()),
            "user_spread": spread(users),
        }
        for name, value in self.encoding_stats.items():
            self.tensorboard.add_scalar(f"Encoding/{name}", value, epoch_idx)
        shown = ", ".join(f"{name}: {value:.4f}" for name, value in self.encoding_stats.items())
        self.logger.info(f"epoch {epoch_idx} encodings [{shown}]")
        if self.encoding_stats["user_spread"] < _COLLAPSED:
            self.logger.warning(
                f"epoch {epoch_idx}: the user encodings have collapsed: they all point one way (user_spread "
                f"{self.encoding_stats['user_spread']:.1e}); a lower learning_rate or a beta closer to 1 may help"
            )
