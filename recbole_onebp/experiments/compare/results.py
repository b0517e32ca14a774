"""From the folders of the runs to numbers: means over seeds, groups of users and items, differences, what to mind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.evaluation.metrics import coverage, diversity, gini, hits, novelty
from recbole_onebp.experiments.compare.spec import ComparisonSpec, RunSpec
from recbole_onebp.experiments.compare.split import Split
from recbole_onebp.experiments.compare.statistics import ALPHA, holm, paired
from recbole_onebp.experiments.compare.tuned import Tuning
from recbole_onebp.util.processes import outcome_of

__all__ = ["Comparison", "FinishedRun", "Model", "mean_std", "shown"]

Array = npt.NDArray[Any]
BEYOND = ("coverage", "gini", "novelty", "diversity")
_GROUPS = 4


def mean_std(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (ddof 1; none of a single value)."""
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1 else None}


def shown(metric: str) -> str:
    """``ndcg@10`` as one writes it."""
    kind, at, k = metric.partition("@")
    return f"{kind.upper() if kind in ('ndcg', 'mrr', 'map', 'gauc') else kind.capitalize()}{at}{k}"


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left."""

    seed: int
    result: Mapping[str, Any]
    """``result.json``."""
    peak_device_mb: float
    epochs: list[dict[str, Any]]
    """``metrics.jsonl``."""
    users: Array
    """Test users, internal ids ``(n,)``."""
    lists: Array
    """Their lists, internal ids ``(n, k)``."""
    per_user: pd.DataFrame
    """Test metrics, a row a user in the order of ``users``."""
    of_all: Mapping[str, float]
    """Test metrics that are not of a user."""

    @classmethod
    def load(cls, folder: Path, seed: int, split: Split) -> FinishedRun:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        with np.load(folder / "users.npz") as kept:
            users, lists = kept["users"], kept["lists"]
            per_user = pd.DataFrame({name: kept[name] for name in kept.files if name not in ("users", "lists")})
        k, n_items = lists.shape[1], len(split.items) - 1
        per_user[f"novelty@{k}"] = novelty(lists, split.popularity, len(split.users) - 1)
        if k > 1:
            per_user[f"diversity@{k}"] = diversity(lists, split.matrix("train"))
        of_all = {name: value for name, value in result["test"].items() if name not in per_user}
        of_all |= {f"coverage@{k}": coverage(lists, n_items), f"gini@{k}": gini(lists, n_items)}
        device_mb = (outcome_of(folder) or {})["peak_device_mb"]
        return cls(seed, result, device_mb, epochs, users, lists, per_user, of_all)

    @property
    def seconds_an_epoch(self) -> float:
        return float(np.mean(self.result["epoch_seconds"] or [0.0]))


@dataclass(frozen=True)
class Model:
    """A row of the comparison."""

    label: str
    name: str
    tuning_trials: int
    tuning: Tuning | None
    """Where it is known what the trials took."""
    runs: list[FinishedRun]
    failures: list[str]
    """How each of the other runs ended."""

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Test metrics, a row a user: means over the seeds."""
        return pd.concat([run.per_user for run in self.runs]).groupby(level=0).mean()

    @cached_property
    def test(self) -> dict[str, dict[str, float | None]]:
        """Mean and deviation over seeds of each test metric, not rounded as RecBole's are."""
        each = [{**run.per_user.mean().to_dict(), **run.of_all} for run in self.runs]
        return {name: mean_std([values[name] for values in each]) for name in (each[0] if each else ())}

    def over_seeds(self, value: Callable[[FinishedRun], float]) -> dict[str, float | None] | None:
        return mean_std([value(run) for run in self.runs]) if self.runs else None

    @property
    def status(self) -> str:
        done = f"{len(self.runs)}/{len(self.runs) + len(self.failures)} done"
        return "; ".join([done, *self.failures] if self.failures else [done])

    def summary(self) -> dict[str, Any]:
        """The row as ``report.json`` holds it."""
        return {
            "label": self.label,
            "model": self.name,
            "status": self.status,
            "seeds": [run.seed for run in self.runs],
            "tuning_trials": self.tuning_trials,
            "tuning": self.tuning
            and {key: getattr(self.tuning, key) for key in ("trials", "pruned", "epochs", "seconds")},
            "test": self.test,
            "best_epoch": self.over_seeds(lambda run: run.result["best_epoch"]),
            "epochs_run": self.over_seeds(lambda run: run.result["epochs_run"]),
            "train_seconds": self.over_seeds(lambda run: run.result["seconds"]["train"]),
            "seconds_an_epoch": self.over_seeds(lambda run: run.seconds_an_epoch),
            "peak_rss_mb": self.over_seeds(lambda run: run.result["peak_rss_mb"]),
            "peak_device_mb": self.over_seeds(lambda run: run.peak_device_mb),
            "parameters": self.runs[0].result["parameters"] if self.runs else None,
            "device": self.runs[0].result["device"] if self.runs else None,
        }


@dataclass(frozen=True)
class Comparison:
    """Everything that a report says."""

    plan: ComparisonSpec
    protocol: Mapping[str, Any]
    split: Split
    models: list[Model]
    primary: str
    """The metric that chose the epochs, such as ``ndcg@10``."""

    @classmethod
    def load(
        cls,
        plan: ComparisonSpec,
        protocol: Mapping[str, Any],
        split: Split,
        folders: Mapping[Path, RunSpec],
        primary: str,
    ) -> Comparison:
        """From the folders of all runs, finished or not."""
        models = []
        for entry in plan.models:
            runs, failures = [], []
            for folder, spec in folders.items():
                outcome = outcome_of(folder)
                if spec.entry.label != entry.label or outcome is None:
                    continue
                if outcome["status"] == "done":
                    runs.append(FinishedRun.load(folder, spec.seed, split))
                else:
                    failures.append(f"seed {spec.seed} {outcome['status']}: {outcome['reason']}")
            models.append(Model(entry.label, entry.model, entry.trials, entry.tuning, runs, failures))
        return cls(plan, protocol, split, models, primary)

    @property
    def finished(self) -> list[Model]:
        return [model for model in self.models if model.runs]

    @property
    def reference(self) -> Model | None:
        """The model that the others are held against, if it has a result."""
        return next((model for model in self.finished if model.label == self.plan.reference_label), None)

    @property
    def metrics(self) -> list[str]:
        """Accuracy metrics, the primary one first."""
        names = [name for name in self.finished[0].test if name.split("@")[0] not in BEYOND]
        return sorted(names, key=lambda name: name != self.primary)

    @property
    def beyond(self) -> list[str]:
        names = self.finished[0].test
        return [name for kind in BEYOND for name in names if name.split("@")[0] == kind]

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """Each other model less the reference, metric by metric; p-values are corrected over the models."""
        reference = self.reference
        others = [model for model in self.finished if model is not reference]
        if reference is None or not others or len(reference.per_user) < 2:
            return []
        rows = []
        for metric in [name for name in [*self.metrics, *self.beyond] if name in reference.per_user]:
            theirs = reference.per_user[[metric]].to_numpy()
            found = paired(np.column_stack([model.per_user[metric] for model in others]), theirs)
            corrected = holm(np.array([each.p for each in found]))
            for model, difference, p in zip(others, found, corrected, strict=True):
                row = {"label": model.label, "metric": metric, **asdict(difference), "p_holm": float(p)}
                rows.append({**row, "words": _words(model.label, reference.label, row)})
        return rows

    def difference(self, label: str, metric: str) -> dict[str, Any] | None:
        return next((row for row in self.differences if (row["label"], row["metric"]) == (label, metric)), None)

    def by_activity(self, model: Model) -> tuple[list[str], list[float]]:
        """The primary metric of users in four groups by their train pairs."""
        activity = self.split.activity[model.runs[0].users]
        group = np.searchsorted(np.quantile(activity, np.arange(1, _GROUPS) / _GROUPS), activity)
        names, values = [], []
        for number in np.unique(group):
            members = activity[group == number]
            names.append(f"{members.min():,}–{members.max():,} pairs, {len(members):,} users")
            values.append(float(model.per_user[self.primary][group == number].mean()))
        return names, values

    def by_popularity(self, model: Model) -> tuple[list[str], list[float]]:
        """Share of test pairs that the lists hold, of items in four groups that share the train pairs equally."""
        popularity, test = self.split.popularity, self.split.matrix("test")
        order = np.argsort(popularity[1:], kind="stable") + 1
        before = np.cumsum(popularity[order]) - popularity[order]
        group = np.full(len(popularity), -1)
        group[order] = before * _GROUPS // popularity.sum()
        found = np.mean([hits(run.users, run.lists, test) for run in model.runs], axis=0)
        wanted = np.asarray(test.sum(axis=0)).ravel()
        names, values = [], []
        for number in np.unique(group[1:]):
            members = group == number
            taken = popularity[members]
            names.append(f"{taken.min():,}–{taken.max():,} pairs, {len(taken):,} items")
            values.append(float(found[members].sum() / max(wanted[members].sum(), 1)))
        return names, values

    @cached_property
    def notes(self) -> list[str]:
        """What a reader should mind."""
        notes, trials = [], {model.label: model.tuning_trials for model in self.models}
        most = max(trials.values())
        if unequal := [label for label, number in trials.items() if number < most]:
            notes.append(
                f"Unequal tuning budgets: {', '.join(f'{label} {trials[label]}' for label in unequal)}, where others "
                f"had {most} trials on validation. Models marked * had less of a chance."
            )
        budgets = [
            f"{model.label} {tuning.trials} trials ({tuning.pruned} pruned) of at most {tuning.epochs} epochs in "
            f"{tuning.seconds:.0f} s"
            for model in self.models
            if (tuning := model.tuning) is not None
        ]
        if budgets:
            notes.append(f"Tuned on validation, the best trial's settings taken: {'; '.join(budgets)}.")
        notes += [f"{model.label}: {failure}." for model in self.models for failure in model.failures]
        if self.reference is None:
            notes.append(f"{self.plan.reference_label}, the reference, has no result: no differences were tested.")
        if not self.protocol["valid"]:
            notes.append("There is no validation part: every model is tested at its last epoch.")
        if cold := self.protocol["test_users_without_train"]:
            notes.append(f"{cold:,} of {self.protocol['test_users']:,} test users have no train pair.")
        for model in self.finished:
            results = [run.result for run in model.runs if run.result["valid"]]
            if any(1 < result["epochs_run"] == result["best_epoch"] + 1 for result in results):
                notes.append(f"{model.label} was at its best in the last epoch: it may need more of them.")
        if self.plan.jobs > 1:
            notes.append(f"{self.plan.jobs} runs at a time: seconds are those of processes that shared the machine.")
        return notes

    def per_user(self) -> pd.DataFrame:
        """Test metrics of every user in every run, by external id."""
        frames = []
        for model in self.finished:
            for run in model.runs:
                frame = run.per_user.copy()
                frame.insert(0, "user", self.split.users[run.users])
                frame.insert(0, "seed", run.seed)
                frame.insert(0, "label", model.label)
                frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """What ``report.json`` holds."""
        return {
            "dataset": self.plan.dataset,
            "protocol": dict(self.protocol),
            "seeds": self.plan.seeds,
            "reference": self.plan.reference_label,
            "primary_metric": self.primary,
            "models": [model.summary() for model in self.models],
            "differences": self.differences,
            "by_user_activity": {
                model.label: dict(zip(*self.by_activity(model), strict=True)) for model in self.finished
            },
            "by_item_popularity": {
                model.label: dict(zip(*self.by_popularity(model), strict=True)) for model in self.finished
            },
            "notes": self.notes,
            "versions": self.finished[0].runs[0].result["versions"],
        }


def _words(label: str, reference: str, row: Mapping[str, Any]) -> str:
    p = "p < .001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
    numbers = f"{row['mean']:+.4f} (95 % CI {row['low']:+.4f} to {row['high']:+.4f}; Holm-corrected {p})"
    if row["p_holm"] >= ALPHA:
        return f"{label} and {reference} do not differ significantly in {shown(row['metric'])}: {numbers}"
    side = "higher" if row["mean"] > 0 else "lower"
    return f"{label} has a significantly {side} {shown(row['metric'])} than {reference}: {numbers}"
