"""A recommender that is asked, moved and replaced at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from logging import getLogger
from pathlib import Path
from typing import TypeVar

from recbole_onebp.serving.answers import Update
from recbole_onebp.serving.http.journal import START, Journal, Position, Record
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError

__all__ = ["Live"]

_T = TypeVar("_T")

_REPLAYED = 1 << 17
"""Events that are replayed at a time."""


class Live:
    """Answers and moves users by events, which its journal has before they count; from any thread.

    The bundle can be replaced while it is served.  The events of the journal are then applied to the new one, except
    those that came in under another bundle and that the new one has been trained on: their user has taken their item
    in its history.
    """

    def __init__(self, bundle_dir: Path, journal: Journal, memory_mb: float, index: str | None = None) -> None:
        """Load the bundle and replay the journal.

        Args:
            bundle_dir: the bundle.
            journal: its events.
            memory_mb: see :meth:`Recommender.load`.
            index: the same.

        Raises:
            UserError: for a bundle that cannot be read, or has no such index.
        """
        self._bundle_dir, self._memory_mb, self._index = bundle_dir, memory_mb, index
        self.journal = journal
        self._asking, self._recording, self._replacing = threading.Lock(), threading.Lock(), threading.Lock()
        self._stamp = self._manifest_stamp()
        self._recommender = self._load()
        self.n_replayed = self._replay(self._recommender, START, journal.end)

    def ask(self, question: Callable[[Recommender], _T]) -> _T:
        """What a function of the recommender returns; no user moves meanwhile."""
        with self._asking:
            return question(self._recommender)

    def record(self, events: Sequence[tuple[str, str]]) -> Update:
        """Write events to the journal, then move their users.

        Raises:
            JournalError: if they could not be written; then no user has moved.
            UserError: if users of this bundle do not move.
        """
        with self._recording:
            with self._asking:
                self._recommender.update([])  # whether it may
                key = self._recommender.bundle.key
            self.journal.append(key, events)  # others ask while the disk works
            with self._asking:
                update = self._recommender.update(events)
            if self.journal.is_full:
                self.journal.turn()
                threading.Thread(target=self.compact, name="compact", daemon=True).start()
        return update

    def compact(self) -> None:
        with self._replacing:
            self.journal.compact()

    def replace(self) -> None:
        """Load the bundle anew and serve it; the old one answers, and takes events, until that is done.

        Raises:
            UserError: for a bundle that cannot be read; then the old one stays.
        """
        with self._replacing:
            self._stamp = self._manifest_stamp()
            recommender = self._load()
            with self._recording:
                middle = self.journal.end
            self._replay(recommender, START, middle)
            with self._recording:
                self._replay(recommender, middle, self.journal.end)
                with self._asking:
                    self._recommender = recommender

    def watch(self, seconds: float, stop: threading.Event) -> None:
        """Replace the bundle whenever its manifest has been written anew, until ``stop``."""
        while not stop.wait(seconds):
            if self._manifest_stamp() != self._stamp:
                try:
                    self.replace()
                except UserError as error:
                    getLogger(__name__).error("the bundle stays as it was: %s", error)
                else:
                    getLogger(__name__).info("the bundle has been replaced: %s", self._bundle_dir)

    def _load(self) -> Recommender:
        return Recommender.load(self._bundle_dir, memory_mb=self._memory_mb, index=self._index)

    def _manifest_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self._bundle_dir / "manifest.json").stat()
        except OSError:  # just being replaced
            return None
        return found.st_ino, found.st_mtime_ns

    def _replay(self, recommender: Recommender, start: Position, end: Position) -> int:
        waiting: list[tuple[str, str]] = []
        count = 0
        for record in self.journal.read(start, end):
            waiting += _not_trained_on(record, recommender)
            if len(waiting) >= _REPLAYED:
                count += recommender.update(waiting).applied
                waiting = []
        return count + (recommender.update(waiting).applied if waiting else 0)


def _not_trained_on(record: Record, recommender: Recommender) -> Iterable[tuple[str, str]]:
    if record.bundle == recommender.bundle.key:
        return record.events
    trained = {user: set(recommender.trained_history(user)) for user, _ in record.events}
    return [(user, item) for user, item in record.events if item not in trained[user]]
