"""The schema: every configuration key once, in the field that parses it.

A field holds a key's name, type, bounds and default, and in :class:`~recbole_onebp.config.fields.Key` its meaning, its
scope and whether a result depends on it. ``python -m recbole_onebp.config.generate`` writes
``properties/model/OneBP.yaml`` and the table of ``docs/keys.md`` from it. RecBole's own keys have their defaults in
RecBole's YAML files. OneBP's keys are here, those of any model in :mod:`~recbole_onebp.config.settings`.

The model, the trainer and the engines read these frozen objects, never RecBole's ``config["key"]``, which returns None
for a misspelt key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, model_validator

from recbole_onebp.config.fields import (
    NOT_ZERO,
    Key,
    Needs,
    NegativeSampling,
    NonNegative,
    Positive,
    PositiveInt,
    When,
    key_of,
    validated,
)
from recbole_onebp.config.settings import RunSettings, TrainingKeys
from recbole_onebp.functional import Duplicates
from recbole_onebp.weights import Transform

if TYPE_CHECKING:
    from recbole.config import Config

__all__ = [
    "AUTO_LOCAL_RECENCY",
    "AUTO_RECENCY",
    "AUTO_TREND_WEIGHT",
    "NO_RESULT",
    "RUN_KEYS",
    "OneBPConfig",
    "default_of",
    "dependent_defaults",
    "onebp_defaults",
    "without_effect",
]


AUTO_RECENCY = 1.0
"""``recency: auto`` where the data are in order."""
AUTO_TREND_WEIGHT = 4.0
"""``trend_weight: auto`` where the data are in order."""
AUTO_LOCAL_RECENCY = 0.5
"""``local_recency: auto`` where the data are in order."""


class OneBPConfig(TrainingKeys, frozen=True, extra="forbid"):
    """The settings of OneBP."""

    preset: Annotated[
        str,
        Key(
            "`default`, or a file of `properties/preset`, per data set: `paper` has the published settings, `tuned` "
            "the defaults with what validation prefers on data sets that `fetch` knows"
        ),
    ] = "default"
    embedding_size: Annotated[PositiveInt, Key("Dimension d of user and item embeddings")] = 64
    item_features: Annotated[
        Literal["none", "all"] | list[str],
        Key(
            "Fields of the data set's `.item` file, and ready embeddings beside it, that an item's embedding is made "
            "of, in addition to the row of its id. Items without train pairs then have embeddings too"
        ),
    ] = "none"
    id_dropout: Annotated[
        FiniteFloat,
        Field(ge=0, le=1),
        Key(
            "With `item_features`: share of the items of a step whose ids are left out, so that features learn to "
            "stand alone. 1: ids are not used at all",
            needs=Needs("item_features"),
        ),
    ] = 0.0
    score: Annotated[
        Literal["dot", "cosine"],
        Key("With `cosine`, users also aggregate unit-length item embeddings; the paper has `dot`"),
    ] = "cosine"
    item_bias: Annotated[bool, Key("Learn a bias per item, which is added to the logits")] = True
    temperature: Annotated[Positive, Key("The loss divides scores by it", unless=(When("score", "dot", 1.0),))] = 0.1
    negatives: Annotated[
        Literal["per_pair", "shared"],
        Key(
            "`shared`: all pairs of a step share `n_shared_negatives` negatives; those that the pair's user interacted "
            "with are masked. `per_pair`: each pair has negatives of its own, as in the paper"
        ),
    ] = "shared"
    n_shared_negatives: Annotated[
        Literal["auto"] | PositiveInt,
        Key(
            "Negatives per step with `negatives: shared`, sampled regardless of the user's history. `auto`: 1,024; "
            "with fewer than 2,048 items as many as pairs in a step, 256 to 1,024",
            needs=Needs("negatives", "shared"),
        ),
    ] = "auto"
    train_neg_sample_args: Annotated[
        NegativeSampling,
        Key(
            "RecBole's. The distribution of negatives; `sample_num` negatives per pair with `negatives: per_pair`",
            scope="any model",
        ),
    ] = NegativeSampling(distribution="uniform", sample_num=5)
    logq_correction: Annotated[
        bool,
        Key(
            "With `negatives: shared`: subtract from each logit the log of the item's sampling probability",
            needs=Needs("negatives", "shared"),
        ),
    ] = False
    backprop: Annotated[
        Literal["one", "two"],
        Key("`one`: only items get gradients. `two`: both get them, and users are not aggregated (the paper's TwoBP)"),
    ] = "one"
    aggregation: Annotated[
        Literal["step", "epoch", "interval"],
        Key(
            "`step`: after each step, its users move towards their items of the step (the paper). `epoch`: after each "
            "epoch, all users move towards the mean of all their items. `interval`: they also do so every "
            "`aggregation_interval` steps, and start at that mean",
            unless=(When("backprop", "two", "step"),),
        ),
    ] = "interval"
    aggregation_interval: Annotated[
        PositiveInt,
        Key("Optimizer steps, with `aggregation: interval`", needs=Needs("aggregation", "interval")),
    ] = 50
    aggregation_alpha: Annotated[
        NonNegative,
        Key("Items are aggregated with weight (count in train / mean count) ^ -alpha: above 0, rare items count more"),
    ] = 0.0
    beta: Annotated[
        FiniteFloat,
        Field(ge=0, le=1),
        Key("Share of its old embedding that a user keeps when it moves", unless=(When("aggregation", "step", 0.99),)),
    ] = 0.0
    duplicates: Annotated[
        Duplicates,
        Key(
            "Moves of a user that occurs more than once in a batch: one after the other, the last only, or their mean",
            needs=Needs("aggregation", "step"),
        ),
    ] = "sequential"
    leave_one_out: Annotated[
        bool,
        Key(
            "In the loss, the user of a pair is the mean of its other items, as of the last aggregation",
            unless=(
                When("aggregation", "step", False),
                When("backprop", "two", False),
                When("beta", NOT_ZERO, False),
            ),
        ),
    ] = True
    user_encoding: Annotated[
        Literal["moved", "fresh"],
        Key("Predict with the users as training left them, or with the mean of their final items (`fresh`)"),
    ] = "moved"
    recency: Annotated[
        Literal["auto", "none"] | NonNegative,
        Key(
            "Weight of an item in its user: (number of later items + 1) ^ -recency. `none`: all count the same. "
            f"`auto`: {AUTO_RECENCY} if the data are in order (validation and test follow train in time); otherwise "
            "`none`",
            unless=(When("aggregation", "step", "none"), When("backprop", "two", "none")),
        ),
    ] = "auto"
    training_history: Annotated[
        Literal["auto", "all", "earlier"],
        Key(
            "Items that make the user of a pair in the loss. `all`: all of the user's, without the pair's own with "
            "`leave_one_out`. `earlier`: the 50 before the pair, weighted by `training_recency`. `auto`: `earlier` if "
            "the data are in order",
            unless=(When("aggregation", "step", "all"), When("backprop", "two", "all"), When("beta", NOT_ZERO, "all")),
        ),
    ] = "auto"
    training_recency: Annotated[
        NonNegative,
        Key("`recency` of the items in `training_history: earlier`", needs=Needs("training_history", "earlier")),
    ] = 1.0
    half_weight_at: Annotated[
        NonNegative,
        Key(
            "With `training_history: earlier`, a pair weighs n / (n + this) in the loss if n items come before it: few "
            "items say little about a user. 0: all pairs weigh the same",
            needs=Needs("training_history", "earlier"),
        ),
    ] = 1.0
    trend_weight: Annotated[
        Literal["auto", "none"] | NonNegative,
        Key(
            "For prediction, this times log(how often an item was taken recently / ever) is added to its bias. "
            f"`auto`: {AUTO_TREND_WEIGHT} if the data are in order, otherwise `none`",
            unless=(
                When("item_bias", False, "none"),
                When("aggregation", "step", "none"),
                When("backprop", "two", "none"),
            ),
        ),
    ] = "auto"
    WEIGHT_FIELD: Annotated[
        str | None,
        Key(
            "Column of the interactions with their weights, such as numbers of plays: numbers above 0, loaded by "
            "`load_col`. A weight counts in the loss, in the mean of the user's items and in the local term"
        ),
    ] = None
    weight_transform: Annotated[
        Transform,
        Key(
            "What is made of a weight: itself, log(1 + it), its square root, or the share of the user's weights that "
            "are not larger. Then all weights are divided by their mean",
            needs=Needs("WEIGHT_FIELD"),
        ),
    ] = "rank"
    negative_weight: Annotated[
        NonNegative,
        Key("0: InfoNCE. Above 0: the positive is not in the denominator, whose logarithm has this weight"),
    ] = 0.0
    local: Annotated[
        Literal["ridge", "none"],
        Key(
            "`ridge`: add the local term to the towers' scores: each item explained by those that it co-occurs "
            "with, in closed form",
            unless=(When("aggregation", "step", "none"), When("backprop", "two", "none")),
        ),
    ] = "ridge"
    local_neighbors: Annotated[
        PositiveInt, Key("Items that explain an item in the local term", needs=Needs("local"))
    ] = 100
    local_reg: Annotated[
        Positive, Key("Added to the diagonal of the co-occurrence counts in the local term", needs=Needs("local"))
    ] = 50.0
    local_history: Annotated[
        PositiveInt,
        Key(
            "Items of a user that the counts of the local term use, the latest where times are known",
            needs=Needs("local"),
        ),
    ] = 500
    local_weight: Annotated[
        Literal["auto"] | NonNegative,
        Key(
            "Weight of the local term relative to the towers. `auto`: chosen in each validation, 0 included; 1 where "
            "nothing is validated",
            needs=Needs("local"),
        ),
    ] = "auto"
    local_recency: Annotated[
        Literal["auto", "none"] | NonNegative,
        Key(
            f"`recency` of the local term's user. `auto`: {AUTO_LOCAL_RECENCY} if the data are in order, otherwise "
            "`none`",
            needs=Needs("local"),
        ),
    ] = "auto"
    learning_rate_decay: Annotated[
        FiniteFloat, Field(gt=0, le=1), Key("The learning rate of epoch k, from 0, is `learning_rate` times this ^ k")
    ] = 0.9
    ema_decay: Annotated[
        FiniteFloat,
        Field(ge=0, lt=1),
        Key(
            "Predict with exponential moving averages of the trained tables: the share of the old average that is kept "
            "every 50 steps. 0: with the tables as the last step left them"
        ),
    ] = 0.9
    engine: Annotated[
        Literal["auto", "reference", "fast"],
        Key("`fast`: the fused engine. `reference`: RecBole's loop with autograd. `auto`: fast where possible"),
    ] = "auto"
    data_cache: Annotated[
        bool, Key("Cache large data files in binary form next to them", scope="data", result=False)
    ] = True

    @property
    def repeats(self) -> int:
        """How often RecBole's loader repeats a pair: once for each negative of its own."""
        return 1 if self.negatives == "shared" else self.train_neg_sample_args.sample_num

    @property
    def positives_a_step(self) -> int:
        """Pairs per step."""
        return max(self.train_batch_size // self.repeats, 1)

    @model_validator(mode="after")
    def _check(self) -> OneBPConfig:
        if self.negatives == "shared" and self.train_neg_sample_args.dynamic:
            raise ValueError(
                "negatives: shared with train_neg_sample_args.dynamic: True: dynamic negatives belong to a single "
                "pair; use negatives: per_pair, or dynamic: False"
            )
        if self.negatives == "per_pair" and self.logq_correction:
            raise ValueError(
                "logq_correction: True with negatives: per_pair: it corrects for shared negatives; "
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
                "items; use aggregation: step, or remove duplicates from your configuration"
            )
        if self.leave_one_out and (self.aggregation == "step" or self.beta > 0):
            raise ValueError(
                f"leave_one_out: True with aggregation: {self.aggregation} and beta: {self.beta}: an item can only be "
                "left out of the plain mean of a user's items; use aggregation: interval or epoch, and beta: 0"
            )
        if self.aggregation == "step" and (
            self.recency not in ("auto", "none", 0) or self.training_history == "earlier"
        ):
            raise ValueError(
                "aggregation: step with recency or training_history: earlier: a user moves in the order of the steps "
                f"then; use {'backprop: one' if self.backprop == 'two' else 'aggregation: interval or epoch'}"
            )
        if not self.item_bias and self.trend_weight not in ("auto", "none", 0):
            raise ValueError(
                f"trend_weight: {self.trend_weight} with item_bias: False: the trend is a part of the bias; "
                "use item_bias: True, or trend_weight: none"
            )
        if self.item_features != "none" and self.backprop == "two":
            raise ValueError("item_features with backprop: two: items with features are trained with backprop: one")
        if self.item_features != "none" and (self.negatives, self.aggregation) not in (
            ("shared", "interval"),
            ("shared", "epoch"),
        ):
            raise ValueError(
                f"item_features with negatives: {self.negatives} and aggregation: {self.aggregation}: items with "
                "features are trained with negatives: shared, and aggregation: interval or epoch"
            )
        if self.WEIGHT_FIELD is not None and self.aggregation == "step":
            raise ValueError(
                f"WEIGHT_FIELD: {self.WEIGHT_FIELD} with aggregation: step: weights count in the mean of a user's "
                "items, and there is none then; use aggregation: interval or epoch"
            )
        of_one = {"aggregation": "step", "aggregation_alpha": 0, "user_encoding": "moved"}
        for key, value in of_one.items():
            if self.backprop == "two" and getattr(self, key) != value:
                raise ValueError(
                    f"backprop: two with {key}: {getattr(self, key)}: with two backpropagations users do not move; "
                    f"use backprop: one, or remove {key} from your configuration"
                )
        return self

    def shared_negatives(self, n_items: int) -> int:
        """Number of negatives that the pairs of a step share; 0 if each pair has its own.

        Args:
            n_items: number of items, the padding row included.
        """
        if self.negatives == "per_pair":
            return 0
        if self.n_shared_negatives == "auto":
            return min(max(self.positives_a_step, 256), 1024) if n_items - 1 < 2048 else 1024
        return self.n_shared_negatives

    @classmethod
    def from_recbole(cls, config: Config) -> OneBPConfig:
        """Parse a RecBole configuration.

        Raises:
            UserError: for a value of the wrong type or out of range, or two values that contradict each other.
        """
        return validated(cls, {key: config.final_config_dict.get(key) for key in cls.model_fields})


_OWN = {name: field for name, field in OneBPConfig.model_fields.items() if name not in TrainingKeys.model_fields}
_FIELDS = {**_OWN, **{name: field for name, field in RunSettings.model_fields.items() if name not in _OWN}}
_KEYS = {name: key_of(field) for name, field in _FIELDS.items()}

RUN_KEYS = frozenset(
    name for name in RunSettings.model_fields if _KEYS[name].scope not in ("set by RecBole", "KD_DAGFM")
)
"""Keys that users may set for any model."""
NO_RESULT = frozenset(name for name, key in _KEYS.items() if not key.result)
"""Keys that no result depends on."""


def default_of(name: str) -> Any:
    """The default of one of our keys, for models other than OneBP where the two differ."""
    return _FIELDS[name].get_default()


def onebp_defaults() -> dict[str, Any]:
    """OneBP's defaults, RecBole's keys with a default of ours among them."""
    defaults = {}
    for name, key in _KEYS.items():
        if key.onebp is not None:
            defaults[name] = key.onebp
        elif name in _OWN:
            value = default_of(name)
            defaults[name] = value.model_dump() if isinstance(value, BaseModel) else value
    return defaults


def dependent_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of OneBP that replace the usual ones because of the keys in ``given``.

    Example:
        >>> dependent_defaults({"score": "dot"})
        {'temperature': 1.0}
    """
    return {name: when.default for name, key in _KEYS.items() for when in key.unless if when.applies(given)}


def without_effect(given: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Those of the keys that the user set for OneBP that have no effect, and the key whose value takes it from them.

    Example:
        >>> without_effect(["id_dropout", "epochs"], {"item_features": "none"})
        {'id_dropout': 'item_features'}
    """
    needs = {name: _KEYS[name].needs for name in given if name in _KEYS}
    return {name: other.key for name, other in needs.items() if other is not None and not other.is_met(config)}
