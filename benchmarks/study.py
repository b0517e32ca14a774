"""What drives the quality of OneBP: one factor at a time around one setting, on validation, never on test.

    python benchmarks/study.py --datasets gowalla [--factors temperature ...] [--seeds 1] [--threads 2]
    python benchmarks/study.py --factors order      # what the order of time is worth, on all data sets that have one

Trains on a GPU if there is one. Results are added to ``results/study/<data set>.json``, those on data in order of time
to ``results/order/``, as they arrive; what is there is not repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import measure
import torch
from quality import SETTINGS, predicted, shown

from recbole_onebp import Run, build
from recbole_onebp.util import safe_yaml

Overrides = dict[str, Any]

PLAN = safe_yaml.read(Path(__file__).with_name("study.yaml"), "study.yaml")
SCHEDULES: dict[str, Overrides] = PLAN["schedules"]
FACTORS: dict[str, list[Overrides]] = {**PLAN["factors"], **PLAN["ordered"]}
TOWERS = {**SETTINGS, "local": "none"}
PREDICT = "in prediction"
"""Among the overrides of a variation: those that hold after training only."""


def label(overrides: Overrides) -> str:
    """The overrides as text."""
    drawn, predicted = overrides.get("train_neg_sample_args", {}), overrides.get(PREDICT, {})
    shown = {key: value for key, value in overrides.items() if key not in ("train_neg_sample_args", PREDICT)}
    shown.update({f"{key} {PREDICT}": value for key, value in predicted.items()})
    if drawn.get("distribution") == "popularity":
        shown["popularity"] = drawn["alpha"]
    elif drawn:
        shown["sample_num"] = drawn["sample_num"]
        shown.update({"candidate_num": drawn["candidate_num"]} if drawn["dynamic"] else {})
    return ", ".join(f"{key}: {value}" for key, value in shown.items()) or "base"


def variations(factors: list[str]) -> Iterator[tuple[str, Overrides]]:
    """The base, then every value of every factor."""
    yield "base", {}
    for factor in factors:
        for overrides in FACTORS[factor]:
            yield factor, overrides


@lru_cache(maxsize=1)
def trained(dataset: str, settings: str) -> Run:
    """A model after training with the settings, as JSON; asked for the same again at once, it is not trained again."""
    with tempfile.TemporaryDirectory() as scratch:
        run = build("OneBP", dataset, config_dict={**json.loads(settings), "output_dir": scratch})
        run.train(saved=False)
    return run


def run(dataset: str, data_path: Path, overrides: Overrides, seed: int) -> dict[str, Any]:
    """Train once; the validation metrics of every epoch, and those of the best, or of the model for prediction."""
    start, in_training = perf_counter(), {key: value for key, value in overrides.items() if key != PREDICT}
    common = {"data_path": str(data_path), "show_progress": False, "seed": seed}
    settings = {**common, **TOWERS, **SCHEDULES[dataset], **in_training}
    first = trained(dataset, json.dumps(settings))
    record = first.trainer.record
    epoch, valid = record.best(first.trainer.best_valid_score, first.trainer.valid_metric)
    if PREDICT in overrides:  # from the last epoch
        epoch, valid = len(record.epochs) - 1, predicted(first, overrides[PREDICT])
    curve = [{**entry["valid"], "seconds": entry["train_seconds"]} for entry in record.epochs]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else measure.machine()["cpu"]
    about = {"machine": machine, "versions": measure.versions("numba")}
    return {"valid": valid, "epoch": epoch + 1, "curve": curve, "seconds": perf_counter() - start, **about}


def draw(result: Mapping[str, Any], path: Path) -> None:
    """The change by each value of each factor, a dot a seed; the grey bar spans the base's seeds."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for entry in result["runs"]:
        values.setdefault((entry["factor"], entry["label"]), {})[entry["seed"]] = entry["valid"]["ndcg@20"]
    bases = values.pop(("base", "base"))
    base = statistics.mean(bases.values())
    factors = list(dict.fromkeys(factor for factor, _ in values))
    names = [name if len(name) < 100 else factor for factor, name in values]
    with measure.picture(path, 9, 1 + 0.21 * len(values)) as figure:
        axes = figure.subplots()
        axes.axvspan(*(100 * (extreme(bases.values()) / base - 1) for extreme in (min, max)), color="0.85")
        axes.axvline(0, color="0.5", linewidth=1)
        for row, ((factor, _), found) in enumerate(values.items()):
            changes = [100 * (value / bases[seed] - 1) for seed, value in found.items()]
            axes.plot(changes, [row] * len(changes), "o", markersize=5, color=f"C{factors.index(factor) % 10}")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel("change of NDCG@20 on validation, in % of the base")
        axes.set_title(f"{result['dataset']}, one factor at a time", fontsize=10)
        axes.grid(axis="x", alpha=0.3)


def is_in_order(dataset: str, data_path: Path) -> bool:
    """Whether validation follows train in time, as the manifest of ``fetch`` says; MovieLens is split that way here."""
    manifest = data_path / dataset / "manifest.json"
    return dataset.startswith("ml-") or json.loads(manifest.read_text(encoding="utf-8"))["split"]["valid"] == "last"


def study(dataset: str, data_path: Path, factors: list[str], seeds: list[int], path: Path) -> None:
    """Train with every value of every factor and seed that ``path`` does not hold yet, and draw all that it holds."""
    about = {"dataset": dataset, "settings": {**TOWERS, **SCHEDULES[dataset]}}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    done = {(entry["label"], entry["seed"]) for entry in runs}
    order = {(factor, label(overrides)): place for place, (factor, overrides) in enumerate(variations(list(FACTORS)))}
    for seed, (factor, overrides) in product(seeds, variations(factors)):
        name = label(overrides)
        if (name, seed) in done:
            continue
        found = run(dataset, data_path, overrides, seed)
        runs.append({"factor": factor, "label": name, "overrides": overrides, "seed": seed, **found})
        runs.sort(key=lambda entry: (order.get((entry["factor"], entry["label"]), len(order)), entry["seed"]))
        outcome = f"{shown(found['valid'])}; epoch {found['epoch']}, {found['seconds']:.0f} s"
        print(f"{dataset}, {factor}: {name}, seed {seed}: {outcome}", flush=True)
        measure.write_json(path, {**about, "runs": runs})
    draw({**about, "runs": runs}, path.with_suffix(".png"))


def main() -> None:
    options: dict[str, Any] = {"datasets": list(SCHEDULES), "factors": list(FACTORS), "seeds": [1], "threads": 2}
    args = measure.arguments(__doc__, data_path=measure.DATA, **options)
    measure.begin(args, set(args.datasets) & set(measure.DATASETS))  # RecBole has ml-100k
    for dataset in args.datasets:
        in_order = is_in_order(dataset, args.data_path)
        factors = [factor for factor in args.factors if in_order or factor in PLAN["factors"]]
        path = measure.RESULTS / ("order" if in_order else "study") / f"{dataset}.json"
        if factors:
            study(dataset, args.data_path, factors, args.seeds, path)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
