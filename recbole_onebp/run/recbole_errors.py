"""RecBole's exceptions for bad input, turned into :class:`~recbole_onebp.util.errors.UserError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from recbole_onebp.util.errors import UserError

__all__ = ["as_user_error", "missing_package_as_user_error"]

_PIP_NAMES = {"faiss": "faiss-cpu", "kmeans_pytorch": "kmeans-pytorch"}


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Report the exceptions that RecBole raises for a bad value or file.  Other exceptions are bugs and pass through.

    Args:
        what: the input that RecBole reads, named at the start of the message.
    """
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{what}: {error}") from error


@contextmanager
def missing_package_as_user_error(model: str) -> Iterator[None]:
    """Report a missing package.  Some RecBole models import packages that RecBole does not install."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise UserError(f"{model} needs the package {name}: pip install {_PIP_NAMES.get(name, name)}") from None
    except ImportError as error:  # RecBole's own message, for wandb
        raise UserError(str(error)) from None
