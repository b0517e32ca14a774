"""Validation accuracy against wall-clock time: OneBP, `implicit`'s ALS and RecBole's baselines.

    python benchmarks/race.py --dataset gowalla [--budget 300] [--models OneBP ALS-64 ...] [--json OUT]

Each model trains in a process of its own, until its schedule or the budget ends. All are evaluated after every epoch
or ALS iteration, by the same evaluator. The clock starts with the process; the seconds of training alone are recorded
too. ALS with its short iterations has many evaluations, so the picture and the tables leave their time out, see
:func:`without_validation`. Models in the result file are not repeated.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import measure
import numpy as np
from comparison import OURS

import recbole_onebp
from recbole_onebp.experiments.charts import scale_by_seconds
from recbole_onebp.experiments.compare.figures import looks_of
from recbole_onebp.experiments.compare.results import metric_title
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError

BUDGETS = (10, 20, 30, 60, 120, 180, 300)
METRICS = ("recall@20", "ndcg@20")
ALS_ITERATIONS, ALS_SEARCH_ITERATIONS = 40, 15
"""In the race, more than the library's default, and in the search for its settings, the default."""
PLAN = safe_yaml.read(Path(__file__).with_name("race.yaml"), "race.yaml")
ALS_GRID: dict[str, list[float]] = PLAN["als_grid"]


def contestants(dataset: str) -> dict[str, dict[str, Any]]:
    """The settings of each model."""
    name = "SimpleX, published"
    return PLAN["models"] | ({name: PLAN[name][dataset]} if dataset in PLAN[name] else {})


def contest(started: float, dataset: str, paths: dict[str, str], setting: dict[str, Any], threads: int) -> None:
    """Train in this process, and print a line of JSON after each epoch.

    ``started`` is by ``time.monotonic()``, which all processes share. ``setting`` is RecBole's, or ALS's ``factors``,
    ``iterations`` and ``trials``, several of which are a search.
    """

    def build(model: str, **more: Any) -> Any:
        return recbole_onebp.build(model, dataset, config_dict={**PLAN["run"], **paths, **more})

    def point(train_seconds: float, valid: Mapping[str, float], **more: Any) -> None:
        times = {"seconds": round(time.monotonic() - started, 3), "train_seconds": round(train_seconds, 3)}
        print(json.dumps({**times, **{name: float(valid[name]) for name in METRICS}, **more}), flush=True)

    if "model" in setting:
        run = build(**{"epochs": 1000, **setting})
        record = run.trainer.record
        run.train(False, on_validation=lambda *_: point(record.total("train_seconds"), record.epochs[-1]["valid"]))
        return
    run = build("BPR", embedding_size=setting["factors"])
    every = 1 if len(setting["trials"]) == 1 else setting["iterations"]
    for trial in setting["trials"]:
        _als(run, setting, trial, threads, every, partial(point, **trial))


def _als(
    run: Any, setting: dict[str, Any], trial: dict[str, float], threads: int, every: int, point: Callable[..., None]
) -> None:
    """Train ALS and evaluate it as a BPR model, which has the same scores: its tables are set to the factors."""
    import scipy.sparse as sp
    import torch
    from implicit.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    data, spent = run.train_data.dataset, list[float]()
    pairs = [data.inter_feat[field].numpy() for field in (data.uid_field, data.iid_field)]
    matrix = sp.csr_matrix((np.ones(len(pairs[0]), np.float32), pairs), shape=(data.user_num, data.item_num))

    def after(iteration: int, seconds: float, _loss: object) -> None:
        spent.append(seconds)
        if (iteration + 1) % every == 0:
            with torch.no_grad():
                run.model.user_embedding.weight.copy_(torch.from_numpy(als.user_factors))
                run.model.item_embedding.weight.copy_(torch.from_numpy(als.item_factors))
            point(sum(spent), run.trainer.evaluate(run.valid_data, load_best_model=False))

    with threadpool_limits(1, user_api="blas"):  # the library has threads of its own, and asks for this
        size = {key: setting[key] for key in ("factors", "iterations")}
        als = AlternatingLeastSquares(**size, **trial, num_threads=threads, random_state=1)
        als.fit(matrix, show_progress=False, callback=after)


def race(dataset: str, data_path: Path, setting: dict[str, Any], threads: int, budget: float | None) -> dict[str, Any]:
    """The points that a model reached, how it ended (``schedule`` or ``budget``), and its seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        paths, started = {"data_path": str(data_path), "output_dir": scratch}, time.monotonic()
        command = [sys.executable, __file__, "contest", json.dumps([started, dataset, paths, setting, threads])]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, timeout=budget)
        except subprocess.TimeoutExpired as error:
            ended, printed = "budget", error.stdout or b""
        else:
            measure.claim(done.returncode == 0, f"{setting} ended with exit code {done.returncode}, see above")
            ended, printed = "schedule", done.stdout
        seconds = round(time.monotonic() - started, 3)
    points = [json.loads(line) for line in printed.decode().splitlines() if line.startswith('{"seconds"')]
    return {"setting": setting, "ended": ended, "seconds": seconds, "points": points}


def without_validation(points: Sequence[Mapping[str, float]]) -> list[float]:
    """Seconds of each point, without those of the validations up to it.

    What is neither training nor before it grows by one validation from point to point; with a single point nothing is
    left out.
    """
    if not points:
        return []
    rest = [point["seconds"] - point["train_seconds"] for point in points]
    validation = (rest[-1] - rest[0]) / (len(rest) - 1) if len(rest) > 1 else 0.0
    return [rest[0] - validation + point["train_seconds"] for point in points]


def _recorded(name: str, points: Sequence[Mapping[str, float]]) -> list[float]:
    return [point[name] for point in points]


CLOCKS: dict[str, Callable[[Sequence[Mapping[str, float]]], list[float]]] = {
    "seconds": partial(_recorded, "seconds"),
    "without validation": without_validation,
    "train_seconds": partial(_recorded, "train_seconds"),
}


def front(models: Mapping[str, Any], within: float, clock: str, metric: str) -> dict[str, dict[str, float]]:
    """For each budget, the best value of each model that has one by then, best model first."""
    table = {}
    for budget in (budget for budget in BUDGETS if budget <= within):
        reached = {
            name: [point[metric] for point, at in zip(row["points"], CLOCKS[clock](row["points"]), strict=True)
                   if at <= budget]
            for name, row in models.items()
        }  # fmt: skip
        best = {name: max(values) for name, values in reached.items() if values}
        table[str(budget)] = dict(sorted(best.items(), key=lambda entry: -entry[1]))
    return table


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Every evaluation against time, a panel a metric."""
    names = {name: "ImplicitALS" if name.startswith("ALS") else name for name in result["models"]}
    looks = looks_of([*names.values()], "OneBP")
    dashes = dict(zip((name for name in names if name.startswith("ALS")), (":", "--", "-"), strict=False))
    with measure.picture(path, 10, 4.8) as figure:
        panels = figure.subplots(1, len(METRICS))
        for axes, metric in zip(panels, METRICS, strict=True):
            for name, row in result["models"].items():
                style = {"linewidth": 2.4, "zorder": 3} if name.startswith("OneBP") else {"linewidth": 1.2}
                shown = OURS.get(name, name.replace("ALS-", "ImplicitALS, factors: "))
                label = shown if row["points"] else f"{shown}: no epoch in {result['budget']:g} s"
                seconds, values = without_validation(row["points"]), [point[metric] for point in row["points"]]
                axes.plot(
                    seconds,
                    values,
                    marker="o",
                    markersize=3,
                    label=label,
                    color=looks[names[name]]["color"],
                    linestyle=dashes.get(name, "-"),
                    **style,
                )
            axes.set(xlabel="time since the start, without validation", ylabel=f"validation {metric_title(metric)}")
            scale_by_seconds(axes)
            axes.grid(alpha=0.3)
        threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        figure.suptitle(f"{result['dataset']}, {result['machine']['cpu']}, {threads}", fontsize=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)


def _earlier(path: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    return {**about, **{key: measure.earlier(path, about, key, about) or {} for key in ("als_search", "models")}}


def _searched(result: dict[str, Any], data_path: Path, name: str, setting: dict[str, Any]) -> dict[str, Any]:
    """ALS's settings with the best NDCG on validation. The search is recorded, its time is not raced."""
    if name not in result["als_search"]:
        grid = [dict(zip(ALS_GRID, values, strict=True)) for values in product(*ALS_GRID.values())]
        searched = {**setting, "trials": grid, "iterations": ALS_SEARCH_ITERATIONS}
        result["als_search"][name] = race(result["dataset"], data_path, searched, result["threads"], None)["points"]
    best = max(result["als_search"][name], key=lambda point: point["ndcg@20"])
    found = {"trials": [{key: best[key] for key in ALS_GRID}], "iterations": ALS_ITERATIONS}
    return {**setting, **found, "library": f"implicit {version('implicit')}"}


def main() -> None:
    options: dict[str, Any] = {"budget": 300.0, "models": list[str](), "threads": 2}
    args = measure.arguments(__doc__, json=Path, dataset="gowalla", data_path=measure.DATA, **options)
    measure.begin(args, [args.dataset])
    settings = contestants(args.dataset)
    path = args.json or measure.RESULTS / f"race-{args.dataset}.json"
    common = {"dataset": args.dataset, "budget": args.budget, "threads": args.threads, "als_grid": ALS_GRID}
    if unknown := set(args.models) - set(settings):
        raise UserError(f"--models: there is no {', '.join(sorted(unknown))}; there are {', '.join(settings)}")
    result = _earlier(path, json.loads(json.dumps({**measure.here("numba"), **common})))
    names = [name for name in args.models or settings if name not in result["models"]]
    if any("factors" in settings[name] for name in names) and not find_spec("implicit"):
        raise UserError("ALS needs the package implicit: pip install implicit, or name --models without it")
    if names:  # fills the caches of compiled loops and files, untimed
        race(args.dataset, args.data_path, {**settings["OneBP"], "epochs": 1}, args.threads, None)
    for name in names:
        setting = settings[name]
        if "factors" in setting:
            setting = _searched(result, args.data_path, name, setting)
        row = result["models"][name] = race(args.dataset, args.data_path, setting, args.threads, args.budget)
        best = {metric: max((point[metric] for point in row["points"]), default=None) for metric in METRICS}
        epochs = f"{len(row['points']) or 'no'} epochs in {row['seconds']:.0f} s, ended by its {row['ended']}"
        print(f"{name}: {epochs}; best {best}", flush=True)
        measure.write_json(path, result)
    tables = {clock: {m: front(result["models"], args.budget, clock, m) for m in METRICS} for clock in CLOCKS}
    print(json.dumps(tables, indent=1))
    measure.write_json(path, {**result, "front": tables})
    draw(result, path.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["contest"]:
        logging.disable(logging.INFO)
        contest(*json.loads(sys.argv[2]))
    else:
        sys.exit(measure.exit_code(main))
