"""OneBP, TwoBP and RecBole's baselines on one data set: tuned on validation, then compared on test.

    python benchmarks/comparison.py DATASET [--data_path dataset] [--without LABEL ...] [--untuned LABEL ...]

``ml-100k`` is in RecBole's package, and ``fetch`` gets the others.  ``ml-latest-small`` is made of GroupLens' file:
``recbole-onebp convert ratings.csv --user=userId --item=movieId --time=timestamp --split=time_user
--ratios 0.8 0.1 0.1 --name=ml-latest-small``.

Every model of ``properties/tune/baselines.yaml`` gets the same number of trials; its best settings are trained with
every seed of ``properties/compare/baselines.yaml``. Those that are ``--untuned`` keep their defaults, where a search
would take too long. Finished runs are not repeated.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measure

from recbole_onebp.config import RunConfig
from recbole_onebp.experiments.charts import Chart, Series, draw_png
from recbole_onebp.experiments.compare import compare
from recbole_onebp.experiments.compare.figures import looks_of
from recbole_onebp.experiments.compare.results import metric_title
from recbole_onebp.experiments.tune.search import tune
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
DATA: dict[str, dict[str, Any]] = {
    "ml-100k": {
        "epochs": 100,
        # Every rating is a positive one. The last tenth of each user is the test part, the one before validation.
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
    },
    "ml-latest-small": {
        "epochs": 100,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "benchmark_filename": ["train", "valid", "test"],
    },
    "onebp-ml-100k": {"epochs": 100},
    "onebp-ml-1m": {"epochs": 40},
    "citeulike": {"epochs": 40, "eval_items": "warm"},
    "amazon-book-part": {"epochs": 25, "refit": True},
    "gowalla": {"epochs": 40},
    "yelp2018": {"epochs": 40},
}
"""What the models share in addition to ``properties/*/baselines.yaml``; the most epochs are what fits into hours of a
CPU.  ``refit`` holds for the comparison: a search has no test part."""
NOTHING_TO_TUNE = ["Pop", "ContentKNN"]
WITH_FEATURES = ("OneBP", "LightFM")
"""On ``citeulike``, whose items have features: the models that are compared with them too."""
OURS = {
    "OneBP": "OneBP",
    "OneBP-towers": "OneBP, towers alone",
    "OneBP-features": "OneBP, with features",
    "OneBP-paper": "OneBP, the paper's form",
    "TwoBP-towers": "TwoBP, towers alone",
    "TwoBP-paper": "TwoBP, the paper's form",
}
"""Labels of the models that are ours, and how people read them."""


def entries_of(kind: str, labels: Sequence[str] | None = None, dataset: str = "") -> list[dict[str, Any]]:
    """The models of ``properties/<kind>/baselines.yaml``, each with a label; on citeulike those with features too."""
    found = RunConfig.read_files([str(plan_of(kind))])["models"]
    entries = [{"model": entry} if isinstance(entry, str) else entry for entry in found]
    labelled = [{"label": entry["model"], **entry} for entry in entries]
    if dataset == "citeulike":
        labelled += [
            {**entry, "label": f"{entry['label']}-features", "item_features": "all"}
            for entry in labelled
            if entry["label"] in WITH_FEATURES
        ]
        labelled += [{"model": "ContentKNN", "label": "ContentKNN"}] if kind == "compare" else []
    return [entry for entry in labelled if labels is None or entry["label"] in labels]


def plan_of(kind: str) -> Path:
    return ROOT / "properties" / kind / "baselines.yaml"


def search_and_compare(shared: Mapping[str, Any], labels: Sequence[str], untuned: Sequence[str]) -> tuple[Path, Path]:
    """Tune the models with these labels, then compare them; the folders of the report and of the search."""
    tuned = Path("runs") / f"tune-{shared['dataset']}"
    if entries := entries_of("tune", [label for label in labels if label not in untuned], shared["dataset"]):
        of_search = {key: value for key, value in shared.items() if key != "refit"}
        tune(plan_of("tune"), {**of_search, "models": entries}, tuned)
    entries = entries_of("compare", labels, shared["dataset"])
    for number, entry in enumerate(entries):
        if entry["label"] not in untuned:
            entries[number] = {"model": entry["model"], "label": entry["label"], "tuned": str(tuned)}
    output_dir = f"runs/compare-{shared['dataset']}"
    return compare([str(plan_of("compare"))], {**shared, "models": entries, "output_dir": output_dir}), tuned


def draw_cost(report: Mapping[str, Any], path: Path) -> None:
    """Test accuracy against seconds of training, a point a model."""
    metric = report["primary_metric"]
    found = {model["label"]: model for model in report["models"] if model["test"]}
    looks = looks_of([*found], report["reference"])
    series = [
        Series(
            OURS.get(label, label), [model["train_seconds"]["mean"]], [model["test"][metric]["mean"]], **looks[label]
        )
        for label, model in found.items()
    ]
    name, title = f"{report['dataset']}, test {metric_title(metric)}", "Accuracy and training time"
    draw_png(Chart("cost", title, "", "time of training", name, "points", series, in_seconds=True), path)


def write_results(folder: Path, tuned: Path, command: str, left_out: Sequence[str]) -> Path:
    """Copy the small files of a report and its search to the results."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    out = ROOT / "benchmarks" / "results" / f"{report['dataset']}-comparison"
    title, text = (folder / "report.md").read_text(encoding="utf-8").split("\n\n", 1)
    text = re.sub(r"!\[[^\]]*\]\(figures/(?!cost\.png).*?\)\n*", "", text).replace("figures/cost.png", "cost.png")
    cpu = measure.machine()["cpu"]
    head = [title, f"`{command}`", f"Machine: {cpu}.", *([f"Left out: {', '.join(left_out)}."] if left_out else [])]
    measure.write_text(out / "report.md", "\n\n".join([*head, text.rstrip()]) + "\n")
    kept = {"command": command, "machine": cpu, "left_out": list(left_out), **report}
    measure.write_text(out / "results.json", json.dumps(kept, indent=1) + "\n")
    if (tuned / "tuning.json").exists():  # nothing may have been tuned
        write_atomically(out / "tuning.json", partial(shutil.copyfile, tuned / "tuning.json"))
    write_atomically(out / "cost.png", partial(draw_cost, report))
    return out


def main() -> None:
    names = {"without": list[str](), "untuned": list[str]()}
    args = measure.arguments(__doc__, "dataset", dataset=tuple(DATA), data_path=measure.DATA, **names)
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    known = [entry["label"] for entry in entries_of("compare", dataset=args.dataset)]
    for option in names:
        if unknown := {*getattr(args, option)} - {*known}:
            raise UserError(f"--{option} {' '.join(sorted(unknown))}: the labels are {', '.join(known)}")
    shared = {"dataset": args.dataset, "data_path": str(args.data_path), **DATA[args.dataset]}
    labels = [label for label in known if label not in args.without]
    folder, tuned = search_and_compare(shared, labels, [*NOTHING_TO_TUNE, *args.untuned])
    options = "".join(f" --{option} {' '.join(given)}" for option in names if (given := getattr(args, option)))
    command = f"python benchmarks/comparison.py {args.dataset}{options}"
    print(f"wrote {write_results(folder, tuned, command, args.without)}; now python benchmarks/render.py")


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
