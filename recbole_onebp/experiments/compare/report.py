"""The report folder: tables and tests as Markdown, JSON, LaTeX and HTML, charts, and the metrics of every user."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path

from tabulate import tabulate

from recbole_onebp.experiments.charts import Chart, draw_png
from recbole_onebp.experiments.compare.comparison import Comparison
from recbole_onebp.experiments.compare.figures import figures_of
from recbole_onebp.experiments.compare.page import html_page
from recbole_onebp.experiments.compare.tables import (
    Table,
    accuracy_table,
    beyond_table,
    caveats,
    findings,
    group_tables,
    headline,
    items_table,
)
from recbole_onebp.util.files import write_atomically, write_json

__all__ = ["write_report"]


def write_report(comparison: Comparison, folder: Path) -> list[str]:
    """Write all files of the report; returns their names."""
    charts = figures_of(comparison)
    users = _write_users(comparison, folder)
    write_json(folder / "report.json", comparison.summary())
    texts = {
        "report.md": _markdown(comparison, charts),
        "report.html": html_page(comparison, charts),
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


def _markdown(comparison: Comparison, charts: Sequence[Chart]) -> str:
    by_items = items_table(comparison)
    parts = [
        f"# {comparison.spec.dataset}: {', '.join(comparison.spec.labels)}",
        f"{headline(comparison)}. Reference: {comparison.spec.reference_label}.",
        _tabulated(accuracy_table(comparison), "pipe"),
        *([] if by_items is None else ["## All, warm and cold items", _tabulated(by_items, "pipe")]),
        "## Beyond accuracy",
        _tabulated(beyond_table(comparison), "pipe"),
        *(_tabulated(table, "pipe") for table in group_tables(comparison)),
        "## Differences",
        "\n".join(f"- {words}." for words in findings(comparison)) or "No differences were tested.",
        "## Caveats",
        "\n".join(f"- {note}" for note in caveats(comparison)),
        *(f"![{chart.title}](figures/{chart.name}.png)" for chart in charts),
    ]
    return "\n\n".join(parts) + "\n"


def _latex(comparison: Comparison) -> str:
    table = _tabulated(accuracy_table(comparison), "latex_booktabs")
    for sign, command in {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"}.items():
        table = table.replace(sign, command)
    return f"% {headline(comparison)}\n% needs \\usepackage{{booktabs}}\n{table}\n"


def _tabulated(table: Table, form: str) -> str:
    return tabulate(table.rows, headers=table.header, tablefmt=form, disable_numparse=True)
