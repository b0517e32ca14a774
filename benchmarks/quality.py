"""How good OneBP is, with its defaults or with settings chosen on validation, and how long it takes.

    python benchmarks/quality.py --dataset gowalla [--settings '{embedding_size: 256}'] [--seeds 1 2 3] [--json OUT]

For each seed: train until validation stops rising, train again on train + validation for the best number of epochs,
test once. The seconds are wall-clock time of everything: reading, both trainings, every validation, the test.
``--no_test`` stops after the first training. Seeds that ``OUT`` holds are not repeated. Uses a GPU if there is one.
"""

from __future__ import annotations

import json
import logging
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import yaml
from measure import (
    DATASETS,
    check_data,
    check_same,
    exit_code,
    here,
    new_parser,
    use_threads,
    write_json,
)

from recbole_onebp import build

SETTINGS: dict[str, Any] = {"stopping_step": 5}
"""Added to OneBP's defaults, properties/model/OneBP.yaml, which are what is measured."""


def measure(
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
    if not no_test:
        again = perf_counter()
        refit = {**common, "refit": True, "epochs": best_epoch + 1, "output_dir": str(scratch / "refit")}
        tested = build("OneBP", dataset, config_dict=refit).fit()
        result.update(test=tested.test, device=tested.device)
        result["seconds"]["refit and test"] = perf_counter() - again
    result["seconds"]["all"] = perf_counter() - start
    return result


def shown(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def means(results: list[dict[str, Any]], part: str) -> dict[str, float]:
    return {name: statistics.mean(result[part][name] for result in results) for name in results[0][part]}


def _earlier(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a result file, if it is of the same data and settings."""
    earlier = json.loads(path.read_text(encoding="utf-8"))
    check_same(path, earlier, about, ("dataset", "settings"))
    runs: list[dict[str, Any]] = earlier["runs"]
    return runs


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--dataset", choices=DATASETS, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--epochs", type=int, default=60, help="at most (default 60)")
    parser.add_argument("--settings", type=yaml.safe_load, default={}, metavar="YAML", help="instead of defaults")
    parser.add_argument("--no_test", action="store_true", help="validation only")
    args = parser.parse_args()
    use_threads(args.threads)
    part, settings = "valid" if args.no_test else "test", {**SETTINGS, **args.settings}
    settings |= {"threads": args.threads, "epochs at most": args.epochs}
    about = {**here("numba"), "dataset": args.dataset, "settings": settings}
    results = _earlier(args.json, about) if args.json and args.json.exists() else []
    check_data(args.data_path, [args.dataset])
    logging.disable(logging.INFO)
    for seed in sorted(set(args.seeds) - {result["seed"] for result in results}):
        with tempfile.TemporaryDirectory() as scratch:
            data_path = args.data_path.resolve()
            result = measure(args.dataset, data_path, seed, args.epochs, args.no_test, Path(scratch), args.settings)
        results.append({**result, "threads": args.threads, "load before": about["machine"]["load_before"]})
        tested = f"; test {shown(result['test'])}" if "test" in result else ""
        print(f"seed {seed}: {result['epochs']} epochs; valid {shown(result['valid'])}{tested}")
        print(
            "    seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items()), flush=True
        )
        if args.json:
            write_json(args.json, {**about, "mean": {part: means(results, part)}, "runs": results})
    print(f"{args.dataset}, {part}, mean of {len(results)}: {shown(means(results, part))}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
