"""The report folder: tables and tests as Markdown, JSON, LaTeX and a page, pictures, and every user's metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from html import escape
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from string import Template
from typing import Any

from tabulate import tabulate

from recbole_onebp.experiments.compare.charts import ACCENT, Chart, charts_of, draw_html, draw_png
from recbole_onebp.experiments.compare.results import Comparison, Model, shown
from recbole_onebp.experiments.compare.statistics import ALPHA
from recbole_onebp.util.files import write_atomically, write_json

__all__ = ["write_report"]

_HOW = (
    "All models have the same train, validation and test pairs; the epoch is chosen on validation, and the test part "
    "is evaluated once. Each process first trains its model on made-up data: compilation is in nobody's seconds.",
    "Values are means over seeds ± standard deviation. Differences are tested over users, each averaged over seeds "
    "first: paired t-test, two-sided, Holm-corrected over the models; ↑ and ↓ mark values significantly (p < .05) "
    "above and below the reference. The test takes seeds and split as given: mind the deviation too.",
    "Novelty: mean self-information of what is recommended, in bits. Diversity: 1 less the mean cosine of a list's "
    "items, by who took them in train. Coverage and Gini index: over all items.",
)


def write_report(comparison: Comparison, folder: Path) -> list[str]:
    """Write everything; returns the names of the files."""
    charts = charts_of(comparison)
    users = _write_users(comparison, folder)
    write_json(folder / "report.json", comparison.summary())
    texts = {
        "report.md": _markdown(comparison, charts),
        "report.html": _page(comparison, charts),
        "table.tex": _latex(comparison),
    }
    for name, text in texts.items():
        write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    (folder / "figures").mkdir(exist_ok=True)
    for chart in charts:
        write_atomically(folder / "figures" / f"{chart.name}.png", partial(draw_png, chart))
    return [users, "report.json", *texts, "figures/"]


def _write_users(comparison: Comparison, folder: Path) -> str:
    frame = comparison.per_user()
    if find_spec("pyarrow") is None:
        getLogger().warning(
            "per-user metrics are written as CSV; for Parquet install pyarrow: pip install 'recbole-onebp[parquet]'"
        )
        write_atomically(folder / "per_user.csv", lambda file: frame.to_csv(file, index=False))
        return "per_user.csv"
    write_atomically(folder / "per_user.parquet", lambda file: frame.to_parquet(file, index=False))
    return "per_user.parquet"


# --------------------------------------------------------------------------------------------------------------- tables


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


def _main_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
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
    return ["model", *map(shown, comparison.metrics), *costs, "parameters", "tuning trials", "status"], rows


def _beyond_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    rows = [[model.label, *_accuracy(comparison, model, comparison.beyond)] for model in comparison.finished]
    return ["model", *map(shown, comparison.beyond)], rows


def _headline(comparison: Comparison) -> str:
    protocol, plan = comparison.protocol, comparison.plan
    return (
        f"{plan.dataset}: {protocol['users']:,} users, {protocol['items']:,} items, {protocol['train']:,} train, "
        f"{protocol['valid']:,} validation and {protocol['test']:,} test pairs; {len(plan.models)} models, "
        f"{len(plan.seeds)} seed{'s' if len(plan.seeds) > 1 else ''}"
    )


def _findings(comparison: Comparison) -> list[str]:
    """The primary metric and diversity in words."""
    return [
        row["words"]
        for row in comparison.differences
        if row["metric"] == comparison.primary or row["metric"].startswith("diversity")
    ]


def _markdown(comparison: Comparison, charts: Sequence[Chart]) -> str:
    main, beyond = _main_table(comparison), _beyond_table(comparison)
    parts = [
        f"# {comparison.plan.dataset}: {', '.join(comparison.plan.labels)}",
        f"{_headline(comparison)}. Reference: {comparison.plan.reference_label}.",
        tabulate(main[1], headers=main[0], tablefmt="pipe", disable_numparse=True),
        "## Beyond accuracy",
        tabulate(beyond[1], headers=beyond[0], tablefmt="pipe", disable_numparse=True),
        "## Differences",
        "\n".join(f"- {words}." for words in _findings(comparison)) or "None were tested.",
        "## To be minded",
        "\n".join(f"- {note}" for note in [*comparison.notes, *_HOW]),
        *(f"![{chart.title}](figures/{chart.name}.png)" for chart in charts),
    ]
    return "\n\n".join(parts) + "\n"


def _latex(comparison: Comparison) -> str:
    header, rows = _main_table(comparison)
    table = tabulate(rows, headers=header, tablefmt="latex_booktabs", disable_numparse=True)
    for sign, command in {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"}.items():
        table = table.replace(sign, command)
    return f"% {_headline(comparison)}\n% needs \\usepackage{{booktabs}}\n{table}\n"


# ----------------------------------------------------------------------------------------------------------------- page


def _html_table(table: tuple[list[str], list[list[str]]], reference: str) -> str:
    def cell(text: str) -> str:
        return re.sub("( ± [0-9.]+)", r"<small>\1</small>", re.sub(" ([↑↓])$", r"<i>\1</i>", escape(text)))

    header, rows = table
    lines = ("".join(f"<td>{cell(text)}</td>" for text in row) for row in rows)
    kinds = (" class=reference" if row[0] == reference else "" for row in rows)
    body = "".join(f"<tr{kind}>{line}</tr>" for kind, line in zip(kinds, lines, strict=True))
    return f"<table><thead><tr>{''.join(f'<th>{escape(name)}</th>' for name in header)}</tr></thead>{body}</table>"


def _page(comparison: Comparison, charts: Sequence[Chart]) -> str:
    from plotly.offline import get_plotlyjs

    plan = comparison.plan
    others = ", ".join(label for label in plan.labels if label != plan.reference_label)
    versions = comparison.finished[0].runs[0].result["versions"]

    def items(texts: Sequence[str]) -> str:
        return "".join(f"<li>{escape(text)}</li>" for text in texts)

    values: dict[str, Any] = {
        "accent": ACCENT,
        "title": escape(f"{plan.dataset}: {plan.reference_label} against {others}"),
        "headline": escape(_headline(comparison).partition(": ")[2]),
        "reference": escape(plan.reference_label),
        "main": _html_table(_main_table(comparison), plan.reference_label),
        "beyond": _html_table(_beyond_table(comparison), plan.reference_label),
        "findings": items(_findings(comparison)) or "<li>No differences were tested.</li>",
        "notes": items([*comparison.notes, *_HOW]),
        "charts": "".join(
            f"<figure><h2>{escape(chart.title)}</h2>{draw_html(chart)}<figcaption>{escape(chart.caption)}</figcaption>"
            "</figure>"
            for chart in charts
        ),
        "footer": escape(
            f"split {comparison.protocol['split_id']} · seeds {', '.join(map(str, plan.seeds))} · "
            + " · ".join(f"{name} {number}" for name, number in versions.items())
        ),
        "plotly": get_plotlyjs(),
    }
    return Template(_PAGE).substitute(values)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.5 Inter, Helvetica, Arial, sans-serif; color: #1f2937; background: #fff; margin: 0 auto;
  max-width: 1240px; padding: 40px 32px; }
h1 { font-size: 34px; line-height: 1.2; margin: 0; } h2 { font-size: 18px; margin: 0 0 4px; }
.lead { color: #64748b; margin: 6px 0 28px; } b.reference { color: $accent; }
.wide { overflow-x: auto; margin-bottom: 28px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-size: 13px; font-weight: 600; color: #64748b; border-bottom: 2px solid #cbd5e1; }
th, td { text-align: right; padding: 8px 18px 8px 6px; white-space: nowrap; } td { border-bottom: 1px solid #eceff3; }
th:first-child, td:first-child, .main th:last-child, .main td:last-child { text-align: left; }
td i { position: absolute; margin-left: 4px; font-style: normal; } td:first-child { font-weight: 600; }
td small { color: #94a3b8; font-size: 12px; }
tr.reference td { background: color-mix(in srgb, $accent 8%, white); } tr.reference td:first-child { color: $accent; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 28px 36px;
  margin: 12px 0 28px; }
figure { margin: 0; min-width: 0; } figcaption { color: #64748b; font-size: 13px; }
ul { padding-left: 20px; } li { margin: 3px 0; } .notes, footer { color: #64748b; font-size: 14px; }
footer { border-top: 1px solid #eceff3; padding-top: 12px; margin-top: 28px; font-size: 12px; }
</style>
<script>$plotly</script>
<h1>$title</h1>
<p class="lead">$headline. Reference: <b class="reference">$reference</b></p>
<div class="wide main">$main</div>
<div class="charts">$charts</div>
<h2>Beyond accuracy</h2><div class="wide">$beyond</div>
<h2>Differences in words</h2><ul>$findings</ul>
<h2>To be minded</h2><ul class="notes">$notes</ul>
<footer>$footer</footer>
</html>
"""
