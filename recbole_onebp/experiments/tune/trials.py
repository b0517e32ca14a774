"""The trials of one search, made one after another and stored by Optuna in SQLite."""

from __future__ import annotations

import gc
import logging
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from recbole_onebp.experiments.tune.search_spec import Budget, Search
from recbole_onebp.run.build import build_from, load_config
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError

__all__ = ["DATABASE", "add_lost", "counts", "left", "open_study", "reason_of", "run_trials", "seconds"]

DATABASE = "trials.db"
_CUT_OFF = "cut off: the search was stopped"
_LOST = "lost"
"""Attribute of a study: maps the number of a trial whose process ended to the reason."""


def open_study(folder: Path, search: Search, budget: Budget) -> optuna.Study:
    """Open the study in ``folder / DATABASE``, or create it.

    Raises:
        UserError: if its trials were made with other settings, or the file is damaged.
    """
    try:
        return _open_study(folder, search, budget)
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy and Optuna raise many kinds for a file of all kinds
        raise UserError(f"{folder / DATABASE}: cannot be read as the trials of a search: {error}") from None


def _open_study(folder: Path, search: Search, budget: Budget) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Several processes may write: they wait for the lock instead of failing.
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{folder / DATABASE}", engine_kwargs={"connect_args": {"timeout": 60}}
    )
    median = optuna.pruners.MedianPruner(n_startup_trials=budget.startup_trials, n_warmup_steps=budget.warmup_epochs)
    study = optuna.create_study(
        storage=storage,
        study_name=search.label,
        direction="maximize" if search.bigger_is_better else "minimize",
        pruner=median if budget.prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    terms = study.user_attrs.get("terms", search.terms)
    for key in sorted(terms.keys() | search.terms.keys()):
        was, now = terms.get(key), search.terms.get(key)
        if was != now:
            raise UserError(
                f"models, {search.label}: {key}: {now}, but the trials in {folder} were made with {was}; "
                "choose another --output_dir"
            )
    if not study.user_attrs:
        study.set_user_attr("terms", terms)
    return study


def add_lost(study: optuna.Study, reason: str = "") -> bool:
    """Record trials whose process ended as failed.

    Args:
        study: a study that no process works on.
        reason: why the process ended; empty if the search was stopped: then the trial is repeated once.

    Returns:
        Whether there were any.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        lost = study.user_attrs.get(_LOST, {})
        again = lost.get(str(trial.number - 1)) == _CUT_OFF
        why = reason or (f"{_CUT_OFF} for the second time" if again else _CUT_OFF)
        study.set_user_attr(_LOST, {**lost, str(trial.number): why})
        study.tell(trial.number, state=TrialState.FAIL)
    return bool(running)


def reason_of(study: optuna.Study, trial: FrozenTrial) -> str:
    """Why a trial failed or was pruned; empty for one that did neither."""
    return str(study.user_attrs.get(_LOST, {}).get(str(trial.number)) or trial.user_attrs.get("reason", ""))


def counts(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial uses up budget: all finished trials do, except one that was cut off for the first time."""
    return trial.state.is_finished() and reason_of(study, trial) != _CUT_OFF


def seconds(study: optuna.Study, trial: FrozenTrial) -> float:
    """Duration of a trial; 0 if it was cut off, because the time is unknown."""
    duration = trial.duration
    return 0.0 if duration is None or reason_of(study, trial).startswith(_CUT_OFF) else duration.total_seconds()


def left(study: optuna.Study, budget: Budget) -> tuple[int, float]:
    """Remaining trials and seconds of the budget."""
    trials = study.get_trials(deepcopy=False)
    used = sum(seconds(study, trial) for trial in trials)
    return budget.trials - sum(counts(study, trial) for trial in trials), (budget.time_limit or math.inf) - used


def run_trials(study: optuna.Study, folder: Path, search: Search, budget: Budget) -> None:
    """Make trials until the budget is used up.

    Each trial seeds the sampler by the seed and the trial's position, so that a resumed search gives the same trials as
    an uninterrupted one.
    """
    while min(left(study, budget)) > 0:
        place = budget.trials - left(study, budget)[0]
        seed = int(np.random.SeedSequence([search.seed, place]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=budget.startup_trials)
        trial = study.ask()
        start = perf_counter()
        outcome = _outcome(study, trial, folder / search.label / f"{trial.number:04d}", search, budget)
        took = perf_counter() - start
        print(
            f"{search.label}, trial {trial.number} ({place + 1} of {budget.trials}): {outcome}, {took:.1f} s",
            flush=True,
        )
        gc.collect()  # a failed model is kept alive by reference cycles of its traceback


def _outcome(study: optuna.Study, trial: optuna.Trial, folder: Path, search: Search, budget: Budget) -> str:
    """Make a trial and record how it ended; returns that in words."""
    try:
        value = _run(trial, folder, search, budget, left(study, budget)[1])
        study.tell(trial, value)
        return f"{search.valid_metric} {value:.4f}, best {study.best_value:.4f} (trial {study.best_trial.number})"
    except optuna.TrialPruned as pruned:
        trial.set_user_attr("reason", str(pruned))
        study.tell(trial, state=TrialState.PRUNED)
        return f"pruned, {pruned}"
    except Exception as error:  # the next trial may succeed
        if not isinstance(error, UserError):
            logging.getLogger().exception("trial failed")
        trial.set_user_attr("reason", _words(error))
        study.tell(trial, state=TrialState.FAIL)
        return f"failed: {_words(error)}"


def _run(trial: optuna.Trial, folder: Path, search: Search, budget: Budget, seconds_left: float) -> float:
    """Train and validate without the test part.

    Returns:
        The best validation.
    """
    deadline = perf_counter() + seconds_left
    values = search.suggest(trial)
    trial.set_user_attr("params", values)
    config, run_folder = load_config(None, {"show_progress": False, **search.config(values), "output_dir": str(folder)})
    logs.start(run_folder.log, (config["state"] or "INFO").upper(), to_screen=False)
    run = build_from(config, run_folder)
    best_epoch, best = run.train(saved=False, on_validation=_watch(trial, budget, deadline))
    if search.valid_metric not in best:
        raise UserError("nothing was validated: there is no validation part, or fewer epochs than eval_step")
    trial.set_user_attr("best_epoch", best_epoch)
    return best[search.valid_metric]


def _watch(trial: optuna.Trial, budget: Budget, deadline: float) -> Callable[[int, Any], None]:
    def on_validation(epoch: int, score: Any) -> None:
        if not math.isfinite(score):
            raise ValueError(f"validation is {score} after epoch {epoch}")
        trial.report(float(score), epoch)
        if budget.prune and trial.should_prune():
            raise optuna.TrialPruned(f"below the median after epoch {epoch}")
        if perf_counter() > deadline:
            raise optuna.TrialPruned(f"out of time after epoch {epoch}")

    return on_validation


def _words(error: Exception) -> str:
    memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return f"{'out of memory: ' if memory else ''}{' '.join(reason.split())}"[:300]
