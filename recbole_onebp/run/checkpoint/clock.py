"""When a checkpoint is due, and how long a run has trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

__all__ = ["CheckpointClock", "TrainingTime"]


class CheckpointClock:
    """Tells when the next checkpoint is due.

    A checkpoint is due when at least a second has passed since the last one, and 20 times as long as it took to write.
    So saving costs at most a twentieth of the time, for any model size and disk.
    """

    min_seconds = 1.0
    """Minimum time between two checkpoints."""
    min_ratio = 20.0
    """Minimum ratio of the time between two checkpoints to the time to write one."""

    def __init__(self) -> None:
        self._cost = 0.0
        self.restart()

    def restart(self) -> None:
        """Measure the time to the next checkpoint from now."""
        self._last = perf_counter()

    def is_due(self) -> bool:
        return perf_counter() - self._last > max(self.min_seconds, self.min_ratio * self._cost)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long it takes to write a checkpoint, and restart the clock."""
        start = perf_counter()
        yield
        self.restart()
        self._cost = self._last - start


class TrainingTime:
    """Seconds of training, including those of the processes that a resumed run continues."""

    def __init__(self) -> None:
        self._before = self._epoch_before = 0.0
        self._began = self._epoch_began = perf_counter()

    def resume(self, total: float, epoch: float) -> None:
        """Take over the seconds of earlier processes: of the whole run, and of the unfinished epoch."""
        self._before, self._epoch_before = total, epoch

    def begin(self) -> None:
        self._began = perf_counter()

    def begin_epoch(self, resumed: bool) -> float:
        """Start an epoch; return the seconds that an earlier process has trained it, if it is ``resumed``."""
        if not resumed:
            self._epoch_before = 0.0
        self._epoch_began = perf_counter()
        return self._epoch_before

    @property
    def total(self) -> float:
        return self._before + perf_counter() - self._began

    @property
    def epoch(self) -> float:
        return self._epoch_before + perf_counter() - self._epoch_began
