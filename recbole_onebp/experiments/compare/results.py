"""The results of the runs, read from their folders: metrics per user, and means over seeds per model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from recbole_onebp.evaluation.metrics import coverage, diversity, gini, novelty
from recbole_onebp.experiments.compare.outcome import outcome_of
from recbole_onebp.experiments.compare.split import Split
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.run.checkpoint.checks import EpochRecord
from recbole_onebp.run.result import Result
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import open_plain, read_json, read_text

__all__ = ["FinishedRun", "Model", "mean_std", "metric_title"]

Array = npt.NDArray[Any]


def mean_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (ddof 1; None for a single value)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def metric_title(metric: str) -> str:
    """The name of a metric for readers: ``NDCG@10`` for ``ndcg@10``."""
    kind, at, k = metric.partition("@")
    return f"{kind.upper() if kind in ('ndcg', 'mrr', 'map', 'gauc') else kind.capitalize()}{at}{k}"


def _read_users(path: Path, split: Split) -> tuple[Array, Array, dict[str, Array]]:
    """Test users, their lists, and their metrics by name, from ``users.npz``.

    Raises:
        UserError, ValueError, OSError, BadZipFile: if they do not fit one another and the split.
    """
    n_users, n_items = len(split.users), len(split.items)
    with open_plain(path) as file:
        with ZipFile(file) as archive:
            size, most = sum(part.file_size for part in archive.infolist()), n_users * 8 * (n_items + 256) + (1 << 20)
        if size > most:
            raise ValueError(f"{path.name}: {size} bytes, at most {most} for {n_users - 1} users")
        file.seek(0)
        with np.load(file, allow_pickle=False) as kept:
            metrics = {name: kept[name] for name in kept.files}
    users, lists = metrics.pop("users"), metrics.pop("lists")
    rows = (len(users),) if users.ndim == 1 else ()
    for name, ids, shape, limit in (("users", users, rows, n_users), ("lists", lists, lists.shape[:1], n_items)):
        if ids.dtype.kind != "i" or shape != rows or not ids.size or ids.min() < 0 or ids.max() >= limit:
            raise ValueError(f"{path.name}: {name}: {ids.dtype} {ids.shape} do not fit the split")
    if lists.ndim != 2:
        raise ValueError(f"{path.name}: lists: {lists.shape}")
    for name, values in metrics.items():
        if values.shape != rows or values.dtype != np.float64:
            raise ValueError(f"{path.name}: {name}: {values.dtype} {values.shape}")
    return users, lists, metrics


@dataclass(frozen=True)
class FinishedRun:
    """The results of one run."""

    seed: int
    result: Mapping[str, Any]
    """``result.json``."""
    peak_device_mb: float
    epochs: list[dict[str, Any]]
    """``metrics.jsonl``."""
    users: Array
    """Test users, internal ids ``(n,)``."""
    lists: Array
    """Their recommended lists, internal ids ``(n, k)``."""
    per_user: pd.DataFrame
    """Test metrics, one row per user in the order of ``users``."""
    overall: Mapping[str, float]
    """Test metrics that have no value per user."""

    @classmethod
    def load(cls, folder: Path, seed: int, split: Split) -> FinishedRun:
        """Read a finished run.

        Raises:
            UserError: if a file is missing or damaged, or is of another split.
        """
        try:
            result = asdict(TypeAdapter(Result).validate_python(read_json(folder / "result.json", finite=False)))
            lines = read_text(folder / "metrics.jsonl").splitlines()
            epochs = [EpochRecord.model_validate_json(line).model_dump() for line in lines]
            users, lists, metrics = _read_users(folder / "users.npz", split)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UserError(f"{folder}: damaged: {what}; remove it, and the run is made again") from None
        except (UserError, ValueError, TypeError, LookupError, OSError, BadZipFile) as error:
            raise UserError(f"{folder}: damaged: {error}; remove it, and the run is made again") from None
        per_user = pd.DataFrame(metrics)
        k, n_items = lists.shape[1], len(split.items) - 1
        per_user[f"novelty@{k}"] = novelty(lists, split.popularity, len(split.users) - 1)
        if k > 1:
            per_user[f"diversity@{k}"] = diversity(lists, split.matrix("train"))
        overall = {name: value for name, value in result["test"].items() if name not in per_user}
        overall |= {f"coverage@{k}": coverage(lists, n_items), f"gini@{k}": gini(lists, n_items)}
        device_mb = (outcome_of(folder) or {}).get("peak_device_mb", 0.0)
        return cls(seed, result, device_mb, epochs, users, lists, per_user, overall)

    @property
    def seconds_per_epoch(self) -> float:
        return float(np.mean(self.result["epoch_seconds"] or [0.0]))


@dataclass(frozen=True)
class Model:
    """One row of the comparison."""

    label: str
    name: str
    tuning_trials: int
    tuning: Tuning | None
    """What the search cost, if that is known."""
    runs: list[FinishedRun]
    failures: list[str]
    """How each of the other runs ended."""

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Test metrics, one row per user: means over the seeds."""
        return pd.concat([run.per_user for run in self.runs]).groupby(level=0).mean()

    @cached_property
    def test(self) -> dict[str, dict[str, float | None]]:
        """Mean and deviation over seeds of each test metric; not rounded, unlike RecBole's."""
        each = [{**run.per_user.mean().to_dict(), **run.overall} for run in self.runs]
        return {name: mean_std([values[name] for values in each]) for name in (each[0] if each else ())}

    def by_items(self, metric: str) -> dict[str, dict[str, float | None]]:
        """Mean and deviation over seeds of a metric among cold, warm and all items, and of items by their train pairs.

        Empty where the test part has few pairs of cold items; see ``test_among`` of
        :class:`~recbole_onebp.run.result.Result`.
        """
        each = []
        for run in self.runs:
            among = {f"{items} items": values for items, values in run.result["test_among"].items()}
            pairs = {f"{number} train pairs": values for number, values in run.result["test_by_train_pairs"].items()}
            each.append({name: values[metric] for name, values in {**among, **pairs}.items() if metric in values})
        shared = [name for name in (each[0] if each else ()) if all(name in values for values in each)]
        return {name: mean_std([values[name] for values in each]) for name in shared}

    def over_seeds(self, value: Callable[[FinishedRun], float]) -> dict[str, float | None] | None:
        return mean_std([value(run) for run in self.runs]) if self.runs else None

    @property
    def status(self) -> str:
        done = f"{len(self.runs)}/{len(self.runs) + len(self.failures)} done"
        return "; ".join([done, *self.failures] if self.failures else [done])

    def summary(self) -> dict[str, Any]:
        """The row as ``report.json`` holds it."""
        tuning = self.tuning and {key: getattr(self.tuning, key) for key in ("trials", "pruned", "epochs", "seconds")}
        return {
            "label": self.label,
            "model": self.name,
            "status": self.status,
            "seeds": [run.seed for run in self.runs],
            "tuning_trials": self.tuning_trials,
            "tuning": tuning,
            "test": self.test,
            "best_epoch": self.over_seeds(lambda run: run.result["best_epoch"]),
            "epochs_run": self.over_seeds(lambda run: run.result["epochs_run"]),
            "train_seconds": self.over_seeds(lambda run: run.result["seconds"]["train"]),
            "seconds_an_epoch": self.over_seeds(lambda run: run.seconds_per_epoch),
            "peak_rss_mb": self.over_seeds(lambda run: run.result["peak_rss_mb"]),
            "peak_device_mb": self.over_seeds(lambda run: run.peak_device_mb),
            "parameters": self.runs[0].result["parameters"] if self.runs else None,
            "device": self.runs[0].result["device"] if self.runs else None,
        }
