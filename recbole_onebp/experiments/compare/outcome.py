"""How each run of a comparison ended: ``outcome.json`` in the run's folder, written last."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import claim_folder, write_json
from recbole_onebp.util.processes import Call, Ending, supervise, thread_limits
from recbole_onebp.util.untrusted import read_json

__all__ = ["Task", "outcome_of", "recorded", "run_tasks"]

_FILE = "outcome.json"
_MAX_BYTES = 1 << 20
_REPLACED = (_FILE, "split.npz", "users.npz")


@dataclass(frozen=True)
class Task:
    """A function to call in a process of its own, as ``function(folder, *arguments)``."""

    name: str
    folder: Path
    """Where the function, by :func:`recorded`, leaves ``outcome.json``."""
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def outcome_of(folder: Path) -> dict[str, Any] | None:
    """The outcome that a run's folder holds; None if there is none, or the file is damaged."""
    try:
        outcome = read_json(folder / _FILE, _MAX_BYTES)
    except UserError:
        return None
    if not isinstance(outcome, dict) or not isinstance(outcome.get("status"), str):
        return None
    if outcome["status"] == "done":
        memory = outcome.get("peak_device_mb", 0.0)
        return outcome if type(memory) in (int, float) else None
    return outcome if isinstance(outcome.get("reason"), str) else None


def run_tasks(
    tasks: Sequence[Task], jobs: int, timeout: float | None, done: Callable[[Task, dict[str, Any]], None]
) -> None:
    """Run all tasks, whatever happens to each of them.

    Args:
        tasks: started in this order.
        jobs: how many run at the same time; more than one share the processor's cores.
        timeout: seconds that a task may take.
        done: called with each task as it ends, and with its outcome.
    """
    by_name = {str(task.folder): task for task in tasks}
    for task in tasks:
        _claim(task.folder)
        (task.folder / _FILE).unlink(missing_ok=True)

    def ended(call: Call, ending: Ending) -> None:
        task = by_name[call.name]
        outcome = outcome_of(task.folder)
        if outcome is None:
            outcome = _unrecorded(task.folder, ending)
            write_json(task.folder / _FILE, outcome)
        done(task, outcome)

    limits = thread_limits(jobs)
    calls = [
        Call(name, task.function, (task.folder, *task.arguments), limits, task.folder / "output.txt")
        for name, task in by_name.items()
    ]
    supervise(calls, jobs, ended, timeout=timeout)


def _claim(folder: Path) -> None:
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link; expected a folder of this comparison")

    def is_earlier(folder: Path) -> bool:
        return outcome_of(folder) is not None

    with writing(folder):
        claim_folder(folder, "part of a comparison", _REPLACED, is_earlier, ("output.txt", ".worker.lock"))


def _unrecorded(folder: Path, ending: Ending) -> dict[str, Any]:
    """The outcome of a process that has written none."""
    if ending.timeout is not None:
        return {"status": "timed out", "reason": f"the process {ending}"}
    if ending.killed:
        return {"status": "killed", "reason": f"the process {ending}"}
    return {"status": "crashed", "reason": f"the process {ending}; see {folder / 'output.txt'}"}


@contextmanager
def recorded(folder: Path) -> Iterator[dict[str, Any]]:
    """Record how a block of code ends in ``outcome.json``, which is written after everything else.

    Yields:
        The outcome, to which the block may add.
    """
    outcome: dict[str, Any] = {"status": "done"}
    # A process of an earlier comparison that was killed may need a moment to end.
    with FileLock(folder / ".worker.lock", timeout=60):
        try:
            yield outcome
        except Exception as error:
            traceback.print_exc()
            memory = isinstance(error, MemoryError) or "memory" in str(error).lower()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            outcome = {"status": "out of memory" if memory else "failed", "reason": " ".join(reason.split())[:300]}
        sys.stdout.flush()
        write_json(folder / _FILE, outcome)
