"""How good OneBP is, with its defaults or with settings chosen on validation, and how long it takes.

    python benchmarks/quality.py --dataset gowalla [--settings '{embedding_size: 256}'] [--seeds 1 2 3] [--json OUT]

For each seed: train until validation stops rising, at most for ``--epochs``, train again on train + validation for the
best number of epochs, with what else validation has chosen, and test once. ``--no_test`` stops after the first
training. Seeds that ``OUT`` holds are not repeated.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import measure

from recbole_onebp import OneBPTrainer, Run, build
from recbole_onebp.trainer import CHOSEN

SETTINGS: dict[str, Any] = {"stopping_step": 5}
"""Added to OneBP's defaults, properties/model/OneBP.yaml, which are what is measured."""


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


def train_and_test(
    dataset: str, data_path: Path, seed: int, epochs: int, no_test: bool, scratch: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Epochs, metrics and seconds of one seed."""
    common = {**SETTINGS, **settings, "seed": seed, "data_path": str(data_path), "show_progress": False}
    start = perf_counter()
    first = build("OneBP", dataset, config_dict={**common, "epochs": epochs, "output_dir": str(scratch / "choose")})
    best_epoch, valid = first.train(saved=False)
    record = first.trainer.record
    result: dict[str, Any] = {
        "seed": seed,
        "epochs": best_epoch + 1,
        "valid": valid,
        "curve": [{**epoch["valid"], "seconds": epoch["train_seconds"]} for epoch in record.epochs],
        "seconds": {"choose": perf_counter() - start, "of which valid": record.total("valid_seconds")},
    }
    chosen = {key: value for key, value in record.epochs[best_epoch].items() if key in CHOSEN}
    result.update(chosen)
    if not no_test:
        again = perf_counter()
        refit = {**common, **chosen, "refit": True, "epochs": best_epoch + 1, "output_dir": str(scratch / "refit")}
        tested = build("OneBP", dataset, config_dict=refit).fit()
        result.update(test=tested.test, device=tested.device)
        result["seconds"]["refit and test"] = perf_counter() - again
    result["seconds"]["all"] = perf_counter() - start
    return result


def shown(values: dict[str, float], decimals: int = 4) -> str:
    return ", ".join(f"{name} {value:.{decimals}f}" for name, value in values.items())


def means(results: list[dict[str, Any]], part: str) -> dict[str, float]:
    return {name: statistics.mean(result[part][name] for result in results) for name in results[0][part]}


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset=measure.DATASETS, data_path=measure.DATA, seeds=[1], epochs=60, settings={},
        no_test=False, threads=2,
    )  # fmt: skip
    measure.begin(args, [args.dataset])
    part, settings = "valid" if args.no_test else "test", {**SETTINGS, **args.settings}
    settings |= {"threads": args.threads, "epochs at most": args.epochs}
    about = {**measure.here("numba"), "dataset": args.dataset, "settings": settings}
    results = measure.earlier(args.json, about, "runs", ("dataset", "settings")) or []
    for seed in sorted(set(args.seeds) - {result["seed"] for result in results}):
        with tempfile.TemporaryDirectory() as scratch:
            given = args.epochs, args.no_test, Path(scratch), args.settings
            result = train_and_test(args.dataset, args.data_path, seed, *given)
        results.append({**result, "threads": args.threads, "load before": about["machine"]["load_before"]})
        metrics = "; ".join(f"{name} {shown(result[name])}" for name in ("valid", "test") if name in result)
        print(f"seed {seed}: {result['epochs']} epochs; {metrics}; seconds {shown(result['seconds'], 1)}", flush=True)
        if args.json:
            measure.write_json(args.json, {**about, "mean": {part: means(results, part)}, "runs": results})
    print(f"{args.dataset}, {part}, mean of {len(results)}: {shown(means(results, part))}")


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
