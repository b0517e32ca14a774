"""Models compared on one split: one process per run, and a report with significance tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_onebp.experiments.compare.comparison import Comparison
from recbole_onebp.experiments.compare.outcome import Task, outcome_of, run_tasks
from recbole_onebp.experiments.compare.report import write_report
from recbole_onebp.experiments.compare.spec import ComparisonSpec, RunSpec
from recbole_onebp.experiments.compare.split import Split
from recbole_onebp.experiments.compare.worker import examine_data, train_and_test
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import claim_folder

__all__ = ["compare"]


def compare(config_files: Sequence[str], overrides: Mapping[str, Any] | None = None) -> Path:
    """Make every run, a model with a seed, that has no result yet, and write the report.

    Args:
        config_files: YAML files; see :class:`~recbole_onebp.experiments.compare.spec.ComparisonSpec`.
        overrides: keys that replace those of the files.

    Returns:
        The report's folder, ``output_dir``; default ``runs/compare-<name of the last file>``.

    Raises:
        UserError: for errors in the files or the data, before any training; or if no run finished.
    """
    spec = ComparisonSpec.read(config_files, overrides or {})
    runs, folder = spec.runs(), Path(spec.output_dir)
    with writing(folder):
        claim_folder(folder, "comparison", _REPLACED, _is_earlier, (".lock", "runs"))
        lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(timeout=0):
            return _compare(spec, runs, folder)
    except Timeout:
        raise UserError(f"output_dir: {folder}: another comparison is running there") from None


_REPLACED = (
    "report.json", "report.md", "report.html", "table.tex", "per_user.parquet", "per_user.csv", "figures", "data"
)  # fmt: skip


def _is_earlier(folder: Path) -> bool:
    """Whether a folder without a marker is a comparison of an earlier version."""
    return "protocol" in (outcome_of(folder / "data") or {})


def _compare(spec: ComparisonSpec, runs: Sequence[RunSpec], folder: Path) -> Path:
    log = getLogger()
    protocol = _protocol(folder / "data", runs[0])
    split = Split.load(folder / "data" / "split.npz")
    folders = {folder / "runs" / run.key(split.id): run for run in runs}
    tasks = [
        Task(f"{run.entry.label}, seed {run.seed}", path, train_and_test, (dict(run.given), split.id))
        for path, run in folders.items()
        if (outcome_of(path) or {}).get("status") != "done"
    ]
    log.info("%d users, %d items, split %s", protocol["users"], protocol["items"], split.id)
    log.info("%d runs, of which %d are finished", len(runs), len(runs) - len(tasks))
    n_ended = 0

    def done(task: Task, outcome: Mapping[str, Any]) -> None:
        nonlocal n_ended
        n_ended += 1
        log.info("[%d/%d] %s: %s", n_ended, len(tasks), task.name, _described(task.folder, outcome))

    timeout = None if spec.timeout_minutes is None else 60 * spec.timeout_minutes
    run_tasks(tasks, spec.jobs, timeout, done)
    comparison = Comparison.load(spec, protocol, split, folders, runs[0].settings["valid_metric"].lower())
    if not comparison.finished:
        raise UserError(f"no run has finished; {comparison.models[0].label}: {comparison.models[0].failures[0]}")
    for note in comparison.notes:
        log.warning("%s", note)
    with writing(folder):
        written = write_report(comparison, folder)
    log.info("wrote %s in %s", ", ".join(written), folder)
    return folder


def _protocol(folder: Path, run: RunSpec) -> dict[str, Any]:
    """Describe the split; in a process of its own, so that its memory is free again for the runs."""
    outcomes: list[dict[str, Any]] = []
    run_tasks([Task("data", folder, examine_data, (dict(run.given),))], 1, None, lambda _, end: outcomes.append(end))
    if "protocol" not in outcomes[0]:
        raise UserError(outcomes[0]["reason"])
    protocol: dict[str, Any] = outcomes[0]["protocol"]
    return protocol


def _described(folder: Path, outcome: Mapping[str, Any]) -> str:
    if outcome["status"] != "done":
        return f"{outcome['status']}: {outcome['reason']}"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result["test"].items())
    return f"{metrics}  ({result['seconds']['train']:.1f} s, best epoch {result['best_epoch']})"
