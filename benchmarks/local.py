"""What the local term adds to the towers, and what its settings are worth, on validation, never on test.

    python benchmarks/local.py --dataset gowalla [--settings '{epochs: 9}'] [--seed 1] [--threads 2]

Trains the towers once. Then, for each setting, fits the term and chooses its weight as training does. Writes
``results/local/<data set>.json``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import measure
import torch

from recbole_onebp import build
from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.local import LocalTerm
from recbole_onebp.model import OneBP
from recbole_onebp.trainer import LOCAL_WEIGHTS

GRID: list[dict[str, Any]] = [
    {},
    *({"local_neighbors": n} for n in (25, 50, 200)),
    *({"local_reg": reg} for reg in (10.0, 20.0, 100.0, 200.0, 500.0)),
    *({"local_history": n} for n in (100, 10_000)),
]
RECENCIES: list[dict[str, Any]] = [{"local_recency": value} for value in ("none", 0.3, 0.8, 1.0)]
SETTINGS = {"epochs": 10, "eval_step": 1, "stopping_step": 3, "local": "ridge"}


def refitted(model: OneBP, defaults: tuple[OneBPConfig, float], overrides: dict[str, Any]) -> LocalTerm:
    """The model's term, fitted with other settings than the defaults."""
    config, recency = defaults
    given = overrides.get("local_recency", recency)
    model.config, model.local_recency = config.model_copy(update=overrides), 0.0 if given == "none" else given
    model._local = None  # it is fitted when it is next used
    model.local_weight.fill_(1.0)
    measure.claim(model.local is not None, "there is no local term")
    return cast(LocalTerm, model.local)


def evaluate(run: Any, weight: float) -> dict[str, float]:
    """Metrics on validation with a weight of the term."""
    run.model.local_weight.fill_(weight)
    return {name: float(value) for name, value in run.trainer.evaluate(run.valid_data, load_best_model=False).items()}


def with_term(run: Any, weights: tuple[float, ...]) -> dict[str, Any]:
    """The best of the weights, and its metrics."""
    found = {weight: evaluate(run, weight) for weight in weights}
    best = max(found, key=lambda weight: found[weight]["ndcg@20"])
    return {"weight": best, "valid": found[best]}


def alone(run: Any) -> dict[str, float]:
    """The metrics of the term without the towers."""
    model: OneBP = run.model
    with torch.no_grad():
        kept = [part.clone() for part in model.parameters()]
        for part in model.parameters():
            part.zero_()
        found = evaluate(run, 1.0)
        for part, before in zip(model.parameters(), kept, strict=True):
            part.copy_(before)
    return found


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset=measure.DATASETS, data_path=measure.DATA, seed=1, settings={}, threads=2
    )
    measure.begin(args, [args.dataset])
    settings = {**SETTINGS, **args.settings}
    with tempfile.TemporaryDirectory() as scratch:
        fixed = {"seed": args.seed, "data_path": str(args.data_path), "show_progress": False}
        run = build("OneBP", args.dataset, config_dict={**settings, **fixed, "output_dir": scratch})
        run.train()
        run.trainer.saver.load_best()
        rows = [{"label": "towers alone", "weight": 0.0, "valid": evaluate(run, 0.0)}]
        model = cast(OneBP, run.model)
        defaults = model.config, model.local_recency
        tried = GRID + (RECENCIES if defaults[1] else [])
        for overrides in tried:
            start = perf_counter()
            term = refitted(model, defaults, overrides)
            seconds = perf_counter() - start
            if not overrides:
                rows.append({"label": "local term alone", "weight": 1.0, "valid": alone(run)})
            weights = tuple(weight for weight in LOCAL_WEIGHTS if not overrides or 0.25 <= weight <= 4)
            label = ", ".join(f"{key}: {value}" for key, value in overrides.items()) or "both"
            row = {"label": label, **with_term(run, weights), "seconds": seconds, "entries": len(term.values)}
            rows.append(row)
            print(f"{label}: weight {row['weight']:g}, {row['valid']}, fitted in {seconds:.1f} s", flush=True)
    settings |= {"threads": args.threads}
    about = {"seed": args.seed, **measure.here("numba"), "dataset": args.dataset, "settings": settings}
    measure.write_json(args.json or measure.RESULTS / "local" / f"{args.dataset}.json", {**about, "rows": rows})


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
