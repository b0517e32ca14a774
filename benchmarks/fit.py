"""Seconds from a DataFrame in memory to the lists of all users: ``recbole_onebp.fit`` on RecBole's own ml-100k.

    python benchmarks/fit.py [--settings '{refit: true, epochs: 5}'] [--threads 2] [--json OUT]

The first of ``--repeats`` calls also compiles the loops, if that machine has not done so, and imports what torch leaves
for later. Imports before the call do not count.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import measure
import pandas as pd
import recbole

from recbole_onebp import fit


def main() -> None:
    args = measure.arguments(__doc__, json=Path, settings={}, repeats=3, threads=2)
    measure.use_threads(args.threads)
    about = {**measure.here("numba"), "settings": args.settings, "threads": args.threads}
    file = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    frame = pd.read_csv(file, sep="\t").set_axis(["user", "item", "rating", "time"], axis=1).drop(columns="rating")
    runs = []
    for _ in range(args.repeats):
        start = perf_counter()
        rec = fit(frame, show_progress=False, **args.settings)
        lists = rec.recommend(rec.user_ids)
        runs.append({"seconds": perf_counter() - start, "epochs": rec.result.epochs_run, "lists": len(lists)})
        print(runs[-1], flush=True)
    if args.json:
        measure.write_json(args.json, {**about, "runs": runs})


if __name__ == "__main__":
    raise SystemExit(measure.exit_code(main))
