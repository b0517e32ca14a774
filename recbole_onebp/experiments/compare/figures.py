"""The charts of a comparison's report, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from recbole_onebp.experiments.charts import ACCENT, DASHES, Chart, Series
from recbole_onebp.experiments.compare.comparison import Comparison
from recbole_onebp.experiments.compare.results import FinishedRun, Model, metric_title

__all__ = ["figures_of", "looks_of"]

_COLORS = ("#1f2937", "#3b6ea5", "#94a3b8", "#5f8a3f", "#b8863b", "#7d5ba6", "#3a9a9a", "#c2789b", "#8c564b", "#64748b",
           "#9aa83a", "#0b7285", "#4dabf7", "#495057", "#845ef7", "#2b8a3e", "#1864ab")  # fmt: skip
_LINES = tuple(zip(DASHES, ("circle", "square", "triangle-up", "diamond"), strict=False))
"""Four; with 17 colours, a look is repeated after 68 models only."""


_KNOWN = ("Pop", "ItemKNN", "EASE", "SLIMElastic", "BPR", "LightGCN", "SimpleX", "MultiVAE", "NeuMF", "SGL",
          "ImplicitALS", "ImplicitBPR", "LightFM", "HistorySASRec", "HistoryGRU4Rec", "ContentKNN",
          "LightFM-features")  # fmt: skip
"""Labels that look the same in all comparisons."""
_OURS = {"OneBP": "#c92a2a", "OneBP-towers": "#f59f00", "OneBP-features": "#e8590c", "OneBP-paper": "#a61e4d",
         "TwoBP-towers": "#f783ac", "TwoBP-paper": "#862e0d"}  # fmt: skip
"""Labels of our models, which have warm colours."""


def looks_of(labels: Sequence[str], reference: str) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each model, as keyword arguments of :class:`Series`."""

    def look(number: int) -> dict[str, Any]:
        dash, marker = _LINES[number % len(_LINES)]
        return {"color": _COLORS[number % len(_COLORS)], "dash": dash, "marker": marker}

    warm = {**_OURS, reference: ACCENT}
    order = [*_KNOWN, *(label for label in labels if label not in {*_KNOWN, *warm})]
    return {label: {"color": warm[label]} if label in warm else look(order.index(label)) for label in labels}


def figures_of(comparison: Comparison) -> list[Chart]:
    """The charts that there are data for."""
    draw = _Series(comparison)
    metric = metric_title(comparison.primary)
    diversity = next((name for name in comparison.beyond if name.startswith("diversity")), None)
    reference = comparison.spec.reference_label
    first = "Validation, the first finished seed of each model"
    k = comparison.finished[0].runs[0].lists.shape[1]
    charts = [
        Chart("difference", f"{metric}: difference to {reference}", "Test users, averaged over seeds; bars are 95 % "
              f"bootstrap intervals. Left of zero: below {reference}.", f"{metric} minus that of {reference}", "",
              "intervals", draw.differences()),
        Chart("time", f"{metric} against training time", f"{first}; training alone, log scale.",
              "time of training", f"validation {metric}", "lines", draw.curves(in_seconds=True), in_seconds=True),
        Chart("cost", "Accuracy and training time", "Test, mean over seeds; time of the whole training without "
              "validation, log scale.", "time of training", f"test {metric}", "points",
              draw.against(_train_seconds), in_seconds=True),
        Chart("curves", "Learning curves", f"{first}.", "epoch", f"validation {metric}", "lines", draw.curves()),
        Chart("activity", f"{metric} by user activity", "Test users in four groups by their number of train "
              "interactions; mean over seeds.", "train interactions of the user", f"test {metric}", "lines",
              draw.groups(comparison.by_activity)),
        Chart("popularity", "Hits by item popularity", "Items in four groups with equally many train interactions, "
              "from tail to head; mean over seeds.", "train interactions of the item",
              f"test interactions in the top {k}", "lines", draw.groups(comparison.by_popularity)),
        Chart("diversity", "Accuracy and diversity", "Test, mean over seeds. Diversity: 1 - mean cosine of a list's "
              "items.", metric_title(diversity or ""), f"test {metric}", "points",
              draw.against(lambda run: float(run.per_user[diversity].mean())) if diversity else []),
        Chart("seconds", "Training time", "Without validation and test, mean over seeds.", "seconds", "", "bars",
              draw.bars(_train_seconds)),
        Chart("memory", "Peak memory", "Of the process, including libraries, mean over seeds.", "MB", "", "bars",
              draw.bars(lambda run: run.result["peak_rss_mb"])),
    ]  # fmt: skip
    return [chart for chart in charts if chart.series]


def _train_seconds(run: FinishedRun) -> float:
    return float(run.result["seconds"]["train"])


class _Series:
    """Makes one series per finished model."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._looks = looks_of(comparison.spec.labels, comparison.spec.reference_label)

    def _of(self, model: Model, x: Sequence[Any], y: Sequence[Any], **more: Any) -> Series:
        return Series(model.label, x, y, **self._looks[model.label], **more)

    def differences(self) -> list[Series]:
        made = []
        for model in self._comparison.finished:
            row = self._comparison.difference(model.label, self._comparison.primary)
            if row is not None:
                error = row["mean"] - row["low"], row["high"] - row["mean"]
                made.append(self._of(model, [row["mean"]], [model.label], error=error, hover=row["words"]))
        return made

    def curves(self, in_seconds: bool = False) -> list[Series]:
        """Validation by epoch, or by seconds of training."""
        made = []
        for model in self._comparison.finished:
            run = model.runs[0]
            seen = [epoch for epoch in run.epochs if self._comparison.primary in epoch["valid"]]
            x = [epoch["epoch"] for epoch in seen]
            if in_seconds:
                # EASE and ItemKNN train when they are built, before the first epoch.
                built = run.result["seconds"]["train"] - sum(run.result["epoch_seconds"])
                seconds = built + np.cumsum([epoch["train_seconds"] for epoch in run.epochs])
                x = [max(float(seconds[int(epoch)]), 1e-3) for epoch in x]
            if seen:
                made.append(self._of(model, x, [epoch["valid"][self._comparison.primary] for epoch in seen]))
        return made

    def against(self, value: Callable[[FinishedRun], float]) -> list[Series]:
        """The primary test metric by another value, best first."""
        models = sorted(self._comparison.finished, key=lambda model: -self._accuracy(model))
        return [
            self._of(model, [np.mean([value(run) for run in model.runs])], [self._accuracy(model)]) for model in models
        ]

    def _accuracy(self, model: Model) -> float:
        return float(model.test[self._comparison.primary]["mean"] or 0.0)

    def groups(self, values_of: Callable[[Model], Mapping[str, float]]) -> list[Series]:
        return [
            self._of(model, [*values], [*values.values()])
            for model in self._comparison.finished
            if (values := values_of(model))
        ]

    def bars(self, value: Callable[[FinishedRun], float]) -> list[Series]:
        return [
            self._of(model, [np.mean([value(run) for run in model.runs])], [model.label])
            for model in self._comparison.finished
        ]
