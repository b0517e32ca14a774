"""The result of ``recbole-onebp tune`` for a model: the chosen settings, and what the search cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole.utils.argument_list import dataset_arguments, evaluation_arguments

from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import read_json

__all__ = ["Tuning"]

_SPLIT = {*dataset_arguments, "eval_args", "dataset"}
"""Keys that a split depends on, besides its seed."""
_FROM_COMPARISON = {*_SPLIT, *evaluation_arguments, "model", "data_path", "seed", "split_seed", "epochs", "eval_step",
                "stopping_step"} - {"eval_batch_size"}  # fmt: skip


def _names_file(key: str) -> bool:
    """Whether a key, apart from those that a comparison sets itself, names a file or folder that RecBole would open."""
    return key not in _FROM_COMPARISON and (
        key.endswith(("_path", "_dir", "_file", "_files")) or key in ("warm_up", "xgb_model", "lgb_model", "resume")
    )


@dataclass(frozen=True)
class Tuning:
    """One model in a folder of ``tune``."""

    trials: int
    pruned: int
    epochs: int
    """Maximum per trial."""
    seconds: float
    """Total of all trials."""
    best: Mapping[str, Any]
    """``best.yaml``."""
    split_seed: int

    @classmethod
    def load(cls, folder: Path, label: str) -> Tuning:
        """Read the result of the search of ``label`` in ``folder``.

        Raises:
            UserError: if there is none, or if no trial completed.
        """
        path = folder / "tuning.json"
        try:
            summary = read_json(path, finite=False)
        except UserError as error:
            raise UserError(f"tuned: {path}, which recbole-onebp tune writes: {error}") from None
        try:
            return cls._of(summary, folder, label)
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"tuned: {path}, which recbole-onebp tune writes: {error!r}") from None

    @classmethod
    def _of(cls, summary: Any, folder: Path, label: str) -> Tuning:
        if label not in summary["models"]:
            raise UserError(f"tuned: {folder} has no {label}; labels there: {', '.join(summary['models'])}")
        model = summary["models"][label]
        if "config" not in model:
            raise UserError(f"tuned: {folder}: no trial of {label} was completed")
        best = safe_yaml.read_plain(folder / label / "best.yaml")  # a name in the summary could lead anywhere
        if not isinstance(best, dict) or not all(isinstance(key, str) for key in best):
            raise UserError(f"tuned: {folder / label / 'best.yaml'}: expected lines of 'key: value'")
        if named := sorted(key for key in best if _names_file(key) and best[key]):
            raise UserError(f"tuned: {folder}: {named[0]} names a file; set it in the comparison instead")
        split_seed = best.get("split_seed", summary["seed"])
        epochs = summary["budget"]["epochs"]
        counts = (model["trials"], model["pruned"], epochs)
        if any(type(count) is not int or count < 0 for count in counts) or not 0 <= float(model["seconds"]) < math.inf:
            raise ValueError(f"trials, pruned, epochs and seconds: {counts}, {model['seconds']!r}")
        return cls(*counts, float(model["seconds"]), best, split_seed)

    def settings(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The chosen settings of the model, without data, evaluation and epochs, which the comparison sets.

        Args:
            shared: keys that all models of the comparison share, ``dataset`` and ``split_seed`` among them.

        Raises:
            UserError: if the search had another split: its validation part may contain test interactions.
        """
        searched = {**self.best, "split_seed": self.split_seed}
        for key in sorted({*_SPLIT, "split_seed"}):
            if searched.get(key) != shared.get(key):
                raise UserError(
                    f"tuned: {key}: searched with {searched.get(key)}, compared with {shared.get(key)}; validation of "
                    "another split may contain test interactions of this one: set the key beside models"
                )
        return {key: value for key, value in self.best.items() if key not in _FROM_COMPARISON}
