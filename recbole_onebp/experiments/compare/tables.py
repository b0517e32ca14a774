"""The tables and sentences of a report, the same in every format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from recbole_onebp.experiments.compare.comparison import Comparison
from recbole_onebp.experiments.compare.results import Model, metric_title
from recbole_onebp.experiments.compare.statistics import ALPHA

__all__ = ["Table", "accuracy_table", "beyond_table", "caveats", "findings", "group_tables", "headline", "items_table"]

_METHOD = (
    "All models have the same train, validation and test interactions, and the test part is evaluated once. Each "
    "process first trains its model on made-up data: no time includes compilation. Epochs are counted from 0.",
    "Values are means over seeds ± standard deviation. Differences are tested over users, averaged over seeds first: "
    "paired t-test, two-sided, Holm-corrected over the models; ↑ and ↓ mark values significantly (p < .05) above and "
    "below the reference. The test does not cover the choice of seeds and split: look at the deviation too.",
    "Novelty: mean self-information of the recommended items, in bits. Diversity: 1 minus the mean cosine of a list's "
    "items, by their users in train. Coverage and Gini index: over all items.",
)


class Table(NamedTuple):
    """A table of texts."""

    header: list[str]
    rows: list[list[str]]


def accuracy_table(comparison: Comparison) -> Table:
    """Accuracy, costs and status of every model."""
    on_gpu = any(run.peak_device_mb for model in comparison.finished for run in model.runs)
    costs = {
        "best epoch": ("best_epoch", ".0f"),
        "train s": ("train_seconds", ".1f"),
        "s/epoch": ("seconds_an_epoch", ".2f"),
        "peak MB": ("peak_rss_mb", ".0f"),
        **({"GPU MB": ("peak_device_mb", ".0f")} if on_gpu else {}),
    }
    most = max(model.tuning_trials for model in comparison.models)
    rows = []
    for model in comparison.models:
        summary = model.summary()
        parameters = summary["parameters"]
        rows.append([
            model.label,
            *_accuracy(comparison, model, comparison.metrics),
            *(_value(summary[key] and {**summary[key], "std": None}, form) for key, form in costs.values()),
            "–" if parameters is None else f"{parameters:,}",
            f"{model.tuning_trials}{'' if model.tuning_trials == most else ' *'}",
            model.status.partition(":")[0],
        ])  # fmt: skip
    metrics = map(metric_title, comparison.metrics)
    return Table(["model", *metrics, *costs, "parameters", "tuning trials", "status"], rows)


def beyond_table(comparison: Comparison) -> Table:
    """Metrics beyond accuracy of the models that have a result."""
    rows = [[model.label, *_accuracy(comparison, model, comparison.beyond)] for model in comparison.finished]
    return Table(["model", *map(metric_title, comparison.beyond)], rows)


def items_table(comparison: Comparison) -> Table | None:
    """The primary metric among cold, warm and all items, and by train pairs; None without cold items in the test."""
    found = {model.label: model.by_items(comparison.primary) for model in comparison.finished}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [[label, *(_value(values.get(name), ".4f") for name in names)] for label, values in found.items()]
    return Table([metric_title(comparison.primary), *names], rows) if names else None


def group_tables(comparison: Comparison) -> list[Table]:
    """The primary metric by user activity, and the share of test interactions in the lists by item popularity."""
    k = comparison.finished[0].runs[0].lists.shape[1]
    groupings = {
        f"{metric_title(comparison.primary)} by train interactions of the user": comparison.by_activity,
        f"share of test interactions in the first {k}, by train interactions of the item": comparison.by_popularity,
    }
    tables = []
    for title, values_of in groupings.items():
        found = {model.label: values_of(model) for model in comparison.finished}
        names = list(dict.fromkeys(name for values in found.values() for name in values))
        rows = [[label, *(f"{values[name]:.4f}" for name in names)] for label, values in found.items()]
        tables.append(Table([title, *names], rows))
    return tables


def _value(value: dict[str, float | None] | None, form: str) -> str:
    if value is None:
        return "–"
    spread = "" if value["std"] is None else f" ± {value['std']:{form}}"
    return f"{value['mean']:{form}}{spread}"


def _accuracy(comparison: Comparison, model: Model, metrics: Sequence[str]) -> list[str]:
    cells = []
    for metric in metrics:
        row = comparison.difference(model.label, metric)
        mark = "" if row is None or row["p_holm"] >= ALPHA else " ↑" if row["mean"] > 0 else " ↓"
        cells.append(_value(model.test.get(metric), ".2f" if metric.startswith("novelty") else ".4f") + mark)
    return cells


def headline(comparison: Comparison) -> str:
    """The size of data and comparison."""
    protocol, spec = comparison.protocol, comparison.spec
    return (
        f"{spec.dataset}: {protocol['users']:,} users, {protocol['items']:,} items, {protocol['train']:,} train, "
        f"{protocol['valid']:,} validation and {protocol['test']:,} test interactions; {len(spec.models)} models, "
        f"{len(spec.seeds)} seed{'s' if len(spec.seeds) > 1 else ''}"
    )


def findings(comparison: Comparison) -> list[str]:
    """Differences in the primary metric and in diversity, in words."""
    return [
        row["words"]
        for row in comparison.differences
        if row["metric"] == comparison.primary or row["metric"].startswith("diversity")
    ]


def caveats(comparison: Comparison) -> list[str]:
    """The caveats of this comparison, and of all comparisons."""
    return [*comparison.notes, *_METHOD]
