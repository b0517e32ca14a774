"""How fast OneBP trains, samples and evaluates, against RecBole's baselines and the authors' code, side by side.

    python benchmarks/speed.py [--data_path dataset] [--reference DIR] [--only ROW ...] [--repeats 5] [--json OUT]

The rows are explained in ``benchmarks/README.md``. A run of all of them writes ``results/<machine>-speed.json``; with
``--only`` nothing is written unless ``--json`` says where, and other rows of the same machine, versions and
settings that lie there stay.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter

from measure import (
    RESULTS,
    Machine,
    add_common_flags,
    earlier_rows,
    measure_all,
    use_threads,
    versions,
    write_json,
)

from recbole_onebp.util.errors import UserError

NAMES = ("bpr", "lightgcn", "simplex", "reference", "evaluation", "sampler", "memory", "growth", "floor")
NEEDS_DATA = {name: "gowalla" for name in NAMES if name not in ("reference", "growth")} | {"reference": "onebp-ml-100k"}


def check_data(data_path: Path, datasets: Iterable[str]) -> None:
    """Raise :class:`UserError` for the first file that is missing."""
    for dataset in datasets:
        for part in ("train", "valid", "test"):
            path = data_path / dataset / f"{dataset}.{part}.inter"
            if not path.is_file():
                raise UserError(f"{path} is missing; recbole-onebp fetch {dataset} --data_path {data_path} gets it")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser, repeats=5)
    parser.add_argument("--threads", type=int, default=2, help="cores and threads, for everything timed (default 2)")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="RecBole's data folder")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a clone of studentcej/OneBP, commit 8ad479b")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="ROW", help=" ".join(NAMES))
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    all_rows = set(args.only) == set(NAMES)
    machine = Machine.here()
    start = perf_counter()
    out = args.json or (RESULTS / f"{machine.slug}-speed.json" if all_rows else None)
    settings = {"threads": args.threads, "seed": args.seed, "repeats": args.repeats}
    result = {"machine": asdict(machine), "versions": versions("numba"), "settings": settings}
    try:
        earlier = earlier_rows(out, result) if out and not all_rows else {}
        check_data(args.data_path, sorted({NEEDS_DATA[name] for name in args.only if name in NEEDS_DATA}))
        use_threads(args.threads)
        logging.disable(logging.INFO)
        if machine.load_before > 0.5:
            print(f"warning: load average {machine.load_before}: other work is running, ratios will be off")
        from rows import ROWS, Bench

        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(args.data_path.resolve(), Path(scratch), args.repeats, args.seed, args.reference)
            rows, sound = measure_all({name: partial(ROWS[name], bench) for name in args.only})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if out:
        settings["run_seconds"] = round(perf_counter() - start)
        write_json(out, {**result, "rows": {**earlier, **rows}})
    print(f"{perf_counter() - start:.0f} s in all")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
