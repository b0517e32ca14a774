"""RecBole's configuration object, made without ``eval`` and ``sys.argv``, and checked before RecBole reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import EvaluatorType

from recbole_onebp.config.fields import check_values
from recbole_onebp.config.files import file_names
from recbole_onebp.config.keys import check_keys, check_model_name
from recbole_onebp.config.kinds import check_data_keys, check_eval_items, check_metrics, check_negatives, prepare
from recbole_onebp.config.parts import check_parts
from recbole_onebp.config.schema import without_effect
from recbole_onebp.config.settings import RunSettings
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError

__all__ = ["RunConfig", "check_given"]

_LONGEST_NAME = 200
"""In bytes. File systems allow 255; the rest is for suffixes."""
_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


def check_given(given: Mapping[str, Any], model: str) -> list[str]:
    """Check the keys that the user set.

    Returns:
        The keys that only other models read, which a shared config file may contain.

    Raises:
        UserError: for an unknown model or key, or a value of the wrong type or out of range.
    """
    check_model_name(model)
    others = check_keys(given, model)
    check_values(RunSettings, given)
    return others


@contextmanager
def _environment_restored(name: str) -> Iterator[str | None]:
    """Undo any change of an environment variable at the end; gives its value at the start."""
    value = os.environ.get(name)
    try:
        yield value
    finally:
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


class RunConfig(Config):
    """RecBole's configuration, made from the arguments alone.

    RecBole's own class also reads ``sys.argv`` and passes every string through ``eval``.
    """

    @property
    def log_level(self) -> str:
        """RecBole's key ``state`` as Python's logging names it."""
        return str(self.final_config_dict["state"] or "INFO").upper()

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return config_dict

    def tell_what_has_no_effect(self) -> None:
        """Log the keys that the user set and that nothing reads."""
        model, config = self["model"], self.final_config_dict
        if self._of_other_models:
            others = ", ".join(sorted(self._of_other_models))
            getLogger().info("keys of other models, which %s does not read: %s", model, others)
        for key, needed in without_effect(self.external_config_dict, config).items() if model == "OneBP" else ():
            getLogger().info("%s: has no effect with %s: %s", key, needed, config[needed])

    @classmethod
    def read_files(cls, files: Sequence[str] | str | None) -> dict[str, Any]:
        """The keys of YAML files as RecBole reads them (``1e-3`` is a number); later files override earlier ones."""
        return cls.__new__(cls)._load_config_files(files)

    def _load_config_files(self, file_list: Sequence[str] | str | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_names(file_list):
            loaded = safe_yaml.read(Path(file), f"config file {file}")
            if not isinstance(loaded, dict):
                raise UserError(f"config file {file}: expected lines of 'key: value'")
            for key in loaded:
                if not isinstance(key, str):  # YAML parses on, yes and null as other types
                    raise UserError(f"config file {file}: the key {key!r} is no text; if it is meant, put it in quotes")
            merged.update(loaded)
        return merged

    def _merge_external_config_dict(self) -> None:
        super()._merge_external_config_dict()
        given = self.external_config_dict
        for key, value in given.items():
            if isinstance(value, str) and "\0" in value:  # neither a path nor a name can hold it
                raise UserError(f"{key}: {value!r} holds a null character")
        for key in ("model", "dataset"):
            if not isinstance(given.get(key), str):
                check_keys(given, "OneBP")  # it may be there, but misspelt
                raise UserError(f"{key}: none given; pass --{key}=NAME, or name it in a config file")
            if not given[key].isprintable() or len(given[key].encode()) > _LONGEST_NAME:
                raise UserError(f"{key}: {given[key][:50]!r} ... cannot be part of a file name")
        if "local_rank" in given:  # RecBole would wait for other processes at once
            raise UserError("local_rank: torchrun sets it in the environment; leave it out")
        self._of_other_models = check_given(given, given["model"])

    def _set_default_parameters(self) -> None:
        given, final = self.external_config_dict, self.final_config_dict
        check_data_keys(final)
        check_metrics(final)
        prepare(given, final, self.model_class)
        super()._set_default_parameters()
        check_negatives(final)
        check_eval_items(final)
        self._check_valid_metric()
        check_parts(given, self.internal_config_dict, final)

    def _init_device(self) -> None:
        """Choose the device, with the user's ``CUDA_VISIBLE_DEVICES`` as the default of ``gpu_id``.

        RecBole sets the variable to ``gpu_id``. It is restored, so that child processes do not inherit RecBole's value.
        CUDA and torch read it once, on initialisation, so they are initialised before that.
        """
        final = self.final_config_dict
        with _environment_restored(_VISIBLE_GPUS) as visible:
            if visible is not None and "gpu_id" not in self.external_config_dict:
                final["gpu_id"] = visible
            super()._init_device()
            if not final["use_gpu"]:  # RecBole has the key, but uses the GPU all the same
                final["device"] = torch.device("cpu")
            if final["device"].type == "cuda":
                torch.cuda.init()  # type: ignore[no-untyped-call]
                torch.cuda.device_count()  # torch keeps the count from now on

    def _check_valid_metric(self) -> None:
        final = self.final_config_dict
        name, _, cutoff = final["valid_metric"].lower().partition("@")
        known = [metric.lower() for metric in final["metrics"]]
        ranking = final["eval_type"] == EvaluatorType.RANKING
        if name not in known or (ranking and cutoff and cutoff not in map(str, final["topk"])):
            raise UserError(
                f"valid_metric: {final['valid_metric']} is not computed; metrics: {', '.join(final['metrics'])}"
                f" at topk: {', '.join(map(str, final['topk']))}; name one of these, or set metrics and topk"
            )
