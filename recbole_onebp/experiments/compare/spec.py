"""What is to be compared: a YAML file, checked once, and the runs that it stands for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator
from recbole.utils import EvaluatorType, ModelType

from recbole_onebp import __version__
from recbole_onebp.config import RunConfig
from recbole_onebp.config.keys import comparison_keys
from recbole_onebp.config.schema import NO_RESULT, Seed, validated
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.run.build import read_config
from recbole_onebp.util.errors import UserError

__all__ = ["ComparisonSpec", "Entry", "RunSpec"]

_Positive = Annotated[int, Field(ge=1)]
_ONE_FOR_ALL = comparison_keys() | {"eval_type"}
"""Keys of data and evaluation."""


class Entry(BaseModel):
    """A row of the comparison: a model, under a label, with keys of its own."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    model: str
    label: str
    config_files: list[str] = []
    """YAML files for this model, such as the best configuration of a search; keys given beside them go above them."""
    tuned: str | None = None
    """A folder of ``recbole-onebp tune``: the best settings of this label, below ``config_files``, and their budget."""
    tuning_trials: Annotated[int, Field(ge=0)] = 0
    """How many configurations were tried on validation before this one was chosen."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, given: Any) -> Any:
        given = {"model": given} if isinstance(given, str) else given
        return {"label": given.get("model"), **given} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _one_budget(self) -> Entry:
        if self.tuned is not None and self.tuning_trials:
            raise ValueError("tuning_trials: tuned says how many; leave it out")
        return self

    @cached_property
    def tuning(self) -> Tuning | None:
        return None if self.tuned is None else Tuning.load(Path(self.tuned), self.label)

    @property
    def trials(self) -> int:
        """The tuning budget."""
        return self.tuning_trials if self.tuning is None else self.tuning.trials


@dataclass(frozen=True)
class RunSpec:
    """One run: an entry with a seed."""

    entry: Entry
    seed: int
    given: Mapping[str, Any]
    """Every key that was set."""
    settings: Mapping[str, str]
    """Every key that a result depends on."""

    def key(self, split_id: str) -> str:
        """Names the run: another setting, another version of ours or another split is another run."""
        text = json.dumps([__version__, split_id, dict(self.settings)], sort_keys=True)
        label = re.sub(r"[^\w.-]+", "_", self.entry.label)
        return f"{label}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class ComparisonSpec(BaseModel):
    """A comparison.  Every other key of the file is a setting that all models share."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    dataset: str
    models: Annotated[list[Entry], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [2020, 2021, 2022]
    """Of initialisation, order and negatives; the split is the same for all."""
    split_seed: Seed | None = None
    """Of the split, where the data has no parts of its own; default: the first seed."""
    reference: str | None = None
    """Label of the model that the others are held against; default: the first."""
    timeout_minutes: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """A run that takes longer is stopped, and says so."""
    jobs: _Positive = 1
    """Runs at a time."""
    output_dir: str

    @field_validator("seeds", "models")
    @classmethod
    def _differ(cls, values: list[Any]) -> list[Any]:
        names = [value.label if isinstance(value, Entry) else value for value in values]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name} stands there twice; give one of them another label" if isinstance(name, str)
                                 else f"{name} stands there twice")  # fmt: skip
        return values

    @model_validator(mode="after")
    def _check(self) -> ComparisonSpec:
        if self.reference is not None and self.reference not in self.labels:
            raise ValueError(f"reference: {self.reference!r} is no model's label; labels: {', '.join(self.labels)}")
        for key in ("model", "seed"):
            if key in self.shared:
                raise ValueError(f"{key}: a comparison has {key}s, a list; leave {key} out")
        return self

    @classmethod
    def read(cls, files: Sequence[str], overrides: Mapping[str, Any]) -> ComparisonSpec:
        """The plan of YAML files, later ones above earlier ones and ``overrides`` above all.

        Raises:
            UserError: for a file that cannot be read or a value that is wrong.
        """
        default = {"output_dir": str(Path("runs") / f"compare-{Path(files[-1]).stem}")}
        return validated(cls, {**default, **RunConfig.read_files(list(files)), **overrides})

    @property
    def labels(self) -> list[str]:
        return [entry.label for entry in self.models]

    @property
    def reference_label(self) -> str:
        return self.reference or self.labels[0]

    @property
    def shared(self) -> dict[str, Any]:
        return self.model_extra or {}

    def runs(self) -> list[RunSpec]:
        """Every model with every seed; all configurations are checked, and agree in data and evaluation.

        Raises:
            UserError: for a key or value that is wrong, a model that ranks otherwise, or one that would be trained or
                evaluated on other terms than the first.
        """
        given = [self._given(entry) for entry in self.models]
        settings = [self._settings(entry, keys) for entry, keys in zip(self.models, given, strict=True)]
        for entry, own in zip(self.models, settings, strict=True):
            for key in sorted(_ONE_FOR_ALL):
                if own.get(key) != settings[0].get(key):
                    raise UserError(
                        f"models, {entry.label}: {key}: {own.get(key)}, but {settings[0].get(key)} for "
                        f"{self.labels[0]}; a comparison has one split and one evaluation: set it beside models"
                    )
        return [  # seed by seed: an interrupted comparison has some of every model
            RunSpec(entry, seed, {**keys, "seed": seed}, {**own, "seed": str(seed)})
            for seed in self.seeds
            for entry, keys, own in zip(self.models, given, settings, strict=True)
        ]

    def _given(self, entry: Entry) -> dict[str, Any]:
        own = {**RunConfig.read_files(entry.config_files), **(entry.model_extra or {})}
        for key in ("seed", "split_seed", "dataset"):
            if key in own:
                raise UserError(f"models, {entry.label}: {key}: the same for all models; set it beside models")
        fixed = {
            "dataset": self.dataset,
            "seed": self.seeds[0],
            "split_seed": self.seeds[0] if self.split_seed is None else self.split_seed,
            "show_progress": False,
        }
        try:
            tuned = {} if entry.tuning is None else entry.tuning.settings({**self.shared, **fixed})
        except UserError as error:
            raise UserError(f"models, {entry.label}: {error}") from None
        return {**self.shared, **tuned, **own, "model": entry.model, **fixed}

    def _settings(self, entry: Entry, given: Mapping[str, Any]) -> dict[str, str]:
        try:
            config = read_config(None, given)
            _check_kind(config)
        except UserError as error:
            raise UserError(f"models, {entry.label}: {error}") from None
        return {key: str(value) for key, value in config.final_config_dict.items() if key not in NO_RESULT}


def _check_kind(config: RunConfig) -> None:
    if config["MODEL_TYPE"] in (ModelType.SEQUENTIAL, ModelType.DECISIONTREE):
        raise UserError(f"{config['model']} splits or ranks in its own way; compare takes general recommenders")
    if config["eval_type"] != EvaluatorType.RANKING or set(config["eval_args"]["mode"].values()) != {"full"}:
        raise UserError(
            "eval_args.mode and metrics: compare ranks all items for each user (mode: full): ranks among sampled items "
            "put models in another order"
        )
    metric, at, _ = config["valid_metric"].lower().partition("@")
    if not at or metric in ("itemcoverage", "giniindex", "shannonentropy"):
        raise UserError(f"valid_metric: {config['valid_metric']} has no value for a user; take one such as NDCG@10")
    if not config["eval_step"] and not config["refit"]:
        getLogger().warning("eval_step: 0: %s is tested at its last epoch", config["model"])
