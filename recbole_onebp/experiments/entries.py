"""What the specifications of comparisons and searches have in common: a list of models, each with a label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from recbole_onebp.util.errors import UserError

__all__ = ["ModelEntry", "check_distinct", "naming"]


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
