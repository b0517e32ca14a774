"""The file of the best model, ``model.safetensors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from recbole_onebp import __version__
from recbole_onebp.config.schema import NO_RESULT
from recbole_onebp.run.checkpoint.state import other_parameters
from recbole_onebp.run.checkpoint.store import DamagedError, pack, read_tensors, unpack, write_tensors
from recbole_onebp.run.folder import plain
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["SavedModel", "read_model", "write_model"]

_OTHER = "other_parameters."
"""Prefix of the tensors that are not in the ``state_dict``."""


class SavedModel(NamedTuple):
    """The content of a ``model.safetensors``."""

    state: dict[str, Tensor]
    """The ``state_dict``."""
    other_parameters: dict[str, Any]
    given: dict[str, Any]
    """The settings to make the model with."""
    data: dict[str, str] | None
    """Summary of the train data, see :func:`~recbole_onebp.run.checkpoint.state.data_of`; None if several processes
    trained the model."""


def read_model(path: Path) -> SavedModel:
    """Read a ``model.safetensors``.

    Raises:
        UserError: if the file is missing, damaged or not a model.
    """
    if not path.is_file():
        raise UserError(f"{path.parent}: there is no {path.name}; expected a finished run of a model that is trained")
    try:
        tensors, metadata = read_tensors(path)
        other = unpack(json.loads(metadata["other_parameters"]), tensors)
        given, data = json.loads(metadata["config"]), json.loads(metadata.get("data", "null"))
        if not all(isinstance(value, dict) for value in (given, other, data or {})):
            raise ValueError("not a model of recbole_onebp")
    except (DamagedError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a model: {error}") from None
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(_OTHER)}
    return SavedModel(state, other, given, data)


def write_model(path: Path, trainer: Any, epoch: int, data: dict[str, str] | None) -> None:
    """Write the model of a trainer, with what :func:`read_model` returns.

    Args:
        path: the file.
        trainer: a RecBole trainer.
        epoch: number of the model's epoch, from 0.
        data: see :attr:`SavedModel.data`.

    Raises:
        OSError: if it cannot be written; an earlier file stays as it was.
    """
    tensors: dict[str, Any] = {}
    other = pack(other_parameters(trainer.model), tensors, _OTHER.rstrip("."))
    tensors.update(trainer.model.state_dict())
    given = trainer.config.external_config_dict
    kept = given.keys() - NO_RESULT | {"data_path"}  # export reads the ids from there
    metadata = {
        "recbole_onebp": __version__,
        "epoch": str(epoch),
        "config": json.dumps(plain({key: given[key] for key in sorted(given) if key in kept})),
        "other_parameters": json.dumps(other),
        "data": json.dumps(data),
    }
    write_atomically(path, lambda file: write_tensors(file, tensors, metadata))
