"""What features of items are worth: for items that nobody has taken, for the others, and for all together.

    python benchmarks/features.py --dataset citeulike [--settings '{embedding_size: 128}'] [--seeds 1 2] [--json OUT]

The data set has cold items (``fetch citeulike``, ``convert --split=cold_items --items FILE``). For each seed: OneBP
with ids alone, with features, each of both with the local term too, with id dropout, with features alone, with each
field alone in addition to the ids, and ContentKNN; with ``--lightfm`` also the hybrid of LightFM (``pip install
lightfm-next``), after 5 to 100 passes, and OneBP after two epochs. Each of the others chooses its epoch on the whole
validation part, and all are tested once. ``--settings`` are those of all OneBP's; LightFM has their ``embedding_size``.
Contestants that ``OUT`` holds are not repeated. Processor seconds are those of the whole run, from the files to the
metrics.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Any

import measure
from quality import shown
from render import losses

from recbole_onebp import build
from recbole_onebp.util.errors import UserError

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ids alone": ("OneBP", {"item_features": "none"}),
    "features and ids": ("OneBP", {"item_features": "all"}),
    "ContentKNN": ("ContentKNN", {}),
}
LIGHTFM: dict[str, tuple[str, dict[str, Any]]] = {
    f"LightFM, {passes} passes": ("LightFM", {"item_features": "all", "n_iterations": passes})
    for passes in (5, 10, 30, 100)
} | {"features and ids, 2 epochs": ("OneBP", {"item_features": "all", "epochs": 2})}
LAST: dict[str, tuple[str, dict[str, Any]]] = {
    "ids and local term": ("OneBP", {"item_features": "none", "local": "ridge"}),
    "features, ids and local term": ("OneBP", {"item_features": "all", "local": "ridge"}),
    "a tenth of the ids left out": ("OneBP", {"item_features": "all", "id_dropout": 0.1}),
    "features alone": ("OneBP", {"item_features": "all", "id_dropout": 1.0}),
}


def contestants(fields: list[str], lightfm: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> model and settings, with a contestant for each field."""
    single = {f"{field} and ids": ("OneBP", {"item_features": [field]}) for field in fields}
    return {**CONTESTANTS, **(LIGHTFM if lightfm else {}), **LAST, **(single if len(fields) > 1 else {})}


def train_and_test(model: str, args: Any, seed: int, own: dict[str, Any]) -> dict[str, Any]:
    """Epochs, metrics and seconds of one contestant."""
    passed_on = {"OneBP": args.settings.keys(), "LightFM": {"embedding_size"}}.get(model, set())
    given = {key: value for key, value in args.settings.items() if key in passed_on}
    with tempfile.TemporaryDirectory() as scratch:
        common = {"data_path": str(args.data_path), "show_progress": False, "output_dir": scratch, "seed": seed}
        settings = {"epochs": args.epochs, **given, **own}
        files = [str(path)] if (path := args.data_path / args.dataset / f"{args.dataset}.yaml").is_file() else None
        start = process_time()
        result = build(model, args.dataset, files, {**common, **settings}).fit()
    return {
        "seed": seed,
        "epochs": result.best_epoch + 1,
        "valid": result.valid,
        "test": result.test_among,
        "processor_seconds": process_time() - start,
        "device": result.device,
    }


def fields_of(args: Any) -> list[str]:
    """The fields of the data set's items."""
    path = args.data_path / args.dataset / f"{args.dataset}.item"
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return [title.partition(":")[0] for title in path.read_text(encoding="utf-8").partition("\n")[0].split("\t")][1:]


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset="citeulike", data_path=measure.DATA, seeds=[1], epochs=40, settings={}, threads=2,
        lightfm=False,
    )  # fmt: skip
    measure.begin(args, [args.dataset])
    settings = {**args.settings, "threads": args.threads, "epochs at most": args.epochs}
    about = {**measure.here("numba"), "dataset": args.dataset, "settings": settings}
    results = measure.earlier(args.json, about, "contestants", ("dataset", "settings")) or {}
    every = contestants(fields_of(args), args.lightfm)
    for name, (model, own) in every.items():
        runs = results.get(name, [])
        for seed in sorted(set(args.seeds) - {run["seed"] for run in runs}):
            runs = [*runs, train_and_test(model, args, seed, own)]
            results[name] = runs
            test = runs[-1]["test"]
            among = "; ".join(f"{items} {shown(test[items])}" for items in ("cold", "warm", "all"))
            print(f"{name}, seed {seed}: {runs[-1]['epochs']} epochs; {among}", flush=True)
            if args.json:
                in_order = {name: results[name] for name in every if name in results}
                measure.write_json(args.json, {**about, "contestants": in_order})
    for loss in losses(results):
        print(f"features lose to ids alone: {loss}")


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
