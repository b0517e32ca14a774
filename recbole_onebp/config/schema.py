"""Configuration: RecBole's loose dict, parsed once into frozen, validated objects.

The model and the trainer read :class:`OneBPConfig` and never RecBole's ``config["key"]``, which answers ``None`` to a
misspelt key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from recbole.config import Config
from recbole.utils import EvaluatorType
from typing_extensions import NotRequired, TypedDict

from recbole_onebp.config.keys import check_keys, check_model_name
from recbole_onebp.config.parts import check_parts
from recbole_onebp.functional import Duplicates
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError

__all__ = [
    "VISIBLE_GPUS",
    "NegativeSampling",
    "OneBPConfig",
    "RecBoleSettings",
    "RunConfig",
    "Seed",
    "check_given",
    "validated",
]

VISIBLE_GPUS = os.environ.get("CUDA_VISIBLE_DEVICES")
"""Those that the user named.  RecBole sets the variable for every configuration, to ``gpu_id`` or its default."""
_LONGEST_NAME = 200
"""In bytes, with room for a suffix: file systems take 255."""
Learner = Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"]
_Lower = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Cutoffs = Annotated[list[_Positive], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]


class NegativeSampling(BaseModel):
    """RecBole's ``train_neg_sample_args``, as OneBP uses it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    distribution: Literal["uniform", "popularity"]
    """Items are drawn alike, or by popularity ** alpha; never one that the user has taken in train."""
    sample_num: _Positive = 1
    """Negatives a positive (the paper's N)."""
    alpha: FiniteFloat = 1.0
    """Exponent of the popularity distribution."""
    dynamic: bool = False
    """Keep, for each negative, the best scored of ``candidate_num`` candidates."""
    candidate_num: _Count = 0

    @model_validator(mode="after")
    def _check(self) -> NegativeSampling:
        if self.dynamic and self.candidate_num < 1:
            raise ValueError(f"dynamic: True needs candidate_num of at least 1, not {self.candidate_num}")
        return self


class OneBPConfig(BaseModel):
    """What OneBP is made of.  Every field is a configuration key of the same name."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    preset: str
    """``default``, or a file of ``properties/preset``."""
    embedding_size: _Positive
    """Dimension d of user and item encodings."""
    score: Literal["dot", "cosine"]
    """Score of a user and an item.  With ``cosine`` users aggregate unit-length item encodings."""
    temperature: Annotated[FiniteFloat, Field(gt=0)]
    """The loss divides scores by it."""
    backprop: Literal["one", "two"]
    """``one``: only items get a gradient.  ``two``: both tables do, and no user is moved (the paper's TwoBP)."""
    beta: Annotated[FiniteFloat, Field(ge=0, le=1)]
    """What a user keeps of its encoding when it is moved."""
    aggregation: Literal["step", "epoch", "interval"]
    """A step's users move after it; or all users do, towards the mean of all their items: once after every epoch, or
    after every ``aggregation_interval`` steps of an epoch and after its last (then they also start at their mean)."""
    aggregation_interval: _Positive
    """In optimizer steps, with ``aggregation: interval``."""
    aggregation_alpha: Annotated[FiniteFloat, Field(ge=0)]
    """What users aggregate is w_i e_i with w_i = (count of i in train / mean count) ** -alpha; 0 weighs all alike."""
    leave_one_out: bool
    """In the loss a pair's user is the mean of its other items, as they stood when it was aggregated."""
    user_encoding: Literal["moved", "fresh"]
    """Users are scored as training left them, or as the mean of their items as these stand."""
    duplicates: Duplicates
    """What happens to a user that occurs more than once in a batch."""
    train_neg_sample_args: NegativeSampling
    negatives: Literal["per_pair", "shared"]
    """Every pair has ``sample_num`` negatives of its own, or all pairs of a step share ``n_shared_negatives``."""
    n_shared_negatives: _Positive
    """How many, with ``negatives: shared``; drawn whoever took them; what a pair's user has taken does not count."""
    logq_correction: bool
    """Subtract from the logits the logarithm of an item's share in the draws (``negatives: shared``)."""
    item_bias: bool
    """Items learn a bias too, which is added to the logits."""
    engine: Literal["auto", "reference", "fast"]
    """The loop that trains: RecBole's with autograd (``reference``) or the fused one; ``auto`` takes that if it can."""
    train_batch_size: _Positive
    """RecBole's: pairs times negatives with ``negatives: per_pair``, pairs with ``shared``."""
    learner: Annotated[Learner, _Lower]
    learning_rate_decay: Annotated[FiniteFloat, Field(gt=0, le=1)]
    """The learning rate of epoch k, from 0, is ``learning_rate * learning_rate_decay ** k``."""
    weight_decay: Annotated[FiniteFloat, Field(ge=0)]

    @property
    def repeats(self) -> int:
        """How often RecBole's loader repeats a pair: once for each negative of its own."""
        return 1 if self.negatives == "shared" else self.train_neg_sample_args.sample_num

    @property
    def positives_a_step(self) -> int:
        """Pairs a step."""
        return max(self.train_batch_size // self.repeats, 1)

    @model_validator(mode="after")
    def _check(self) -> OneBPConfig:
        if self.negatives == "shared" and self.train_neg_sample_args.dynamic:
            raise ValueError(
                "negatives: shared with train_neg_sample_args.dynamic: True: dynamic negatives are a pair's own; "
                "use negatives: per_pair, or dynamic: False"
            )
        if self.negatives == "per_pair" and self.logq_correction:
            raise ValueError(
                "logq_correction: True with negatives: per_pair: it corrects for shared draws; "
                "use negatives: shared, or logq_correction: False"
            )
        if self.learner == "sparse_adam" and self.weight_decay > 0:
            raise ValueError(
                f"learner: sparse_adam with weight_decay: {self.weight_decay}: it would decay only the rows of a "
                "batch; use learner: adam, or weight_decay: 0"
            )
        if self.aggregation != "step" and self.duplicates == "last":
            raise ValueError(
                f"aggregation: {self.aggregation} with duplicates: last: it moves a user towards the mean of all its "
                "items; use aggregation: step, or leave duplicates as it is"
            )
        if self.leave_one_out and (self.aggregation == "step" or self.beta > 0):
            raise ValueError(
                f"leave_one_out: True with aggregation: {self.aggregation} and beta: {self.beta}: an item can be taken "
                "out of a user that is the plain mean of its items; use aggregation: interval or epoch, and beta: 0"
            )
        of_one = {"aggregation": "step", "aggregation_alpha": 0, "user_encoding": "moved"}
        for key, value in of_one.items():
            if self.backprop == "two" and getattr(self, key) != value:
                raise ValueError(
                    f"backprop: two with {key}: {getattr(self, key)}: with two backpropagations no user is moved; "
                    f"use backprop: one, or leave {key} as it is"
                )
        return self

    @classmethod
    def from_recbole(cls, config: Config) -> OneBPConfig:
        """Parse and check a RecBole configuration, however it was made.

        Raises:
            UserError: for an unknown key (with the nearest known one), a value out of range or of the wrong type, or
                two values that make no sense together.
        """
        foreign = config.cmd_config_dict.keys() - config.file_config_dict.keys() - config.variable_config_dict.keys()
        # RecBole reads sys.argv, whoever's flags these are: what it found there alone may be nobody's key.
        given = {key: value for key, value in config.external_config_dict.items() if key not in foreign}
        check_given(given, "OneBP")
        values = {key: config.final_config_dict.get(key) for key in cls.model_fields}
        return validated(cls, values)


_Ratio = Annotated[FiniteFloat, Field(ge=0)]


class _Split(TypedDict, total=False):
    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    RS: Annotated[list[_Ratio], Field(min_length=3, max_length=3)]
    LS: str
    TS: Any


class _EvalArgs(TypedDict, total=False):
    """RecBole's ``eval_args``."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    split: _Split
    group_by: Literal["user", "none"] | None
    order: Literal["RO", "TO"]
    mode: str | dict[str, str]


class _ClipGradNorm(TypedDict):
    """Arguments of ``torch.nn.utils.clip_grad_norm_``."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    max_norm: Annotated[FiniteFloat, Field(gt=0)]
    norm_type: NotRequired[FiniteFloat]
    error_if_nonfinite: NotRequired[bool]


def _check_intervals(text: str) -> str:
    end = r"\s*-?(?:\d+(?:\.\d+)?|inf)\s*"
    if not all(re.fullmatch(rf"\s*[\[(]{end},{end}[\])]\s*", interval) for interval in text.split(";")):
        raise ValueError(f"{text!r} is not allowed: expected an interval such as [5,inf)")
    return text


_Intervals = Annotated[str, AfterValidator(_check_intervals)]


class RecBoleSettings(TypedDict, total=False):
    """Types and ranges of the RecBole keys that a run uses."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    seed: Seed
    split_seed: Seed | None
    epochs: _Count
    train_batch_size: _Positive
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]
    learner: Annotated[Learner, _Lower]
    weight_decay: Annotated[FiniteFloat, Field(ge=0)]
    eval_step: _Count
    stopping_step: _Count
    eval_batch_size: _Positive
    metrics: _Names
    topk: _Cutoffs
    valid_metric: str
    metric_decimal_place: _Count
    loss_decimal_place: _Count
    worker: _Count
    state: Annotated[Literal["debug", "info", "warning", "error", "critical"], _Lower]
    load_col: dict[str, list[str] | Literal["*"]] | None
    benchmark_filename: list[str] | None
    gpu_id: str | int | tuple[int, ...]
    use_gpu: bool
    reproducibility: bool
    shuffle: bool
    show_progress: bool
    enable_amp: bool
    enable_scaler: bool
    save_dataset: bool
    save_dataloaders: bool
    clip_grad_norm: _ClipGradNorm | None
    eval_args: _EvalArgs
    user_inter_num_interval: _Intervals | None
    item_inter_num_interval: _Intervals | None
    val_interval: dict[str, _Intervals] | None
    train_neg_sample_args: dict[str, Any] | None
    data_path: str
    checkpoint_dir: str
    output_dir: str
    resume: str | None
    recbole_checkpoint: bool
    fast_sampler: bool
    refit: bool
    fast_evaluator: bool
    eval_memory_mb: Annotated[FiniteFloat, Field(gt=0)]
    data_cache: bool
    teacher: Literal["CIN", "CrossNet", "DAGFM"]  # KD_DAGFM's, which evaluates it
    dist_timeout: Annotated[FiniteFloat, Field(gt=0)]


_Parsed = TypeVar("_Parsed")


def validated(kind: type[_Parsed], values: Mapping[str, Any]) -> _Parsed:
    """An object of ``kind``, or a :class:`UserError` that names the first wrong key, its value and what is allowed."""
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "value_error":
            message = f"{first['input']!r} is not allowed: {message[0].lower()}{message[1:]}"
        raise UserError(f"{where}: {message}" if where else message) from None


def check_given(given: Mapping[str, Any], model: str) -> None:
    """Check the keys that the user set, before RecBole reads them.

    Another model's keys, which a shared config may carry, are mentioned in the log.

    Raises:
        UserError: for an unknown model or key, or a value of the wrong type or out of range.
    """
    check_model_name(model)
    others = check_keys(given, model)
    if others:
        getLogger().info("keys of other models, which %s does not read: %s", model, ", ".join(sorted(others)))
    validated(RecBoleSettings, given)


class RunConfig(Config):
    """RecBole's configuration from what is given here and from nothing else.

    RecBole's own class also reads ``sys.argv`` and passes every string through ``eval``.
    """

    def _load_cmd_line(self) -> dict[str, Any]:
        return {}

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return config_dict

    @classmethod
    def read_files(cls, files: list[str]) -> dict[str, Any]:
        """The keys of YAML files as RecBole reads them (``1e-3`` is a number), later ones above earlier ones."""
        return cls.__new__(cls)._load_config_files(files)

    def _load_config_files(self, file_list: list[str] | None) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for file in file_list or []:
            loaded = safe_yaml.read(Path(file), f"config file {file}")
            if not isinstance(loaded, dict):
                raise UserError(f"config file {file}: expected lines of 'key: value'")
            for key in loaded:
                if not isinstance(key, str):  # YAML reads on, yes and null as something else
                    raise UserError(f"config file {file}: the key {key!r} is no text; if it is meant, put it in quotes")
            merged.update(loaded)
        return merged

    def _merge_external_config_dict(self) -> None:
        super()._merge_external_config_dict()
        given = self.external_config_dict
        for key in ("model", "dataset"):
            if not isinstance(given.get(key), str):
                raise UserError(f"{key}: none given; pass --{key}=NAME, or name it in a config file")
            if not given[key].isprintable() or len(given[key].encode()) > _LONGEST_NAME:
                raise UserError(f"{key}: {given[key][:50]!r} ...: no name of a file could be made of it")
        if "local_rank" in given:  # RecBole would wait for other processes at once
            raise UserError("local_rank: torchrun sets it in the environment; leave it out")
        check_given(given, given["model"])

    def _set_default_parameters(self) -> None:
        super()._set_default_parameters()
        self._check_valid_metric()
        check_parts(self.external_config_dict, self.internal_config_dict, self.final_config_dict)

    def _init_device(self) -> None:
        if VISIBLE_GPUS is not None and "gpu_id" not in self.external_config_dict:
            self.final_config_dict["gpu_id"] = VISIBLE_GPUS
        super()._init_device()
        if not self.final_config_dict["use_gpu"]:  # RecBole has the key, and takes the GPU all the same
            self.final_config_dict["device"] = torch.device("cpu")

    def _check_valid_metric(self) -> None:
        final = self.final_config_dict
        name, _, cutoff = final["valid_metric"].lower().partition("@")
        known = [metric.lower() for metric in final["metrics"]]
        ranking = final["eval_type"] == EvaluatorType.RANKING
        if name not in known or (ranking and cutoff and cutoff not in map(str, final["topk"])):
            raise UserError(
                f"valid_metric: {final['valid_metric']} is not computed; metrics: {', '.join(final['metrics'])}"
                f" at topk: {', '.join(map(str, final['topk']))}"
            )
