"""Seconds to the lists of all users by ``recbole_onebp.fit``.

    python benchmarks/fit.py [--settings '{refit: true, epochs: 5}'] [--threads 2] [--json OUT]
    python benchmarks/fit.py --dataset gowalla --settings '{epochs: 1}'

On RecBole's own ml-100k from a DataFrame in memory: the first of ``--repeats`` calls also compiles the loops, if that
machine has not done so, and imports what torch leaves for later; imports before the call do not count. On a data set of
``fetch`` from its files: each repeat is a process, which trains once on train + validation and whose seconds
begin at its start. The test metrics of the lists come after the clock.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import measure
import pandas as pd
import recbole

from recbole_onebp import fit

ML_100K, K = "ml-100k", 20


def from_memory(settings: dict[str, Any]) -> dict[str, Any]:
    """ml-100k, from a DataFrame."""
    file = Path(recbole.__file__).parent / "dataset_example" / ML_100K / f"{ML_100K}.inter"
    frame = pd.read_csv(file, sep="\t").set_axis(["user", "item", "rating", "time"], axis=1).drop(columns="rating")
    start = time.monotonic()
    rec = fit(frame, show_progress=False, **settings)
    lists = rec.recommend(rec.user_ids)
    return {"seconds": time.monotonic() - start, "epochs": rec.result.epochs_run, "lists": len(lists)}


def from_files(started: float, folder: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A data set from its files; ``started`` is by ``time.monotonic()``, which all processes share."""
    parts = {
        part: pd.read_csv(Path(folder, f"{Path(folder).name}.{part}.inter"), sep="\t").rename(
            columns=lambda name: name.partition(":")[0]
        )
        for part in ("train", "valid", "test")
    }
    rec = fit(pd.concat([parts["train"], parts["valid"]]), show_progress=False, refit=True, **settings)
    lists = rec.recommend(rec.user_ids, K)
    seconds = time.monotonic() - started
    test = rec.evaluate(parts["test"], [f"recall@{K}", f"ndcg@{K}"])
    return {"seconds": seconds, "epochs": rec.result.epochs_run, "lists": len(lists), "test": dict(test)}


def main() -> None:
    datasets = (ML_100K, *measure.DATASETS)
    args = measure.arguments(
        __doc__, json=Path, dataset=datasets, data_path=measure.DATA, settings={}, repeats=3, threads=2
    )
    known = args.dataset != ML_100K
    measure.begin(args, [args.dataset] if known else [])
    about = {**measure.here("numba"), "dataset": args.dataset, "settings": args.settings, "threads": args.threads}
    task = str(args.data_path / args.dataset), args.settings
    runs = []
    for _ in range(args.repeats):
        if known:
            runs.append(measure.in_a_process(__file__, "from_files", time.monotonic(), *task))
        else:
            runs.append(from_memory(args.settings))
        print(runs[-1], flush=True)
    if args.json:
        measure.write_json(args.json, {**about, "runs": runs})


if __name__ == "__main__":
    sys.exit(measure.exit_code(main, {"from_files": from_files}))
