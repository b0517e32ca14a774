"""Saves a run while it trains: checkpoints, the best model, and a last checkpoint when the run is stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_onebp.distributed.ranks import current
from recbole_onebp.run.checkpoint.checks import check_generators, check_model, check_other, checked_values
from recbole_onebp.run.checkpoint.clock import CheckpointClock, TrainingTime
from recbole_onebp.run.checkpoint.model_file import read_model, write_model
from recbole_onebp.run.checkpoint.resume import resumable_epochs
from recbole_onebp.run.checkpoint.signals import StopSignals
from recbole_onebp.run.checkpoint.state import (
    VERSIONS,
    array_digests,
    data_of,
    generator_states,
    load_other_parameters,
    n_generators,
    restore_trainer,
    set_generator_states,
    settings_of,
    trainer_state,
)
from recbole_onebp.run.checkpoint.store import Checkpoint, Checkpoints
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.trainer import Checkpointing, OneBPTrainer
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["Saver"]


class Saver(Checkpointing):
    """Saves a run while it trains.

    After an epoch, or inside one with :class:`~recbole_onebp.trainer.OneBPTrainer`, it writes a checkpoint when
    :class:`~recbole_onebp.run.checkpoint.clock.CheckpointClock` says that one is due.  Results do not depend on when.

    With several processes, all of them call the same methods together, and rank 0 writes the users of all ranks, only
    after an epoch.  Signals then end the processes without a new checkpoint; the last one is intact.

    Args:
        trainer: a RecBole trainer.
        folder: of the run.
        epochs: the record of the epochs so far; filled by :meth:`resume`.
        dataset: the whole data set.
        loaders: of the parts, by name.
        best: the file from which all processes read the best model; by default the one in ``folder``.
    """

    def __init__(
        self,
        trainer: Any,
        folder: RunFolder,
        epochs: list[dict[str, Any]],
        dataset: Any,
        loaders: Mapping[str, Any],
        best: Path | None = None,
    ) -> None:
        self.trainer, self.folder, self.epochs = trainer, folder, epochs
        self._dataset, self._loaders = dataset, loaders
        self._best, self._ranks = best or folder.model, current()
        self._settings, self._built = settings_of(trainer.config), array_digests(trainer.model)
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._clock, self._time, self._signals = CheckpointClock(), TrainingTime(), StopSignals()
        self._saved: tuple[int, int] | None = None  # epoch and step at which the newest checkpoint resumes
        self._resume_point = 0, 0.0
        self._generators: Mapping[str, Any] | None = None  # their states in the checkpoint
        self._running = False
        if isinstance(trainer, OneBPTrainer):
            trainer.checkpointing = self

    # ------------------------------------------------------------------------------------------------------- resuming

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore everything from a checkpoint of this run.

        Raises:
            UserError: if the checkpoint does not match although the settings are equal.
        """
        values, trainer = checkpoint.values, self.trainer
        try:
            checked = checked_values(values)
            epoch, step = checked.epoch, checked.step
            check_generators(values["generators"], n_generators(self._loaders.values()))
            if not self._ranks.is_distributed:  # a rank's own model has the users of one rank
                check_model(trainer.model, values["trainer"]["model"])
                if checkpoint.best is not None:
                    best_model = read_model(checkpoint.best)
                    check_model(trainer.model, best_model.state)
                    check_other(trainer.model, best_model.other_parameters)
            restore_trainer(trainer, values["trainer"])
            if self._ranks.is_distributed:
                trainer.take_own_rows()
            self._generators = values["generators"]
            self.epochs[:] = values["epochs"]
            self._time.resume(values["seconds"], values["epoch_seconds"])
            self._resume_point = step, values["loss"]
            trainer.start_epoch = epoch
            trainer.train_loss_dict.update({done["epoch"]: done["train_loss"] for done in self.epochs})
            if values["stopped_early"]:
                trainer.epochs = epoch
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.path}: does not fit this run: {error!r}") from None
        in_this_folder = checkpoint.lies_in(self.folder.checkpoints)
        if in_this_folder:
            self._checkpoints.keep(checkpoint.path.name)
        if self._ranks.broadcast_int(in_this_folder):
            self._saved = epoch, step
        self.folder.resume(trainer.config.final_config_dict, self.epochs)
        with self._writing():
            if (best := checkpoint.best) is None:
                self.folder.model.unlink(missing_ok=True)
            else:
                write_atomically(self.folder.model, lambda file: shutil.copyfile(best, file))
        getLogger().info("resuming from %s: epoch %d, step %d", checkpoint.path, epoch, step)

    def resume_point(self, epoch: int) -> tuple[int, float]:
        """See :meth:`Checkpointing.resume_point`."""
        return self._resume_point if epoch == self.trainer.start_epoch else (0, 0.0)

    # --------------------------------------------------------------------------------------------------------- training

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of the training, from the first epoch to the last.  Writes the last checkpoint at its end.

        SIGTERM and Ctrl-C save the run and end it, see :class:`StopSignals`.  They wait for the end of a step, or of
        an epoch with its validation where the trainer cannot resume inside an epoch.

        Raises:
            SystemExit: for SIGTERM, with code 143.
            KeyboardInterrupt: for Ctrl-C.
        """
        self._running = True
        self._time.begin()
        _ = self._data  # hashing large data takes time: do it now, not while the first checkpoint is written
        self._clock.restart()
        if self._generators is not None:
            set_generator_states(self._generators, self._loaders.values())
        with nullcontext() if self._ranks.is_distributed else self._signals:
            try:
                yield
                self._finish()
                self._signals.raise_if_received()
            except (KeyboardInterrupt, SystemExit):
                if self._saved is not None and not self.folder.is_temporary:
                    message = "stopped: --resume=%s resumes at epoch %d, step %d"
                    getLogger().warning(message, self.folder.path, *self._saved)
                raise
            finally:
                self._running = False

    def _finish(self) -> None:
        last = self.epochs[-1]["epoch"] if self.epochs else -1
        if not self._validated:
            self._write_best(last)
        if self._saved != (last + 1, 0):
            self.save(last + 1, stopped_early=self.trainer.cur_step > self.trainer.stopping_step)

    @property
    def seconds(self) -> float:
        """Seconds of training, including those of the processes that this run continues."""
        return self._time.total

    def begin_epoch(self, epoch: int) -> float:
        """Called when an epoch begins: the one before is complete, with its validation, and is saved if that is due.

        Returns:
            The seconds that an earlier process has already trained this epoch.
        """
        resumed = epoch <= self.trainer.start_epoch
        resumable = not resumed and epoch % resumable_epochs(self.trainer.config) == 0
        if resumable and self._ranks.broadcast_int(self._is_due()):
            self.save(epoch)
        self._signals.raise_if_received()
        return self._time.begin_epoch(resumed)

    def watch(
        self,
        epoch: int,
        steps: Iterable[Any],
        done: int,
        resumable_after: Callable[[int], bool],
        loss: Callable[[], float],
    ) -> Iterable[Any]:
        """See :meth:`Checkpointing.watch`."""
        if not self._running or self._ranks.is_distributed:
            yield from steps
            return
        for step, batch in enumerate(steps, start=done):
            yield batch
            if resumable_after(step):
                if self._is_due():
                    self.save(epoch, step + 1, loss())
                self._signals.raise_if_received()

    def _is_due(self) -> bool:
        return self._running and (self._signals.received is not None or self._clock.is_due())

    # ----------------------------------------------------------------------------------------------------------- saving

    def save(self, epoch: int, step: int = 0, loss: float = 0.0, stopped_early: bool = False) -> None:
        """Write a checkpoint.

        Args:
            epoch: at which a resumed run begins.
            step: at which it begins in this epoch, from 0.
            loss: sum of the losses of the steps before.
            stopped_early: whether early stopping has ended the training.

        Raises:
            UserError: if it cannot be written; the previous checkpoint is intact.
        """
        self._signals.stop_timer()
        with self._on_rank_0() as write:
            if write:
                self._save(epoch, step, loss, stopped_early)
        self._saved = epoch, step

    def _save(self, epoch: int, step: int, loss: float, stopped_early: bool) -> None:
        with self._clock.saving():
            values = {
                "epoch": epoch,
                "step": step,
                "loss": loss,
                "stopped_early": stopped_early,
                "trainer": trainer_state(self.trainer, self._built),
                "generators": generator_states(self._loaders.values()),
                "epochs": self.epochs,
                "seconds": self._time.total,
                "epoch_seconds": self._time.epoch if step else 0.0,
                "settings": self._settings,
                "data": self._data,
                "versions": VERSIONS,
            }
            with self._writing():
                best = self.folder.model if self._validated else None
                self._checkpoints.save(f"epoch-{epoch:06d}-step-{step:09d}", values, best)

    def save_best(self, epoch: int) -> None:
        """Write the current model to ``model.safetensors``, if validation has chosen it.

        Raises:
            UserError: if it cannot be written; the previous file is intact.
        """
        if self._validated:
            self._write_best(epoch)

    def _write_best(self, epoch: int) -> None:
        with self._on_rank_0() as write:
            if write:
                data = None if self._ranks.is_distributed else self._data
                with self._writing():
                    write_model(self.folder.model, self.trainer, epoch, data)

    def load_best(self) -> None:
        """Load the model in ``model.safetensors``.

        Raises:
            UserError: if it is damaged, or of another model.
        """
        saved = read_model(self._best)
        try:
            self.trainer.model.load_state_dict(saved.state)
            load_other_parameters(self.trainer.model, saved.other_parameters)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self._best}: does not fit this run: {error}") from None
        getLogger().info("loaded the best model from %s", self._best)

    @cached_property
    def _data(self) -> dict[str, str]:
        return data_of(self._dataset, self._loaders)

    @property
    def _validated(self) -> bool:
        """Whether validation chooses the best epoch; otherwise the last one is the best."""
        return any(epoch["valid"] for epoch in self.epochs)

    @contextmanager
    def _on_rank_0(self) -> Iterator[bool]:
        """True in the process that writes: rank 0, whose model has the users of all ranks inside this context."""
        if not self._ranks.is_distributed:
            yield True
            return
        with self.trainer.whole_users():
            yield self._ranks.rank == 0
        self._ranks.barrier()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            previous = "there is no previous checkpoint"
            if self._saved is not None:
                previous = "the previous checkpoint is intact and resumes at epoch {}, step {}".format(*self._saved)
            raise UserError(
                f"{self.folder.path}: the checkpoint cannot be written: {error.strerror or error}; {previous}"
            ) from None
