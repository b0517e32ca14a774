"""The output of a search: ``tuning.json``, the best configuration of each model, and a chart of all trials."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from recbole_onebp.experiments.charts import Chart, Series, draw_panels
from recbole_onebp.experiments.tune.search_spec import Search, SearchSpec
from recbole_onebp.experiments.tune.trials import counts, reason_of, seconds
from recbole_onebp.run.environment import versions
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["refuse_failures", "table", "write"]

_STATES = ("complete", "pruned", "failed", "cut_off")


def write(spec: SearchSpec, studies: Sequence[optuna.Study], folder: Path) -> dict[str, Any]:
    """Write all files into ``folder``.

    Returns:
        The content of ``tuning.json``.
    """
    first = spec.searches[0]
    models = {}
    for search, study in zip(spec.searches, studies, strict=True):
        models[search.label] = _summary(search, study)
        best = _best(study)
        path = folder / search.label / "best.yaml"
        if best is not None:
            models[search.label]["config"] = str(path.relative_to(folder))
            _write_config(path, search, best)
    summary = {
        "dataset": first.settings["dataset"],
        "valid_metric": first.valid_metric,
        "bigger_is_better": first.bigger_is_better,
        "seed": first.seed,
        "budget": {**spec.budget.model_dump(), "epochs": spec.epochs},
        "models": models,
        "versions": {**versions(), "optuna": optuna.__version__},
    }
    text = json.dumps(summary, indent=2) + "\n"
    write_atomically(folder / "tuning.json", lambda file: file.write_text(text, encoding="utf-8"))
    _draw(spec.searches, studies, folder / "history.png")
    return summary


def table(summary: dict[str, Any]) -> str:
    """One line per model: trials, seconds, best validation and parameters."""
    lines = []
    for label, model in summary["models"].items():
        states = ", ".join(f"{model[state]} {state}" for state in _STATES if model[state])
        best = (
            "none complete" if model["best_value"] is None else f"{summary['valid_metric']} {model['best_value']:.4f}"
        )
        values = ", ".join(f"{key}: {value}" for key, value in (model["best_params"] or {}).items())
        lines.append(f"{label}: {states}; {model['seconds']:.0f} s; best {best}  {values}".rstrip())
    return "\n".join(lines)


def refuse_failures(summary: dict[str, Any]) -> None:
    """Raise :class:`UserError` if a model has no completed trial."""
    for label, model in summary["models"].items():
        if model["best_value"] is None:
            why = [trial["reason"] for trial in model["history"] if trial["reason"]]
            raise UserError(f"{label}: none of {model['trials']} trials was completed; the last one: {why[-1]}")


def _summary(search: Search, study: optuna.Study) -> dict[str, Any]:
    trials, best = study.get_trials(deepcopy=False), _best(study)
    history = [_entry(study, trial) for trial in trials if trial.state.is_finished()]
    states = Counter(entry["state"] for entry in history)
    return {
        "model": search.settings["model"],
        "trials": sum(counts(study, trial) for trial in trials),
        **{state: states[state] for state in _STATES},
        "seconds": sum(seconds(study, trial) for trial in trials),
        "best_value": best and best.value,
        "best_trial": best and best.number,
        "best_epoch": best and best.user_attrs["best_epoch"],
        "best_params": best and best.user_attrs["params"],
        "history": history,
    }


def _entry(study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    return {
        "trial": trial.number,
        "state": names.get(trial.state, "failed") if counts(study, trial) else "cut_off",
        "value": trial.value,
        "epochs_validated": len(trial.intermediate_values),
        "seconds": seconds(study, trial),
        "params": trial.user_attrs.get("params", {}),
        "reason": reason_of(study, trial),
    }


def _best(study: optuna.Study) -> FrozenTrial | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if complete else None


def _write_config(path: Path, search: Search, best: FrozenTrial) -> None:
    values = search.config(best.user_attrs["params"])
    chosen = f"trial {best.number}, epoch {best.user_attrs['best_epoch']}"
    text = f"# {search.valid_metric} {best.value:.6f} on validation: {chosen}\n" + yaml.safe_dump(
        values, allow_unicode=True
    )
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _draw(searches: Sequence[Search], studies: Sequence[optuna.Study], path: Path) -> None:
    """Draw the validation of every trial and the best value so far, one panel per model."""
    trials = [study.get_trials(deepcopy=False) for study in studies]
    values = [trial.value for of_model in trials for trial in of_model if trial.value is not None]
    floor = min(values, default=0.0)  # trials that failed have no value: they are drawn at the bottom
    charts = [_history(search, of_model, floor) for search, of_model in zip(searches, trials, strict=True)]
    write_atomically(path, partial(draw_panels, charts))


def _history(search: Search, trials: Sequence[FrozenTrial], floor: float) -> Chart:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = [*accumulate((trial.value for trial in complete), max if search.bigger_is_better else min)]
    series = []
    if complete:
        numbers = [*(trial.number for trial in complete), len(trials) - 1]
        series.append(Series("best so far", numbers, [*best, best[-1]], "#ff7f0e", marker="none", step=True))
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and trial.value is not None]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    kinds = (
        ("complete", complete, "#1f77b4", "circle"),
        (
            "pruned",
            pruned,
            "#7f7f7f",
            "circle-open",
        ),
        ("failed or cut off", failed, "#d62728", "x"),
    )
    for label, some, color, marker in kinds:
        if some:
            heights = [floor if trial.value is None else trial.value for trial in some]
            series.append(Series(label, [trial.number for trial in some], heights, color, "none", marker))
    return Chart(search.label, search.label, "", "trial", f"validation {search.valid_metric}", "lines", series)
