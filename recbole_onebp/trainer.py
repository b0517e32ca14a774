"""RecBole's trainer, that also moves OneBP's users and watches their encodings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import set_color
from torch import Tensor
from tqdm import tqdm

from recbole_onebp.distributed.ranks import current
from recbole_onebp.engine import Engine, Schedule, make_engine, why_not_fast
from recbole_onebp.functional import spread
from recbole_onebp.model import OneBP
from recbole_onebp.util.errors import UserError

__all__ = ["OneBPTrainer"]

_COLLAPSED = 1e-3
"""Below this spread all users point the same way: their lists are one list."""


class OneBPTrainer(Trainer):
    """Trains OneBP: by the fast engine, or with gradient steps by RecBole's loop and the moving aggregation around it.

    The users move after each optimizer step (``aggregation: step``), with the item encodings that the step has left,
    after so many of them (``interval``), or once after each epoch (``epoch``); a step that AMP skipped moves nobody,
    and neither does evaluation.

    Attributes:
        encoding_stats: of the last epoch: ``user_norm`` and ``item_norm``, the mean lengths of the encodings, and
            ``user_spread``, see :func:`~recbole_onebp.functional.spread`.
    """

    def __init__(self, config: Config, model: OneBP) -> None:
        """Take over the model.

        Raises:
            UserError: for RecBole's distributed mode: it broadcasts rank 0's buffers at every step, and the users that
                the other ranks have moved would be lost; for ``engine: fast``, or several processes, where the fast
                engine cannot train this.
        """
        if not config["single_spec"]:
            raise UserError(
                "nproc: RecBole's distributed mode would lose user updates; start recbole-onebp train with --nproc, or "
                "run_recbole_onebp.py by torchrun"
            )
        super().__init__(config, model)
        self.encoding_stats: dict[str, float] = {}
        self._batch: Interaction | None = None
        self._steps = 0  # that the reference engine has taken in this epoch
        self._schedule: Schedule | None = None
        self._scheduled: Any = None  # the data set that it is for
        self._engine: Engine | None = None
        self._shared_negatives: Iterator[Tensor] = iter(())
        self.watch: Callable[..., Iterable[Any]] = lambda steps, *_: steps  # Saver.watch, where the run is saved
        self.begin_at = 0, 0.0  # of the next epoch: steps that have been taken already, and the sum of their losses
        obstacle = why_not_fast(config, model)
        if model.config.engine == "fast" and obstacle:
            raise UserError(f"engine: fast does not go with {obstacle}; use engine: reference, or auto")
        self._ranks = current()
        if self._ranks.is_distributed:
            _check_distributed(config, model, obstacle)
            self.eval_collector.shard = model.shard
        self.engine = "reference" if model.config.engine == "reference" or obstacle else "fast"
        if model.config.backprop == "one":
            model.users_will_be_moved()
            if model.config.aggregation != "epoch":
                self.optimizer.register_step_post_hook(self._move_users)

    def _schedule_of(self, train_data: Any) -> Schedule:
        """The steps over the train data, made when they are first needed."""
        dataset, config = train_data._dataset, self.model.config
        if self._schedule is None or self._scheduled is not dataset:
            self._scheduled, self._engine = dataset, None
            user, item = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
            seed, shuffle = self.config["seed"], self.config["shuffle"]
            shard = self.model.shard
            self._schedule = Schedule(user, item, dataset.user_num, dataset.item_num, config, seed, shuffle, shard)
        return self._schedule

    def _loss_of_batch(self, interaction: Interaction) -> Tensor:
        self._batch = interaction
        if self.model.config.negatives == "shared":
            self.model.shared_negatives = next(self._shared_negatives)
        return self.model.calculate_loss(interaction)

    def _move_users(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # Where an optimizer unscales by itself (fused Adam), GradScaler calls its step even when gradients
        # overflowed, and the step is skipped inside: then this hook runs, though no item has moved.
        overflowed = getattr(optimizer, "found_inf", None)
        if self._batch is not None and not (overflowed is not None and bool(overflowed)):
            self._steps += 1
            if self.model.config.aggregation == "step":
                self.model.move_users(self._batch)
            elif self._steps % self.model.config.aggregation_interval == 0:
                self.model.move_all_users()
        self._batch = None

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        self._decay_learning_rate(epoch_idx)
        if self.engine == "fast":
            loss = self._fast_epoch(train_data, epoch_idx, show_progress)
        else:
            loss = self._reference_epoch(train_data, epoch_idx, loss_func or self._loss_of_batch, show_progress)
        self._watch(epoch_idx)
        return loss

    def _decay_learning_rate(self, epoch_idx: int) -> None:
        """By the epoch's number alone, so that an epoch after a checkpoint is what it would have been without."""
        if self.model.config.learning_rate_decay == 1:
            return
        learning_rate = self.learning_rate * self.model.config.learning_rate_decay**epoch_idx
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.tensorboard.add_scalar("Learning_rate", learning_rate, epoch_idx)
        self.logger.info(f"epoch {epoch_idx} learning rate: {learning_rate:.3g}")

    def _reference_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> Any:
        config, self._steps = self.model.config, 0
        if config.negatives == "shared":
            self._share_negatives(self._schedule_of(train_data), epoch_idx)
        if config.leave_one_out:  # a checkpoint does not hold what its users were made of
            self.model.move_all_users()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        behind = self._steps % config.aggregation_interval
        if config.aggregation == "epoch" or (config.aggregation == "interval" and behind):
            self.model.move_all_users()
        return loss

    def _share_negatives(self, schedule: Schedule, epoch_idx: int) -> None:
        """Have the reference engine's steps share the same negatives as the fast engine's."""
        drawn = (schedule.shared_negatives(step, epoch_idx) for step in count())
        self._shared_negatives = (torch.as_tensor(ids, dtype=torch.long, device=self.device) for ids in drawn)
        if self.model.config.logq_correction:
            self.model.log_q = torch.as_tensor(schedule.log_q(), device=self.device)

    def _fast_epoch(self, train_data: Any, epoch_idx: int, show_progress: bool) -> float:
        self.model.train()
        schedule = self._schedule_of(train_data)
        if self._engine is None:
            self._engine = make_engine(self.model, self.optimizer, schedule)
        engine, (done, loss), self.begin_at = self._engine, self.begin_at, (0, 0.0)
        description = set_color(f"Train {epoch_idx:>5}", "pink")
        bar = partial(tqdm, total=len(schedule), initial=done, ncols=100, desc=description, disable=not show_progress)

        def progress(steps: Iterable[Any]) -> Iterable[Any]:
            return bar(self.watch(steps, done, schedule.suffices_after, lambda: float(engine.loss)))

        loss = engine.train_epoch(epoch_idx, progress, done, loss)
        self._check_nan(torch.tensor(loss))
        return loss

    def _save_checkpoint(self, epoch: int, *args: Any, **kwargs: Any) -> None:
        with self.whole_users():
            if self._ranks.rank == 0:
                super()._save_checkpoint(epoch, *args, **kwargs)
        self._ranks.barrier()

    def resume_checkpoint(self, resume_file: Any) -> None:
        """See RecBole; each rank takes its own users."""
        super().resume_checkpoint(resume_file)
        self.take_own_rows()

    def take_own_rows(self) -> None:
        """Of what the optimizer keeps of all users, which a checkpoint holds; the model takes its own by itself."""
        shard, table = self.model.shard, self.model.user_table
        if shard is not None and self.model.config.backprop == "two":
            for name, moment in _moments(self.optimizer, table):
                self.optimizer.state[table][name] = shard.own_rows(moment)

    @contextmanager
    def whole_users(self) -> Iterator[None]:
        """While it lasts, rank 0's model and optimizer hold all users: for what is written; called by all ranks."""
        shard, table = self.model.shard, self.model.user_table
        if shard is None:
            yield
            return
        state = self.optimizer.state[table] if self.model.config.backprop == "two" else {}
        own = table.data, dict(state)
        whole = {name: shard.whole_table(moment, self._ranks) for name, moment in _moments(self.optimizer, table)}
        whole_table = shard.whole_table(table.data, self._ranks)
        try:
            if self._ranks.rank == 0:
                table.data = whole_table
                state.update(whole)
            yield
        finally:
            table.data = own[0]
            state.update(own[1])

    @torch.no_grad()
    def _watch(self, epoch_idx: int) -> None:
        """Log the shape of the encodings, and say so when they collapse."""
        users, items = self.model.user_table[1:], self.model.item_table[1:]
        user_norm = users.norm(dim=1).mean()
        self.encoding_stats = {
            "user_norm": float(self._ranks.mean(user_norm, len(users))),
            "item_norm": float(items.norm(dim=1).mean()),
            "user_spread": spread(users, partial(self._ranks.mean, weight=len(users))),
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


def _moments(optimizer: torch.optim.Optimizer, table: Tensor) -> list[tuple[str, Tensor]]:
    """What the optimizer keeps of each row of a table."""
    state = optimizer.state.get(table, {})
    return [(name, value) for name, value in state.items() if isinstance(value, Tensor) and value.dim() == table.dim()]


def _check_distributed(config: Config, model: OneBP, obstacle: str | None) -> None:
    """Refuse what several processes would not do as one does."""
    if model.config.engine == "reference" or obstacle:
        obstacle = obstacle or "engine: reference"
    elif model.config.learner == "sparse_adam" and config["device"].type == "cuda":
        obstacle = "learner: sparse_adam on CUDA; use adam"
    elif not config["fast_evaluator"] or any(mode != "full" for mode in config["eval_args"]["mode"].values()):
        obstacle = "fast_evaluator: False, or an eval_args.mode that is not full"
    if obstacle:
        raise UserError(f"nproc: several processes do not go with {obstacle}")
