"""A whole comparison: differences with their significance, groups of users and items, and caveats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_onebp.evaluation.metrics import hits
from recbole_onebp.experiments.compare.outcome import outcome_of
from recbole_onebp.experiments.compare.results import FinishedRun, Model, metric_title
from recbole_onebp.experiments.compare.spec import ComparisonSpec, RunSpec
from recbole_onebp.experiments.compare.split import Split
from recbole_onebp.experiments.compare.statistics import ALPHA, holm, paired

__all__ = ["BEYOND_ACCURACY", "Comparison"]

BEYOND_ACCURACY = ("coverage", "gini", "novelty", "diversity")
_GROUPS = 4


@dataclass(frozen=True)
class Comparison:
    """Everything that a report contains."""

    spec: ComparisonSpec
    protocol: Mapping[str, Any]
    split: Split
    models: list[Model]
    primary: str
    """The metric that chose the epochs, such as ``ndcg@10``."""

    @classmethod
    def load(
        cls,
        spec: ComparisonSpec,
        protocol: Mapping[str, Any],
        split: Split,
        folders: Mapping[Path, RunSpec],
        primary: str,
    ) -> Comparison:
        """Read the folders of all runs, finished or not."""
        models = []
        for entry in spec.models:
            runs, failures = [], []
            for folder, run in folders.items():
                outcome = outcome_of(folder)
                if run.entry.label != entry.label or outcome is None:
                    continue
                if outcome["status"] == "done":
                    runs.append(FinishedRun.load(folder, run.seed, split))
                else:
                    failures.append(f"seed {run.seed} {outcome['status']}: {outcome['reason']}")
            models.append(Model(entry.label, entry.model, entry.trials, entry.tuning, runs, failures))
        return cls(spec, protocol, split, models, primary)

    @property
    def finished(self) -> list[Model]:
        return [model for model in self.models if model.runs]

    @property
    def reference(self) -> Model | None:
        """The model that the others are compared with, if it has a result."""
        return next((model for model in self.finished if model.label == self.spec.reference_label), None)

    @property
    def metrics(self) -> list[str]:
        """Accuracy metrics, the primary one first."""
        names = [name for name in self.finished[0].test if name.split("@")[0] not in BEYOND_ACCURACY]
        return sorted(names, key=lambda name: name != self.primary)

    @property
    def beyond(self) -> list[str]:
        """Metrics beyond accuracy."""
        names = self.finished[0].test
        return [name for kind in BEYOND_ACCURACY for name in names if name.split("@")[0] == kind]

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """Each other model minus the reference, metric by metric; p-values are corrected over the models."""
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
                rows.append({**row, "words": _in_words(model.label, reference.label, row)})
        return rows

    def difference(self, label: str, metric: str) -> dict[str, Any] | None:
        return next((row for row in self.differences if (row["label"], row["metric"]) == (label, metric)), None)

    def by_activity(self, model: Model) -> dict[str, float]:
        """The primary metric of users in four groups by their number of train interactions."""
        activity = self.split.activity[model.runs[0].users]
        group = np.searchsorted(np.quantile(activity, np.arange(1, _GROUPS) / _GROUPS), activity)
        values = {}
        for number in np.unique(group):
            members = activity[group == number]
            name = f"{members.min():,}–{members.max():,} pairs, {len(members):,} users"
            values[name] = float(model.per_user[self.primary][group == number].mean())
        return values

    def by_popularity(self, model: Model) -> dict[str, float]:
        """Share of test interactions that the lists contain, by item popularity.

        Each of the four groups of items has a quarter of the train interactions.
        """
        popularity, test = self.split.popularity, self.split.matrix("test")
        order = np.argsort(popularity[1:], kind="stable") + 1
        before = np.cumsum(popularity[order]) - popularity[order]
        group = np.full(len(popularity), -1)
        group[order] = before * _GROUPS // popularity.sum()
        found = np.mean([hits(run.users, run.lists, test) for run in model.runs], axis=0)
        wanted = np.asarray(test.sum(axis=0)).ravel()
        values = {}
        for number in np.unique(group[1:]):
            members = group == number
            counts = popularity[members]
            name = f"{counts.min():,}–{counts.max():,} pairs, {len(counts):,} items"
            values[name] = float(found[members].sum() / max(wanted[members].sum(), 1))
        return values

    @cached_property
    def notes(self) -> list[str]:
        """Caveats of this comparison."""
        notes = self._tuning_notes()
        notes += [f"{model.label}: {failure}." for model in self.models for failure in model.failures]
        if self.reference is None:
            notes.append(f"The reference, {self.spec.reference_label}, has no result: no differences were tested.")
        if self.protocol["valid"]:
            notes.append("The epoch of each run is chosen on validation.")
        else:
            notes.append("There is no validation part: every model is tested at its last epoch.")
        if cold := self.protocol["test_users_without_train"]:
            notes.append(f"{cold:,} of {self.protocol['test_users']:,} test users have no train interactions.")
        for model in self.finished:
            results = [run.result for run in model.runs if run.result["valid"]]
            if any(1 < result["epochs_run"] == result["best_epoch"] + 1 for result in results):
                notes.append(f"{model.label} was best in the last epoch: it may need more epochs.")
        if self.spec.jobs > 1:
            notes.append(f"{self.spec.jobs} runs at a time shared the machine: their times are longer than alone.")
        return notes

    def _tuning_notes(self) -> list[str]:
        notes, trials = [], {model.label: model.tuning_trials for model in self.models}
        most = max(trials.values())
        if unequal := [label for label, number in trials.items() if number < most]:
            notes.append(
                f"Unequal tuning budgets: {', '.join(f'{label} {trials[label]}' for label in unequal)}, where others "
                f"had {most} trials on validation. Models marked * have the settings that the plan gives them."
            )
        budgets = [
            f"{model.label} {tuning.trials} trials ({tuning.pruned} pruned) of at most {tuning.epochs} epochs in "
            f"{tuning.seconds:.0f} s"
            for model in self.models
            if (tuning := model.tuning) is not None
        ]
        if budgets:
            notes.append(f"Tuned on validation, with the settings of the best trial: {'; '.join(budgets)}.")
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
        """The content of ``report.json``."""
        return {
            "dataset": self.spec.dataset,
            "protocol": dict(self.protocol),
            "seeds": self.spec.seeds,
            "reference": self.spec.reference_label,
            "primary_metric": self.primary,
            "models": [model.summary() for model in self.models],
            "differences": self.differences,
            "by_user_activity": {model.label: self.by_activity(model) for model in self.finished},
            "by_item_popularity": {model.label: self.by_popularity(model) for model in self.finished},
            "by_items": {model.label: model.by_items(self.primary) for model in self.finished},
            "notes": self.notes,
            "versions": self.finished[0].runs[0].result["versions"],
        }


def _in_words(label: str, reference: str, row: Mapping[str, Any]) -> str:
    p = "p < .001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
    numbers = f"{row['mean']:+.4f} (95 % CI {row['low']:+.4f} to {row['high']:+.4f}; Holm-corrected {p})"
    metric = metric_title(row["metric"])
    if row["p_holm"] >= ALPHA:
        return f"{label} and {reference} do not differ significantly in {metric}: {numbers}"
    side = "higher" if row["mean"] > 0 else "lower"
    return f"{label} has a significantly {side} {metric} than {reference}: {numbers}"
