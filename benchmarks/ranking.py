"""Time of full-sort evaluation with bounded scores against a plain product and torch.topk, on the same model.

    python benchmarks/ranking.py gowalla --data_path dataset

The variants alternate in one process.  Printed are the median seconds of each, and the median of the ratios.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

import recbole_onebp
from recbole_onebp.evaluation import full_sort


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--data_path", help="folder of the data set, as in RecBole")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config: dict[str, Any] = {"epochs": 1, "show_progress": False, "metric_decimal_place": 12}
    if given.data_path:
        config["data_path"] = given.data_path
    with TemporaryDirectory() as folder:
        run = recbole_onebp.build("OneBP", given.dataset, config_dict={**config, "output_dir": folder})
        run.trainer.fit(run.train_data, None, verbose=False, saved=False)
        run.trainer.eval_collector.data_collect(run.train_data)
        seconds, metrics = time(run, given.rounds)
    assert metrics["bounded"] == metrics["plain"], metrics
    ratio = median(plain / bounded for bounded, plain in zip(*seconds.values(), strict=True))
    for name, values in seconds.items():
        print(f"{name}: {median(values):.3f} s")
    print(f"plain / bounded: {ratio:.2f}, {given.dataset}, {given.threads} threads, torch {torch.__version__}")


def time(run: recbole_onebp.Run, rounds: int) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Seconds of each evaluation, after one that is not counted, and the metrics."""
    bounded = full_sort.bounded_ranking

    def plain(_trainer: Any) -> AbstractContextManager[None]:
        return nullcontext()

    seconds: dict[str, list[float]] = {"bounded": [], "plain": []}
    metrics: dict[str, dict[str, float]] = {}
    try:
        for _ in range(rounds + 1):
            for name, ranking in (("bounded", bounded), ("plain", plain)):
                full_sort.bounded_ranking = ranking  # type: ignore[assignment]
                start = perf_counter()
                metrics[name] = dict(run.trainer.evaluate(run.test_data, load_best_model=False))
                seconds[name].append(perf_counter() - start)
    finally:
        full_sort.bounded_ranking = bounded
    return {name: values[1:] for name, values in seconds.items()}, metrics


if __name__ == "__main__":
    main()
