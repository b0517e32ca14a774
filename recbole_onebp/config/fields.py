"""Building blocks of the schema: types with bounds, and the facts about a key that its type does not tell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

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
    with_config,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from typing_extensions import NotRequired, TypedDict

from recbole_onebp.util.errors import UserError

__all__ = [
    "NOT_NONE",
    "NOT_ZERO",
    "Key",
    "NegativeSampling",
    "Scope",
    "Seed",
    "When",
    "check_values",
    "key_of",
    "validated",
]

Scope = Literal["OneBP", "any model", "run", "data", "evaluation", "set by RecBole", "KD_DAGFM"]
NOT_ZERO = "not 0"
"""As :attr:`When.value`: any value but zero."""


NOT_NONE = "not none"
"""As :attr:`When.value`: any value but the text ``none``."""


class When(NamedTuple):
    """A default that replaces the usual one if the user sets another key to a certain value."""

    key: str
    value: Any
    default: Any

    def applies(self, given: Mapping[str, Any]) -> bool:
        """Whether the user set the other key to this value."""
        other = given.get(self.key)
        if self.value == NOT_NONE:
            return other not in (None, "none")
        return bool(other) if self.value == NOT_ZERO else bool(other == self.value)


class Needs(NamedTuple):
    """A value that another key must have, by default or because the user set it."""

    key: str
    value: Any = NOT_NONE

    def is_met(self, config: Mapping[str, Any]) -> bool:
        """Whether it has the value, or will be chosen from the data."""
        other = config.get(self.key)
        return other not in (None, "none") if self.value == NOT_NONE else other in (self.value, "auto")


@dataclass(frozen=True)
class Key:
    """What the schema says of a key apart from its type, bounds and default."""

    meaning: str = ""
    scope: Scope = "OneBP"
    result: bool = True
    """Whether a result depends on it."""
    onebp: Any = None
    """OneBP's default, if it differs from that of other models."""
    unless: tuple[When, ...] = ()
    """Other defaults, which depend on other keys."""
    needs: Needs | None = None
    """Without this it has no effect."""


def key_of(field: FieldInfo) -> Key:
    """The facts about a field of the schema."""
    return next((item for item in field.metadata if isinstance(item, Key)), Key())


Lower: BeforeValidator = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Positive = Annotated[FiniteFloat, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Cutoffs = Annotated[list[PositiveInt], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]
Learner = Annotated[Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"], Lower]
LogLevel = Annotated[Literal["debug", "info", "warning", "error", "critical"], Lower]


def _as_text(value: Any) -> Any:
    """A closed interval may come as a list: RecBole's own ``Config`` reads ``"[5,10]"`` as one."""
    return str(list(value)) if isinstance(value, (list, tuple)) else value


def _check_intervals(text: str) -> str:
    end = r"\s*-?(?:\d+(?:\.\d+)?|inf)\s*"
    if not all(re.fullmatch(rf"\s*[\[(]{end},{end}[\])]\s*", interval) for interval in text.split(";")):
        raise ValueError(f"{text!r} is not allowed: expected an interval such as [5,inf)")
    return text


Intervals = Annotated[str, BeforeValidator(_as_text), AfterValidator(_check_intervals)]
IntervalsOrTokens = Intervals | list[str | int | float]
"""Of a field: intervals of numbers, or the tokens to keep."""
Threshold = Annotated[dict[str, FiniteFloat], Field(min_length=1, max_length=1)]


class NegativeSampling(BaseModel, frozen=True, strict=True, extra="forbid"):
    """RecBole's ``train_neg_sample_args``, as OneBP uses it."""

    distribution: Literal["uniform", "popularity"]
    """``uniform``, or ``popularity``: in proportion to popularity ** alpha."""
    sample_num: PositiveInt = 1
    """Negatives per positive (the paper's N)."""
    alpha: FiniteFloat = 1.0
    """Exponent of the popularity distribution."""
    dynamic: bool = False
    """Sample ``candidate_num`` candidates for each negative, and keep the one with the highest score."""
    candidate_num: Count = 0

    @model_validator(mode="after")
    def _check(self) -> NegativeSampling:
        if self.dynamic and self.candidate_num < 1:
            raise ValueError(f"dynamic: True needs candidate_num of at least 1, not {self.candidate_num}")
        return self


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Split(TypedDict, total=False):
    RS: Annotated[list[NonNegative], Field(min_length=3, max_length=3)]
    LS: str
    TS: Any


@with_config(ConfigDict(strict=True, extra="forbid"))
class EvalArgs(TypedDict, total=False):
    """RecBole's ``eval_args``."""

    split: _Split
    group_by: Literal["user", "none"] | None
    order: Literal["RO", "TO"]
    mode: str | dict[str, str]


@with_config(ConfigDict(strict=True, extra="forbid"))
class ClipGradNorm(TypedDict):
    """Arguments of ``torch.nn.utils.clip_grad_norm_``."""

    max_norm: Positive
    norm_type: NotRequired[FiniteFloat]
    error_if_nonfinite: NotRequired[bool]


Parsed = TypeVar("Parsed")


def validated(kind: type[Parsed], values: Mapping[str, Any]) -> Parsed:
    """An object of ``kind``, a pydantic model.

    Raises:
        UserError: for the first wrong key, with its value and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UserError(_message(error.errors(include_url=False))) from None


def check_values(kind: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Like :func:`validated`, but only for the keys that are there.

    Raises:
        UserError: for the first wrong key, with its value and what is allowed.
    """
    try:
        kind.model_validate(dict(values))
    except ValidationError as error:
        found = error.errors(include_url=False)
        wrong = [one for one in found if one["type"] != "missing" or len(one["loc"]) > 1]
        if wrong:
            raise UserError(_message(wrong)) from None


def _message(errors: list[ErrorDetails]) -> str:
    """What is wrong with the first wrong key."""
    error = errors[0]
    # Of a value of one of several types, pydantic also names the type, such as list[str], and has an error for each.
    where = ".".join(takewhile(lambda part: "[" not in part, map(str, error["loc"])))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] != "value_error":
        of_same = [one for one in errors[1:] if one["loc"][:1] == error["loc"][:1] and one["input"] is error["input"]]
        others = (one["msg"].removeprefix("Input should be ") for one in of_same)
        message = ", or ".join(dict.fromkeys([f"{message[0].lower()}{message[1:]}", *others]))
        if isinstance(error["input"], str):
            message = message.replace("a valid list", f"a list, such as [{error['input']}]")
        message = f"{error['input']!r} is not allowed: {message}"
    return f"{where}: {message}" if where else message
