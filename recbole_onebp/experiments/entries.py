"""What the specifications of comparisons and searches have in common: a list of models, each with a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from recbole_onebp.config import RunConfig
from recbole_onebp.config.files import file_names
from recbole_onebp.util.errors import UserError

__all__ = ["ModelEntry", "SharedSettings", "check_distinct", "naming"]


class SharedSettings(BaseModel):
    """What a file says of all models: every key that is not listed here or in a subclass is a setting of theirs."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    config_files: list[str] = Field(default_factory=list)
    """More settings of all models, such as the file beside a converted data set; keys of this file replace theirs."""

    @field_validator("config_files", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        return file_names(given) if isinstance(given, str) else given

    @cached_property
    def shared(self) -> dict[str, Any]:
        return {**RunConfig.read_files(self.config_files), **(self.model_extra or {})}


class ModelEntry(BaseModel):
    """A model with a label, by default its name; the file may give the name alone.

    Every key that is not listed here or in a subclass is a setting of this model.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    model: str
    label: str

    @model_validator(mode="before")
    @classmethod
    def _expand_name(cls, given: Any) -> Any:
        given = {"model": given} if isinstance(given, str) else given
        return {"label": given.get("model"), **given} if isinstance(given, dict) else given


def check_distinct(names: Iterable[Any]) -> None:
    """Raise ``ValueError`` if a label or a number appears twice."""
    seen = set()
    for name in names:
        if name in seen:
            raise ValueError(
                f"{name} appears twice" + ("; give one of them another label" if isinstance(name, str) else "")
            )
        seen.add(name)


@contextmanager
def naming(entry: ModelEntry) -> Iterator[None]:
    """Inside the block, an error names the model that it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"models, {entry.label}: {error}") from None
