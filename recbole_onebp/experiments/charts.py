"""Charts as data, with two renderers: plotly for pages (values under the mouse), matplotlib for PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["ACCENT", "DASHES", "Chart", "Series", "draw_html", "draw_panels", "draw_png", "scale_by_seconds"]

ACCENT = "#d9480f"
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "none": "none"}
"""Kinds of lines: plotly's name and matplotlib's."""
_MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "circle-open": "o", "x": "x", "none": ""}
"""Plotly's name and matplotlib's."""
_TICKS = {
    0.001: "1 ms", 0.01: "10 ms", 0.1: "0.1 s", 0.3: "0.3 s", 1: "1 s", 3: "3 s", 10: "10 s", 30: "30 s", 60: "1 min",
    180: "3 min", 600: "10 min", 1800: "30 min", 3600: "1 h", 10800: "3 h", 36000: "10 h",
}  # fmt: skip
"""Seconds on a logarithmic axis, and how people say them."""
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
"""Of a point: to the right, upwards."""
_TO_NAME = 6
"""Points from a point to its name."""
_MOST_MARKED = 30
"""Lines with more points than this are drawn without markers."""


@dataclass(frozen=True)
class Series:
    """One model, or one kind of point, in a chart."""

    label: str
    x: Sequence[Any]
    y: Sequence[Any]
    color: str
    dash: str = "solid"
    """Of the line, in charts with lines."""
    marker: str = "circle"
    step: bool = False
    """Keep a value until the next point, instead of a straight line."""
    error: tuple[float, float] | None = None
    """Lengths of the error bar to the left and to the right."""
    hover: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart; ``bars`` and ``intervals`` are horizontal, one row per series; ``points`` have names beside them."""

    name: str
    title: str
    caption: str
    x: str
    y: str
    kind: Literal["lines", "points", "bars", "intervals"]
    series: list[Series]
    in_seconds: bool = False
    """The x axis is seconds, on a logarithmic scale."""

    @property
    def is_horizontal(self) -> bool:
        return self.kind in ("bars", "intervals")

    @property
    def has_legend(self) -> bool:
        return self.kind == "lines"


def draw_html(chart: Chart) -> str:
    """A ``<div>`` for a page that contains plotly.js."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for series in chart.series:
        emphasis = series.color == ACCENT
        value = "%{x:.4g}" if chart.is_horizontal else "%{x}: %{y:.4f}"
        common: dict[str, Any] = {
            "x": _wrapped(series.x, "<br>"),
            "y": series.y,
            "name": series.label,
            "hovertemplate": f"<b>{series.label}</b><br>{series.hover or value}<extra></extra>",
        }
        if chart.kind == "bars":
            figure.add_bar(**common, orientation="h", marker={"color": series.color}, width=0.55)
            continue
        if series.error:
            left, right = series.error
            common["error_x"] = {"type": "data", "symmetric": False, "array": [right], "arrayminus": [left],
                                 "color": series.color, "thickness": 2, "width": 5}  # fmt: skip
        if chart.kind == "lines":
            common["mode"] = "lines+markers" if len(series.x) < _MOST_MARKED else "lines"
            common["line"] = {"color": series.color, "dash": series.dash, "width": 3.5 if emphasis else 1.8}
            size = 9 if emphasis else 7
        else:
            common["mode"], size = "markers" if chart.is_horizontal else "markers+text", 11
            side = ["middle left" if is_right else "middle right" for is_right in _are_far_right(chart, series)]
            common |= {"text": [series.label] * len(series.x), "textposition": side, "cliponaxis": False}
        figure.add_scatter(**common, marker={"color": series.color, "size": size})
    ticks = {"type": "log", "tickvals": [*_TICKS], "ticktext": [*_TICKS.values()]}
    grid = {"gridcolor": "#eceff3", "zeroline": False, "linecolor": "#cbd5e1", "automargin": True}
    figure.update_layout(
        template="none",
        height=360,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 13, "color": "#334155"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=chart.has_legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"bgcolor": "white", "font": {"size": 13}},
        xaxis={**grid, "title": {"text": chart.x}, **(ticks if chart.in_seconds else {})},
        yaxis={**grid, "title": {"text": chart.y}, "autorange": "reversed" if chart.is_horizontal else True},
    )
    if chart.kind == "intervals":
        figure.add_vline(x=0, line={"color": ACCENT, "width": 1.5, "dash": "dot"})
    config = {"displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"chart-{chart.name}"))


def _are_far_right(chart: Chart, series: Series) -> list[bool]:
    """Which points of a series lie in the right quarter, where a name to their right would leave the picture."""

    def scaled(values: Sequence[float]) -> npt.NDArray[np.float64]:
        wide = np.asarray(values, np.float64)
        return np.log(np.maximum(wide, 1e-3)) if chart.in_seconds else wide

    everything = scaled([x for other in chart.series for x in other.x])
    least, most = everything.min(initial=np.inf), everything.max(initial=-np.inf)
    return (scaled(series.x) > least + 0.75 * (most - least)).tolist()


def draw_png(chart: Chart, path: Path) -> None:
    """One chart as a PNG file, for papers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 if chart.is_horizontal else 6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _draw(chart, axes)
    if chart.has_legend:
        figure.legend(loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=200, format="png")


def scale_by_seconds(axes: Any) -> None:
    """Make the x axis of matplotlib's axes a logarithmic one of seconds, with ticks in plain words."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown = {tick: words for tick, words in _TICKS.items() if low <= tick <= high}
    axes.set_xticks([*shown], [*shown.values()])
    axes.minorticks_off()


def draw_panels(charts: Sequence[Chart], path: Path) -> None:
    """Several charts with one y axis and one legend as a PNG file; the charts' titles stand above them."""
    from matplotlib.figure import Figure

    columns = min(len(charts), 3)
    rows = -(-len(charts) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    handles = {}
    for number, panel in enumerate(panels):
        if number >= len(charts):
            panel.set_axis_off()
            continue
        _draw(charts[number], panel)
        panel.set_title(charts[number].title)
        panel.set_ylabel(charts[number].y if number % columns == 0 else "")
        handles.update({label: handle for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)})
    if handles:
        ncols = min(len(handles), 2 * columns)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)
    figure.savefig(path, dpi=150, format="png")


def _draw(chart: Chart, axes: Any) -> None:
    for series in chart.series:
        look: dict[str, Any] = {"color": series.color, "label": series.label}
        x, marker = _wrapped(series.x, "\n"), _MARKERS[series.marker]
        if chart.kind == "bars":
            axes.barh(series.y, x, height=0.55, **look)
        elif chart.kind == "lines":
            look |= {"linestyle": DASHES[series.dash], "linewidth": 2.4 if series.color == ACCENT else 1.2}
            look |= {"marker": marker if len(x) < _MOST_MARKED or series.dash == "none" else "", "markersize": 3.5}
            look |= {"drawstyle": "steps-post" if series.step else "default"}
            axes.plot(x, series.y, markerfacecolor="none" if series.marker.endswith("-open") else None, **look)
        else:
            error = None if series.error is None else np.array([series.error]).T
            axes.errorbar(x, series.y, xerr=error, fmt="o" if chart.is_horizontal else marker, capsize=3, **look)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    if chart.in_seconds:
        scale_by_seconds(axes)
    elif all(isinstance(x, int) for series in chart.series for x in series.x):
        axes.locator_params(axis="x", integer=True)
    if chart.kind == "points":
        _name_points(chart, axes)
    if chart.kind == "intervals":
        axes.axvline(0, color=ACCENT, linewidth=1, linestyle=":")
    if chart.is_horizontal:
        axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)


def _name_points(chart: Chart, axes: Any) -> None:
    """Write the name of each point beside it, on the first side where it covers no other name and no point."""
    from matplotlib.transforms import Bbox

    axes.margins(x=0.1, y=0.1)
    axes.figure.draw_without_rendering()  # the layout, which places depend on
    frame, pixels = axes.get_window_extent(), axes.figure.dpi / 72
    points = [
        (series, axes.transData.transform((series.x[0], series.y[0]))) for series in chart.series if len(series.x)
    ]
    taken = [Bbox.from_extents(*(place - 4 * pixels), *(place + 4 * pixels)) for _, place in points]
    for number, (series, _) in enumerate(points):
        look = {"fontsize": 7, "color": series.color}
        name = axes.annotate(series.label, (series.x[0], series.y[0]), (0, 0), textcoords="offset points", **look)
        others = taken[:number] + taken[number + 1 :]
        for right, up in (*_SIDES, _SIDES[0]):  # to the right if no side is free
            name.xyann = (_TO_NAME * right, _TO_NAME * up)
            name.set(ha=("right", "center", "left")[1 + right], va=("top", "center", "bottom")[1 + up])
            box = name.get_window_extent()
            if frame.contains(*box.min) and frame.contains(*box.max) and not box.count_overlaps(others):
                break
        taken.append(box)


def _wrapped(values: Sequence[Any], end: str) -> list[Any]:
    """Names of groups on two lines."""
    return [value.replace(", ", end) if isinstance(value, str) else value for value in values]
