"""What ``recbole-onebp tune`` has left of a model: the settings that it chose, and what they took."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments, evaluation_arguments

from recbole_onebp.config import RunConfig
from recbole_onebp.util.errors import UserError

__all__ = ["Tuning"]

_SPLIT = {*dataset_arguments, "eval_args", "dataset"}
"""Keys that a split depends on, beside its seed."""
_OF_THE_PLAN = {*_SPLIT, *evaluation_arguments, "model", "data_path", "seed", "split_seed", "epochs", "eval_step",
                "stopping_step"} - {"eval_batch_size"}  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """One model of a folder of ``tune``."""

    trials: int
    pruned: int
    epochs: int
    """At most, a trial."""
    seconds: float
    """Of all trials."""
    best: Mapping[str, Any]
    """``best.yaml``."""
    split_seed: int

    @classmethod
    def load(cls, folder: Path, label: str) -> Tuning:
        """Read what the search of ``label`` has left in ``folder``.

        Raises:
            UserError: if there is none, or none of its trials was completed.
        """
        try:
            summary = json.loads((folder / "tuning.json").read_text(encoding="utf-8"))
            return cls._of(summary, folder, label)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"tuned: {folder / 'tuning.json'}, which recbole-onebp tune writes: {error!r}") from None

    @classmethod
    def _of(cls, summary: Any, folder: Path, label: str) -> Tuning:
        if label not in summary["models"]:
            raise UserError(f"tuned: {folder} has no {label}; labels there: {', '.join(summary['models'])}")
        model = summary["models"][label]
        if "config" not in model:
            raise UserError(f"tuned: {folder}: no trial of {label} was completed")
        best = RunConfig.read_files([str(folder / model["config"])])
        split_seed = best.get("split_seed", summary["seed"])
        epochs = summary["budget"]["epochs"]
        return cls(model["trials"], model["pruned"], epochs, model["seconds"], best, split_seed)

    def settings(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """What was chosen for the model; data, evaluation and epochs are the comparison's.

        Args:
            plan: keys that all models of the comparison share, ``dataset`` and ``split_seed`` among them.

        Raises:
            UserError: if the search had another split: its validation part may hold what is to be tested.
        """
        searched = {**self.best, "split_seed": self.split_seed}
        for key in sorted({*_SPLIT, "split_seed"}):
            if searched.get(key) != plan.get(key):
                raise UserError(
                    f"tuned: {key}: searched with {searched.get(key)}, compared with {plan.get(key)}; validation of "
                    "another split may hold what is tested here: set it beside models"
                )
        return {key: value for key, value in self.best.items() if key not in _OF_THE_PLAN}
