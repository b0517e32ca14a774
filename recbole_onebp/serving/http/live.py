"""A recommender for many threads: it answers, applies events and can be replaced while it serves."""

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
"""Events that are replayed in one call."""


class Live:
    """A recommender with a journal, safe to use from many threads.

    Events are written to the journal before they are applied.  When the bundle is replaced, the events of the journal
    are applied to the new one.  Events that were recorded under another bundle are skipped if the new bundle was
    trained on them, that is, if the item is in the user's train history.
    """

    def __init__(self, bundle_dir: Path, journal: Journal, memory_mb: float, index: str | None = None) -> None:
        """Load the bundle and replay the journal.

        Args:
            bundle_dir: the bundle.
            journal: the events.
            memory_mb: see :meth:`Recommender.load`.
            index: see :meth:`Recommender.load`.

        Raises:
            UserError: if the bundle cannot be read, or has no such index.
        """
        self._bundle_dir, self._memory_mb, self._index = bundle_dir, memory_mb, index
        self.journal = journal
        # Always acquired in this order: replacing, recording, asking.
        self._replacing, self._recording, self._asking = threading.Lock(), threading.Lock(), threading.Lock()
        self._stamp = self._manifest_stamp()
        self._recommender = self._load()
        self.n_replayed = self._replay(self._recommender, START, journal.end)

    def ask(self, question: Callable[[Recommender], _T]) -> _T:
        """Call a function with the recommender.  No event is applied meanwhile."""
        with self._asking:
            return question(self._recommender)

    def record(self, events: Sequence[tuple[str, str]]) -> Update:
        """Write events to the journal, then apply them.

        Raises:
            JournalError: if they could not be written; then none is applied.
            UserError: if the users of this bundle were trained by gradient; then none is written.
        """
        with self._recording:
            with self._asking:
                self._recommender.update([])  # raises if users cannot be updated
                key = self._recommender.bundle.key
            self.journal.append(key, events)  # without the lock of questions: the disk is slow
            with self._asking:
                update = self._recommender.update(events)
            if self.journal.is_full:
                self.journal.turn()
                threading.Thread(target=self.compact, name="compact", daemon=True).start()
        return update

    def compact(self) -> None:
        """Compact the journal."""
        with self._replacing:
            self.journal.compact()

    def replace(self) -> None:
        """Load the bundle again and serve it.  The old one answers and records events until the new one is ready.

        Raises:
            UserError: if the bundle cannot be read; then the old one is kept.
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
        """Replace the bundle whenever its manifest changes; look every ``seconds``, until ``stop`` is set."""
        while not stop.wait(seconds):
            if self._manifest_stamp() != self._stamp:
                try:
                    self.replace()
                except UserError as error:
                    getLogger(__name__).error("the bundle cannot be loaded, the old one is kept: %s", error)
                else:
                    getLogger(__name__).info("loaded the new bundle: %s", self._bundle_dir)

    def _load(self) -> Recommender:
        return Recommender.load(self._bundle_dir, memory_mb=self._memory_mb, index=self._index)

    def _manifest_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self._bundle_dir / "manifest.json").stat()
        except OSError:  # it is being replaced
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
