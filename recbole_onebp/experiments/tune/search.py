"""``recbole-onebp tune``: a process for each model, started again where it dies, and what came out."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numba
import torch
from filelock import FileLock, Timeout

from recbole_onebp.experiments.tune.search_spec import Budget, Search, SearchSpec
from recbole_onebp.util.errors import UserError, writing

__all__ = ["tune"]


def tune(path: Path, overrides: Mapping[str, Any], output_dir: Path | None = None, jobs: int = 1) -> None:
    """Search what a YAML file says, or go on with it, and write ``tuning.json``, ``history.png`` and the best configs.

    Args:
        path: of the YAML file.
        overrides: keys above it.
        output_dir: default: ``runs/tune-<name of the file>``.
        jobs: models searched at a time.  The trials of one follow one another, so that they depend on the seed alone.

    Raises:
        UserError: for what the caller can mend, or if no trial of a model was completed.
    """
    if find_spec("optuna") is None:
        raise UserError("tune needs Optuna: pip install 'recbole-onebp[tune]'")
    if jobs < 1:
        raise UserError(f"jobs: {jobs} is not at least 1")
    plan = SearchSpec.read(path, overrides)
    # Here, because these import Optuna.
    from recbole_onebp.experiments.tune import summary, trials

    folder = output_dir or Path("runs") / f"tune-{path.stem}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            studies = [trials.open_study(folder, search, plan.budget) for search in plan.searches]
            for study in studies:
                trials.add_lost(study)
            try:
                _run_all(plan, studies, folder, jobs)
            finally:
                outcome = summary.write(plan, studies, folder)
    except Timeout:
        raise UserError(f"{folder}: another search is running there; take another --output_dir") from None
    print(summary.table(outcome), f"wrote {folder}", sep="\n", flush=True)
    summary.refuse_failures(outcome)


def _run_all(plan: SearchSpec, studies: list[Any], folder: Path, jobs: int) -> None:
    from recbole_onebp.experiments.tune.trials import add_lost, left

    def more(search: Search, study: Any) -> list[tuple[Search, Any]]:
        return [(search, study)] if min(left(study, plan.budget)) > 0 else []

    waiting = [pair for search, study in zip(plan.searches, studies, strict=True) for pair in more(search, study)]
    active: dict[Any, tuple[Search, Any]] = {}  # by process
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                search, study = waiting.pop(0)
                active[_start(folder, search, plan.budget, jobs)] = (search, study)
            wait([process.sentinel for process in active])
            for process in [process for process in active if not process.is_alive()]:
                search, study = active.pop(process)
                process.join()
                if process.exitcode:
                    how = _how_it_ended(process.exitcode)
                    if not add_lost(study, how):
                        raise RuntimeError(f"{search.label}: {how} between two trials")
                    print(f"{search.label}: trial failed: {how}", flush=True)
                    waiting[:0] = more(search, study)
    finally:
        for process in active:
            process.kill()
            process.join()


def _how_it_ended(code: int) -> str:
    if code == -getattr(signal, "SIGKILL", 9):
        return "its process was killed, as the system does when memory runs out"
    return f"its process crashed: {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _start(folder: Path, search: Search, budget: Budget, jobs: int) -> Any:
    # A fresh interpreter: no thread pools, generators or memory of ours.
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(folder, search, budget, jobs))
    process.start()
    return process


def _work(folder: Path, search: Search, budget: Budget, jobs: int) -> None:
    from recbole_onebp.experiments.tune.trials import open_study, run_trials

    torch.set_num_threads(max(torch.get_num_threads() // jobs, 1))  # the cores are shared out
    numba.set_num_threads(max(numba.get_num_threads() // jobs, 1))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    run_trials(open_study(folder, search, budget), folder, search, budget)


def _end_with_parent() -> None:
    """Whoever is killed cannot end its children, and the next start makes this trial again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
