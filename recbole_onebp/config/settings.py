"""The keys of a run of any model: RecBole's and ours; see :mod:`~recbole_onebp.config.schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field

from recbole_onebp.config.fields import (
    NOT_NONE,
    ClipGradNorm,
    Count,
    Cutoffs,
    EvalArgs,
    Intervals,
    IntervalsOrTokens,
    Key,
    Learner,
    LogLevel,
    Names,
    NonNegative,
    Positive,
    PositiveInt,
    Seed,
    Threshold,
    When,
    validated,
)

if TYPE_CHECKING:
    from recbole.config import Config

__all__ = ["RecBoleSettings", "RunSettings", "TrainingKeys"]


class TrainingKeys(BaseModel, frozen=True, strict=True):
    """RecBole's keys that OneBP reads itself."""

    train_batch_size: Annotated[
        PositiveInt,
        Key(
            "RecBole's. (user, item) pairs per step; with `negatives: per_pair` a pair counts once per negative",
            scope="any model",
            onebp=256,
            unless=(When("negatives", "per_pair", 5120), When("item_features", NOT_NONE, 1024)),
        ),
    ]
    learner: Annotated[Learner, Key("RecBole's. The optimizer", scope="any model")]
    weight_decay: Annotated[NonNegative, Key("RecBole's. L2 penalty of the optimizer", scope="any model", onebp=0.0)]


_NO_RESULT_RUN = Key(scope="run", result=False)
_DATA, _EVALUATION, _RUN, _ANY = Key(scope="data"), Key(scope="evaluation"), Key(scope="run"), Key(scope="any model")


class RecBoleSettings(TrainingKeys, frozen=True, arbitrary_types_allowed=True):
    """RecBole's keys that a run uses, or that its code reads though none of its YAML files names them."""

    seed: Annotated[Seed, _RUN]
    epochs: Annotated[Count, _ANY]
    learning_rate: Annotated[Positive, Key("RecBole's. The learning rate", scope="any model", onebp=0.005)]
    train_neg_sample_args: Annotated[dict[str, Any] | None, _ANY]
    eval_step: Annotated[Count, _EVALUATION]
    stopping_step: Annotated[
        Count,
        Key(
            "RecBole's. So many validations without improvement are let pass; with averages of the tables "
            "(`ema_decay`) the metric rises smoothly, and 5 are enough",
            scope="evaluation",
            onebp=5,
            unless=(When("ema_decay", 0.0, 10), When("item_features", NOT_NONE, 10)),
        ),
    ]
    eval_batch_size: Annotated[
        PositiveInt,
        Key(
            "RecBole's. Scores per batch of evaluation; RecBole's 4,096 would mean one user per batch on most data",
            scope="evaluation",
            onebp=2_000_000,
        ),
    ]
    eval_args: Annotated[EvalArgs, _EVALUATION]
    metrics: Annotated[Names, _EVALUATION]
    topk: Annotated[Cutoffs, _EVALUATION]
    valid_metric: Annotated[str, _EVALUATION]
    metric_decimal_place: Annotated[Count, _EVALUATION]
    loss_decimal_place: Annotated[Count, _NO_RESULT_RUN]
    load_col: Annotated[dict[str, list[str] | Literal["*"]] | None, _DATA]
    benchmark_filename: Annotated[list[str] | None, _DATA]
    user_inter_num_interval: Annotated[Intervals | None, _DATA]
    item_inter_num_interval: Annotated[Intervals | None, _DATA]
    val_interval: Annotated[dict[str, IntervalsOrTokens] | None, _DATA]
    threshold: Annotated[Threshold | None, _DATA]
    data_path: Annotated[str, Key(scope="data", result=False)]
    worker: Annotated[Count, _RUN]
    shuffle: Annotated[bool, _RUN]
    reproducibility: Annotated[bool, _RUN]
    use_gpu: Annotated[bool, _RUN]
    gpu_id: Annotated[str | int | tuple[int, ...], _NO_RESULT_RUN]
    enable_amp: Annotated[bool, _RUN]
    enable_scaler: Annotated[bool, _RUN]
    clip_grad_norm: Annotated[ClipGradNorm | None, _RUN]
    state: Annotated[LogLevel, _NO_RESULT_RUN]
    show_progress: Annotated[bool, _NO_RESULT_RUN]
    checkpoint_dir: Annotated[str, _NO_RESULT_RUN]
    save_dataset: Annotated[bool, _NO_RESULT_RUN]
    save_dataloaders: Annotated[bool, _NO_RESULT_RUN]
    teacher: Annotated[Literal["CIN", "CrossNet", "DAGFM"], Key(scope="KD_DAGFM")] = "CrossNet"
    """RecBole's KD_DAGFM passes it to ``eval``: any other text would be run as code."""

    # Not checked.
    dataset_save_path: Annotated[Any, _NO_RESULT_RUN] = None
    dataloaders_save_path: Annotated[Any, _NO_RESULT_RUN] = None
    log_wandb: Annotated[Any, _NO_RESULT_RUN] = None
    wandb_project: Annotated[Any, _NO_RESULT_RUN] = None
    model: Annotated[Any, _RUN] = None
    dataset: Annotated[Any, _DATA] = None
    config_files: Annotated[Any, _RUN] = None
    encoding: Annotated[Any, _DATA] = None
    field_separator: Annotated[str, Field(min_length=1), _DATA] = "\t"
    tail_ratio: Annotated[Any, _EVALUATION] = None
    neg_sampling: Annotated[Any, _ANY] = None
    training_neg_sample_num: Annotated[Any, _ANY] = None
    token_num_threshold: Annotated[Any, _ANY] = None
    xgb_early_stopping_rounds: Annotated[Any, _ANY] = None
    local_rank: Annotated[Any, _NO_RESULT_RUN] = None
    world_size: Annotated[Any, _NO_RESULT_RUN] = None
    offset: Annotated[Any, _NO_RESULT_RUN] = None
    nproc: Annotated[Any, _NO_RESULT_RUN] = None
    ip: Annotated[Any, _NO_RESULT_RUN] = None
    port: Annotated[Any, _NO_RESULT_RUN] = None
    device: Annotated[torch.device, Key(scope="set by RecBole", result=False)]
    single_spec: Annotated[bool, Key(scope="set by RecBole", result=False)]


class RunSettings(RecBoleSettings, frozen=True):
    """The settings of a run of any model: RecBole's keys and ours."""

    fast_sampler: Annotated[
        bool, Key("Vectorised negative sampling instead of RecBole's", scope="any model", onebp=True)
    ] = False
    fast_evaluator: Annotated[
        bool,
        Key(
            "Rank all items for blocks of users: faster than RecBole's evaluation, with the same lists and metrics",
            scope="evaluation",
            onebp=True,
        ),
    ] = False
    eval_items: Annotated[
        Literal["all", "warm", "cold"],
        Key(
            "Items that are ranked, and count as relevant. `warm`: those with train pairs. `cold`: those of the part "
            "that is evaluated, without train pairs",
            scope="evaluation",
        ),
    ] = "all"
    eval_memory_mb: Annotated[
        Positive,
        Key(
            "Memory for the scores of a block of users; best if it fits the last-level cache",
            scope="evaluation",
            result=False,
            onebp=30,
        ),
    ] = 30
    output_dir: Annotated[
        str | None, Key("The run's folder; by default `runs/<dataset>-<model>-<time>`", scope="run", result=False)
    ] = None
    resume: Annotated[
        str | None, Key("`auto`, or the folder of a run: resume from its checkpoint", scope="run", result=False)
    ] = None
    recbole_checkpoint: Annotated[bool, Key("Also write RecBole's `checkpoint.pth`", scope="run", result=False)] = False
    refit: Annotated[bool, Key("Train on train + validation for `epochs` epochs, and test once", scope="run")] = False
    split_seed: Annotated[Seed | None, Key("Seed of the split; by default `seed`", scope="data")] = None
    dist_timeout: Annotated[
        Positive,
        Key("Seconds after which a process that does not respond counts as lost", scope="run", result=False),
    ] = 300.0

    @property
    def ranks_all_items(self) -> bool:
        """Whether both validation and test rank all items (``eval_args.mode: full``)."""
        mode = self.eval_args.get("mode", "full")
        return set(mode.values() if isinstance(mode, dict) else [mode]) == {"full"}

    @classmethod
    def from_recbole(cls, config: Config) -> RunSettings:
        """Parse a RecBole configuration.

        Raises:
            UserError: for a value of the wrong type or out of range.
        """
        final = config.final_config_dict
        return validated(cls, {key: final[key] for key in cls.model_fields if key in final})
