"""How good OneBP is, with settings chosen on validation, and how long it takes.

    python benchmarks/quality.py --dataset gowalla [--settings '{embedding_size: 256}'] [--seeds 1 2 3] [--json OUT]

For each seed: train until validation stops rising, at most for ``--epochs``, train again on train + validation for the
best number of epochs, with what else validation has chosen, and test once; with a local term, the towers of the same
model alone are tested too. With ``--choose_once``, the first seed chooses for all. ``--no_test`` stops after the
first training. Seeds that ``OUT`` holds are not repeated. The settings are those of ``preset: tuned``, which validation
has chosen, and ``--settings`` on top; ``--settings '{preset: default}'`` measures the defaults.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import measure

from recbole_onebp import OneBPTrainer, Run, build
from recbole_onebp.config.properties import read_preset
from recbole_onebp.trainer import CHOSEN

SETTINGS: dict[str, Any] = {"stopping_step": 5}
"""Added to what is measured."""


def fetched_with(folder: Path) -> dict[str, str]:
    """What ``fetch`` was told of the validation part, where it is not what it makes by itself."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    split, usual = manifest["split"], "last" if manifest["ordered"] else "random"
    told = [f"--valid={split['valid']}"] if split["valid"] != usual else []
    told += [f"--valid_share={split['valid_share']}"] if split["valid_share"] != 0.1 else []
    return {"fetched with": " ".join(told)} if told else {}


def predicted(trained: Run, overrides: dict[str, Any]) -> dict[str, float]:
    """Validation metrics after training, with users that are made anew with other settings than in training."""
    with tempfile.TemporaryDirectory() as scratch:
        given = {**trained.config.external_config_dict, **overrides, "output_dir": scratch}
        run = build("OneBP", given["dataset"], config_dict=given)
    model: Any = run.model
    model.load_state_dict(trained.model.state_dict())
    model.move_all_users()
    _, found = OneBPTrainer._valid_epoch(run.trainer, run.valid_data)
    return {name: float(value) for name, value in found.items()}


def choose(common: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Train once; what validation has chosen."""
    start = perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = build("OneBP", common["dataset"], config_dict={**common, "epochs": epochs, "output_dir": scratch})
        best_epoch, valid = run.train(saved=False)
    record = run.trainer.record
    return {
        "epochs": best_epoch + 1,
        **{key: value for key, value in record.epochs[best_epoch].items() if key in CHOSEN},
        "valid": valid,
        "curve": [
            {"epoch": epoch["epoch"] + 1, **epoch["valid"], "seconds": epoch["train_seconds"]}
            for epoch in record.epochs
            if epoch["valid"]
        ],
        "seconds": {"choose": perf_counter() - start, "of which valid": record.total("valid_seconds")},
    }


def refit_and_test(common: dict[str, Any]) -> dict[str, Any]:
    """Train on train + validation; the metrics of the test part, with a local term those of the towers alone too."""
    start = perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = build("OneBP", common["dataset"], config_dict={**common, "refit": True, "output_dir": scratch})
        tested = run.fit()
    result = {"test": tested.test, "device": tested.device}
    model: Any = run.model
    if model.local is not None:
        model.local_weight.fill_(0)
        found = run.trainer.evaluate(run.test_data, load_best_model=False)
        result["towers"] = {name: float(value) for name, value in found.items()}
    return {**result, "seconds": {"refit and test": perf_counter() - start}}


def train_and_test(common: dict[str, Any], epochs: int, no_test: bool, chosen: dict[str, Any]) -> dict[str, Any]:
    """Epochs, metrics and seconds of one seed; ``chosen`` by another seed, if it is not empty."""
    result = {"seed": common["seed"], **(chosen or choose(common, epochs))}
    if no_test:
        return result
    found = refit_and_test({**common, **{key: result[key] for key in ("epochs", *CHOSEN) if key in result}})
    seconds = {**result.get("seconds", {}), **found["seconds"]}
    seconds["all"] = seconds.get("choose", 0.0) + seconds["refit and test"]
    return {**result, **found, "seconds": seconds}


def shown(values: dict[str, float], decimals: int = 4) -> str:
    return ", ".join(f"{name} {value:.{decimals}f}" for name, value in values.items())


def means(results: list[dict[str, Any]], part: str) -> dict[str, float]:
    return {name: statistics.mean(result[part][name] for result in results) for name in results[0][part]}


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset=measure.DATASETS, data_path=measure.DATA, seeds=[1], epochs=60, settings={},
        no_test=False, choose_once=False, threads=2,
    )  # fmt: skip
    measure.begin(args, [args.dataset])
    part = "valid" if args.no_test else "test"
    # What the preset changes is spelt out, so that results say it.
    preset = {} if "preset" in args.settings else read_preset("tuned", args.dataset)
    given = {**SETTINGS, **preset, **args.settings}
    settings = {**given, "threads": args.threads, "epochs at most": args.epochs}
    settings |= {"chosen by": "the first seed"} if args.choose_once else {}
    settings |= fetched_with(args.data_path / args.dataset)
    about = {**measure.here("numba"), "dataset": args.dataset, "settings": settings}
    results = measure.earlier(args.json, about, "runs", ("dataset", "settings")) or []
    for seed in sorted(set(args.seeds) - {result["seed"] for result in results}):
        common = {**given, "dataset": args.dataset, "seed": seed, "data_path": str(args.data_path)}
        chosen = {}
        if args.choose_once and results and not args.no_test:
            chosen = {key: results[0][key] for key in ("epochs", *CHOSEN) if key in results[0]}
        result = train_and_test({**common, "show_progress": False}, args.epochs, args.no_test, chosen)
        results.append({**result, "threads": args.threads, "load before": about["machine"]["load_before"]})
        metrics = "; ".join(f"{name} {shown(result[name])}" for name in ("valid", "test", "towers") if name in result)
        print(f"seed {seed}: {result['epochs']} epochs; {metrics}; seconds {shown(result['seconds'], 1)}", flush=True)
        if args.json:
            shown_parts = [part, *(["towers"] if all("towers" in result for result in results) else [])]
            mean = {name: means(results, name) for name in shown_parts}
            measure.write_json(args.json, {**about, "mean": mean, "runs": results})
    print(f"{args.dataset}, {part}, mean of {len(results)}: {shown(means(results, part))}")


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
