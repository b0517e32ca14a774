"""What a tuning leaves: ``tuning.json``, the best configuration of each model, and a picture of the history."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from recbole_onebp.experiments.tune.search_spec import Search, SearchSpec
from recbole_onebp.experiments.tune.trials import counts, reason_of, seconds
from recbole_onebp.run.environment import versions
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

__all__ = ["refuse_failures", "table", "write"]

_STATES = ("complete", "pruned", "failed", "cut_off")


def write(plan: SearchSpec, studies: Sequence[optuna.Study], folder: Path) -> dict[str, Any]:
    """Write all files into ``folder``.

    Returns:
        What ``tuning.json`` holds.
    """
    first = plan.searches[0]
    models = {}
    for search, study in zip(plan.searches, studies, strict=True):
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
        "budget": {**plan.budget.model_dump(), "epochs": plan.epochs},
        "models": models,
        "versions": {**versions(), "optuna": optuna.__version__},
    }
    text = json.dumps(summary, indent=2) + "\n"
    write_atomically(folder / "tuning.json", lambda file: file.write_text(text, encoding="utf-8"))
    _draw(plan.searches, studies, folder / "history.png")
    return summary


def table(summary: dict[str, Any]) -> str:
    """A line a model: trials, seconds, best validation and parameters."""
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
    """Raise :class:`UserError` where a model has nothing to show."""
    for label, model in summary["models"].items():
        if model["best_value"] is None:
            why = [trial["reason"] for trial in model["history"] if trial["reason"]]
            raise UserError(f"{label}: none of {model['trials']} trials was completed; the last: {why[-1]}")


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
    """Draw the validation of every trial and the best so far, a panel a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(len(studies), 3)
    rows = -(-len(studies) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel in panels[len(studies) :]:
        panel.set_axis_off()
    for panel, search, study in zip(panels, searches, studies, strict=False):
        trials = study.get_trials(deepcopy=False)
        done = [(trial.number, trial.value) for trial in trials if trial.state == TrialState.COMPLETE]
        pruned = [(t.number, t.value) for t in trials if t.state == TrialState.PRUNED and t.value is not None]
        failed = [trial.number for trial in trials if trial.state == TrialState.FAIL]
        if done:
            numbers, values = zip(*done, strict=True)
            best = [*accumulate(values, max if search.bigger_is_better else min)]
            steps = [*numbers, len(trials) - 1], [*best, best[-1]]
            panel.step(*steps, where="post", color="C1", label="best so far")
            panel.plot(numbers, values, "o", color="C0", markersize=4, label="complete")
        if pruned:
            panel.plot(*zip(*pruned, strict=True), "o", mfc="none", color="C7", markersize=4, label="pruned")
        if failed:
            bottom = panel.get_xaxis_transform()
            panel.plot(failed, [0.02] * len(failed), "x", color="C3", transform=bottom, label="failed or cut off")
        panel.set(title=search.label, xlabel="trial", xlim=(-0.5, max(len(trials), 1) - 0.5))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    for panel in panels[::columns]:
        panel.set_ylabel(f"validation {searches[0].valid_metric}")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        ncols = min(len(handles), 2 * columns)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=ncols, frameon=False)
    write_atomically(path, lambda file: figure.savefig(file, dpi=150, format="png"))
