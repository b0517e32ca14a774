"""Runs in processes of their own: some at a time, none longer than allowed, and each with an outcome."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic
from typing import Any

from recbole_onebp.util.files import write_json

__all__ = ["Task", "outcome_of", "run_tasks"]

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass
class Task:
    """A call in a process of its own, which leaves ``outcome.json`` in ``folder``."""

    name: str
    folder: Path
    function: Callable[..., None]
    arguments: tuple[Any, ...]
    process: Any = field(default=None, init=False)
    started: float = field(default=0.0, init=False)

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "outcome.json").unlink(missing_ok=True)
        # A fresh interpreter: no thread pools, generators or memory of ours.
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=self.function, args=(self.folder, *self.arguments))
        self.started = monotonic()
        self.process.start()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()


def outcome_of(folder: Path) -> dict[str, Any] | None:
    """How the run of a folder ended; None if it has not, or nobody can tell."""
    try:
        outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return outcome if isinstance(outcome, dict) and "status" in outcome else None


def run_tasks(
    tasks: Sequence[Task], jobs: int, timeout: float | None, done: Callable[[Task, dict[str, Any]], None]
) -> None:
    """Run all tasks, ``jobs`` at a time, whatever becomes of each.

    Args:
        tasks: in this order.
        jobs: with more than one, the processor's cores are shared out among them.
        timeout: seconds that a task may take.
        done: called with each task as it ends, and its outcome.
    """
    waiting, active = list(tasks), list[Task]()
    with _environment_of(jobs):
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    active.append(waiting.pop(0))
                    active[-1].start()
                left = None if timeout is None else max(0.0, timeout + min(t.started for t in active) - monotonic())
                wait([task.process.sentinel for task in active], left)
                for task in list(active):
                    late = timeout is not None and monotonic() - task.started > timeout
                    if late or not task.process.is_alive():
                        active.remove(task)
                        task.stop()
                        done(task, _end(task, timeout))
        finally:
            for task in active:
                task.stop()


def _end(task: Task, timeout: float | None) -> dict[str, Any]:
    """The outcome that the process has written, or what became of it."""
    outcome = outcome_of(task.folder)
    if outcome is None:
        seconds, code = monotonic() - task.started, task.process.exitcode
        if timeout is not None and seconds > timeout:
            outcome = {"status": "timed out", "reason": f"stopped after {timeout / 60:g} minutes"}
        elif code == -9:
            outcome = {"status": "killed", "reason": "by the system, which does so when memory runs out"}
        else:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            outcome = {"status": "crashed", "reason": f"{how}; see {task.folder / 'output.txt'}"}
        write_json(task.folder / "outcome.json", outcome)
    return outcome


@contextmanager
def _environment_of(jobs: int) -> Iterator[None]:
    """What the processes started meanwhile find there.

    That is a share of the cores, except where the user has said how many.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ours = [name for name in _THREADS if name not in os.environ] if jobs > 1 else []
    os.environ.update(dict.fromkeys(ours, str(max(1, cores // jobs))))
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
