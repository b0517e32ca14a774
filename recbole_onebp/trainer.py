"""A RecBole trainer that also moves OneBP's users and logs statistics of the embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, set_color
from torch import Tensor
from tqdm import tqdm

from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.config.settings import RunSettings
from recbole_onebp.distributed.ranks import current
from recbole_onebp.engine import Engine, Schedule, ema, make_engine, why_not_fast
from recbole_onebp.evaluation.full_sort import evaluate_weights
from recbole_onebp.functional import spread
from recbole_onebp.model import OneBP
from recbole_onebp.util.errors import UserError

__all__ = ["CHOSEN", "LOCAL_WEIGHTS", "Checkpointing", "OneBPTrainer"]

CHOSEN = ("local_weight",)
"""Keys that validation chooses without training, if they are `auto`; a run without validation should be given them."""
LOCAL_WEIGHTS = (0.0, *(2.0**power for power in range(-4, 5)))
"""What ``local_weight: auto`` chooses from."""

_COLLAPSED = 1e-3
"""Below this spread all users point the same way, and all get the same list of items."""


class Checkpointing:
    """What the trainer calls so that a run can be saved and resumed inside an epoch.  This default does neither."""

    def resume_point(self, epoch: int) -> tuple[int, float]:
        """Number of steps of an epoch that were done before the run was resumed, and the sum of their losses."""
        return 0, 0.0

    def watch(
        self,
        epoch: int,
        steps: Iterable[Any],
        done: int,
        resumable_after: Callable[[int], bool],
        loss: Callable[[], float],
    ) -> Iterable[Any]:
        """Pass the steps of an epoch through; between two of them the run may be saved.

        Args:
            epoch: its number, from 0.
            steps: those to come.
            done: number of steps before them.
            resumable_after: whether the epoch can be resumed after a step (from 0), from the tables and the optimizer.
            loss: returns the sum of the losses so far.
        """
        return steps


class OneBPTrainer(Trainer):
    """Trains OneBP with the fast engine, or with RecBole's loop for the items and the moving aggregation for the users.

    With ``aggregation: step`` the users of a batch move after each optimizer step, towards the updated item embeddings.
    With ``interval`` all users move after every ``aggregation_interval`` steps, and with ``epoch`` after each epoch.
    Users do not move in a step that AMP skips, nor in evaluation.

    Attributes:
        engine: ``fast`` or ``reference``.
        encoding_stats: statistics of the last epoch: ``user_norm`` and ``item_norm``, the mean lengths of the
            embeddings, and ``user_spread``, see :func:`~recbole_onebp.functional.spread`.
        chosen: those of ``CHOSEN`` that are ``auto``, as the last validation left them.
        value_optimizer: SparseAdam of the feature-value tables; None where the model has no tower.
        checkpointing: saves and resumes the run inside an epoch; does neither by default.

    Example:
        >>> from recbole_onebp import build
        >>> trainer = build("OneBP", "ml-100k", config_dict={"backprop": "two", "engine": "reference"}).trainer
        >>> type(trainer).__name__, trainer.engine
        ('OneBPTrainer', 'reference')
    """

    def __init__(self, config: Config, model: OneBP) -> None:
        """Prepare training.

        Args:
            config: RecBole's configuration.
            model: the model to train.

        Raises:
            UserError: for RecBole's distributed mode, which broadcasts rank 0's buffers at every step and so would
                overwrite the users that other ranks moved; for ``engine: fast`` or several processes with a setting
                that the fast engine does not support.
        """
        self.settings: RunSettings = RunSettings.from_recbole(config)
        if not self.settings.single_spec:
            raise UserError(
                "nproc: RecBole's distributed mode would lose user updates; start recbole-onebp train with --nproc, or "
                "run_recbole_onebp.py by torchrun"
            )
        super().__init__(config, model)
        self.encoding_stats: dict[str, float] = {}
        self.chosen: dict[str, float] = {}
        self._batch: Interaction | None = None
        self._epoch = self._steps = self._steps_an_epoch = 0  # of the reference engine; the steps of this epoch
        self._schedule: Schedule | None = None
        self._scheduled: Any = None  # the data set that the schedule was made for
        self._engine: Engine | None = None
        self._shared_draws: Iterator[tuple[Tensor, Tensor | None]] = iter(())
        self.checkpointing: Checkpointing = Checkpointing()
        if self.value_optimizer is not None:
            if self.settings.enable_amp or self.settings.clip_grad_norm:
                raise UserError("item_features: not with enable_amp or clip_grad_norm; leave these out")
            self.optimizer.register_step_post_hook(self._step_values)
        self.optimizer.register_step_post_hook(self._after_step)
        obstacle = why_not_fast(self.settings, model.config)
        if model.config.engine == "fast" and obstacle:
            raise UserError(f"engine: fast cannot be combined with {obstacle}; use engine: reference, or auto")
        self._ranks = current()
        if self._ranks.is_distributed:
            _check_distributed(self.settings, model.config, obstacle)
            self.eval_collector.shard = model.shard
        self.engine = "reference" if model.config.engine == "reference" or obstacle else "fast"
        if model.config.backprop == "one":
            model.users_will_be_moved()

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        """See RecBole.  The feature-value tables are large, so SparseAdam updates only the rows that a step uses."""
        tower = self.model.tower
        if tower is None:
            self.value_optimizer: torch.optim.Optimizer | None = None
            return super()._build_optimizer(**kwargs)
        self.value_optimizer = super()._build_optimizer(params=tower.of_values, learner="sparse_adam", weight_decay=0)
        others = [one for one in self.model.parameters() if not any(one is value for value in tower.of_values)]
        return super()._build_optimizer(params=others, **kwargs)

    def _step_values(self, *_: Any) -> None:
        if self.value_optimizer is not None:
            self.value_optimizer.step()
            self.value_optimizer.zero_grad()

    def _schedule_of(self, train_data: Any) -> Schedule:
        """The steps over the train data; made on first use."""
        dataset = train_data._dataset
        if self._schedule is None or self._scheduled is not dataset:
            self._scheduled, self._engine = dataset, None
            user, item = (dataset.inter_feat[field].numpy() for field in (dataset.uid_field, dataset.iid_field))
            self._schedule = Schedule(
                user,
                item,
                dataset.user_num,
                dataset.item_num,
                self.model.config,
                self.settings.seed,
                self.settings.shuffle,
                self.model.shard,
                self.model.weighted_items is not None or self.model.tower is not None,
            )
        return self._schedule

    def _loss_of_batch(self, interaction: Interaction) -> Tensor:
        self._batch = interaction
        if self.model.config.negatives == "shared":
            self.model.shared_negatives, kept = next(self._shared_draws)
            if self.model.tower is not None:
                self.model.tower.kept = kept
        return self.model.calculate_loss(interaction)

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        # An optimizer that unscales gradients itself (fused Adam) is stepped even when they overflowed, and skips the
        # update inside: this hook runs although no item has changed.
        overflowed = getattr(optimizer, "found_inf", None)
        if self._batch is not None and not (overflowed is not None and bool(overflowed)):
            self._move_users(self._batch)
            kept = ema.share_after(self.model.config.ema_decay, self._epoch, self._steps, self._steps_an_epoch)
            if kept is not None:
                ema.average(self._optimizers(), kept)
            self._steps += 1
        self._batch = None

    def _move_users(self, batch: Interaction) -> None:
        """Move the users that are due after this step, but not all at the end of an epoch: they move there anyway."""
        config, done = self.model.config, self._steps + 1
        is_due = config.aggregation == "interval" and done % config.aggregation_interval == 0
        if config.backprop == "one" and config.aggregation == "step":
            self.model.move_users(batch)
        elif is_due and done < self._steps_an_epoch:
            self.model.move_all_users()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer, *([] if self.value_optimizer is None else [self.value_optimizer])]

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        self._decay_learning_rate(epoch_idx)
        if self.engine == "fast":
            loss = self._fast_epoch(train_data, epoch_idx, show_progress)
        else:
            loss = self._reference_epoch(train_data, epoch_idx, loss_func or self._loss_of_batch, show_progress)
        self.model.calibrate_new_items()
        self._watch(epoch_idx)
        return loss

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """See RecBole.  The local term is fitted first, so that its time counts as training.

        Example:
            >>> from recbole_onebp import build
            >>> run = build("OneBP", "ml-100k", config_dict={"epochs": 1})
            >>> best_score, best_metrics = run.trainer.fit(run.train_data, run.valid_data, saved=False)
            >>> list(best_metrics)
            ['recall@10', 'mrr@10', 'ndcg@10', 'hit@10', 'precision@10']
        """
        local = self.model.local  # reading it fits the term
        if local is not None and self.model.config.local_weight == "auto" and not (self.eval_step > 0 and valid_data):
            message = "local_weight: auto: without validation %g is used; set the weight that an earlier run has chosen"
            self.logger.info(message, local.weight)
        self.logger.info("order of time: %s", self.model.use_of_order())
        return super().fit(train_data, valid_data, *args, **kwargs)

    def _valid_epoch(self, valid_data: Any, show_progress: bool = False) -> Any:
        """Validate, and with ``local_weight: auto`` move the local term's weight to where the metric is best.

        The search starts at the weight of the last validation.  It goes up by one step as long as that is better, and
        if it never was, down.  A weight and its neighbours are validated together.  The weight is part of the model, so
        it is saved with the best one.
        """
        config = self.model.config
        if config.local == "none" or config.local_weight != "auto":
            return super()._valid_epoch(valid_data, show_progress)
        weight, sign = self.model.local_weight, 1 if self.valid_metric_bigger else -1
        found: dict[int, tuple[float, Any]] = {}

        def score(place: int) -> float:
            if not 0 <= place < len(LOCAL_WEIGHTS):
                return -np.inf
            if place not in found:
                near = [n for n in (place, place - 1, place + 1) if 0 <= n < len(LOCAL_WEIGHTS) and n not in found]
                weights = [LOCAL_WEIGHTS[n] for n in near]
                results = evaluate_weights(self, valid_data, weights, show_progress=show_progress)
                found.update(
                    (n, (calculate_valid_score(r, self.valid_metric), r)) for n, r in zip(near, results, strict=True)
                )
            return sign * found[place][0]

        place = int(np.abs(np.array(LOCAL_WEIGHTS) - float(weight)).argmin())
        step = 1 if score(place) < score(place + 1) else -1  # the place is scored first, with both neighbours
        while score(place + step) > score(place):
            place += step
        weight.fill_(LOCAL_WEIGHTS[place])
        self.chosen = {"local_weight": LOCAL_WEIGHTS[place]}
        self.logger.info(f"local_weight: {LOCAL_WEIGHTS[place]:g}")
        return found[place]

    def _decay_learning_rate(self, epoch_idx: int) -> None:
        """Set the learning rate from the epoch's number alone, so that a resumed run uses the same one."""
        if self.model.config.learning_rate_decay == 1:
            return
        learning_rate = self.learning_rate * self.model.config.learning_rate_decay**epoch_idx
        for optimizer in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
        self.tensorboard.add_scalar("Learning_rate", learning_rate, epoch_idx)
        self.logger.info(f"epoch {epoch_idx} learning rate: {learning_rate:.3g}")

    def _reference_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any, show_progress: bool) -> Any:
        config, self._epoch, self._steps, self._steps_an_epoch = self.model.config, epoch_idx, 0, len(train_data)
        ema.change_places(self._optimizers())
        if config.negatives == "shared":
            self._share_negatives(self._schedule_of(train_data), epoch_idx)
        if self.model.weighted_items is not None:  # a checkpoint does not hold the items that its users were made of
            self.model.move_all_users()
        loss = super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)
        ema.change_places(self._optimizers())
        if config.aggregation != "step":
            self.model.move_all_users()
        return loss

    def _share_negatives(self, schedule: Schedule, epoch_idx: int) -> None:
        """Give the reference engine's steps the same negatives as the fast engine's."""

        def draws(step: int) -> tuple[Tensor, Tensor | None]:
            ids = torch.as_tensor(schedule.shared_negatives(step, epoch_idx), dtype=torch.long, device=self.device)
            if self.model.tower is None:
                return ids, None
            return ids, torch.as_tensor(schedule.kept_ids(step, epoch_idx), device=self.device)

        self._shared_draws = map(draws, count())
        if self.model.config.logq_correction:
            self.model.log_q = torch.as_tensor(schedule.log_q(), device=self.device)

    def _fast_epoch(self, train_data: Any, epoch_idx: int, show_progress: bool) -> float:
        self.model.train()
        schedule = self._schedule_of(train_data)
        if self._engine is None:
            self._engine = make_engine(self.model, self.optimizer, schedule, self.value_optimizer)
        engine, (done, loss) = self._engine, self.checkpointing.resume_point(epoch_idx)
        description = set_color(f"Train {epoch_idx:>5}", "pink")
        bar = partial(tqdm, total=len(schedule), initial=done, ncols=100, desc=description, disable=not show_progress)

        def progress(steps: Iterable[Any]) -> Iterable[Any]:
            watched = self.checkpointing.watch(
                epoch_idx, steps, done, schedule.can_stop_after, lambda: float(engine.loss)
            )
            return bar(watched)

        loss = engine.train_epoch(epoch_idx, progress, done, loss)
        self._check_nan(torch.tensor(loss))
        return loss

    def _save_checkpoint(self, epoch: int, *args: Any, **kwargs: Any) -> None:
        with self.whole_users():
            if self._ranks.rank == 0:
                super()._save_checkpoint(epoch, *args, **kwargs)
        self._ranks.barrier()

    def resume_checkpoint(self, resume_file: Any) -> None:
        """See RecBole. Each rank keeps the rows of its own users."""
        super().resume_checkpoint(resume_file)
        self.take_own_rows()

    def take_own_rows(self) -> None:
        """Reduce the optimizer's state, which a checkpoint holds for all users, to this rank's users.

        The model does the same with its own tables.
        """
        shard, table = self.model.shard, self.model.user_table
        if shard is not None and self.model.config.backprop == "two":
            for name, moment in _moments(self.optimizer, table):
                self.optimizer.state[table][name] = shard.own_rows(moment)

    @contextmanager
    def whole_users(self) -> Iterator[None]:
        """Inside the block, rank 0's model and optimizer hold all users, so that they can be saved.

        All ranks must call it.
        """
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
        """Log statistics of the embeddings, and warn if the users collapse."""
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
        self.logger.info(f"epoch {epoch_idx} embeddings [{shown}]")
        if self.encoding_stats["user_spread"] < _COLLAPSED and self.model.n_users > 2:  # padding and one user
            self.logger.warning(
                f"epoch {epoch_idx}: the user embeddings have collapsed: they all point the same way (user_spread "
                f"{self.encoding_stats['user_spread']:.1e}); a lower learning_rate or a beta closer to 1 may help"
            )


def _moments(optimizer: torch.optim.Optimizer, table: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors of the optimizer's state that have one row per row of the table, with their names."""
    state = optimizer.state.get(table, {})
    return [(name, value) for name, value in state.items() if isinstance(value, Tensor) and value.dim() == table.dim()]


def _check_distributed(settings: RunSettings, config: OneBPConfig, obstacle: str | None) -> None:
    """Refuse settings with which several processes would not give the same result as one."""
    remedy = "change that setting"
    if config.engine == "reference" or obstacle:
        obstacle = obstacle or "engine: reference"
    elif config.learner == "sparse_adam" and settings.device.type == "cuda":
        obstacle, remedy = "learner: sparse_adam on CUDA", "use adam"
    elif not (settings.fast_evaluator and settings.ranks_all_items):
        obstacle, remedy = "fast_evaluator: False, or an eval_args.mode other than full", "use True and full"
    if obstacle:
        raise UserError(f"nproc: several processes cannot be combined with {obstacle}; {remedy}, or use one process")
