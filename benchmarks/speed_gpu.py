"""Seconds an epoch of OneBP at the paper's sizes on a GPU, against the floor and against the authors' code.

    python benchmarks/speed_gpu.py [--data_path dataset] [--reference DIR] [--only gowalla yelp2018] [--json OUT]

Published settings: 1,024 positives a step, 5 negatives each, d = 1,024 on gowalla and 2,048 on yelp2018. The authors'
code holds for every user a Python list of all items not taken, about 10 GB of them. Writes ``results/<gpu>-gpu.json``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import floor
import torch
from measure import RESULTS, Machine, Row, add_common_flags, measure_all, ratios, slug, versions, write_json
from rows import AUTHORS_LOSSES, NEGATIVES, Bench, Training, beside_the_authors, floor_rows
from speed import check_data

from recbole_onebp.util.errors import UserError

POSITIVES = 1024
PUBLISHED = {
    "gowalla": {"dim": 1024, "lr": 5e-4, "l2": 0, "beta": 0.999},
    "yelp2018": {"dim": 2048, "lr": 5e-5, "l2": 0, "beta": 0.999},
}
"""Of the authors' README; ``preset: paper`` is the same."""


def rows_of(bench: Bench, dataset: str) -> dict[str, Callable[[], list[Row]]]:
    """What is measured on a data set; the model is made when the first row asks for it."""
    settings = PUBLISHED[dataset]
    size = int(settings["dim"])

    @cache
    def ours() -> Training:
        return Training(bench.build("OneBP", dataset, preset="paper", embedding_size=size), POSITIVES)

    def reference() -> list[Row]:
        flags = {**settings, "N": NEGATIVES, "temperature": 1, "batch_size": POSITIVES}
        a, b = beside_the_authors(bench, ours(), flags)
        title = f"OneBP / the authors' code, train epoch, {dataset}, d = {size:,}"
        return [Row(title, ratios(a, b), {"OneBP, s": a, "the authors' code, s": b}, AUTHORS_LOSSES, target=0.05)]

    def floors() -> list[Row]:
        n_users, n_items = ours().n_users, ours().n_items
        rate = floor.bandwidth(floor.bytes_of_tables(n_users, n_items, size), bench.repeats, "cuda")
        touched = floor.touched_rows(*ours().pairs(), n_items, POSITIVES, NEGATIVES, shared=False)
        return floor_rows(f"{dataset}, d = {size:,}", ours(), touched, size, rate, 0, bench.repeats)

    return {f"{dataset}-reference": reference, f"{dataset}-floor": floors}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser, repeats=5)
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="RecBole's data folder")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a clone of studentcej/OneBP, commit 8ad479b")
    parser.add_argument("--only", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED), metavar="DATASET")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    try:
        if not torch.cuda.is_available():
            raise UserError("no CUDA device here: nothing is measured; speed.py is for the CPU")
        check_data(args.data_path, args.only)
        gpu, sound = torch.cuda.get_device_name(), True
        result: dict[str, Any] = {
            "machine": {"gpu": gpu, "cuda": torch.version.cuda, **asdict(Machine.here())},
            "versions": versions(),
            "settings": {"seed": args.seed, "repeats": args.repeats},
            "rows": {},
        }
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(
                args.data_path.resolve(), Path(scratch), args.repeats, args.seed, args.reference, use_gpu=True
            )
            for dataset in args.only:  # written as they come, since the second may not end
                rows, sound_rows = measure_all(rows_of(bench, dataset))
                result["rows"] |= rows
                sound &= sound_rows
                write_json(args.json or RESULTS / f"{slug(gpu)}-gpu.json", result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
