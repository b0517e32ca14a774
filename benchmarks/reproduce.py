"""Train with the paper's settings on its authors' own ML-100k split and compare the last epoch with their code's.

    python benchmarks/reproduce.py --data DIR [--seeds 1 2 3] [--jobs 2] [--out FILE]

DIR holds ``train.csv`` and ``test.csv``, the authors' ``data/100k_train.csv`` and ``data/100k_test.csv``
(studentcej/OneBP, commit 8ad479b): 80,000 and 20,000 pairs, every rating a positive. All train pairs are used for
training, there is no validation part, and the last epoch is reported, never the best one on test.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import measure
import pandas as pd

import recbole_onebp
from recbole_onebp.util.errors import UserError

NAME = "onebp-ml-100k"
REFERENCE = {
    100: (0.3102, 0.3733), 200: (0.3227, 0.3902), 400: (0.3487, 0.4218), 600: (0.3561, 0.4345), 800: (0.3599, 0.4372),
    1000: (0.3629, 0.4407), 1200: (0.3679, 0.4447), 1600: (0.3721, 0.4472), 2000: (0.3690, 0.4457),
}  # fmt: skip
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
        "preset": "paper", "duplicates": duplicates, "seed": seed, "data_path": str(data_path),
        "load_col": {"inter": ["user_id", "item_id"]}, "output_dir": str(data_path / f"{duplicates}-{seed}"),
        "benchmark_filename": ["train", "test", "test"],  # RecBole needs three parts; "validation" is never read
        "metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@20", "topk": 20, "show_progress": False,
    }  # fmt: skip
    run = recbole_onebp.build("OneBP", NAME, config_dict=settings)
    measure.claim(len(run.train_data.dataset) == 80_000, f"{len(run.train_data.dataset)} train pairs, expected 80,000")
    curve = {}
    for epoch in (e for e in REFERENCE if e <= epochs):
        run.trainer.epochs = epoch
        run.trainer.fit(run.train_data, valid_data=None, saved=False, verbose=False)
        run.trainer.start_epoch = epoch
        result = run.trainer.evaluate(run.test_data, load_best_model=False)
        curve[epoch] = (float(result["recall@20"]), float(result["ndcg@20"]))
        print(f"{duplicates}, seed {seed}, epoch {epoch}: {curve[epoch][0]:.4f} / {curve[epoch][1]:.4f}", flush=True)
    return curve


def page(curves: dict[tuple[str, int], dict[int, tuple[float, float]]], epochs: int) -> str:
    """Mean and standard deviation over the seeds beside the reference, as Markdown."""
    rules, seeds = (list(dict.fromkeys(part)) for part in zip(*curves, strict=True))

    def columns(rule: object, epoch: int) -> list[tuple[float, float]]:
        values = zip(*(curve[epoch] for (of, _), curve in curves.items() if of == rule), strict=True)
        return [(statistics.mean(column), statistics.stdev(column) if len(column) > 1 else 0.0) for column in values]

    def distance(rule: object) -> str:
        pairs = zip(columns(rule, epochs), REFERENCE[epochs], strict=True)
        away = [mean - reference for (mean, _), reference in pairs]
        within = "within" if all(abs(value) <= TOLERANCE for value in away) else "not within"
        return f"`{rule}`, last epoch: {away[0]:+.4f} / {away[1]:+.4f} from the reference code, {within} {TOLERANCE}."

    rows = []
    for epoch, values in REFERENCE.items():
        if epoch <= epochs:
            cells = (" / ".join(f"{mean:.4f} ± {std:.4f}" for mean, std in columns(rule, epoch)) for rule in rules)
            rows.append([epoch, " / ".join(f"{value:.4f}" for value in values), *cells])
    found, new_line = measure.versions(), "\n"
    return f"""# OneBP on the authors' ML-100k split, the published settings

`python benchmarks/reproduce.py --data DIR --seeds {" ".join(map(str, seeds))} --epochs {epochs}`

Recall@20 / NDCG@20 on the test part, mean ± standard deviation over seeds, over the users with a test item.
Reference code: studentcej/OneBP, commit 8ad479b, run on a CPU with the same settings; that epoch's model.
recbole_onebp {found["recbole_onebp"]}, torch {found["torch"]}, Python {found["python"]}, \
{platform.machine()} CPU, one thread a run.

{measure.table(["epoch", "reference code", *(f"duplicates: {rule}" for rule in rules)], rows)}

{new_line.join(map(distance, rules))}
"""


def main() -> None:
    args = measure.arguments(
        __doc__, data=Path("."), seeds=[1, 2, 3], duplicates=["last", "sequential"], epochs=max(REFERENCE),
        jobs=os.cpu_count() or 1, out=Path,
    )  # fmt: skip
    if args.epochs not in REFERENCE:
        raise UserError(f"--epochs {args.epochs}: the reference has {', '.join(map(str, REFERENCE))}")
    os.environ.update(dict.fromkeys(measure.THREAD_VARIABLES, "1"))  # before torch starts in the children
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(args.jobs) as pool:
        write_atomic_files(args.data, Path(folder))
        keys = [(rule, seed) for seed, rule in product(args.seeds, args.duplicates)]
        jobs = {key: pool.submit(train, Path(folder), *key, args.epochs) for key in keys}
        text = page({key: job.result() for key, job in jobs.items()}, args.epochs)
    print(text)
    if args.out:
        measure.write_text(args.out, text)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
