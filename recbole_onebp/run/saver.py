"""When a run is saved, and how it is stopped."""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from logging import getLogger
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from torch import Tensor

from recbole_onebp import __version__
from recbole_onebp.config.keys import NO_RESULT
from recbole_onebp.distributed.ranks import current
from recbole_onebp.run.checkpoint.state import (
    data_of,
    differences,
    generator_states,
    other_parameters,
    restore_trainer,
    set_generator_states,
    settings_of,
    trainer_state,
)
from recbole_onebp.run.checkpoint.store import (
    Checkpoint,
    Checkpoints,
    DamagedError,
    is_checkpoint,
    pack,
    read_tensors,
    unpack,
    write_tensors,
)
from recbole_onebp.run.folder import RunFolder, checkpoints_of, plain
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["SavedModel", "Saver", "find", "read_model", "refuse_another_run", "run_of"]

_SHARE = 20
"""Training goes on for so many times as long as the last checkpoint took, before the next."""
_LEAST = 1.0
"""And for so many seconds."""
_PATIENCE = 10.0
"""Seconds that a signal waits, at the most, for a moment when the run can be saved."""
_OTHER = "other_parameters."
_VERSIONS = {"recbole_onebp": __version__, **{name: version(name) for name in ("torch", "numpy", "numba")}}


def find(resume: str | None, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint that ``resume`` means: ``auto`` (that of ``folder``, if it has one), or the path of a run or of
    a checkpoint.

    Raises:
        UserError: if there is none at the path, or what is there is damaged.
    """
    if resume is None:
        return None
    path = folder.path if resume == "auto" else Path(resume)
    if is_checkpoint(path):
        try:
            return Checkpoint.read(path)
        except DamagedError as error:
            raise UserError(f"resume: {error}") from None
    found = Checkpoints(checkpoints_of(path)).load()
    if found is None:
        if resume != "auto":
            raise _nothing_at(path)
        getLogger().info("resume: no checkpoint in %s: starting", path)
    return found


def refuse_another_run(checkpoint: Checkpoint, config: Any, dataset: Any, loaders: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for a checkpoint of other settings or data, or of more epochs; show what differs."""
    values, epochs = checkpoint.values, max(config["epochs"], config["pretrain_epochs"] or 0)
    if current().rank > 0:  # the checkpoint has a hash of rank 0's data
        return
    try:
        for what, now in (("settings", settings_of(config)), ("data", data_of(dataset, loaders))):
            if changed := differences(values[what], now):
                raise UserError(f"resume: {checkpoint.path}: other {what}: {changed}; give the same, or start anew")
        done = values["epoch"]
        if done > epochs and not values["stopped_early"]:
            raise UserError(f"resume: {checkpoint.path}: {done} epochs are done; epochs: {epochs} is fewer")
        if done < epochs and done % _every(config):
            raise UserError(f"resume: {checkpoint.path}: NCL goes on after a multiple of m_step epochs alone")
        changed = differences(values["versions"], _VERSIONS)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint.path}: no checkpoint of a run: {error!r}") from None
    if changed:
        getLogger().warning("resume: %s: the run may differ from one that was not stopped", changed)


def _every(config: Any) -> int:
    """NCL clusters anew every ``m_step`` epochs, before the epoch; the clusters are in no checkpoint."""
    return int(config["m_step"]) if config["model"] == "NCL" else 1


def run_of(resume: str) -> Path:
    """The folder of the run that a path means."""
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"resume: {path}: there is no such folder; expected auto, or the folder of a run")
    if is_checkpoint(path):
        return path.parent.parent
    if not checkpoints_of(path).is_dir():
        raise _nothing_at(path)
    return path


def _nothing_at(path: Path) -> UserError:
    return UserError(f"resume: {path}: there is no checkpoint; expected the folder of a run")


class SavedModel(NamedTuple):
    """What is in a ``model.safetensors``."""

    state: dict[str, Tensor]
    """The ``state_dict``."""
    other_parameters: dict[str, Any]
    given: dict[str, Any]
    """The settings to make the model with."""
    data: dict[str, str] | None
    """What it was trained on, see :func:`~recbole_onebp.run.checkpoint.state.data_of`; None of several processes."""


def read_model(path: Path) -> SavedModel:
    """Read a ``model.safetensors``.

    Raises:
        UserError: for a file that is missing, damaged or something else.
    """
    if not path.is_file():
        raise UserError(f"{path.parent}: there is no {path.name}; expected the folder of a finished run")
    try:
        tensors, metadata = read_tensors(path)
        other = unpack(json.loads(metadata["other_parameters"]), tensors)
        given, data = json.loads(metadata["config"]), json.loads(metadata.get("data", "null"))
        if not all(isinstance(value, dict) for value in (given, other, data or {})):
            raise ValueError("not a model of recbole_onebp")
    except (DamagedError, ArithmeticError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a model: {error}") from None
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER)}
    return SavedModel(state, other, given, data)


class Saver:
    """Saves a run as it goes, and on SIGTERM and Ctrl-C.

    After an epoch, or inside one where the trainer lets it (:meth:`watch`), a checkpoint is made when training has
    taken twenty times as long as the last checkpoint, and a second.  Nothing of the run depends on when.

    In several processes all of them call this together, rank 0 writes, with everybody's users, and only after an epoch;
    a signal ends them as it ends any process, and the last checkpoint stands.

    Args:
        trainer: one of RecBole's.
        folder: of the run.
        epochs: the record of the epochs so far; filled when the run goes on.
        dataset: the whole of the data.
        loaders: of the parts, by name.
        best: where all processes find the best model; by default in ``folder``.
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
        self._best, self._ranks = best or folder.model, current()
        trainer.watch = self.watch
        self._dataset, self._loaders = dataset, loaders
        self._checkpoints = Checkpoints(folder.checkpoints)
        self._settings = settings_of(trainer.config)
        self._every = _every(trainer.config)
        self._generators: Mapping[str, Any] | None = None
        self._saved: tuple[int, int] | None = None  # where the newest checkpoint in the folder goes on: epoch and step
        self._saved_at, self._cost = perf_counter(), 0.0
        self._seconds_before, self._began = 0.0, perf_counter()
        self._epoch, self._epoch_began, self._epoch_seconds_before = 0, 0.0, 0.0
        self._loss: Callable[[], float] = float
        self._running = False
        self._signal: int | None = None  # that has come
        self._limit = threading.Timer(_PATIENCE, int)  # of the time that it waits

    # ------------------------------------------------------------------------------------------------------- going on

    def go_on(self, checkpoint: Checkpoint) -> None:
        """Take everything from a checkpoint of this run.

        Raises:
            UserError: if it is not, for all that its settings say.
        """
        values = checkpoint.values
        try:
            epoch, step = operator.index(values["epoch"]), operator.index(values["step"])
            restore_trainer(self.trainer, values["trainer"])
            if self._ranks.is_distributed:
                self.trainer.take_own_rows()
            self._generators = values["generators"]
            self.epochs[:] = values["epochs"]
            self._seconds_before, self._epoch_seconds_before = values["seconds"], values["epoch_seconds"]
            if step:
                self.trainer.begin_at = step, values["loss"]
            self.trainer.start_epoch = epoch
            self.trainer.train_loss_dict.update({done["epoch"]: done["train_loss"] for done in self.epochs})
            if values["stopped_early"]:
                self.trainer.epochs = epoch
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.path}: does not fit this run: {error!r}") from None
        here = checkpoint.lies_in(self.folder.checkpoints)
        if here:
            self._checkpoints.keep(checkpoint.path.name)
        if self._ranks.broadcast_int(here):
            self._saved = epoch, step
        self.folder.go_on(self.trainer.config.final_config_dict, self.epochs)
        with self._writing():
            if (best := checkpoint.best) is None:
                self.folder.model.unlink(missing_ok=True)
            else:
                write_atomically(self.folder.model, lambda file: shutil.copyfile(best, file))
        getLogger().info("going on with %s: epoch %d, step %d", checkpoint.path, epoch, step)

    @cached_property
    def _data(self) -> dict[str, str]:
        return data_of(self._dataset, self._loaders)

    # ---------------------------------------------------------------------------------------------------------- saving

    @property
    def seconds(self) -> float:
        """What training has taken, in this process and those before."""
        return self._seconds_before + perf_counter() - self._began

    def epoch_begins(self, epoch: int) -> float:
        """The epoch before is over, validation and all.

        Returns:
            The seconds that this one has taken already, before the run was stopped.
        """
        if epoch > self.trainer.start_epoch:
            self._epoch_seconds_before = 0.0
            if epoch % self._every == 0 and self._ranks.broadcast_int(self._is_due()):
                self.save(epoch)
        if self._signal:
            self._leave()
        self._epoch, self._epoch_began = epoch, perf_counter()
        return self._epoch_seconds_before

    def watch(
        self, steps: Iterable[Any], done: int, suffices_after: Callable[[int], bool], loss: Callable[[], float]
    ) -> Iterator[Any]:
        """The steps of an epoch, between which the run may be saved.

        Args:
            steps: those to come.
            done: how many came before.
            suffices_after: whether tables and optimizer are all that the epoch goes on from after a step, from 0.
            loss: the sum of the steps' losses so far.
        """
        if not (self._running and not self._ranks.is_distributed):
            yield from steps
            return
        self._loss = loss
        for step, batch in enumerate(steps, start=done):
            yield batch
            if suffices_after(step):
                if self._is_due():
                    self.save(self._epoch, step + 1)
                if self._signal:
                    self._leave()

    def _is_due(self) -> bool:
        waited = perf_counter() - self._saved_at
        return self._running and (self._signal is not None or waited > max(_LEAST, _SHARE * self._cost))

    def save(self, epoch: int, step: int = 0, stopped_early: bool = False) -> None:
        """Make a checkpoint.

        Args:
            epoch: that a run goes on with.
            step: of the epoch, from 0.
            stopped_early: whether there is none.

        Raises:
            UserError: if it cannot be written; the one before stands.
        """
        self._limit.cancel()
        with self._by_first() as first:
            if first:
                self._save(epoch, step, stopped_early)
        self._saved = epoch, step

    def _save(self, epoch: int, step: int, stopped_early: bool) -> None:
        start = perf_counter()
        values = {
            "epoch": epoch,
            "step": step,
            "loss": self._loss() if step else 0.0,
            "stopped_early": stopped_early,
            "trainer": trainer_state(self.trainer),
            "generators": generator_states(self._loaders.values()),
            "epochs": self.epochs,
            "seconds": self.seconds,
            "epoch_seconds": self._epoch_seconds_before + start - self._epoch_began if step else 0.0,
            "settings": self._settings,
            "data": self._data,
            "versions": _VERSIONS,
        }
        with self._writing():
            best = self.folder.model if self._chosen else None
            self._checkpoints.save(f"epoch-{epoch:06d}-step-{step:09d}", values, best)
        self._saved, self._saved_at = (epoch, step), perf_counter()
        self._cost = self._saved_at - start

    @contextmanager
    def _by_first(self) -> Iterator[bool]:
        """Whether to write: rank 0 does, whose model then has the users of all ranks."""
        if not self._ranks.is_distributed:
            yield True
            return
        with self.trainer.whole_users():
            yield self._ranks.rank == 0
        self._ranks.barrier()

    @property
    def _chosen(self) -> bool:
        """Whether validation has chosen an epoch; the last one is the best otherwise."""
        return any(epoch["valid"] for epoch in self.epochs)

    def best_is(self, epoch: int) -> None:
        """Write the model as it stands to ``model.safetensors``, if validation has chosen it.

        Raises:
            UserError: if it cannot be written; the one before stands.
        """
        if self._chosen:
            self._write_best(epoch)

    def _write_best(self, epoch: int) -> None:
        with self._by_first() as first:
            if first:
                self._write_model(epoch)

    def _write_model(self, epoch: int) -> None:
        """See :class:`SavedModel`."""
        tensors: dict[str, Any] = {}
        other = pack(other_parameters(self.trainer.model), tensors, _OTHER.rstrip("."))
        tensors.update(self.trainer.model.state_dict())
        given = self.trainer.config.external_config_dict
        kept = given.keys() - NO_RESULT | {"data_path"}  # that is where the ids are
        metadata = {
            "recbole_onebp": __version__,
            "epoch": str(epoch),
            "config": json.dumps(plain({key: given[key] for key in sorted(given) if key in kept})),
            "other_parameters": json.dumps(other),
            "data": json.dumps(self._data if not self._ranks.is_distributed else None),
        }
        with self._writing():
            write_atomically(self.folder.model, lambda file: write_tensors(file, tensors, metadata))

    def load_best(self) -> None:
        """Make the model what is in ``model.safetensors``."""
        saved = read_model(self._best)
        self.trainer.model.load_state_dict(saved.state)
        self.trainer.model.load_other_parameter(saved.other_parameters)
        getLogger().info("the best model is that of %s", self._best)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            stands = "there was none before"
            if self._saved is not None:
                stands = f"the one before stands and goes on at epoch {self._saved[0]}, step {self._saved[1]}"
            raise UserError(
                f"{self.folder.path}: no checkpoint can be written: {error.strerror or error}; {stands}"
            ) from None

    # -------------------------------------------------------------------------------------------------------- stopping

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time from the first epoch to the last; SIGTERM and Ctrl-C save the run where they can, and end it.

        They wait for a step, or an epoch with its validation, to be over, ten seconds at most; a second one does not.
        Where somebody else listens to them, or ignores them, that is left as it is.

        Raises:
            SystemExit: for SIGTERM, with 143.
            KeyboardInterrupt: for Ctrl-C.
        """
        self._running, self._began = True, perf_counter()
        _ = self._data  # takes its time where there are many: not from the first checkpoint
        self._saved_at = perf_counter()
        if self._generators is not None:
            set_generator_states(self._generators, self._loaders.values())
        before = {}
        if threading.current_thread() is threading.main_thread() and not self._ranks.is_distributed:
            for number, usual in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
                if signal.getsignal(number) == usual:
                    before[number] = signal.signal(number, self._hear)
        try:
            yield
            self._finish()
            if self._signal:
                self._leave()
        except (KeyboardInterrupt, SystemExit):
            if self._saved is not None:
                where = "stopped: --resume=%s goes on at epoch %d, step %d"
                getLogger().warning(where, self.folder.path, *self._saved)
            raise
        finally:
            self._running = False
            self._limit.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _finish(self) -> None:
        last = self.epochs[-1]["epoch"] if self.epochs else -1
        if not self._chosen:
            self._write_best(last)
        if self._saved != (last + 1, 0):
            self.save(last + 1, stopped_early=self.trainer.cur_step > self.trainer.stopping_step)

    def _hear(self, number: int, _frame: Any) -> None:
        if self._signal is None:
            self._signal, self._limit = number, threading.Timer(_PATIENCE, os.kill, (os.getpid(), number))
            self._limit.daemon = True  # a loader's process, which hears the same Ctrl-C, does not wait for it
            self._limit.start()
        else:
            self._leave()

    def _leave(self) -> None:
        raise KeyboardInterrupt if self._signal == signal.SIGINT else SystemExit(128 + int(self._signal or 0))
