"""A recommender for many threads: it answers, applies events and can be replaced while it serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import TypeVar

from recbole_onebp.serving.http.events import Event, EventStore
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token

__all__ = ["MAX_NEW_USERS", "Live", "Recorded", "TooManyUsersError"]

_T = TypeVar("_T")

_REPLAYED = 1 << 18
"""Events that are replayed in one call."""

MAX_NEW_USERS = 200_000
"""Default for the users that events may add to those of the bundle; each takes about 1 KB of memory."""

_COMPACTED = 100_000
"""Events that wait before they are compacted."""

_RETRIED_SECONDS = 60.0
"""After a compaction that failed."""


class TooManyUsersError(Exception):
    """Events would add more users than allowed: none of them counts."""


@dataclass(frozen=True)
class Recorded:
    """What became of the events of a request."""

    new: list[bool]
    """For each event, whether it counts now.  Retries and events of unknown items do not."""
    new_users: list[Token]
    unknown: list[Token]
    """Items that the bundle does not contain.  Their events are not stored."""


class Live:
    """A recommender with a store of events, safe to use from many threads.

    Questions take no lock: an answer sees each user before or after the events of a request.  Events are stored before
    they are applied.  When the bundle is replaced, the stored events are applied to the new one.  Events that were
    recorded under another bundle are skipped if the new bundle was trained on them, that is, if the item is in the
    user's train history.
    """

    def __init__(
        self,
        bundle_dir: Path,
        store: EventStore,
        memory_mb: float,
        index: str | None = None,
        *,
        max_new_users: int = MAX_NEW_USERS,
        compact_at: int = _COMPACTED,
    ) -> None:
        """Load the bundle and apply the stored events.

        Args:
            bundle_dir: the bundle.
            store: the events.
            memory_mb: see :meth:`Recommender.load`.
            index: see :meth:`Recommender.load`.
            max_new_users: users that events may add to those of the bundle.
            compact_at: events that wait before they are compacted.

        Raises:
            UserError: if the bundle or the events cannot be read, or it has no such index.
        """
        self._bundle_dir, self._memory_mb, self._index = bundle_dir, memory_mb, index
        self._max_new_users, self._compact_at = max_new_users, compact_at
        self.store = store
        # Always acquired in this order: replacing, writing.
        self._replacing, self._writing, self._compacting = threading.Lock(), threading.Lock(), threading.Lock()
        self._compact_after = float("-inf")
        self._stamp = self._manifest_stamp()
        self.recommender = self._load()
        self.n_replayed = self._replay(self.recommender, 0, store.end)

    def ask(self, question: Callable[[Recommender], _T]) -> _T:
        """Call a function with the recommender that is served now."""
        return question(self.recommender)

    def record(self, events: Sequence[Event]) -> Recorded:
        """Store events, then apply those that are new.

        Raises:
            StoreError: if they could not be written.
            TooManyUsersError: if they would add too many users.
            UserError: if the users of this bundle were trained by gradient.
            In each case none of them counts.
        """
        with self._writing:
            recommender = self.recommender
            recommender.update([])  # raises if users cannot be updated
            known = [recommender.knows_item(event.item) for event in events]
            kept = [event for event, is_known in zip(events, known, strict=True) if is_known]
            self._check_users(recommender, kept)
            new = iter(self.store.append(recommender.bundle.key, kept).new if kept else [])
            counts = [is_known and next(new) for is_known in known]
            update = recommender.update([event[:2] for event, is_new in zip(events, counts, strict=True) if is_new])
        unknown = dict.fromkeys(event.item for event, is_known in zip(events, known, strict=True) if not is_known)
        self._compact_if_due()
        return Recorded(counts, update.new_users, list(unknown))

    def _check_users(self, recommender: Recommender, events: Sequence[Event]) -> None:
        added = {event.user for event in events if not recommender.knows_user(event.user)}
        total = recommender.n_users - recommender.n_bundle_users + len(added)
        if added and total > self._max_new_users:
            raise TooManyUsersError(
                f"the service has added {total - len(added)} users, and takes at most {self._max_new_users} "
                "(--max_new_users); none of the events was recorded. Train and export a bundle that contains the users"
            )

    def _compact_if_due(self) -> None:
        is_due = time.monotonic() >= self._compact_after and self.store.n_waiting >= self._compact_at
        if is_due and self._compacting.acquire(blocking=False):
            threading.Thread(target=self._compact_in_background, name="compact", daemon=True).start()

    def _compact_in_background(self) -> None:
        try:
            self.compact()
        except Exception as error:
            self._compact_after = time.monotonic() + _RETRIED_SECONDS
            getLogger(__name__).error("the events cannot be compacted: %s", error)
        finally:
            self._compacting.release()

    def compact(self) -> None:
        """Compact the stored events.

        Raises:
            StoreError: if they could not be written.  Nothing is lost.
        """
        with self._replacing:
            self.store.compact()

    def replace(self) -> None:
        """Load the bundle again and serve it.  The old one answers and records events until the new one is ready.

        Raises:
            UserError: if the bundle cannot be read; then the old one is kept.
        """
        with self._replacing:
            self._stamp = self._manifest_stamp()
            try:
                recommender = self._load()
                middle = self.store.end
                self._replay(recommender, 0, middle)
                with self._writing:
                    self._replay(recommender, middle, self.store.end)
                    self.recommender = recommender
            except UserError:
                raise
            except Exception as error:  # whatever a damaged bundle brings about
                raise UserError(f"{self._bundle_dir}: cannot be loaded: {type(error).__name__}: {error}") from error

    def watch(self, seconds: float, stop: threading.Event) -> None:
        """Replace the bundle whenever its manifest changes; look every ``seconds``, until ``stop`` is set."""
        while not stop.wait(seconds):
            try:
                if self._manifest_stamp() == self._stamp:
                    continue
                self.replace()
            except Exception as error:  # logged once: the stamp of this manifest is known now
                getLogger(__name__).error("the bundle cannot be loaded, the old one is kept: %s", error)
            else:
                getLogger(__name__).info("loaded the new bundle: %s", self._bundle_dir)

    def _load(self) -> Recommender:
        # One thread for each question, because questions are answered side by side.
        recommender = Recommender.load(self._bundle_dir, memory_mb=self._memory_mb, threads=1, index=self._index)
        for item in recommender.item_ids[:1]:
            recommender.title(item)  # reads the titles, before the first request needs them
        return recommender

    def _manifest_stamp(self) -> tuple[int, int] | None:
        try:
            found = (self._bundle_dir / "manifest.json").stat()
        except OSError:  # it is being replaced
            return None
        return found.st_ino, found.st_mtime_ns

    def _replay(self, recommender: Recommender, after: int, up_to: int) -> int:
        waiting: list[tuple[str, str]] = []
        count = 0
        for bundle, events in self.store.read(after, up_to):
            waiting += events if bundle == recommender.bundle.key else _not_trained_on(events, recommender)
            if len(waiting) >= _REPLAYED:
                count += recommender.update(waiting).applied
                waiting = []
        return count + (recommender.update(waiting).applied if waiting else 0)


def _not_trained_on(events: list[tuple[str, str]], recommender: Recommender) -> Iterable[tuple[str, str]]:
    trained = {user: set(recommender.trained_history(user)) for user, _ in events}
    return [(user, item) for user, item in events if item not in trained[user]]
