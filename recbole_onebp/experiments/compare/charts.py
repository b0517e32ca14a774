"""The pictures of a report, described once and drawn twice: by plotly to look into, by matplotlib for papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recbole_onebp.experiments.compare.results import Comparison, FinishedRun, Model, shown

__all__ = ["Chart", "charts_of", "draw_html", "draw_png"]

ACCENT = "#d9480f"
_OTHERS = ("#1f2937", "#3b6ea5", "#94a3b8", "#5f8a3f", "#b8863b", "#7d5ba6", "#3a9a9a", "#c2789b", "#8c564b", "#64748b",
           "#9aa83a")  # fmt: skip
_DASHES = ("solid", "dash", "dot", "dashdot")
"""As many as have no factor in common with the colours, so that looks repeat late."""
_STYLES = {"solid": ("-", "o"), "dash": ("--", "s"), "dot": (":", "^"), "dashdot": ("-.", "D")}
"""Matplotlib's lines and markers."""


@dataclass(frozen=True)
class Series:
    """A model in a chart."""

    label: str
    x: Sequence[Any]
    y: Sequence[Any]
    error: tuple[float, float] | None = None
    """How far the bar around a point reaches, left (or down) and right (or up)."""
    hover: str = ""
    color: str = ""
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """A picture; ``lines`` joins the points of a series, ``points`` has one each, ``bars`` and ``intervals`` lie."""

    name: str
    title: str
    caption: str
    x: str
    y: str
    kind: Literal["lines", "points", "bars", "intervals"]
    series: list[Series]
    log_x: bool = False


def charts_of(comparison: Comparison) -> list[Chart]:
    """The charts that there are data for."""
    models, primary, reference = comparison.finished, comparison.primary, comparison.plan.reference_label
    looks = _looks(comparison.plan.labels, reference)

    def series(model: Model, x: Any, y: Any, **more: Any) -> Series:
        color, dash = looks[model.label]
        return Series(model.label, list(x), list(y), color=color, dash=dash, **more)

    def of_each(draw: Callable[[Model], Any]) -> list[Series]:
        return [series(model, *drawn) for model in models if len((drawn := draw(model))[0])]

    def curve(model: Model) -> tuple[list[float], list[float]]:
        seen = [epoch for epoch in model.runs[0].epochs if primary in epoch["valid"]]
        return [epoch["epoch"] for epoch in seen], [epoch["valid"][primary] for epoch in seen]

    def curve_in_time(model: Model) -> tuple[list[float], list[float]]:
        epochs, values = curve(model)
        result = model.runs[0].result
        made = result["seconds"]["train"] - sum(result["epoch_seconds"])  # where EASE and ItemKNN do all their work
        seconds = made + np.cumsum([epoch["train_seconds"] for epoch in model.runs[0].epochs])
        return [max(float(seconds[int(epoch)]), 1e-3) for epoch in epochs], values

    def bars(value: Callable[[FinishedRun], float]) -> list[Series]:
        return [series(model, [np.mean([value(run) for run in model.runs])], [model.label]) for model in models]

    intervals = [
        series(model, [row["mean"]], [model.label], error=(row["mean"] - row["low"], row["high"] - row["mean"]),
               hover=row["words"])
        for model in models
        if (row := comparison.difference(model.label, primary)) is not None
    ]  # fmt: skip
    costs = [
        series(model, [np.mean([run.result["seconds"]["train"] for run in model.runs])], [model.test[primary]["mean"]])
        for model in models
    ]
    varied = next((name for name in comparison.beyond if name.startswith("diversity")), None)
    first = "Validation, the first finished seed of each model"
    metric, found = shown(primary), f"test pairs in the top {models[0].runs[0].lists.shape[1]}"
    charts = [
        Chart("difference", f"{metric}: difference to {reference}", "Test users, averaged over seeds; bars are 95 % "
              f"bootstrap intervals. Left of zero: below {reference}.", f"{metric} less that of {reference}", "",
              "intervals", intervals),
        Chart("time", f"{metric} against training time", f"{first}; seconds of training alone, log scale.",
              "seconds of training", f"validation {metric}", "lines", of_each(curve_in_time), log_x=True),
        Chart("cost", "Accuracy and training time", "Test, mean over seeds; seconds of the whole training without "
              "validation, log scale.", "seconds of training", f"test {metric}", "points", costs, log_x=True),
        Chart("curves", "Learning curves", f"{first}.", "epoch", f"validation {metric}", "lines", of_each(curve)),
        Chart("activity", f"{metric} by user activity", "Test users in four groups by their train pairs; mean over "
              "seeds.", "train pairs of the user", f"test {metric}", "lines", of_each(comparison.by_activity)),
        Chart("popularity", "What is found, by item popularity", "Items in four groups with equally many train pairs, "
              "from tail to head; mean over seeds.", "train pairs of the item", found, "lines",
              of_each(comparison.by_popularity)),
        Chart("diversity", "Accuracy and diversity", "Test, mean over seeds. Diversity: 1 - mean cosine of a list's "
              "items.", shown(varied or ""), f"test {metric}", "points",
              [series(m, [m.test[varied]["mean"]], [m.test[primary]["mean"]]) for m in models] if varied else []),
        Chart("seconds", "Training time", "Without validation and test, mean over seeds.", "seconds", "", "bars",
              bars(lambda run: run.result["seconds"]["train"])),
        Chart("memory", "Peak memory", "Of the process, libraries included, mean over seeds.", "MB", "", "bars",
              bars(lambda run: run.result["peak_rss_mb"])),
    ]  # fmt: skip
    return [chart for chart in charts if chart.series]


def _looks(labels: Sequence[str], reference: str) -> dict[str, tuple[str, str]]:
    """A colour and a kind of line for each model."""
    others = [label for label in labels if label != reference]
    looks = {label: (_OTHERS[n % len(_OTHERS)], _DASHES[n % len(_DASHES)]) for n, label in enumerate(others)}
    return {**looks, reference: (ACCENT, "solid")}


def draw_html(chart: Chart) -> str:
    """A ``<div>`` for a page that holds plotly.js."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for series in _in_order(chart):
        emphasis = series.color == ACCENT
        common: dict[str, Any] = {"x": _wrapped(series.x, "<br>"), "y": series.y, "name": series.label}
        value = "%{x:.4g}" if chart.kind in ("bars", "intervals") else "%{x}: %{y:.4f}"
        common["hovertemplate"] = f"<b>{series.label}</b><br>{series.hover or value}<extra></extra>"
        marker = {"color": series.color, "size": 9 if emphasis else 7}
        if chart.kind == "bars":
            figure.add_bar(**common, orientation="h", marker={"color": series.color}, width=0.55)
            continue
        if series.error:
            left, right = series.error
            common["error_x"] = {"type": "data", "symmetric": False, "array": [right], "arrayminus": [left],
                                 "color": series.color, "thickness": 2, "width": 5}  # fmt: skip
        if chart.kind == "lines":
            mode = "lines+markers" if len(series.x) < 30 else "lines"
            line = {"color": series.color, "dash": series.dash, "width": 3.5 if emphasis else 1.8}
            figure.add_scatter(**common, mode=mode, line=line, marker=marker)
        else:
            figure.add_scatter(**common, mode="markers", marker={**marker, "size": 11})
    grid = {"gridcolor": "#eceff3", "zeroline": False, "linecolor": "#cbd5e1", "automargin": True}
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 13, "color": "#334155"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=not _lies(chart),
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "white", "font": {"size": 13}},
        xaxis={**grid, "title": {"text": chart.x}, "type": "log" if chart.log_x else None},
        yaxis={**grid, "title": {"text": chart.y}, "autorange": "reversed" if _lies(chart) else True},
    )
    if chart.kind == "intervals":
        figure.add_vline(x=0, line={"color": ACCENT, "width": 1.5, "dash": "dot"})
    config = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"chart-{chart.name}"))


def draw_png(chart: Chart, path: Path) -> None:
    """The same, for print."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 if _lies(chart) else 6.4, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for series in _in_order(chart):
        look: dict[str, Any] = {"color": series.color, "label": series.label}
        style, mark = _STYLES[series.dash]
        x = _wrapped(series.x, "\n")
        if chart.kind == "bars":
            axes.barh(series.y, x, height=0.55, **look)
        elif chart.kind == "lines":
            width = 2.4 if series.color == ACCENT else 1.2
            marker = mark if len(x) < 30 else None
            axes.plot(x, series.y, style, linewidth=width, marker=marker, markersize=3.5, **look)
        else:
            error = None if series.error is None else np.array([series.error]).T
            axes.errorbar(x, series.y, xerr=error, fmt="o" if _lies(chart) else mark, capsize=3, **look)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.kind == "intervals":
        axes.axvline(0, color=ACCENT, linewidth=1, linestyle=":")
    if _lies(chart):
        axes.invert_yaxis()
    if not _lies(chart):
        figure.legend(loc="outside right center", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=200, format="png")


def _in_order(chart: Chart) -> list[Series]:
    """The series as the legend has them: points from the highest down."""
    return sorted(chart.series, key=lambda point: -point.y[0]) if chart.kind == "points" else chart.series


def _wrapped(values: Sequence[Any], end: str) -> list[Any]:
    """Names of groups on two lines."""
    return [value.replace(", ", end) if isinstance(value, str) else value for value in values]


def _lies(chart: Chart) -> bool:
    """Whether the models are the rows of the chart."""
    return chart.kind in ("bars", "intervals")
