"""The specification of a search: a YAML file, validated once, with models, their spaces and one budget for all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator
from recbole.utils import ModelType

from recbole_onebp.config import RunConfig
from recbole_onebp.config.fields import validated
from recbole_onebp.config.keys import check_keys, comparison_keys, nearest
from recbole_onebp.experiments.entries import ModelEntry, SharedSettings, check_distinct, naming
from recbole_onebp.run.build import parse_config, read_config
from recbole_onebp.util.errors import UserError

__all__ = ["Budget", "Range", "Search", "SearchSpec"]

_Positive = Annotated[int, Field(ge=1)]
_Number = int | FiniteFloat
_ONE_FOR_ALL = comparison_keys() | {"dataset", "data_path", "seed", "epochs", "eval_step", "stopping_step"}
"""Keys of data, evaluation and budget: all models must have the same values, or they could not be compared."""
_NO_RESULT = {"data_path", "show_progress", "state", "gpu_id", "use_gpu"}
"""Keys that may change when a search is resumed."""


class Range(BaseModel):
    """All numbers from ``low`` to ``high``; integers if both bounds and the key's default are."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    low: _Number
    high: _Number
    log: bool = False
    """Sample uniformly on a logarithmic scale."""
    step: _Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low: {self.low} is above high: {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log: true needs low above 0 and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step: {self.step} is not above 0")
        return self

    def suggest(self, trial: Any, key: str) -> int | float:
        step = {} if self.step is None else {"step": self.step}
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        return (trial.suggest_int if whole else trial.suggest_float)(key, self.low, self.high, log=self.log, **step)


Values = Range | list[Any]


class Budget(BaseModel):
    """The budget of every model, and how it is used."""

    model_config = ConfigDict(frozen=True, strict=True)

    trials: _Positive = 20
    time_limit: Annotated[FiniteFloat, Field(gt=0)] | None = None
    """Seconds, checked after each validation; the trial that exceeds the limit counts as pruned."""
    startup_trials: _Positive = 5
    """Trials sampled at random and never pruned; later ones by the tree-structured Parzen estimator (Bergstra et al.,
    2011)."""
    prune: bool = True
    """Stop a trial whose best validation so far is below the median of earlier trials at the same epoch."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    """Epochs during which a trial is never pruned."""


class _Entry(ModelEntry):
    label: Annotated[str, Field(pattern=r"^\w[\w. +-]*$")]  # names a folder
    space: dict[str, Any] = Field(default_factory=dict)


class _File(SharedSettings):
    """A tuning file without the keys of the budget."""

    dataset: str
    models: Annotated[list[_Entry], Field(min_length=1)]
    space: dict[str, Any] = Field(default_factory=dict)
    """The space of all models; a model's own space replaces keys of it."""

    @field_validator("models")
    @classmethod
    def _differ(cls, models: list[_Entry]) -> list[_Entry]:
        check_distinct(entry.label for entry in models)
        return models


@dataclass(frozen=True)
class Search:
    """One model's search."""

    label: str
    settings: Mapping[str, Any]
    """Every key that is set; if the space has a key inside a mapping, the whole mapping."""
    space: Mapping[str, Values]
    seed: int
    valid_metric: str
    """Named as in ``result.json``: ``ndcg@10``."""
    bigger_is_better: bool

    @property
    def terms(self) -> dict[str, str]:
        """Everything that a result depends on; only trials with equal terms belong to one search."""
        settings = {key: str(value) for key, value in self.settings.items() if key not in _NO_RESULT}
        return settings | {f"space: {key}": str(values) for key, values in self.space.items()}

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Values for all keys of the space, sampled by an Optuna trial."""
        return {key: _suggest(trial, key, values) for key, values in self.space.items()}

    def config(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings with ``values`` filled in; ``a.b`` is the key ``b`` of the mapping ``a``."""
        return _put(self.settings, values)


@dataclass(frozen=True)
class SearchSpec:
    """Searches on one data set, one evaluation and one budget."""

    budget: Budget
    epochs: int
    """Maximum per trial."""
    searches: tuple[Search, ...]

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Any]) -> SearchSpec:
        """Read a YAML file; ``overrides`` replace its keys.

        Raises:
            UserError: for an unreadable file, a wrong key or value, or models on unequal terms.
        """
        given = {**RunConfig.read_files([str(path)]), **overrides}
        budget = validated(Budget, {key: given.pop(key) for key in Budget.model_fields if key in given})
        if isinstance(given.get("model"), str) and "models" not in given:
            given["models"] = [given.pop("model")]
        if "model" in given:
            raise UserError("model: the file has a list of models; leave model out")
        file = validated(_File, given)
        shared = {**file.shared, "dataset": file.dataset}
        searches, terms = [], list[dict[str, Any]]()
        for entry in file.models:
            with naming(entry):
                settings = {**shared, **(entry.model_extra or {}), "model": entry.model}
                search, config = _search(entry.label, settings, {**file.space, **entry.space})
                terms.append({key: config[key] for key in sorted(_ONE_FOR_ALL)})
                for key, value in terms[-1].items():
                    if value != terms[0][key]:
                        raise UserError(
                            f"{key}: {value}, but {terms[0][key]} for {file.models[0].label}; all models have the "
                            "same data, evaluation and budget: set the key beside models"
                        )
            searches.append(search)
        return cls(budget, terms[0]["epochs"], tuple(searches))


def _search(label: str, settings: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Search, RunConfig]:
    """The search of one model, and its configuration without the space."""
    config = read_config(None, settings)
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise UserError(f"{config['model']}: its trainer in RecBole reports no epochs; tune supports all other models")
    if config["refit"] or not config["eval_step"]:
        raise UserError("refit and eval_step: a search needs validation; leave both out")
    for key in ("output_dir", "checkpoint_dir"):
        if key in settings:
            raise UserError(f"{key}: every trial has its own folder; pass --output_dir for the search")
    if not given:
        raise UserError("space: there is nothing to search; give a list of choices, or low and high, for some key")
    outer = {key: key.partition(".")[0] for key in given}
    if unread := check_keys(outer.values(), config["model"]):
        raise UserError(f"space: {unread[0]}: {config['model']} does not read it")
    settings = {**settings, **{outer[key]: config[outer[key]] for key in given if "." in key}}
    space = {key: _values(key, values, config) for key, values in given.items()}
    _check_space(settings, space)
    metric, bigger = config["valid_metric"].lower(), config["valid_metric_bigger"]
    return Search(label, settings, space, config["seed"], metric, bigger), config


def _values(key: str, given: Any, config: RunConfig) -> Values:
    outer, _, inner = key.partition(".")
    default = config[outer]
    if outer in _ONE_FOR_ALL:
        raise UserError(f"space: {key}: all models have the same data, evaluation and budget; set it beside models")
    if inner and inner not in (default if isinstance(default, dict) else ()):
        raise UserError(f"space: {key}: {outer} is {default}" + (nearest(inner, default) if default else ""))
    if isinstance(given, dict):
        try:
            values = validated(Range, given)
        except UserError as error:
            raise UserError(f"space: {key}: {error}") from None
        is_float = isinstance(default[inner] if inner else default, float)
        return values.model_copy(update={"low": float(values.low), "high": float(values.high)}) if is_float else values
    if not isinstance(given, list) or not given:
        raise UserError(f"space: {key}: {given!r}: expected a list of choices, or low and high")
    return given


def _check_space(settings: Mapping[str, Any], space: Mapping[str, Values]) -> None:
    """Refuse a value that is not allowed with the defaults, nor with the first or last values of the other keys."""
    ends = {key: [values.low, values.high] if isinstance(values, Range) else values for key, values in space.items()}
    others = [{}, *({key: values[end] for key, values in ends.items()} for end in (0, -1))]
    for key, values in ends.items():
        for value in values:
            refusals = (_refusal(_put(settings, {**other, key: value})) for other in others)
            first = next(refusals)
            if first and all(refusals):
                raise UserError(f"space: {key}: {first}")


def _refusal(given: Mapping[str, Any]) -> UserError | None:
    try:
        parse_config(None, given)
    except UserError as error:
        return error
    return None


def _put(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    config = deepcopy(dict(settings))
    for key, value in values.items():
        outer, _, inner = key.partition(".")
        if inner:
            config[outer][inner] = value
        else:
            config[outer] = value
    return config


def _suggest(trial: Any, key: str, values: Values) -> Any:
    if isinstance(values, Range):
        return values.suggest(trial, key)
    # Optuna stores numbers, strings, booleans and None; other values, such as lists of layer sizes, become JSON.
    names = [v if v is None or isinstance(v, (bool, int, float, str)) else json.dumps(v) for v in values]
    return values[names.index(trial.suggest_categorical(key, names))]
