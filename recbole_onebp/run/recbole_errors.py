"""RecBole's exceptions for bad input, turned into :class:`~recbole_onebp.util.errors.UserError`."""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from recbole.utils import get_model

from recbole_onebp.util.errors import UserError

__all__ = [
    "as_user_error",
    "check_package",
    "memory_as_user_error",
    "missing_package_as_user_error",
    "recbole_warnings_ignored",
    "too_few_items_as_user_error",
    "worker_memory_as_user_error",
]

_PIP_NAMES = {"faiss": "faiss-cpu", "kmeans_pytorch": "kmeans-pytorch", "lightfm": "lightfm-next"}


@contextmanager
def as_user_error(what: str) -> Iterator[None]:
    """Report the exceptions that RecBole raises for a bad value or file.  Other exceptions are bugs and pass through.

    Args:
        what: the input that RecBole reads, named at the start of the message.
    """
    try:
        yield
    except (ValueError, NotImplementedError, AssertionError) as error:
        raise UserError(f"{what}: {error}") from error


@contextmanager
def missing_package_as_user_error(model: str) -> Iterator[None]:
    """Report a missing package.  Some RecBole models import packages that RecBole does not install."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = (error.name or str(error)).partition(".")[0]
        raise UserError(_needs(model, name)) from None
    except ImportError as error:  # RecBole's own message, for wandb
        raise UserError(str(error)) from None


def check_package(model: str) -> None:
    """Look for the library of a model of ours before anything begins: otherwise its fit would be the first to miss it.

    Raises:
        UserError: if it is not installed.
    """
    package = getattr(get_model(model), "package", "")
    if package and sys.modules.get(package) is None and find_spec(package) is None:
        raise UserError(_needs(model, package))


def _needs(model: str, package: str) -> str:
    return f"{model} needs the package {package}: pip install {_PIP_NAMES.get(package, package)}"


_SHARED_MEMORY = re.compile(r"shared memory|\(shm\)|/torch_\d+|DataLoader worker|Bus error", re.IGNORECASE)


@contextmanager
def worker_memory_as_user_error(n_workers: int) -> Iterator[None]:
    """Report that the processes that load the data ended, which is nearly always for lack of shared memory.

    Args:
        n_workers: RecBole's key ``worker``; with 0 there are no such processes, and nothing is reported.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if not n_workers or not _SHARED_MEMORY.search(str(error)):
            raise
        free = ""
        with suppress(OSError):
            free = f" (/dev/shm has {shutil.disk_usage('/dev/shm').total / 2**20:.0f} MiB)"
        raise UserError(
            f"worker: {n_workers}: the processes that load the data ended for lack of shared memory{free}; set worker: "
            "0, or start the container with a larger --shm-size"
        ) from error


@contextmanager
def too_few_items_as_user_error(model: str, dataset: str, n_items: int) -> Iterator[None]:
    """Report a model that picks more items, or makes more clusters, than there are: some have keys for that."""
    try:
        yield
    except ValueError as error:
        if "Sample larger than population" not in str(error):  # random.sample, for DGCF
            raise
        raise UserError(
            f"{model} draws more users or items for each batch than data set {dataset} has; lower train_batch_size"
        ) from error
    except RuntimeError as error:
        if "as large as number of clusters" in str(error):  # faiss, for NCL
            raise UserError(
                f"{model} makes more clusters (num_clusters) than data set {dataset} has users or items; lower "
                "num_clusters"
            ) from error
        if "selected index k out of range" not in str(error):
            raise
        raise UserError(
            f"{model} picks more items at a time than the {n_items} of data set {dataset}; lower the model's own key "
            "for that"
        ) from error


@contextmanager
def recbole_warnings_ignored() -> Iterator[None]:
    """Ignore Python's warnings about RecBole's own code, which a user cannot change: with ``python -W error`` each
    would end the run.  RecBole's messages to users go to the log."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"recbole\.")
        yield


@contextmanager
def memory_as_user_error() -> Iterator[None]:
    """Report memory that the machine does not have."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            "out of memory: lower embedding_size, train_batch_size, n_shared_negatives or eval_batch_size"
        ) from error
