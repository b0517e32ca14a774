"""Write the numbers of ``benchmarks/results`` into ``README.md`` and the pages of ``docs``.

    python benchmarks/render.py [--check]

Each place is a block between ``<!-- NAME: by benchmarks/render.py -->`` and ``<!-- end of NAME -->``. ``--check``
writes nothing and exits with 1 if a file is not up to date.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure
from comparison import OURS
from measure import DATASETS, table
from scaling_model import tables
from stream import contestants

from recbole_onebp.experiments.compare.comparison import BEYOND_ACCURACY
from recbole_onebp.experiments.compare.results import metric_title
from recbole_onebp.util import safe_yaml

PUBLISHED = Path(__file__).with_name("published.yaml")

ROOT = Path(__file__).resolve().parent.parent
Result = Mapping[str, Any]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _pages(pattern: str, command: str, page: Callable[[Result, Path], str]) -> Callable[[Path], str]:
    """A block with a page of each of these files."""

    def block(results: Path) -> str:
        pages = (page(_read(file), file) for file in sorted(results.glob(pattern)))
        return "\n\n".join(pages) or f"Not run: `python benchmarks/{command}`."

    return block


def _where(result: Result) -> str:
    machine, settings = result["machine"], result["settings"]
    name = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} of {machine['cores']} cores"
    rounds = "1 round" if settings["repeats"] == 1 else f"{settings['repeats']} rounds"
    busy = f", load average before the run {machine['load_before']}" if machine["load_before"] > 0.5 else ""
    return f"{name}, {machine['system']}; {_packages(result)}; {rounds}, seed {settings['seed']}{busy}."


def _full(result: Result, _file: Path) -> str:
    """Every row with its target, its parts and what was checked."""
    rows = result["rows"].values()
    cells = []
    for row in rows:
        parts = "; ".join(f"{name} {_number(part['median'])}" for name, part in row.get("parts", {}).items())
        cells.append([*_cells(row), ". ".join(filter(None, (parts, row.get("note"))))])
    checked = [f"- {row['title']}: {row['checked']}." for row in rows if "checked" in row]
    return "\n".join([_where(result), "", table([*HEAD, "made of (medians)"], cells), "", "Checked:", "", *checked])


HEAD = ("", "median (least to most)", "target", "")


def _cells(row: Result) -> list[str]:
    target = "" if row.get("target") is None else f"at {'least' if row['at_least'] else 'most'} {row['target']:g}"
    verdict = "**miss**" if row["verdict"] == "miss" else row["verdict"]
    return [row["title"], _spread(row) if "median" in row else "", target, verdict]


def _spread(row: Result) -> str:
    return f"{_number(row['median'])} ({_number(row['min'])} to {_number(row['max'])})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _growth(result: Result, file: Path) -> str:
    base = ", ".join(f"{name} {value:,}" for name, value in result["settings"]["base"].items())

    def cells(entry: Result) -> list[str]:
        exponents = entry["exponents"]
        spread = {"median": statistics.median(exponents), "min": min(exponents), "max": max(exponents)}
        sizes = (f"{size:,}" for size in (entry["fitted_from"], entry["sizes"][-1]))
        return [entry["quantity"], f"`{entry['learner']}`", *sizes, _spread(spread)]

    head = ("grows", "learner", "from", "to", "exponent (least to most)")
    picture = f"![Time of one epoch](../benchmarks/results/{file.stem}.png)"
    return f"{_where(result)}\nBase: {base}.\n\n{table(head, map(cells, result['sweeps']))}\n\n{picture}"


def _large(result: Result, _file: Path) -> str:
    sizes, stages = result["sizes"], result["stages"]
    run, law = (stages["train and test"][key] for key in ("result", "truth"))
    keys = ("seconds", "peak_mb", "imports_mb", "bytes_an_interaction", "major_faults")
    head = ("stage", "seconds", "peak, MiB", "of that imports", "bytes an interaction", "major page faults")
    names = [name for name in run["test"] if name.startswith("recall@")]
    shown = (
        ("the planted law", "law ", law),
        ("popularity", "popularity ", law),
        ("OneBP, one epoch", "", run["test"]),
    )
    lists = [[what, *(_number(values[f"{prefix}{name}"]) for name in names)] for what, prefix, values in shown]
    fitted = ""
    if "local term" in stages:
        term = stages["local term"]["local"]
        more = stages["local term"]["peak_mb"] - term["before_mb"]
        fitted = f"""
The fit of the local term took {_number(term["fit_seconds"])} s and {_number(more)} MiB more than before; \
{term["in_their_groups"]:.0%} of its weights join items of one group."""
    return f"""{_where(result)}
{sizes["interactions"]:,} interactions, {sizes["users"]:,} users, {sizes["items"]:,} items, d = {sizes["dimension"]}; \
{result["available_mb_before"]:,} MiB free before.

{table(head, ([name, *(_number(stage[key]) for key in keys)] for name, stage in stages.items()))}

{table((f"test users: {sizes['tested']:,}", *names), lists)}

The epoch took {_number(run["epoch_seconds"][0])} s. {law["in their groups"]:.0%} of the first 20 items are \
of one of the user's two groups.{fitted}"""


_NO_COMPARISON = "Not run: `python benchmarks/comparison.py ml-100k`."


def _comparisons(results: Path) -> dict[str, Any]:
    """The reports of benchmarks/comparison.py by their folders, those with the most models first."""
    found = {file.parent.name: _read(file) for file in sorted(results.glob("*-comparison/results.json"))}
    return dict(sorted(found.items(), key=lambda named: -len(named[1]["models"])))


def _ours_first(labels: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(labels), key=lambda label: label not in OURS)


def models(results: Path) -> str:
    """A row a model, its accuracy and training time on each data set that OneBP was compared on; the best is bold.

    A star marks ours where they keep their defaults and the others are tuned.
    """
    reports = [report for report in _comparisons(results).values() if report["reference"] == "OneBP"]
    if not reports:
        return _NO_COMPARISON
    labels = _ours_first(model["label"] for report in reports for model in report["models"])
    columns = []
    for report in reports:
        values = {m["label"]: m["test"][report["primary_metric"]]["mean"] for m in report["models"] if m["test"]}
        cells = {label: [f"{value:.4f}", _compared(report, label)[1]] for label, value in values.items()}
        best = max(values, key=lambda label: values[label])
        cells[best][0] = f"**{cells[best][0]}**"
        for label in (m["label"] for m in report["models"] if not m["tuning_trials"] and m["label"] in OURS):
            cells[label][0] += " *"
        columns.append(cells)
    head = [name for report in reports for name in (report["dataset"], "s")]
    names = {label: f"*{OURS[label]}*" if label in OURS else label for label in labels}
    rows = (
        [name, *(cell for column in columns for cell in column.get(label, ("", "")))]
        for label, name in names.items()
        if label not in ("TwoBP-towers", "ContentKNN")  # neither a default nor the paper's; knows nothing but features
    )
    return table(["", *head], rows)


def published(results: Path) -> str:
    """Our test results on published splits, and the best published recall and NDCG, a line a data set."""
    lines, known = [], safe_yaml.read(PUBLISHED, PUBLISHED.name)
    for dataset in ("gowalla", "yelp2018"):
        shown = []
        for what, suffix in (("OneBP", ""), ("with the order unused", "-no-times")):
            if mean := _means(results, dataset, suffix):
                both, towers = (" / ".join(_accuracy(mean[part])) for part in ("test", "towers"))
                earlier = _means(results, dataset, f"{suffix}-tenth")
                before = f"before settings changed {' / '.join(_accuracy(earlier['test']))}; " if earlier else ""
                shown.append(f"{what} {both} ({before}towers alone {towers})")
        recall, ndcg = (max(row[dataset][place] for row in known if dataset in row) for place in range(2))
        shown.append(f"best published recall {recall:.4f}, best published NDCG {ndcg:.4f}")
        lines.append(f"- {dataset}: {', '.join(shown)}")
    head = (
        "Trained on validation too, as is usual, Recall@20 / NDCG@20 "
        "([settings](docs/results.md#quality-of-the-defaults), [others' figures](docs/related.md)):"
    )
    return "\n".join([head, "", *lines])


def comparison(results: Path) -> str:
    """A row a model, its accuracy and training time on each data set, and the chart with the most models."""
    reports = _comparisons(results)
    if not reports:
        return _NO_COMPARISON
    shown, report = next(iter(reports.items()))
    metric, entries = report["primary_metric"].upper(), [m for r in reports.values() for m in r["models"]]
    names = [name for r in reports.values() for name in (f"{r['dataset']}, {metric}", "train s")]
    labels = _ours_first(model["label"] for model in entries)
    rows = ([label, *(cell for r in reports.values() for cell in _compared(r, label))] for label in labels)
    trials = " or ".join(map(str, sorted({model["tuning_trials"] for model in entries} - {0})))
    pages = (f"[{r['dataset']}](../benchmarks/results/{folder}/report.md)" for folder, r in reports.items())
    without = {r["dataset"]: ", ".join(r["left_out"]) for r in reports.values() if r["left_out"]}
    others = (f"{r['reference']} on {r['dataset']}" for r in reports.values() if r["reference"] != report["reference"])
    references = ", ".join([report["reference"], *others])
    left_out = "".join(f"Not run on {dataset}: {labels}.\n" for dataset, labels in without.items())
    machines = "; ".join(f"{r['dataset']} on {r['machine']}" for r in reports.values() if "machine" in r)
    left_out += f"Machines: {machines}.\n" if machines else ""
    return f"""{table(["", *names], rows)}

Test, mean ± standard deviation over {len(report["seeds"])} seeds. {trials} trials a model on validation, \
none where marked *. ↑ ↓: significantly above or below {references}.
{left_out}Budgets, differences, diversity: {", ".join(pages)}.

![{metric} and training time on {report["dataset"]}](../benchmarks/results/{shown}/cost.png)"""


def beyond(results: Path) -> str:
    """By data set, a row a model: accuracy by kinds of users and items, and what else a list is good for."""
    parts = []
    for report in _comparisons(results).values():
        groups = {"NDCG, users of": report["by_user_activity"], "hits, items of": report["by_item_popularity"]}
        names = [(f"{what} {name.partition(' pairs')[0]}", found, name) for what, found in groups.items()
                 for name in next(iter(found.values()))]  # fmt: skip
        metrics = [name for name in report["models"][0]["test"] if name.split("@")[0] in BEYOND_ACCURACY]
        head = (report["dataset"], *(title for title, *_ in names), *map(metric_title, metrics), "peak MB")
        rows = [
            (model["label"], *(f"{found[model['label']][name]:.3f}" for _, found, name in names),
             *(f"{model['test'][metric]['mean']:.3g}" for metric in metrics), f"{model['peak_rss_mb']['mean']:,.0f}")
            for model in report["models"] if model["test"]
        ]  # fmt: skip
        parts.append(table(head, rows))
    return "\n\n".join(parts) or _NO_COMPARISON


def _compared(report: Result, label: str) -> tuple[str, str]:
    """A model's accuracy, marked where it differs from the reference's, and its training time."""
    metric = report["primary_metric"]
    model = next((model for model in report["models"] if model["label"] == label and model["test"]), None)
    if model is None:
        return "", ""
    value, mark = model["test"][metric], ""
    for difference in report["differences"]:
        if (difference["label"], difference["metric"]) == (label, metric) and difference["p_holm"] < 0.05:
            mark = " ↑" if difference["mean"] > 0 else " ↓"
    spread = "" if value["std"] is None else f" ± {value['std']:.4f}"
    star = "" if model["tuning_trials"] else " *"
    return f"{value['mean']:.4f}{spread}{mark}{star}", _number(model["train_seconds"]["mean"])


def _studied(file: Path) -> dict[tuple[str, str], tuple[dict[str, float], float, int]]:
    """By factor and value: the mean over seeds, its change against the base's same seeds, and the number of seeds."""
    by_label: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for run in _read(file)["runs"] if file.exists() else ():
        by_label.setdefault((run["factor"], run["label"]), {})[run["seed"]] = run["valid"]
    found = {}
    for names, runs in by_label.items():
        mean = {name: statistics.mean(run[name] for run in runs.values()) for name in ("recall@20", "ndcg@20")}
        base = statistics.mean(by_label["base", "base"][seed]["ndcg@20"] for seed in runs)
        found[names] = mean, mean["ndcg@20"] / base - 1, len(runs)
    return found


_UNUSED = "recency: none, training_history: all, trend_weight: none"
_ORDER = {
    _UNUSED: "order unused",
    f"{_UNUSED}, recency in prediction: auto": "recency in prediction only",
    "training_history: all, trend_weight: none": "recency in training too",
    "trend_weight in prediction: none": "users of pairs made of earlier items",
    "base": "trends of items too: the defaults",
}


def order(results: Path) -> str:
    """What the order is worth, step by step, on the data sets in order."""
    files = {file.stem: _studied(file) for file in sorted((results / "order").glob("*.json"))}
    studied = {name: found for name, found in files.items() if any(factor == "order" for factor, _ in found)}
    if not studied:
        return "Not run: `python benchmarks/study.py --factors order`."
    rows = []
    for label, title in _ORDER.items():
        cells = []
        for found in studied.values():
            mean, change, _ = found.get(("base" if label == "base" else "order", label), ({}, 0.0, 0))
            cells.append(f"{' / '.join(_accuracy(mean))} ({change:+.1%})" if mean else "")
        rows.append([title, *cells])
    seeds = ", ".join(f"{name} {max(n for *_, n in found.values())}" for name, found in studied.items())
    return f"{table(('', *studied), rows)}\n\nRecall@20 / NDCG@20, and the NDCG against the last row. Seeds: {seeds}."


def factors(results: Path) -> str:
    """The change of the NDCG by each value of each factor, on validation parts of both kinds."""
    files = [*sorted((results / "order").glob("*.json")), *sorted((results / "study").glob("*.json"))]
    studied = {f"{file.stem}{' at random' * (file.parent.name == 'study')}": _studied(file) for file in files}
    names = dict.fromkeys(names for found in studied.values() for names in found if names[0] not in ("base", "order"))
    place = {factor: number for number, factor in enumerate(dict.fromkeys(factor for factor, _ in names))}
    rows = [
        [factor, label if len(label) < 100 else "", *(f"{f[factor, label][1]:+.1%}" if (factor, label) in f else ""
         for f in studied.values())]
        for factor, label in sorted(names, key=lambda name: place[name[0]])
    ]  # fmt: skip
    machines: dict[str, list[str]] = {}
    for name, file in zip(studied, files, strict=True):
        for machine in sorted({f"{run['machine']}; {_packages(run)}" for run in _read(file)["runs"]}):
            machines.setdefault(machine, []).append(name)
    where = "\n".join(f"- {', '.join(names)}: {machine}." for machine, names in machines.items())
    return f"{table(('factor', '', *studied), rows)}\n\n{where}"


def _local(result: Result, _file: Path) -> str:
    towers = result["rows"][0]["valid"]["ndcg@20"]
    rows = []
    for row in result["rows"]:
        fitted = f"{row['seconds']:.1f} s" if "seconds" in row else ""
        change = f"{100 * (row['valid']['ndcg@20'] / towers - 1):+.1f} %"
        rows.append((row["label"], f"{row['weight']:g}", *_accuracy(row["valid"]), change, fitted))
    head = ("setting", "weight", "Recall@20", "NDCG@20", "against the towers", "fitted in")
    settings = ", ".join(f"{key}: {value}" for key, value in result["settings"].items())
    where = f"{result['machine']['cpu']}; {_packages(result)}"
    return f"### {result['dataset']}\n\n{settings}; seed {result['seed']}; {where}.\n\n{table(head, rows)}"


def _horizon(result: Result, _file: Path) -> str:
    rows = sorted(result["rows"], key=lambda row: (row["part"] == "test", row["share"]))
    head = ("recency", *(f"{row['part']}, {100 * row['share']:.0f} % of the pairs" for row in rows))
    titles = {"recency": "", "moving average": "moving average, beta "}
    cells = [
        (f"{title}{name}", *(" / ".join(_accuracy(row[family][name])) if row.get(family) else "" for row in rows))
        for family, title in titles.items()
        for name in dict.fromkeys(name for row in rows for name in row.get(family, ()))
    ]
    return f"{result['dataset']}, Recall@20 / NDCG@20:\n\n{table(head, cells)}"


def _packages(result: Result) -> str:
    return ", ".join(f"{package} {version}" for package, version in result["versions"].items())


def ease_rank(results: Path) -> str:
    """The best regularisation for each number of directions."""
    rows = []
    for result in map(_read, sorted(results.glob("ease-rank-*.json"))):
        best: dict[int, Result] = {}
        for row in sorted(result["rows"], key=lambda row: (row["rank"], row["ndcg@20"])):
            best[row["rank"]] = row
        for rank, row in best.items():
            directions = f"all {rank:,}" if rank == max(best) else f"{rank:,}"
            rows.append((result["dataset"], directions, f"{row['reg_weight']:g}", *_accuracy(row)))
    head = ("data set", "directions", "regularisation", "Recall@20", "NDCG@20")
    return table(head, rows) if rows else "Not run: `python benchmarks/ease_rank.py --dataset onebp-ml-1m`."


def _accuracy(metrics: Result) -> list[str]:
    return [f"{metrics[name]:.4f}" for name in ("recall@20", "ndcg@20")]


def _means(results: Path, dataset: str, suffix: str = "") -> Result:
    """The metrics of a data set's ``quality.py``, means over seeds, by part; nothing if it was not run."""
    file = results / f"quality-{dataset}{suffix}.json"
    return _read(file)["mean"] if file.exists() else {}


def quality_short(results: Path) -> str:
    """Recall@20 / NDCG@20 on the test part, with and without the local term and the order of time."""
    columns = {
        "towers and local term": ("", "test"),
        "towers alone": ("", "towers"),
        "order unused: towers and local term": ("-no-times", "test"),
        "order unused: towers alone": ("-no-times", "towers"),
    }

    def cell(dataset: str, suffix: str, part: str) -> str:
        means = _means(results, dataset, suffix)
        return " / ".join(_accuracy(means[part])) if part in means else ""

    rows = [[name, *(cell(name, *column) for column in columns.values())] for name in DATASETS]
    return table(("data set", *columns), [row for row in rows if any(row[1:])])


def related(results: Path) -> str:
    """Our test results among the published ones, a table a data set, the best first."""
    published, tables = safe_yaml.read(PUBLISHED, PUBLISHED.name), []
    for dataset in ("gowalla", "yelp2018"):
        rows = [(row["model"], *row[dataset], row["source"]) for row in published if dataset in row]
        for suffix, order in (("", ""), ("-no-times", ", order unused")):
            mean = _means(results, dataset, suffix)
            for part, what in (("test", "towers and local term"), ("towers", "towers alone")):
                if part in mean:
                    name = f"**OneBP, {what}{order}**"
                    rows.append((name, mean[part]["recall@20"], mean[part]["ndcg@20"], "`quality.py`"))
        rows.sort(key=lambda row: -row[2])
        cells = [(name, f"{recall:.4f}", f"{ndcg:.4f}", source) for name, recall, ndcg, source in rows]
        tables.append(table((dataset, "Recall@20", "NDCG@20", "source"), cells))
    return "\n\n".join(tables)


def _qualities(results: Path, pattern: str, parts: Mapping[str, str], at_random: bool | None = None) -> str:
    """A row a file of ``quality.py``; if given, only those whose validation part was drawn anew at random, or not."""
    rows = []
    for result in map(_read, sorted(results.glob(pattern))):
        known = {"stopping_step", "eval_step", "threads", "epochs at most", "chosen by"}
        settings = {key: value for key, value in result["settings"].items() if key not in known}
        fetched = settings.pop("fetched with", "")
        is_random = fetched == "--valid=random"
        if at_random is not None and is_random is not at_random:
            continue
        unused = settings.pop("load_col", None) or settings.get("training_history") == "all"
        if unused:
            settings = {"order": "unused", **settings}
            settings = {key: value for key, value in settings.items() if key not in ("training_history", "recency")}
        chosen = ", ".join(f"{key}: {value}" for key, value in settings.items())
        chosen += f"; `fetch {fetched}`" if fetched and not is_random else ""
        lists = [", ".join(str(run[key]) for run in result["runs"]) for key in ("seed", "epochs")]
        lists[1] += f" of {result['settings']['epochs at most']}"
        means = (" / ".join(_accuracy(result["mean"][each])) if each in result["mean"] else "" for each in parts)
        rows.append((result["dataset"], chosen or "-", *lists, *means))
    head = ("data set", "changed defaults", "seeds", "epochs, of at most", *parts.values())
    return table(head, rows) if rows else "Not run: `python benchmarks/quality.py`."


def losses(contestants: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Among which items the model with all features has a lower NDCG than ids alone, in words."""
    ids, both = (contestants.get(name, []) for name in ("ids alone", "features and ids"))
    found = []
    for items in ("cold", "warm", "all") if ids and both else ():
        without, with_all = (
            statistics.mean(value for run in runs for name, value in run["test"][items].items() if "ndcg" in name)
            for runs in (ids, both)
        )
        if with_all < without:
            found.append(f"{items} items, {100 * (with_all / without - 1):.1f} % NDCG")
    return found


def _features(result: Result, _file: Path) -> str:
    """A row a contestant: cold, warm and all test items, the means over the seeds."""

    def cells(name: str, runs: list[Result]) -> list[str]:
        cutoffs = [metric for kind in ("recall@", "ndcg@") for metric in runs[0]["test"]["all"] if kind in metric]
        accuracy = (
            " / ".join(f"{statistics.mean(run['test'][items][metric] for run in runs):.4f}" for metric in cutoffs)
            for items in ("cold", "warm", "all")
        )
        took = f"{statistics.mean(run['processor_seconds'] for run in runs):.0f}"
        return [name, ", ".join(str(run["epochs"]) for run in runs), *accuracy, took]

    settings = ", ".join(f"{key}: {value}" for key, value in result["settings"].items())
    seeds = ", ".join(str(run["seed"]) for run in next(iter(result["contestants"].values())))
    head = (result["dataset"], "epochs", "cold items", "warm items", "all items", "processor s")
    rows = (cells(name, runs) for name, runs in result["contestants"].items())
    lost = losses(result["contestants"])
    said = (
        f"Features lose to ids alone: {'; '.join(lost)}."
        if lost
        else "Among the towers features lose nowhere to ids alone."
    )
    return f"{table(head, rows)}\n\n{said}\n\nSeed {seeds}; {settings}. {_packages(result)}."


def _stream(result: Result, file: Path) -> str:
    """A row a contestant: all events, the last quarter, items of both kinds, and speed."""
    moving = {name for name, how in contestants().items() if how.moves_users}
    rows = []
    for name, row in result["rows"].items():
        parts = [row["all"], row["last quarter"], row["known items"], *row["new items"].values()]
        applied = f"{row['events_a_second']:,}" if name in moving else ""
        cells = (" / ".join(_accuracy(part)) if part["events"] else "" for part in parts)
        rows.append([name, *cells, applied, f"{row['answer_ms']['p99']:.1f}"])
    counts = ["events", *(f"{part['events']:,}" for part in parts), "", ""]
    steps = (f"new, after {name}" for name in row["new items"])
    head = (result["dataset"], "all", "last quarter", "known items", *steps, "events/s", "p99 ms")
    settings = ", ".join(f"{key}: {value}" for key, value in {**result["settings"], **result["chosen"]}.items())
    machine = f"{result['machine']['cpu']}, load average before {result['machine']['load_before']}"
    picture = f"![Recall@20 by position in the stream](../benchmarks/results/{file.stem}.png)"
    return f"{table(head, [counts, *rows])}\n\n{settings}. {machine}; {_packages(result)}.\n\n{picture}"


def _weights(result: Result, _file: Path) -> str:
    """A row a contestant: the means over the seeds on test; the transforms and the places of weights on validation."""
    metrics = list(next(iter(result["contestants"].values()))["mean"]["test"])
    contestants, rows = result["contestants"], []
    for name, found in contestants.items():
        chosen = ", ".join(f"{key}: {value}" for key, value in found["chosen"].items() if key != "WEIGHT_FIELD")
        values = [[run["test"][metric] for run in found["runs"]] for metric in metrics]
        cells = [f"{statistics.mean(one):.4f} ± {statistics.stdev(one):.4f}" for one in values]
        rows.append((name, chosen or "-", *cells))
    valid = {"none": contestants["OneBP"]["runs"][0]["valid"]}
    for row in contestants["OneBP, weighted"]["tried"]:
        valid[f"everywhere, {row['settings']['weight_transform']}"] = row["valid"]
    best = contestants["OneBP, weighted"]["chosen"]["weight_transform"]
    valid |= {f"in the {place} only, {best}": metrics for place, metrics in (result["where"] or {}).items()}
    places = [(name, *(f"{found[metric]:.4f}" for metric in metrics)) for name, found in valid.items()]
    settings = ", ".join(f"{key}: {value}" for key, value in result["settings"].items())
    seeds = ", ".join(str(run["seed"]) for run in contestants["OneBP"]["runs"])
    where = f"Seeds {seeds}, mean ± standard deviation; {settings}; {result['machine']['cpu']}; {_packages(result)}."
    on_test = table((f"{result['dataset']}, test", "chosen on validation", *metrics), rows)
    return f"{on_test}\n\n{where}\n\n{table(('OneBP on validation, weights', *metrics), places)}"


def fits(results: Path) -> str:
    """A row a file of ``fit.py``: seconds to the lists of all users, and the test metrics of the lists."""
    rows, about = [], set()
    for result in map(_read, sorted(results.glob("fit/*.json"))):
        runs, settings = result["runs"], ", ".join(f"{key}: {value}" for key, value in result["settings"].items())
        seconds = [run["seconds"] for run in runs]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        test = runs[-1].get("test")
        rows.append((result["dataset"], settings or "-", spread, " / ".join(_accuracy(test)) if test else ""))
        about.add(f"{result['machine']['cpu']}, {result['threads']} threads; {_packages(result)}.")
    head = ("data set", "changed defaults", "seconds (least to most)", "test, Recall@20 / NDCG@20")
    return "\n\n".join([table(head, rows), *sorted(about)]) if rows else "Not run: `python benchmarks/fit.py`."


speed = _pages("*-speed.json", "speed.py", _full)
growth = _pages("*-growth.json", "large.py growth", _growth)
large = _pages("*-large.json", "large.py", _large)

BLOCKS: dict[str, dict[str, Callable[[Path], str]]] = {
    "docs/study.md": {
        "quality": partial(
            _qualities,
            pattern="quality-*.json",
            parts={"test": "Recall@20 / NDCG@20", "towers": "its towers alone"},
            at_random=False,
        ),
        "quality-random": partial(
            _qualities, pattern="quality-*.json", parts={"test": "Recall@20 / NDCG@20"}, at_random=True
        ),
        "order": order,
        "horizon": _pages("horizon/*.json", "horizon.py --dataset gowalla", _horizon),
        "validation": partial(_qualities, pattern="validation/*.json", parts={"valid": "Recall@20 / NDCG@20"}),
        "ease-rank": ease_rank,
        "factors": factors,
    },
    "docs/local.md": {"local": _pages("local/*.json", "local.py --dataset gowalla", _local)},
    "docs/dataframe.md": {"fit": fits},
    "docs/weights.md": {"weights": _pages("weights/*.json", "weights.py", _weights)},
    "docs/features.md": {
        "features": _pages("features/*.json", "features.py", _features),
        "stream": _pages("stream-*.json", "stream.py --dataset ml-100k", _stream),
    },
    "README.md": {"models": lambda results: f"{models(results)}\n\n{published(results)}"},
    "docs/related.md": {"related": related},
    "docs/results.md": {"quality": quality_short, "comparison": comparison, "beyond": beyond},
    "docs/performance.md": {
        "speed": speed,
        "growth": growth,
        "large": large,
        "gpu": _pages("*-gpu.json", "speed.py --device cuda", _full),
    },
    "docs/distributed.md": {"scaling": _pages("*-scaling.json", "scaling.py", _full)},
    "docs/scaling.md": {"scaling-model": _pages("*-scaling.json", "scaling.py", lambda result, _: tables(result))},
}


def rendered(text: str, blocks: Mapping[str, Callable[[Path], str]], results: Path) -> str:
    """``text`` with its blocks written anew.

    Raises:
        ValueError: if a block does not occur exactly once.
    """
    for name, block in blocks.items():
        begin, end = f"<!-- {name}: by benchmarks/render.py -->", f"<!-- end of {name} -->"
        found = re.findall(f"(?s){re.escape(begin)}.*?{re.escape(end)}", text)
        if len(found) != 1:
            raise ValueError(f"the block {name} occurs {len(found)} times, not once")
        text = text.replace(found[0], f"{begin}\n\n{block(results)}\n\n{end}")
    return text


def main() -> int:
    check, stale = measure.arguments(__doc__, check=False).check, []
    for name, blocks in BLOCKS.items():
        old = (ROOT / name).read_text(encoding="utf-8")
        new = rendered(old, blocks, measure.RESULTS)
        if new != old:
            stale.append(name)
            if not check:
                measure.write_text(ROOT / name, new)
    print(f"{'not up to date' if check else 'written'}: {', '.join(stale)}" if stale else "all up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
