"""What drives the quality of OneBP: one factor at a time around one setting, on validation, never on test.

    python benchmarks/study.py --dataset gowalla [--factors temperature ...] [--seeds 1] [--threads 2]

Trains on a GPU if there is one. Results are added to ``results/study/<data set>.json``, those of data in order to
``results/order/``, as they arrive; what is there is not repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import measure
import torch
from quality import SETTINGS, shown, train_and_test

from recbole_onebp.util import safe_yaml

Overrides = dict[str, Any]

PLAN = safe_yaml.read(Path(__file__).with_name("study.yaml"), "study.yaml")
SCHEDULES: dict[str, Overrides] = PLAN["schedules"]
FACTORS: dict[str, list[Overrides]] = {**PLAN["factors"], **PLAN["ordered"]}


def label(overrides: Overrides) -> str:
    """The overrides as text."""
    drawn = overrides.get("train_neg_sample_args", {})
    shown = {key: value for key, value in overrides.items() if key != "train_neg_sample_args"}
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


def run(dataset: str, data_path: Path, overrides: Overrides, seed: int) -> dict[str, Any]:
    """Train once; the validation metrics of every epoch."""
    settings = {**SCHEDULES[dataset], **overrides}
    with tempfile.TemporaryDirectory() as scratch:
        found = train_and_test(dataset, data_path, seed, settings["epochs"], True, Path(scratch), settings)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else measure.machine()["cpu"]
    about = {"machine": machine, "versions": measure.versions("numba")}
    kept = {"valid": found["valid"], "epoch": found["epochs"], "curve": found["curve"]}
    return {**kept, "seconds": found["seconds"]["all"], **about}


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


def main() -> None:
    options: dict[str, Any] = {"factors": list(FACTORS), "seeds": [1], "threads": 2}
    args = measure.arguments(__doc__, json=Path, dataset=measure.DATASETS, data_path=measure.DATA, **options)
    measure.begin(args)
    kind = "order" if args.factors == list(PLAN["ordered"]) else "study"
    if kind == "study":
        args.factors = [factor for factor in args.factors if factor in PLAN["factors"]]
    path = args.json or measure.RESULTS / kind / f"{args.dataset}.json"
    about = {"dataset": args.dataset, "settings": {**SETTINGS, **SCHEDULES[args.dataset]}}
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    done = {(entry["label"], entry["seed"]) for entry in runs}
    order = {(factor, label(overrides)): place for place, (factor, overrides) in enumerate(variations(list(FACTORS)))}
    for (factor, overrides), seed in product(variations(args.factors), args.seeds):
        name = label(overrides)
        if (name, seed) in done:
            continue
        found = run(args.dataset, args.data_path, overrides, seed)
        runs.append({"factor": factor, "label": name, "overrides": overrides, "seed": seed, **found})
        runs.sort(key=lambda entry: (order.get((entry["factor"], entry["label"]), len(order)), entry["seed"]))
        outcome = f"{shown(found['valid'])}; epoch {found['epoch']}, {found['seconds']:.0f} s"
        print(f"{factor}: {name}, seed {seed}: {outcome}", flush=True)
        measure.write_json(path, {**about, "runs": runs})
    draw({**about, "runs": runs}, path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
