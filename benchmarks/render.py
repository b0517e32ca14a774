"""Write the numbers of ``benchmarks/results`` into ``README.md`` and the pages of ``docs``.

    python benchmarks/render.py [--check]

Each place is a block between ``<!-- NAME: by benchmarks/render.py -->`` and ``<!-- end of NAME -->``. ``--check``
writes nothing and exits with 1 if a file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from quality import DATASETS
from scaling_model import tables as model_tables

from recbole_onebp.util.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
Result = Mapping[str, Any]


def speed(results: Path) -> str:
    """Every row with its target, its parts and what was checked."""
    return _each(results, "speed", _full) or "Not run: `python benchmarks/speed.py`."


def speed_short(results: Path) -> str:
    """The rows that have a target."""
    return _each(results, "speed", _short) or "Not run: `python benchmarks/speed.py`."


def gpu(results: Path) -> str:
    return _each(results, "gpu", _full) or "Not run: no GPU was at hand; `python benchmarks/speed_gpu.py`."


def growth(results: Path) -> str:
    return _each(results, "growth", _growth) or "Not run: `python benchmarks/growth.py`."


def large(results: Path) -> str:
    return _each(results, "large", _large) or "Not run: `python benchmarks/large.py`."


def scaling(results: Path) -> str:
    """Every row of the runs in several processes."""
    return _each(results, "scaling", _full) or "Not run: `python benchmarks/scaling.py`."


def scaling_model(results: Path) -> str:
    """What the measured constants say about a larger world."""
    return (
        _each(results, "scaling", lambda result, _: model_tables(result)) or "Not run: `python benchmarks/scaling.py`."
    )


def comparison(results: Path) -> str:
    """A row a model, its accuracy and training time on each data set, and the picture with the most models."""
    reports = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(results.glob("*-comparison/results.json"))
    }
    if not reports:
        return "Not run: `python benchmarks/comparison.py ml-100k`."
    shown, report = max(reports.items(), key=lambda named: len(named[1]["models"]))
    metric, models = report["primary_metric"].upper(), [m for r in reports.values() for m in r["models"]]
    names = [name for r in reports.values() for name in (f"{r['dataset']}, {metric}", "train s")]
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for label in dict.fromkeys(model["label"] for model in models):
        lines.append(f"| {' | '.join([label, *(cell for r in reports.values() for cell in _compared(r, label))])} |")
    trials = " or ".join(map(str, sorted({model["tuning_trials"] for model in models} - {0})))
    pages = [f"[{r['dataset']}](benchmarks/results/{folder}/report.md)" for folder, r in reports.items()]
    notes = [
        f"Test, mean ± standard deviation over {len(report['seeds'])} seeds. {trials} trials a model on validation, "
        f"none where marked *. ↑ ↓: significantly above or below {report['reference']}.",
        *(f"Not run on {r['dataset']}: {', '.join(r['left_out'])}." for r in reports.values() if r["left_out"]),
        f"Budgets, differences, diversity: {', '.join(pages)}.",
    ]
    picture = f"![{metric} and training time on {report['dataset']}](benchmarks/results/{shown}/cost.png)"
    return "\n".join([*lines, "", *notes, "", picture])


def study(results: Path) -> str:
    """Every value of every factor, by its mean over seeds, and what it changes against the base's same seeds."""
    parts = []
    for file in sorted((results / "study").glob("*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        by_label: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        where: dict[str, list[int]] = {}
        for run in result["runs"]:
            by_label.setdefault((run["factor"], run["label"]), {})[run["seed"]] = run["valid"]
            packages = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
            where.setdefault(f"{run['machine']}; {packages}", []).append(run["seed"])
        lines = [f"### {file.stem}", ""]
        for machine, seeds in where.items():
            lines.append(f"- {len(seeds)} trainings: {machine}; seeds {', '.join(map(str, sorted(set(seeds))))}.")
        lines += ["", "| factor | | recall@20 | ndcg@20 | against base |", "|---|---|---|---|---|"]
        bases = by_label["base", "base"]
        for (factor, label), runs in by_label.items():
            recall, ndcg = (statistics.mean(run[name] for run in runs.values()) for name in ("recall@20", "ndcg@20"))
            change = ndcg / statistics.mean(bases[seed]["ndcg@20"] for seed in runs) - 1
            lines.append(f"| {factor} | {label} | {recall:.4f} | {ndcg:.4f} | {change:+.1%} |")
        if file.with_suffix(".png").exists():
            lines += ["", f"![What each factor changes on {file.stem}](../benchmarks/results/study/{file.stem}.png)"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Not run: `python benchmarks/study.py --dataset gowalla`."


def ease_rank(results: Path) -> str:
    """The best regularisation of each number of directions."""
    if not list(results.glob("ease-rank-*.json")):
        return "Not run: `python benchmarks/ease_rank.py --dataset onebp-ml-1m`."
    lines = ["| data set | directions | regularisation | Recall@20 | NDCG@20 |", "|---|---|---|---|---|"]
    for file in sorted(results.glob("ease-rank-*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        by_rank: dict[int, list[Result]] = {}
        for row in result["rows"]:
            by_rank.setdefault(row["rank"], []).append(row)
        for rank, rows in sorted(by_rank.items()):
            best = max(rows, key=lambda row: row["ndcg@20"])
            directions = f"all {rank:,}" if rank == max(by_rank) else f"{rank:,}"
            metrics = f"{best['recall@20']:.4f} | {best['ndcg@20']:.4f}"
            lines.append(f"| {result['dataset']} | {directions} | {best['reg_weight']:g} | {metrics} |")
    return "\n".join(lines)


def quality(results: Path) -> str:
    """The test part, touched once a seed."""
    return _qualities(results.glob("quality-*.json"), "test") or "Not run: `python benchmarks/quality.py`."


def quality_short(results: Path) -> str:
    """The defaults, and 256 dimensions with the schedule that goes with them."""
    lines = ["| data set | Recall@20 / NDCG@20, the defaults | `embedding_size: 256, learning_rate_decay: 0.87` |"]
    lines.append("|---|---|---|")
    for dataset in DATASETS:
        found = []
        for file in (results / f"quality-{dataset}.json", results / f"quality-{dataset}-256.json"):
            mean = json.loads(file.read_text(encoding="utf-8"))["mean"]["test"] if file.exists() else {}
            found.append(" / ".join(f"{value:.4f}" for value in mean.values()))
        lines.append(f"| {dataset} | {' | '.join(found)} |")
    return "\n".join(lines)


def validation(results: Path) -> str:
    """What ``quality.py --no_test`` has seen of settings."""
    return _qualities((results / "validation").glob("*.json"), "valid") or "Not run: `quality.py --no_test`."


def _qualities(files: Iterable[Path], part: str) -> str:
    lines = ["| data set | beside the defaults | seeds | epochs | Recall@20 | NDCG@20 |", "|---|---|---|---|---|---|"]
    for file in sorted(files):
        result = json.loads(file.read_text(encoding="utf-8"))
        runs, mean = result["runs"], result["mean"][part]
        known = {"stopping_step", "eval_step", "threads", "epochs at most"}
        chosen = ", ".join(f"{key}: {value}" for key, value in result["settings"].items() if key not in known)
        epochs, seeds = (", ".join(str(run[key]) for run in runs) for key in ("epochs", "seed"))
        values = " | ".join(f"{mean[name]:.4f}" for name in ("recall@20", "ndcg@20"))
        lines.append(f"| {result['dataset']} | {chosen or '-'} | {seeds} | {epochs} | {values} |")
    return "\n".join(lines) if len(lines) > 2 else ""


BLOCKS: dict[str, dict[str, Callable[[Path], str]]] = {
    "docs/study.md": {"quality": quality, "validation": validation, "ease-rank": ease_rank, "study": study},
    "README.md": {"quality": quality_short, "comparison": comparison, "speed": speed_short},
    "docs/performance.md": {"speed": speed, "growth": growth, "large": large, "gpu": gpu},
    "docs/distributed.md": {"scaling": scaling},
    "docs/scaling.md": {"scaling-model": scaling_model},
}


def _each(results: Path, kind: str, table: Callable[[Result, Path], str]) -> str:
    files = sorted(results.glob(f"*-{kind}.json"))
    return "\n\n".join(table(json.loads(file.read_text(encoding="utf-8")), file) for file in files)


def _where(result: Result) -> str:
    machine, settings = result["machine"], result["settings"]
    name = machine.get("gpu") or f"{machine['cpu']}, {settings['threads']} of {machine['cores']} cores"
    packages = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
    rounds = "1 round" if settings["repeats"] == 1 else f"{settings['repeats']} rounds"
    busy = f", load average before the run {machine['load_before']}" if machine["load_before"] > 0.5 else ""
    return f"{name}, {machine['system']}; {packages}; {rounds}, seed {settings['seed']}{busy}."


def _full(result: Result, _file: Path) -> str:
    lines = [_where(result), "", "| | median (least to most) | target | | made of (medians) |", "|---|---|---|---|---|"]
    for row in result["rows"].values():
        parts = "; ".join(f"{name} {_number(part['median'])}" for name, part in row.get("parts", {}).items())
        note = f"{parts}. {row['note']}" if row.get("note") else parts
        lines.append(f"| {row['title']} | {_spread(row)} | {_target(row)} | {_verdict(row)} | {note} |")
    lines += ["", "Checked:", ""]
    lines += [f"- {row['title']}: {row['checked']}." for row in result["rows"].values() if "checked" in row]
    return "\n".join(lines)


def _short(result: Result, _file: Path) -> str:
    lines = [_where(result), "", "| | median (least to most) | target | |", "|---|---|---|---|"]
    for row in result["rows"].values():
        if row.get("target") is not None or "median" not in row:
            lines.append(f"| {row['title']} | {_spread(row)} | {_target(row)} | {_verdict(row)} |")
    return "\n".join(lines)


def _growth(result: Result, file: Path) -> str:
    base = ", ".join(f"{name} {value:,}" for name, value in result["settings"]["base"].items())
    lines = [_where(result), f"Base: {base}.", "", "| grows | learner | from | to | exponent (least to most) |"]
    lines.append("|---|---|---|---|---|")
    for entry in result["sweeps"]:
        exponents = entry["exponents"]
        spread = {"median": statistics.median(exponents), "min": min(exponents), "max": max(exponents)}
        sizes = f"{entry['fitted_from']:,} | {entry['sizes'][-1]:,}"
        lines.append(f"| {entry['quantity']} | `{entry['learner']}` | {sizes} | {_spread(spread)} |")
    picture = file.with_suffix(".png").name
    lines += ["", f"![Seconds an epoch, on log-log axes](../benchmarks/results/{picture})"]
    return "\n".join(lines)


def _large(result: Result, _file: Path) -> str:
    sizes, stages = result["sizes"], result["stages"]
    last = stages["train and test"]
    run, law = last["result"], last["truth"]
    lines = [
        _where(result),
        f"{sizes['interactions']:,} interactions, {sizes['users']:,} users, {sizes['items']:,} items, "
        f"d = {sizes['dimension']}; {result['available_mb_before']:,} MiB free before.",
        "",
        "| stage | seconds | peak, MiB | of that imports | bytes an interaction | major page faults |",
        "|---|---|---|---|---|---|",
    ]
    for name, stage in stages.items():
        numbers = (stage[key] for key in ("seconds", "peak_mb", "imports_mb", "bytes_an_interaction", "major_faults"))
        lines.append(f"| {name} | {' | '.join(map(_number, numbers))} |")
    cutoffs = sorted(int(name.partition("@")[2]) for name in run["test"] if name.startswith("recall@"))
    lines += ["", f"| test users: {sizes['tested']:,} | {' | '.join(f'recall@{k}' for k in cutoffs)} |"]
    lines += [f"|---|{'---|' * len(cutoffs)}"]
    for name in ("law", "popularity"):
        title = {"law": "the planted law", "popularity": "popularity"}[name]
        lines.append(f"| {title} | {' | '.join(_number(law[f'{name} recall@{k}']) for k in cutoffs)} |")
    lines.append(f"| OneBP, one epoch | {' | '.join(_number(run['test'][f'recall@{k}']) for k in cutoffs)} |")
    inside = f"{law['in their groups']:.0%} of the first 20 items are of one of the user's two groups"
    return "\n".join([*lines, "", f"The epoch took {_number(run['epoch_seconds'][0])} s. {inside}."])


def _compared(report: Result, label: str) -> tuple[str, str]:
    """Accuracy, marked where it differs from the reference's, and training time of a model, if it has them."""
    metric = report["primary_metric"]
    model = next((model for model in report["models"] if model["label"] == label), None)
    if model is None or not model["test"]:
        return "", ""
    value = model["test"][metric]
    difference = next((d for d in report["differences"] if (d["label"], d["metric"]) == (label, metric)), None)
    mark = "" if difference is None or difference["p_holm"] >= 0.05 else " ↑" if difference["mean"] > 0 else " ↓"
    star = "" if model["tuning_trials"] else " *"
    spread = "" if value["std"] is None else f" ± {value['std']:.4f}"
    return f"{value['mean']:.4f}{spread}{mark}{star}", _number(model["train_seconds"]["mean"])


def _spread(row: Mapping[str, Any]) -> str:
    return f"{_number(row['median'])} ({_number(row['min'])} to {_number(row['max'])})" if "median" in row else ""


def _target(row: Mapping[str, Any]) -> str:
    if row.get("target") is None:
        return ""
    return f"at {'least' if row['at_least'] else 'most'} {row['target']:g}"


def _verdict(row: Mapping[str, Any]) -> str:
    verdict = row["verdict"]
    return f"**{verdict}**" if verdict == "miss" else str(verdict)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rendered(text: str, blocks: Mapping[str, Callable[[Path], str]], results: Path) -> str:
    """``text`` with its blocks written anew.

    Raises:
        ValueError: if one of them is not there exactly once.
    """
    for name, table in blocks.items():
        begin, end = f"<!-- {name}: by benchmarks/render.py -->", f"<!-- end of {name} -->"
        found = re.findall(f"(?s){re.escape(begin)}.*?{re.escape(end)}", text)
        if len(found) != 1:
            raise ValueError(f"the block {name} is there {len(found)} times, not once")
        text = text.replace(found[0], f"{begin}\n\n{table(results)}\n\n{end}")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if a file is not up to date")
    check = parser.parse_args().check
    stale = []
    for name, blocks in BLOCKS.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = rendered(old, blocks, ROOT / "benchmarks" / "results")
        if new != old:
            stale.append(name)
            if not check:
                write_atomically(path, partial(Path.write_text, data=new, encoding="utf-8"))
    print(f"{'not up to date' if check else 'written'}: {', '.join(stale)}" if stale else "all up to date")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
