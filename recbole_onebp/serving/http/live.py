"""A recommender for many threads: it answers, applies events and can be replaced while it serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from recbole_onebp.serving.answers import NewItems, RemovedItems
from recbole_onebp.serving.http.event_tables import Interaction
from recbole_onebp.serving.http.events import Event, EventStore, MergedError
from recbole_onebp.serving.http.item_store import ItemChange, write_items
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token

__all__ = [
    "MAX_NEW_ITEMS",
    "MAX_NEW_USERS",
    "Live",
    "ReadError",
    "Recorded",
    "TooManyItemsError",
    "TooManyUsersError",
]

_T = TypeVar("_T")

_REPLAYED = 1 << 18
"""Events that are replayed in one call."""

MAX_NEW_USERS = 200_000
"""Default for the users that events may add to those of the bundle; each takes about 1 KB of memory."""

MAX_NEW_ITEMS = 10_000
"""Default for the items that may be added to those of the bundle; every event of one of them copies
the embeddings of all in memory."""

_COMPACTED = 100_000
"""Events that are stored one by one before they are merged into histories."""

_RETRIED_SECONDS = 60.0
"""How long to wait after a compaction that failed, before the next try."""


class TooManyUsersError(Exception):
    """Events would add more users than allowed: none of them counts."""


class TooManyItemsError(Exception):
    """More items would be added than allowed: none of them is."""


class Applied(NamedTuple):
    """How far the store has been applied."""

    event: int = 0
    """Number of the last event."""
    change: int = 0
    """Number of the last change of an item."""


class ReadError(Exception):
    """The stored events cannot be read, so that answers might leave some out."""


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

    Events are stored, and then applied in the order in which they are stored, those of other processes too: so all
    processes of a service come to the same state, to the last bit, and every answer sees all events that have been
    acknowledged.  Questions wait for no writer: an answer sees each user before or after the events of a request.

    When the bundle is replaced, the stored events are applied to the new one.  Events that were recorded under another
    bundle are skipped if the new bundle was trained on them, that is, if the item is in the user's train history.
    Their weights are left out if the new bundle was trained without.
    """

    def __init__(
        self,
        bundle_dir: Path,
        store: EventStore,
        memory_mb: float,
        index: str | None = None,
        *,
        max_new_users: int = MAX_NEW_USERS,
        max_new_items: int = MAX_NEW_ITEMS,
        compact_at: int = _COMPACTED,
    ) -> None:
        """Load the bundle and apply the stored events.

        Args:
            bundle_dir: the bundle.
            store: the events.
            memory_mb: see :meth:`Recommender.load`.
            index: see :meth:`Recommender.load`.
            max_new_users: users that events may add to those of the bundle.
            max_new_items: items that may be added to those of the bundle.
            compact_at: events that wait before they are compacted.

        Raises:
            UserError: if the bundle or the events cannot be read, or it has no such index.
        """
        self._bundle_dir, self._memory_mb, self._index = bundle_dir, memory_mb, index
        self._max_new_users, self._max_new_items, self._compact_at = max_new_users, max_new_items, compact_at
        self.store = store
        # Always acquired in this order: replacing, the lock of the store, applying.
        self._replacing, self._applying, self._compacting = threading.Lock(), threading.Lock(), threading.Lock()
        self._compact_after = float("-inf")
        self._stamp = self._manifest_stamp()
        self._version = store.version
        self.recommender = self._load()
        self._applied, self.n_replayed = self._replay(self.recommender, Applied())

    def ask(self, question: Callable[[Recommender], _T]) -> _T:
        """Call a function with the recommender that is served now.

        Raises:
            ReadError: if the stored events cannot be read.
        """
        self.catch_up()
        return question(self.recommender)

    def catch_up(self) -> None:
        """Apply the events that have been stored since the last call, by this process or another one.

        Raises:
            ReadError: if they cannot be read.
        """
        try:
            version = self.store.version
            if version == self._version:
                return
            with self._applying:
                try:
                    self.recommender, self._applied = self._with_the_rest(self.recommender, self._applied)
                except UserError:  # a part may have been applied: the next call starts anew
                    self.recommender, self._applied = self._without_events(self.recommender), Applied()
                    raise
                self._version = version  # only now: before, the events are not applied
        except UserError as error:
            raise ReadError(f"the stored events cannot be read: {error}") from error

    def record(self, events: Sequence[Event]) -> Recorded:
        """Store events, then apply those that are new.

        Raises:
            StoreError: if they could not be written.
            TooManyUsersError: if they would add too many users.
            UserError: if the users of this bundle were trained by gradient, or an event has a weight and the bundle was
                trained without.
            In each case none of them counts.
        """
        with self.store.writing():
            self.catch_up()  # nobody writes meanwhile, so that the checks see all events
            recommender = self.recommender
            recommender.check_events(event.weight for event in events)
            known = [recommender.knows_item(event.item) for event in events]
            kept = [event for event, is_known in zip(events, known, strict=True) if is_known]
            self._check_users(recommender, kept)
            new = iter(self.store.append(recommender.bundle.key, kept).new if kept else [])
            counts = [is_known and next(new) for is_known in known]
            users = dict.fromkeys(event.user for event, is_new in zip(events, counts, strict=True) if is_new)
            new_users = [user for user in users if not recommender.knows_user(user)]
        self.catch_up()
        unknown = dict.fromkeys(event.item for event, is_known in zip(events, known, strict=True) if not is_known)
        self._compact_if_due()
        return Recorded(counts, new_users, list(unknown))

    def add_items(self, items: Mapping[Token, Mapping[str, Any]]) -> NewItems:
        """Store items with their features, then add them; see :meth:`Recommender.add_items`.

        Raises:
            StoreError: if they could not be written.
            TooManyItemsError: if they are too many.
            UserError: for a field that the bundle does not have, or a wrong value.
            In each case none is added.
        """
        with self.store.writing() as database:
            self.catch_up()
            report = self.recommender.check_items(items)
            self._check_items(report.added)
            write_items(database, {item: items[item] for item in report.added}, is_removed=False)
        self.catch_up()
        return report

    def _check_items(self, added: Sequence[Token]) -> None:
        recommender = self.recommender
        n_new = sum(not recommender.remembers_item(item) for item in added)
        total = recommender.n_added_items + n_new
        if n_new and total > self._max_new_items:
            raise TooManyItemsError(
                f"the service has added {total - n_new} items, and takes at most {self._max_new_items} "
                "(--max_new_items); none was added. Add them to the bundle with recbole-onebp add-items, or train again"
            )

    def remove_items(self, items: Iterable[Token]) -> RemovedItems:
        """Store that items are removed, then remove them; see :meth:`Recommender.remove_items`.

        Raises:
            StoreError: if it could not be written; then none is removed.
        """
        with self.store.writing() as database:
            self.catch_up()
            wanted = dict.fromkeys(items)
            known = [item for item in wanted if self.recommender.knows_item(item)]
            write_items(database, {item: {} for item in known}, is_removed=True)
        self.catch_up()
        return RemovedItems(known, [item for item in wanted if item not in known])

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
            # The latest ones stay, because other processes may not have applied them.
            self.store.compact(self.store.end - self._compact_at // 10)
        except Exception as error:
            self._compact_after = time.monotonic() + _RETRIED_SECONDS
            getLogger(__name__).error("the events cannot be compacted: %s", error)
        finally:
            self._compacting.release()

    def reload(self) -> None:
        """Load the bundle again and serve it.  The old one answers and records events until the new one is ready.

        Raises:
            UserError: if the bundle cannot be read; then the old one is kept.
        """
        with self._replacing:
            self._stamp = self._manifest_stamp()
            try:
                recommender = self._load()
                applied, _ = self._replay(recommender, Applied())
                with self._applying:
                    self.recommender, self._applied = self._with_the_rest(recommender, applied)
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
                self.reload()
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

    def _with_the_rest(self, recommender: Recommender, applied: Applied) -> tuple[Recommender, Applied]:
        """The recommender with what was stored after ``applied``, and how far that is."""
        try:
            return recommender, self._replay(recommender, applied)[0]
        except MergedError:  # this process did nothing for a long time
            fresh = self._without_events(recommender)
            return fresh, self._replay(fresh, Applied())[0]

    def _without_events(self, recommender: Recommender) -> Recommender:
        return Recommender(recommender.bundle, self._memory_mb, threads=1, index=self._index)

    def _replay(self, recommender: Recommender, after: Applied) -> tuple[Applied, int]:
        """Apply what is stored after ``after``; how far that is, and how many events were applied.

        Items are removed last: events before that name them.
        """
        waiting: list[Interaction] = []
        changes: Sequence[ItemChange] = ()
        (end, last), count = after, 0
        for batch in self.store.read(*after):
            if batch.items:
                changes, last = batch.items, max(one.change for one in batch.items)
                _describe(changes, recommender)
            is_own, end = batch.bundle == recommender.bundle.key, batch.end
            waiting += batch.events if is_own else _fitting(batch.events, recommender)
            if len(waiting) >= _REPLAYED:
                count += recommender.update(waiting).applied
                waiting = []
        count += recommender.update(waiting).applied if waiting else 0
        recommender.remove_items(one.item for one in changes if one.is_removed)
        return Applied(end, last), count


def _describe(changes: Sequence[ItemChange], recommender: Recommender) -> None:
    """Add items as they were described last, also those that were removed later."""
    for one in changes:
        if one.features is None and one.is_removed and recommender.knows_item(one.item):
            continue  # it is as it was
        recommender.remove_items([one.item])
        try:
            refused = recommender.add_items({one.item: one.features or {}}).refused
        except UserError as error:  # another bundle may have other fields
            refused = {one.item: str(error)}
        if refused and one.features is not None:
            getLogger(__name__).warning("item %s is not added to this bundle: %s", one.item, refused[one.item])


def _fitting(events: list[Interaction], recommender: Recommender) -> Iterable[Interaction]:
    """Of events under another bundle those that this one was not trained on, without weights if it has none."""
    trained = {event[0]: set(recommender.trained_history(event[0])) for event in events}
    kept = (event for event in events if event[1] not in trained[event[0]])
    return kept if recommender.has_weights else (event[:2] for event in kept)
