"""The specification of a comparison: YAML files, validated once, and the runs that they describe."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, field_validator, model_validator
from recbole.utils import EvaluatorType, ModelType

from recbole_onebp import __version__
from recbole_onebp.config import RunConfig
from recbole_onebp.config.fields import Seed, validated
from recbole_onebp.config.keys import comparison_keys
from recbole_onebp.config.schema import NO_RESULT
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.experiments.entries import ModelEntry, SharedSettings, check_distinct, naming
from recbole_onebp.run.build import read_config
from recbole_onebp.run.recbole_errors import check_package
from recbole_onebp.util.errors import UserError

__all__ = ["ComparisonSpec", "Entry", "RunSpec"]

_Positive = Annotated[int, Field(ge=1)]
_ONE_FOR_ALL = comparison_keys() | {"eval_type"}
"""Keys that all models must have the same values of."""


class Entry(ModelEntry):
    """One row of the comparison: a model with a label and its own settings."""

    config_files: list[str] = Field(default_factory=list)
    """YAML files for this model, such as the best configuration of a search; the entry's own keys replace theirs."""
    tuned: str | None = None
    """A folder of ``recbole-onebp tune``: it gives the best settings of this label, below ``config_files``."""
    tuning_trials: Annotated[int, Field(ge=0)] = 0
    """Number of configurations that were tried on validation to choose this one."""

    @model_validator(mode="after")
    def _one_budget(self) -> Entry:
        if self.tuned is not None and self.tuning_trials:
            raise ValueError("tuning_trials: the folder of tuned has the number; leave it out")
        return self

    @cached_property
    def tuning(self) -> Tuning | None:
        return None if self.tuned is None else Tuning.load(Path(self.tuned), self.label)

    @property
    def trials(self) -> int:
        """The tuning budget, in trials."""
        return self.tuning_trials if self.tuning is None else self.tuning.trials


@dataclass(frozen=True)
class RunSpec:
    """One run: an entry with a seed."""

    entry: Entry
    seed: int
    given: Mapping[str, Any]
    """Every key that the user set."""
    settings: Mapping[str, str]
    """Every key that a result depends on."""

    def key(self, split_id: str) -> str:
        """The name of the run's folder; depends on the settings, on our version and on the split."""
        label = re.sub(r"[^\w.-]+", "_", self.entry.label)
        of_label = [] if label == self.entry.label else [self.entry.label]  # others may become the same name
        text = json.dumps([__version__, split_id, dict(self.settings), *of_label], sort_keys=True)
        return f"{label}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


class ComparisonSpec(SharedSettings):
    """A comparison."""

    dataset: str
    models: Annotated[list[Entry], Field(min_length=1)]
    seeds: list[Seed] = Field(default=[2020, 2021, 2022], min_length=1)
    """Seeds of initialisation, order and negatives; the split is the same for all of them."""
    split_seed: Seed | None = None
    """Seed of the split, unless the data set has its own parts; default: the first seed."""
    reference: str | None = None
    """Label of the model that the others are compared with; default: the first."""
    timeout_minutes: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """A run that takes longer is stopped and reported as timed out."""
    jobs: _Positive = 1
    """Number of runs at the same time."""
    output_dir: str

    @field_validator("seeds", "models")
    @classmethod
    def _differ(cls, values: list[Any]) -> list[Any]:
        check_distinct(value.label if isinstance(value, Entry) else value for value in values)
        return values

    @model_validator(mode="after")
    def _check(self) -> ComparisonSpec:
        if self.reference is not None and self.reference not in self.labels:
            raise ValueError(f"reference: {self.reference!r} is no model's label; labels: {', '.join(self.labels)}")
        for key in ("model", "seed"):
            if key in self.shared:
                raise ValueError(f"{key}: a comparison has a list of {key}s; leave {key} out")
        return self

    @classmethod
    def read(cls, files: Sequence[str], overrides: Mapping[str, Any]) -> ComparisonSpec:
        """Read YAML files; later files replace keys of earlier ones, and ``overrides`` replace both.

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

    def runs(self) -> list[RunSpec]:
        """Every model with every seed; checks all configurations, and that they agree in data and evaluation.

        Raises:
            UserError: for a wrong key or value, a model that does not rank all items, or one whose data or evaluation
                differ from those of the first.
        """
        given = [self._given(entry) for entry in self.models]
        configs = self._configs(given)
        columns = _with_the_same_items([config["load_col"] for config in configs])
        if columns is not None:
            given = [{**keys, "load_col": of} for keys, of in zip(given, columns, strict=True)]
            configs = self._configs(given)
        settings = [self._settings(entry, config) for entry, config in zip(self.models, configs, strict=True)]
        for entry, own in zip(self.models, settings, strict=True):
            for key in sorted(_ONE_FOR_ALL):
                if own.get(key) != settings[0].get(key):
                    raise UserError(
                        f"models, {entry.label}: {key}: {own.get(key)}, but {settings[0].get(key)} for "
                        f"{self.labels[0]}; a comparison has one split and one evaluation: set the key beside models"
                    )
        return [  # seed by seed: an interrupted comparison has runs of every model
            RunSpec(entry, seed, {**keys, "seed": seed}, {**own, "seed": str(seed)})
            for seed in self.seeds
            for entry, keys, own in zip(self.models, given, settings, strict=True)
        ]

    def _given(self, entry: Entry) -> dict[str, Any]:
        own = {**RunConfig.read_files(entry.config_files), **(entry.model_extra or {})}
        for key in ("seed", "split_seed", "dataset"):
            if key in own:
                raise UserError(f"models, {entry.label}: {key}: must be the same for all models; set it beside models")
        fixed = {
            "dataset": self.dataset,
            "seed": self.seeds[0],
            "split_seed": self.seeds[0] if self.split_seed is None else self.split_seed,
            "show_progress": False,
        }
        with naming(entry):
            tuned = {} if entry.tuning is None else entry.tuning.settings({**self.shared, **fixed})
        return {**self.shared, **tuned, **own, "model": entry.model, **fixed}

    def _configs(self, given: Sequence[Mapping[str, Any]]) -> list[RunConfig]:
        configs = []
        for entry, keys in zip(self.models, given, strict=True):
            with naming(entry):
                configs.append(read_config(None, keys))
        return configs

    def _settings(self, entry: Entry, config: RunConfig) -> dict[str, str]:
        with naming(entry):
            _check_kind(config)
            check_package(entry.model)
        return {key: str(value) for key, value in config.final_config_dict.items() if key not in NO_RESULT}


def _with_the_same_items(columns: Sequence[Any]) -> list[dict[str, Any]] | None:
    """``load_col`` of each model with what any of them reads of the items; the data are the same then.

    Returns:
        None if nothing changes: they are the same already, none reads items, or one reads everything there is.
    """
    if None in columns or all(of == columns[0] for of in columns):
        return None
    read = [of["item"] for of in columns if "item" in of]
    every = "*" if "*" in read else [*dict.fromkeys(chain.from_iterable(read))]
    return [{**of, "item": every} for of in columns] if read else None


def _check_kind(config: RunConfig) -> None:
    if config["MODEL_TYPE"] in (ModelType.SEQUENTIAL, ModelType.DECISIONTREE):
        raise UserError(f"{config['model']} has its own way to split or rank; compare supports general recommenders")
    if config["eval_type"] != EvaluatorType.RANKING or set(config["eval_args"]["mode"].values()) != {"full"}:
        raise UserError(
            "eval_args.mode and metrics: compare ranks all items for each user (mode: full); ranks among sampled items "
            "may order the models differently"
        )
    metric, at, _ = config["valid_metric"].lower().partition("@")
    if not at or metric in ("itemcoverage", "giniindex", "shannonentropy"):
        raise UserError(f"valid_metric: {config['valid_metric']} has no value per user; choose one such as NDCG@10")
    if not config["eval_step"] and not config["refit"]:
        getLogger().warning("eval_step: 0: %s is tested at its last epoch", config["model"])
