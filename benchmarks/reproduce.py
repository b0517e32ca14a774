"""Train with the paper's settings on its authors' own ML-100k split and compare the last epoch with their code's.

    python benchmarks/reproduce.py --data DIR [--seeds 1 2 3] [--jobs 2] [--out FILE]

DIR holds ``train.csv`` and ``test.csv``, the authors' ``data/100k_train.csv`` and ``data/100k_test.csv``
(studentcej/OneBP, commit 8ad479b): 80,000 and 20,000 pairs, every rating a positive. All train pairs are used for
training, there is no validation part, and the last epoch is reported, never the best one on test.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import pandas as pd
from measure import THREAD_VARIABLES, claim, exit_code, versions, write_text

import recbole_onebp
from recbole_onebp.util.errors import UserError

NAME = "onebp-ml-100k"
REFERENCE = {
    100: (0.3102, 0.3733),
    200: (0.3227, 0.3902),
    400: (0.3487, 0.4218),
    600: (0.3561, 0.4345),
    800: (0.3599, 0.4372),
    1000: (0.3629, 0.4407),
    1200: (0.3679, 0.4447),
    1600: (0.3721, 0.4472),
    2000: (0.3690, 0.4457),
}
"""Recall@20 and NDCG@20 of the authors' code on a CPU, same split, published settings: that epoch's model, not the best
one so far."""
TOLERANCE = 0.006


def write_atomic_files(source: Path, data_path: Path) -> None:
    """The authors' CSV files as RecBole's ``.inter`` files, pairs unchanged."""
    folder = data_path / NAME
    folder.mkdir(parents=True)
    for part, expected in (("train", 80_000), ("test", 20_000)):
        file = source / f"{part}.csv"
        if not file.is_file():
            raise UserError(f"--data {source}: no {part}.csv there")
        pairs = pd.read_csv(file).iloc[:, :2]
        if len(pairs) != expected:
            raise UserError(f"{file}: {len(pairs)} pairs, expected {expected}")
        pairs.columns = ["user_id:token", "item_id:token"]
        pairs.to_csv(folder / f"{NAME}.{part}.inter", sep="\t", index=False)


def train(data_path: Path, duplicates: str, seed: int, epochs: int) -> dict[int, tuple[float, float]]:
    """Recall@20 and NDCG@20 on test after each of the reference's epochs."""
    settings = {
        "preset": "paper",
        "duplicates": duplicates,
        "seed": seed,
        "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id"]},
        "benchmark_filename": ["train", "test", "test"],  # RecBole needs three parts; "validation" is never read
        "output_dir": str(data_path / f"{duplicates}-{seed}"),
        "metrics": ["Recall", "NDCG"],
        "valid_metric": "NDCG@20",
        "topk": 20,
        "show_progress": False,
    }
    run = recbole_onebp.build("OneBP", NAME, config_dict=settings)
    claim(len(run.train_data.dataset) == 80_000, f"{len(run.train_data.dataset)} train pairs, expected 80,000")
    curve = {}
    for epoch in (e for e in REFERENCE if e <= epochs):
        run.trainer.epochs = epoch
        run.trainer.fit(run.train_data, valid_data=None, saved=False, verbose=False)
        run.trainer.start_epoch = epoch
        result = run.trainer.evaluate(run.test_data, load_best_model=False)
        curve[epoch] = (float(result["recall@20"]), float(result["ndcg@20"]))
        print(f"{duplicates}, seed {seed}, epoch {epoch}: {curve[epoch][0]:.4f} / {curve[epoch][1]:.4f}", flush=True)
    return curve


def page(
    curves: dict[tuple[str, int], dict[int, tuple[float, float]]], rules: list[str], seeds: list[int], epochs: int
) -> str:
    """Mean and standard deviation over the seeds beside the reference, as Markdown."""

    def cell(rule: str, epoch: int) -> str:
        columns = zip(*(curves[rule, seed][epoch] for seed in seeds), strict=True)
        return " / ".join(f"{statistics.mean(c):.4f} ± {statistics.stdev(c) if len(c) > 1 else 0:.4f}" for c in columns)

    def distance(rule: str) -> str:
        means = (
            statistics.mean(column) for column in zip(*(curves[rule, seed][epochs] for seed in seeds), strict=True)
        )
        away = [mean - reference for mean, reference in zip(means, REFERENCE[epochs], strict=True)]
        within = "within" if all(abs(value) <= TOLERANCE for value in away) else "not within"
        return f"`{rule}`, last epoch: {away[0]:+.4f} / {away[1]:+.4f} from the reference code, {within} {TOLERANCE}."

    found = versions()
    rows = [
        f"| {epoch} | {' / '.join(f'{value:.4f}' for value in values)} | {' | '.join(cell(r, epoch) for r in rules)} |"
        for epoch, values in REFERENCE.items()
        if epoch <= epochs
    ]
    return "\n".join([
        "# OneBP on the authors' ML-100k split, the published settings",
        "",
        f"`python benchmarks/reproduce.py --data DIR --seeds {' '.join(map(str, seeds))} --epochs {epochs}`",
        "",
        "Recall@20 / NDCG@20 on the test part, mean ± standard deviation over seeds, over the users with a test item.",
        "Reference code: studentcej/OneBP, commit 8ad479b, run on a CPU with the same settings; that epoch's model.",
        f"recbole_onebp {found['recbole_onebp']}, torch {found['torch']}, Python {found['python']}, "
        f"{platform.machine()} CPU, one thread a run.",
        "",
        f"| epoch | reference code | {' | '.join(f'duplicates: {rule}' for rule in rules)} |",
        f"|---|---|{'---|' * len(rules)}",
        *rows,
        "",
        *map(distance, rules),
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--duplicates", nargs="+", default=["last", "sequential"])
    parser.add_argument("--epochs", type=int, default=max(REFERENCE), choices=list(REFERENCE))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--out", type=Path, help="write the table there as well")
    args = parser.parse_args()
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # before torch starts in the children
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs) as pool:
        write_atomic_files(args.data, Path(folder))
        jobs = {
            (rule, seed): pool.submit(train, Path(folder), rule, seed, args.epochs)
            for seed, rule in product(args.seeds, args.duplicates)
        }
        text = page({key: job.result() for key, job in jobs.items()}, args.duplicates, args.seeds, args.epochs)
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    sys.exit(exit_code(main))
