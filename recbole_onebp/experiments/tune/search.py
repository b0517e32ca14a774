"""``recbole-onebp tune``: one process per model, restarted if it dies, and a summary of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_onebp.experiments.tune.search_spec import Budget, Search, SearchSpec
from recbole_onebp.run.recbole_errors import check_package
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import claim_folder
from recbole_onebp.util.processes import Call, Ending, supervise, thread_limits
from recbole_onebp.util.untrusted import read_json

__all__ = ["tune"]


def tune(path: Path, overrides: Mapping[str, Any], output_dir: Path | None = None, jobs: int = 1) -> None:
    """Start or resume a search; write ``tuning.json``, ``history.png`` and the best configuration of each model.

    Args:
        path: the tuning file; see :class:`~recbole_onebp.experiments.tune.search_spec.SearchSpec`.
        overrides: keys that replace those of the file.
        output_dir: default: ``runs/tune-<name of the file>``.
        jobs: number of models searched at the same time.  The trials of one model run one after another, so that they
            depend on the seed alone.

    Raises:
        UserError: for errors that the user can fix, or if no trial of a model completed.
    """
    if find_spec("optuna") is None:
        raise UserError("tune needs Optuna: pip install 'recbole-onebp[tune]'")
    if jobs < 1:
        raise UserError(f"jobs: {jobs} is not at least 1")
    spec = SearchSpec.read(path, overrides)
    for search in spec.searches:
        check_package(search.settings["model"])
    # These modules import Optuna, which is optional.
    from recbole_onebp.experiments.tune import summary, trials

    folder = output_dir or Path("runs") / f"tune-{path.stem}"
    with writing(folder):
        labels = [search.label for search in spec.searches]
        claim_folder(folder, "search", ("tuning.json", "history.png", *labels), _is_earlier, (".lock", "trials.db"))
    try:
        with FileLock(folder / ".lock", timeout=0):
            studies = [trials.open_study(folder, search, spec.budget) for search in spec.searches]
            for study in studies:
                trials.add_lost(study)
            try:
                _run_all(spec, studies, folder, jobs)
            finally:
                outcome = summary.write(spec, studies, folder)
    except Timeout:
        raise UserError(f"{folder}: another search is running there; choose another --output_dir") from None
    print(summary.table(outcome), f"wrote {folder}", sep="\n", flush=True)
    summary.refuse_failures(outcome)


def _is_earlier(folder: Path) -> bool:
    """Whether a folder without a marker is a search of an earlier version."""
    try:
        summary = read_json(folder / "tuning.json", finite=False)
    except UserError:
        return False
    return isinstance(summary, dict) and {"models", "budget", "valid_metric"} <= summary.keys()


def _run_all(spec: SearchSpec, studies: list[Any], folder: Path, jobs: int) -> None:
    from recbole_onebp.experiments.tune.trials import add_lost, left

    def is_unfinished(study: Any) -> bool:
        return min(left(study, spec.budget)) > 0

    def restarted(call: Call, ending: Ending) -> Call | None:
        if ending.error is not None:
            raise ending.error
        if ending.ok:
            return None
        study, how = by_label[call.name], f"its process {ending}"
        if not add_lost(study, how):
            raise RuntimeError(f"{call.name}: {how} between two trials")
        print(f"{call.name}: trial failed: {how}", flush=True)
        return call if is_unfinished(study) else None

    by_label = {search.label: study for search, study in zip(spec.searches, studies, strict=True)}
    calls = [
        Call(search.label, _work, (folder, search, spec.budget), thread_limits(jobs))
        for search in spec.searches
        if is_unfinished(by_label[search.label])
    ]
    supervise(calls, jobs, restarted)


def _work(folder: Path, search: Search, budget: Budget) -> None:
    from recbole_onebp.experiments.tune.trials import open_study, run_trials

    run_trials(open_study(folder, search, budget), folder, search, budget)
