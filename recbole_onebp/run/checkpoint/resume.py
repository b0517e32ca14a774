"""Which checkpoint to resume from, and whether it belongs to this run."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_onebp.distributed.ranks import current
from recbole_onebp.run.checkpoint.state import VERSIONS, data_of, differences, settings_of
from recbole_onebp.run.checkpoint.store import Checkpoint, Checkpoints, DamagedError, is_checkpoint
from recbole_onebp.run.folder import RunFolder, checkpoints_of
from recbole_onebp.util.errors import UserError

__all__ = ["check_resumable", "find_checkpoint", "resumable_epochs", "run_folder_of"]


def find_checkpoint(resume: str | None, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to resume from; None to start a new run.

    Args:
        resume: the configuration key: ``auto`` (the newest checkpoint in ``folder``, if it has one), or the path of a
            run or of a checkpoint.
        folder: of this run.

    Raises:
        UserError: if the path has no checkpoint, or a damaged one.
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
            raise _no_checkpoint(path)
        getLogger().info("resume: no checkpoint in %s: starting", path)
    return found


def run_folder_of(resume: str) -> Path:
    """The folder of the run that a path to a run or checkpoint names.

    Raises:
        UserError: if there is no such folder, or no checkpoint in it.
    """
    path = Path(resume)
    if not path.is_dir():
        raise UserError(f"resume: {path}: there is no such folder; expected auto, or the folder of a run")
    if is_checkpoint(path):
        return path.parent.parent
    if not checkpoints_of(path).is_dir():
        raise _no_checkpoint(path)
    return path


def _no_checkpoint(path: Path) -> UserError:
    return UserError(f"resume: {path}: there is no checkpoint; expected the folder of a run")


def check_resumable(checkpoint: Checkpoint, config: Any, dataset: Any, loaders: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of other settings or other data, or of more epochs than this run has.

    Raises:
        UserError: with what differs.
    """
    values, epochs = checkpoint.values, max(config["epochs"], config["pretrain_epochs"] or 0)
    if current().rank > 0:  # the checkpoint holds hashes of rank 0's data
        return
    try:
        for what, now in (("settings", settings_of(config)), ("data", data_of(dataset, loaders))):
            if changed := differences(values[what], now):
                raise UserError(f"resume: {checkpoint.path}: other {what}: {changed}; use the same, or start a new run")
        done = values["epoch"]
        if done > epochs and not values["stopped_early"]:
            raise UserError(f"resume: {checkpoint.path}: {done} epochs are done; epochs: {epochs} is fewer")
        if done < epochs and done % resumable_epochs(config):
            raise UserError(f"resume: {checkpoint.path}: NCL can resume only after a multiple of m_step epochs")
        changed = differences(values["versions"], VERSIONS)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint.path}: not the checkpoint of a run: {error!r}") from None
    if changed:
        getLogger().warning("resume: %s: the result may differ from that of an uninterrupted run", changed)


def resumable_epochs(config: Any) -> int:
    """A run can resume after every so many epochs.

    This is 1, except for NCL: it computes clusters before every ``m_step``-th epoch, and no checkpoint holds them.
    """
    return int(config["m_step"]) if config["model"] == "NCL" else 1
