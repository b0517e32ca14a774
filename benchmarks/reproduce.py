"""Train with the paper's settings on its authors' own ML-100k split and compare the last epoch with their code's.

    python benchmarks/reproduce.py [--data_path dataset] [--seeds 1 2 3] [--jobs 2] [--out FILE]

All 80,000 train pairs are used for training, also those that are fetched as a validation part, every rating a positive.
The last epoch is reported, never the best one on test.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

import measure
import numpy as np

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
Curve = list[tuple[float, float]]


def train(data_path: Path, duplicates: str, seed: int, epochs: list[int]) -> Curve:
    """Recall@20 and NDCG@20 on test after each of these epochs."""
    curve = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "preset": "paper", "duplicates": duplicates, "seed": seed, "data_path": str(data_path), "refit": True,
            "epochs": epochs[-1], "output_dir": scratch, "metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@20",
            "topk": 20, "show_progress": False,
        }  # fmt: skip
        run = recbole_onebp.build("OneBP", NAME, config_dict=settings)
        n_pairs = len(run.train_data.dataset)
        measure.claim(n_pairs == 80_000, f"{n_pairs} train pairs, expected 80,000")
        for epoch in epochs:
            run.trainer.epochs = epoch
            run.trainer.fit(run.train_data, valid_data=None, saved=False, verbose=False)
            run.trainer.start_epoch = epoch
            result = run.trainer.evaluate(run.test_data, load_best_model=False)
            curve.append((float(result["recall@20"]), float(result["ndcg@20"])))
            print(f"{duplicates}, seed {seed}, epoch {epoch}: {curve[-1][0]:.4f} / {curve[-1][1]:.4f}", flush=True)
    return curve


def page(curves: dict[tuple[str, int], Curve], epochs: list[int]) -> str:
    """Mean and standard deviation over the seeds beside the reference, as Markdown."""
    rules, seeds = (list(dict.fromkeys(part)) for part in zip(*curves, strict=True))
    of_rules = {rule: np.array([curve for (of, _), curve in curves.items() if of == rule]) for rule in rules}
    rows, distances = [], []
    for place, epoch in enumerate(epochs):
        row = [str(epoch), " / ".join(f"{value:.4f}" for value in REFERENCE[epoch])]
        for values in of_rules.values():
            mean, std = values[:, place].mean(0), values[:, place].std(0, ddof=int(len(seeds) > 1))
            row.append(" / ".join(f"{mean[metric]:.4f} ± {std[metric]:.4f}" for metric in (0, 1)))
        rows.append(row)
    for rule, values in of_rules.items():
        recall, ndcg = away = values[:, -1].mean(0) - REFERENCE[epochs[-1]]
        within = "within" if np.all(abs(away) <= TOLERANCE) else "not within"
        distances.append(
            f"`{rule}`, last epoch: {recall:+.4f} / {ndcg:+.4f} from the reference code, {within} {TOLERANCE}."
        )
    found, new_line = measure.versions(), "\n"
    return f"""# OneBP on the authors' ML-100k split, the published settings

`python benchmarks/reproduce.py --seeds {" ".join(map(str, seeds))} --epochs {epochs[-1]}`

Recall@20 / NDCG@20 on the test part, mean ± standard deviation over seeds, over the users with a test item.
Reference code: studentcej/OneBP, commit 8ad479b, run on a CPU with the same settings; that epoch's model.
recbole_onebp {found["recbole_onebp"]}, torch {found["torch"]}, Python {found["python"]}, \
{platform.machine()} CPU, one thread a run.

{measure.table(["epoch", "reference code", *(f"duplicates: {rule}" for rule in rules)], rows)}

{new_line.join(distances)}
"""


def main() -> None:
    args = measure.arguments(
        __doc__, data_path=measure.DATA, seeds=[1, 2, 3], duplicates=["last", "sequential"], epochs=max(REFERENCE),
        jobs=os.cpu_count() or 1, out=Path,
    )  # fmt: skip
    if args.epochs not in REFERENCE:
        raise UserError(f"--epochs {args.epochs}: the reference has {', '.join(map(str, REFERENCE))}")
    measure.check_data(args.data_path, [NAME])
    os.environ.update(dict.fromkeys(measure.THREAD_VARIABLES, "1"))  # before torch starts in the children
    epochs = [epoch for epoch in REFERENCE if epoch <= args.epochs]
    with ProcessPoolExecutor(args.jobs) as pool:
        keys = [(rule, seed) for seed, rule in product(args.seeds, args.duplicates)]
        jobs = {key: pool.submit(train, args.data_path, *key, epochs) for key in keys}
        text = page({key: job.result() for key, job in jobs.items()}, epochs)
    print(text)
    if args.out:
        measure.write_text(args.out, text)


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
