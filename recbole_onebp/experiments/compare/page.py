"""``report.html``: one page that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from string import Template

from recbole_onebp.experiments.charts import ACCENT, Chart, draw_html
from recbole_onebp.experiments.compare.comparison import Comparison
from recbole_onebp.experiments.compare.tables import (
    Table,
    accuracy_table,
    beyond_table,
    caveats,
    findings,
    headline,
    items_table,
)

__all__ = ["html_page"]


def html_page(comparison: Comparison, charts: Sequence[Chart]) -> str:
    """The report as a page, with charts that show their values under the mouse."""
    from plotly.offline import get_plotlyjs

    spec = comparison.spec
    others = ", ".join(label for label in spec.labels if label != spec.reference_label)
    versions = comparison.finished[0].runs[0].result["versions"]
    by_items = items_table(comparison)
    return Template(_PAGE).substitute(
        accent=ACCENT,
        title=escape(f"{spec.dataset}: {spec.reference_label} against {others}"),
        headline=escape(headline(comparison).partition(": ")[2]),
        reference=escape(spec.reference_label),
        main=_html_table(accuracy_table(comparison), spec.reference_label),
        by_items=""
        if by_items is None
        else f'<h2>All, warm and cold items</h2><div class="wide">{_html_table(by_items, spec.reference_label)}</div>',
        beyond=_html_table(beyond_table(comparison), spec.reference_label),
        findings=_html_items(findings(comparison) or ["No differences were tested."]),
        notes=_html_items(caveats(comparison)),
        charts="".join(
            f"<figure><h2>{escape(chart.title)}</h2>{draw_html(chart)}<figcaption>{escape(chart.caption)}</figcaption>"
            "</figure>"
            for chart in charts
        ),
        footer=escape(
            f"split {comparison.protocol['split_id']} · seeds {', '.join(map(str, spec.seeds))} · "
            + " · ".join(f"{name} {number}" for name, number in versions.items())
        ),
        plotly=get_plotlyjs(),
    )


def _html_items(texts: Sequence[str]) -> str:
    return "".join(f"<li>{escape(text)}</li>" for text in texts)


def _html_table(table: Table, reference: str) -> str:
    def cell(text: str) -> str:
        return re.sub("( ± [0-9.]+)", r"<small>\1</small>", re.sub(" ([↑↓])$", r"<i>\1</i>", escape(text)))

    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    body = []
    for row in table.rows:
        kind = " class=reference" if row[0] == reference else ""
        body.append(f"<tr{kind}>{''.join(f'<td>{cell(text)}</td>' for text in row)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead>{''.join(body)}</table>"


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
$by_items
<h2>Beyond accuracy</h2><div class="wide">$beyond</div>
<h2>Differences in words</h2><ul>$findings</ul>
<h2>Caveats</h2><ul class="notes">$notes</ul>
<footer>$footer</footer>
</html>
"""
