"""From a bundle to answers: numpy is all it needs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.bundle import Bundle, read_bundle, read_fields
from recbole_onebp.serving.search import (
    DEFAULT_MEMORY_MB,
    TINY,
    Encodings,
    Hidden,
    ItemTable,
    Ranked,
    best_items,
    dots,
    unit_rows,
)
from recbole_onebp.serving.user_state import Users, fold_in
from recbole_onebp.util.errors import UserError

if TYPE_CHECKING:
    from recbole_onebp.serving.ann import Index

__all__ = [
    "DEFAULT_RULE",
    "Answers",
    "Explanation",
    "Id",
    "NewItems",
    "Recommender",
    "Rule",
    "UnknownIdError",
    "Update",
]

Id = str | int
"""An id as in the data; a number stands for its digits."""

Rule = Literal["alike", "trained", "recent"]
"""How a history becomes a user.

- ``alike``: the mean of its items, all alike; with ``aggregation: step`` the moving aggregation of them, started from
  nothing: the latest counts 1, the one before beta, then beta squared, ...
- ``trained``: the same, each times what it weighs in training (``aggregation_alpha``).
- ``recent``: the mean, with the latest counting 1, the one before 0.8, then 0.8 squared, ..., which takes a history in
  order of time.

``benchmarks/fold_in.py`` compares them.
"""

DEFAULT_RULE: Rule = "alike"

_RECENT = 0.8

_Floats = npt.NDArray[np.float32]
_Index = npt.NDArray[np.int64]
_NONE: _Index = np.empty(0, np.int64)

_ALIKE = 100
"""Items whose length and bias, averaged, a new item gets: those taken about as often."""


class UnknownIdError(UserError):
    """The one thing asked about is not known; where many are, their answer reports it instead."""


class Answers(list[list[tuple[str, float]]]):
    """One list of (item id, score) pairs, the best first, for each thing asked; empty where nothing is known of it.

    Attributes:
        unknown_users: the users that the bundle does not know, each once, in the order asked.
        unknown_items: the same of items, be it in histories or among those allowed and denied.
    """

    def __init__(
        self, lists: Iterable[list[tuple[str, float]]], unknown_users: list[str], unknown_items: list[str]
    ) -> None:
        super().__init__(lists)
        self.unknown_users = unknown_users
        self.unknown_items = unknown_items

    @property
    def unknown(self) -> list[str]:
        """All ids that the bundle does not know."""
        return self.unknown_users + self.unknown_items


@dataclass(frozen=True)
class Explanation:
    """Where a score comes from: ``score = bias + residual + sum of contributions``."""

    score: float
    bias: float
    """What the item gets from everybody."""
    contributions: list[tuple[str, float]]
    """What each of the user's items adds, the greatest first."""
    residual: float
    """What they do not account for: 0 for a user that was folded in, who is their weighted mean; a trained user's items
    have moved since they moved it."""
    unknown: list[str]
    """The items of the history that the bundle does not know."""


@dataclass(frozen=True)
class Update:
    """What came of events."""

    applied: int
    """Events that moved a user."""
    new_users: list[str]
    unknown: list[str]
    """Items that the bundle does not know; their events moved nobody."""


@dataclass(frozen=True)
class NewItems:
    """What came of new items."""

    added: list[str]
    refused: dict[str, str]
    """Items that were not added, and why."""
    unknown: list[str]
    """Users that the bundle does not know: they said nothing about their items."""


@dataclass
class _Names:
    """Ids and their numbers."""

    names: list[str]
    numbers: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = {name: number for number, name in enumerate(self.names)}

    def add(self, name: str) -> int:
        self.numbers[name] = len(self.names)
        self.names.append(name)
        return self.numbers[name]

    def find(self, ids: Iterable[Id], what: str) -> tuple[_Index, list[str]]:
        """Numbers of ids, -1 for the unknown, and these."""
        names = [_name(given, what) for given in ids]
        number = np.array([self.numbers.get(name, -1) for name in names], np.int64)
        unknown = dict.fromkeys(name for name, found in zip(names, number.tolist(), strict=True) if found < 0)
        return number, list(unknown)


class Recommender:
    """Answers from a bundle, by exact scores; users move at once when events come in.

    An answer does not depend on what else is asked with it, to the last bit.  Of equal scores the item that comes first
    in the bundle is first: items are sorted by id there, and those added later come last.

    Not thread-safe while :meth:`update` or :meth:`add_items` runs.
    """

    def __init__(
        self,
        bundle: Bundle,
        memory_mb: float = DEFAULT_MEMORY_MB,
        threads: int | None = None,
        index: str | None = None,
    ) -> None:
        """Take over an opened bundle; see :meth:`load`."""
        if not memory_mb > 0:
            raise UserError(f"memory_mb: {memory_mb} is not allowed: expected more than 0")
        self.bundle = bundle
        self._memory_mb = memory_mb
        self._threads = threads or os.cpu_count() or 1
        manifest = bundle.manifest
        self._cosine: bool = manifest["score"] == "cosine"
        # None for users that are trained by gradient: they move by no rule.
        self._aggregation: dict[str, Any] | None = manifest["aggregation"]
        self._keep, weight = _rule(self._aggregation)
        self._item_names, self._user_names = _Names([*bundle.item_ids]), _Names([*bundle.user_ids])
        self._items = ItemTable(Encodings(bundle.item_encodings), bundle.item_bias)
        self._item_weight = bundle.item_weight
        self._index = None if index is None else _open_index(bundle, index)
        self._users = Users(bundle.user_encodings, bundle.history_start, bundle.history_item, self._keep, weight)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        memory_mb: float = DEFAULT_MEMORY_MB,
        threads: int | None = None,
        index: str | None = None,
    ) -> Recommender:
        """Open a bundle.

        Args:
            path: the folder that ``recbole-onebp export`` wrote.
            verify: compare every file with its checksum; without, a large bundle opens sooner and damage may go
                unnoticed.
            memory_mb: bounds the scores that are held at a time, in MiB.
            threads: blocks of users that are worked on at a time; one a core if None.
            index: ``faiss`` or ``hnswlib``, with which the bundle was exported: ``recommend`` and ``recommend_history``
                then find most of the best items, with their exact scores, without looking at all.  With ``allow`` they
                look at those allowed.

        Raises:
            UserError: if it is no bundle, or damaged, or has no such index.
        """
        return cls(read_bundle(path, verify), memory_mb, threads, index)

    # ---------------------------------------------------------------------------------------------------- what is known

    @property
    def n_users(self) -> int:
        return len(self._user_names.names)

    @property
    def n_items(self) -> int:
        return len(self._item_names.names)

    @property
    def user_ids(self) -> Sequence[str]:
        """All users, those that came since last."""
        return self._user_names.names

    @property
    def item_ids(self) -> Sequence[str]:
        """All items, those added since last."""
        return self._item_names.names

    @cached_property
    def _fields(self) -> dict[str, list[str]]:
        return read_fields(self.bundle)

    def fields(self, item: Id) -> dict[str, str]:
        """What the data say about an item, by field; empty where nothing."""
        number = self._item_names.numbers.get(_name(item, "item"), -1)
        return {name: values[number] for name, values in self._fields.items() if 0 <= number < len(values)}

    def title(self, item: Id) -> str:
        """Title of an item; empty where there is none."""
        number = self._item_names.numbers.get(_name(item, "item"), -1)
        return self._titles[number] if 0 <= number < len(self._titles) else ""

    @cached_property
    def _titles(self) -> list[str]:
        return self._fields.get(self.bundle.manifest["title_field"] or "", [])

    def trained_history(self, user: Id) -> list[str]:
        """Items that a user had taken when the bundle was made; empty for one that has come since, or is unknown."""
        number = self._user_names.numbers.get(_name(user, "user"))
        return [] if number is None else self._ids_of(self._users.trained_items(number))

    def history(self, user: Id) -> list[str]:
        """Items that a user has taken, those since the bundle was made last; empty for an unknown user."""
        number = self._user_names.numbers.get(_name(user, "user"))
        return [] if number is None else self._ids_of(self._users.items(number))

    # ------------------------------------------------------------------------------------------------------------ lists

    def recommend(
        self,
        users: Iterable[Id],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[Id] | None = None,
        deny: Iterable[Id] = (),
    ) -> Answers:
        """The best items of users.

        Args:
            users: their ids.
            k: items a user; fewer where fewer are left.
            exclude_seen: leave out what a user has taken.
            allow: choose from these items only.
            deny: leave these items out.

        Raises:
            UserError: for arguments of a wrong kind; unknown ids are reported in the answer.
        """
        number, unknown = self._user_names.find(_listed(users, "users"), "user")
        known = number[number >= 0]
        seen = [self._users.items(user) for user in known.tolist()] if exclude_seen else [_NONE] * len(known)
        ranked, unknown_items = self._rank(self._users.rows(known), k, seen, allow, deny)
        return Answers(self._lists(ranked, number >= 0), unknown, unknown_items)

    def recommend_history(
        self,
        histories: Iterable[Iterable[Id]],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[Id] | None = None,
        deny: Iterable[Id] = (),
        rule: Rule = DEFAULT_RULE,
    ) -> Answers:
        """The best items of users never seen, from what they have taken; no training.

        Args:
            histories: for each user its items, in order.  Unknown items are left out and reported; a history without a
                known item gets an empty list.
            k: see :meth:`recommend`.
            exclude_seen: leave out the history's own items.
            allow: see :meth:`recommend`.
            deny: see :meth:`recommend`.
            rule: see :data:`Rule`.  By default such a user is as :meth:`update` would make it.

        Raises:
            UserError: for arguments of a wrong kind.
        """
        self._check_moves("recommend_history")
        item_weight, keep = self._fold(rule)
        found = [
            self._item_names.find(_listed(history, "history"), "item") for history in _listed(histories, "histories")
        ]
        items = [number[number >= 0] for number, _ in found]
        known = np.array([len(number) > 0 for number in items], bool)
        items = [number for number in items if len(number)]
        user_e = fold_in(items, self._items.encodings, item_weight, keep)
        ranked, unknown = self._rank(user_e, k, items if exclude_seen else [_NONE] * len(items), allow, deny)
        unknown = list(dict.fromkeys([name for _, names in found for name in names] + unknown))
        return Answers(self._lists(ranked, known), [], unknown)

    def similar_items(
        self, items: Iterable[Id], k: int = 10, *, allow: Iterable[Id] | None = None, deny: Iterable[Id] = ()
    ) -> Answers:
        """The items closest to each of some items, by the cosine of their encodings; an item is not its own.

        Args:
            items: their ids.
            k: items an item.
            allow: see :meth:`recommend`.
            deny: see :meth:`recommend`.

        Raises:
            UserError: for arguments of a wrong kind; unknown ids are reported in the answer.
        """
        number, unknown = self._item_names.find(_listed(items, "items"), "item")
        known = number[number >= 0]
        table = self._directions
        own = [known[place : place + 1] for place in range(len(known))]
        ranked, unknown_others = self._rank_in(table, table.encodings.rows(known), k, own, allow, deny)
        return Answers(self._lists(ranked, number >= 0), [], list(dict.fromkeys(unknown + unknown_others)))

    # ------------------------------------------------------------------------------------------------------ explanation

    def explain(self, user: Id, item: Id) -> Explanation:
        """Which of a user's items pull an item up for it.

        Exact for a user that was folded in, and for what a user has taken since the bundle was made.  For what a
        trained user was trained on, its items count alike, as they stand now; the residual says how far that is off.

        Raises:
            UnknownIdError: for an unknown user or item.
        """
        self._check_moves("explain")
        number, target = self._number(self._user_names, user, "user"), self._number(self._item_names, item, "item")
        trained, taken = self._users.trained_items(number), self._users.taken_items(number)
        kept, weight = self._users.weights(number)
        weight = np.concatenate((np.full(len(trained), kept / max(len(trained), 1)), weight))
        items = np.concatenate((trained, taken))
        if self._item_weight is not None and self._users.is_trained(number):
            weight *= self._item_weight[items]
        return self._explain(self._users.rows(np.array([number])), target, items, weight, [])

    def explain_history(self, history: Iterable[Id], item: Id, rule: Rule = DEFAULT_RULE) -> Explanation:
        """The same for a user never seen, with its history; see :meth:`recommend_history`.

        Raises:
            UnknownIdError: for an unknown item, or a history without a known one.
        """
        self._check_moves("explain_history")
        item_weight, keep = self._fold(rule)
        number, unknown = self._item_names.find(_listed(history, "history"), "item")
        target = self._number(self._item_names, item, "item")
        known = number[number >= 0]
        if not len(known):
            raise UnknownIdError("history: the bundle knows none of its items")
        weight = keep ** np.arange(len(known), dtype=float)[::-1]
        weight /= weight.sum()
        if item_weight is not None:
            weight *= item_weight[known]
        row = fold_in([known], self._items.encodings, item_weight, keep)
        return self._explain(row, target, known, weight, unknown)

    def _explain(
        self,
        row: _Floats,
        target: int,
        item: _Index,
        weight: npt.NDArray[np.float64],
        unknown: list[str],
    ) -> Explanation:
        """Of a user's encoding ``(1, d)`` and an item, by what each of the user's items counts in it."""
        table = self._items
        length = max(float(np.linalg.norm(row.astype(np.float64))), TINY) if self._cosine else 1.0
        target_e = table.encodings.rows(np.full(len(item), target))
        part = weight * dots(table.encodings.rows(item), target_e) / length
        which, place = np.unique(item, return_inverse=True)  # an item may have been taken more than once
        total = np.bincount(place.reshape(-1), weights=part, minlength=len(which))
        order = np.lexsort((which, -total))
        bias = 0.0 if table.bias is None else float(table.bias[target])
        score = float(table.score_pairs(self._scored(row), np.array([0]), np.array([target]))[0])
        pairs = list(zip(self._ids_of(which[order]), total[order].tolist(), strict=True))
        return Explanation(score, bias, pairs, score - bias - float(total.sum()), unknown)

    # ------------------------------------------------------------------------------------------------------ what is new

    def update(self, events: Iterable[tuple[Id, Id]]) -> Update:
        """Move users by new events, by the rule of their training, one event after the other.

        ``aggregation: step``: ``e_u <- beta e_u + (1 - beta) w_i e_i``, where w_i, what the item weighs, is 1 without
        ``aggregation_alpha``.  Otherwise e_u is the mean of its items' w_i e_i, and the event's is one more.  A user
        that the bundle does not know starts with its first event, and all its items weigh 1; see :data:`Rule`.  Items
        stay as they are.  How events are cut into calls does not matter, to the last bit.

        Args:
            events: (user, item) pairs in the order in which they happened.

        Raises:
            UserError: for events that are no pairs of ids; then none is applied.
        """
        self._check_moves("update")
        pairs = [_pair(event) for event in _listed(events, "events")]
        item, unknown = self._item_names.find((item for _, item in pairs), "item")
        names = [_name(user, "user") for user, _ in pairs]
        kept = item >= 0
        new_users, user = [], np.empty(len(names), np.int64)
        for place, (name, is_kept) in enumerate(zip(names, kept.tolist(), strict=True)):
            number = self._user_names.numbers.get(name, -1)
            if number < 0 and is_kept:
                number = self._user_names.add(name)
                new_users.append(name)
            user[place] = number
        self._users.move(user[kept], item[kept], self._items.encodings, self._item_weight)
        return Update(int(kept.sum()), new_users, unknown)

    def add_items(self, items: Mapping[Id, Iterable[Id]]) -> NewItems:
        """Add items that the bundle does not know, from the users who took them, whom they move as events do.

        An item's encoding points where its users' unit-length encodings point on average.  Its length and its bias are
        those of the items that were taken about as often; where items weigh unequally, it weighs what one that was
        taken as often would.

        Args:
            items: for each item the users who took it.

        Raises:
            UserError: for ids of a wrong kind; then none is added.
        """
        self._check_moves("add_items")
        given = {_name(item, "item"): list(_listed(users, "users")) for item, users in items.items()}
        takers = {item: self._user_names.find(users, "user") for item, users in given.items()}
        refused = {item: "is in the bundle already" for item in given if item in self._item_names.numbers}
        rows, bias, weight, events = [], [], [], []
        for item, (number, _) in takers.items():
            known = number[number >= 0]
            if item in refused:
                continue
            direction = unit_rows(unit_rows(self._users.rows(known)).astype(np.float64).sum(axis=0, keepdims=True))
            if not direction.any():
                refused[item] = "none of its users is in the bundle" if not len(known) else "its users cancel out"
                continue
            length, item_bias = self._alike(len(known))
            rows.append(direction * np.float32(length))
            bias.append(item_bias)
            weight.append(self._weight_of(len(known)))
            events += [(user, item) for user, place in zip(given[item], number.tolist(), strict=True) if place >= 0]
        added = [item for item in given if item not in refused]
        for item in added:
            self._item_names.add(item)
        if rows:
            encodings = self._items.encodings
            encodings.append(np.concatenate(rows))
            self._items = ItemTable(encodings, _extended(self._items.bias, bias))
            self._item_weight = _extended(self._item_weight, weight)
            self.__dict__.pop("_directions", None)
        self.update(events)
        unknown = dict.fromkeys(name for _, names in takers.values() for name in names)
        return NewItems(added, refused, list(unknown))

    def _alike(self, n_users: int) -> tuple[float, float]:
        """Length and bias, averaged, of the items of the bundle that about as many have taken."""
        closest = np.argsort(np.abs(self._popularity - n_users), kind="stable")[:_ALIKE]
        rows = self._items.encodings.rows(closest)
        length = 1.0 if self._cosine else float(np.sqrt(dots(rows, rows)).mean())
        return length, 0.0 if self._items.bias is None else float(self._items.bias[closest].mean())

    def _weight_of(self, n_users: int) -> float:
        """What an item weighs that so many have taken, as :func:`recbole_onebp.functional.popularity_weights` says."""
        alpha = self._aggregation["alpha"] if self._aggregation else 0.0
        return float((n_users / self._popularity[self._popularity > 0].mean()) ** -alpha)

    @cached_property
    def _popularity(self) -> _Index:
        """How many users of the bundle have taken each of its items."""
        return np.bincount(self.bundle.history_item, minlength=len(self.bundle.item_encodings))

    # ---------------------------------------------------------------------------------------------------------- at work

    def _check_moves(self, what: str) -> None:
        if self._aggregation is None:
            raise UserError(
                f"{what}: this bundle's users were trained by gradient (backprop: two): no rule makes them from their "
                "items; train with backprop: one"
            )

    def _fold(self, rule: Rule) -> tuple[_Floats | None, float]:
        """What items weigh in a history, and what each counts of the one after it."""
        if rule not in get_args(Rule):
            raise UserError(f"rule: {rule!r} is not allowed; expected one of {', '.join(get_args(Rule))}")
        return self._item_weight if rule == "trained" else None, _RECENT if rule == "recent" else self._keep

    def _scored(self, user_e: _Floats) -> _Floats:
        """Users as they are scored: unit length with cosine scores."""
        return unit_rows(user_e) if self._cosine else user_e

    @cached_property
    def _directions(self) -> ItemTable:
        """Unit-length items without bias."""
        encodings = self._items.encodings
        if not self._cosine:
            encodings = Encodings(np.concatenate([unit_rows(block) for _, block in encodings.blocks()]))
        return ItemTable(encodings, None)

    def _rank(
        self, user_e: _Floats, k: int, seen: Sequence[_Index], allow: Iterable[Id] | None, deny: Iterable[Id]
    ) -> tuple[Ranked, list[str]]:
        return self._rank_in(self._items, self._scored(user_e), k, seen, allow, deny)

    def _rank_in(
        self,
        table: ItemTable,
        user_e: _Floats,
        k: int,
        seen: Sequence[_Index],
        allow: Iterable[Id] | None,
        deny: Iterable[Id],
    ) -> tuple[Ranked, list[str]]:
        """The best of a table for encodings that are scored as they are, and the unknown items of the two lists."""
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise UserError(f"k: {k!r} is not allowed: expected a whole number of at least 1")
        denied, unknown = self._item_names.find(_listed(deny, "deny"), "item")
        hidden = Hidden.of(seen, denied[denied >= 0])
        if allow is None and self._index is not None and table is self._items:
            n_indexed = len(self.bundle.item_encodings)
            return self._index.best_items(user_e, table, int(k), hidden, n_indexed), unknown
        if allow is None:
            return best_items(user_e, table, int(k), hidden, self._memory_mb, self._threads), unknown
        allowed, unknown_allowed = self._item_names.find(_listed(allow, "allow"), "item")
        unknown = list(dict.fromkeys(unknown + unknown_allowed))
        pool = np.unique(allowed[allowed >= 0])
        if not len(pool):
            return Ranked(np.zeros(len(user_e) + 1, np.int64), _NONE, np.empty(0)), unknown
        found = best_items(user_e, table.subset(pool), int(k), hidden.within(pool), self._memory_mb, self._threads)
        return Ranked(found.start, pool[found.item], found.score), unknown

    def _lists(self, ranked: Ranked, known: npt.NDArray[np.bool_]) -> list[list[tuple[str, float]]]:
        """A list for each thing asked, empty for the unknown."""
        pairs = list(zip(self._ids_of(ranked.item), ranked.score.tolist(), strict=True))
        lists = (pairs[first:last] for first, last in pairwise(ranked.start.tolist()))
        return [next(lists) if is_known else [] for is_known in known.tolist()]

    def _ids_of(self, item: _Index) -> list[str]:
        names = self._item_names.names
        return [names[number] for number in item.tolist()]

    def _number(self, names: _Names, given: Id, what: str) -> int:
        name = _name(given, what)
        if name not in names.numbers:
            raise UnknownIdError(f"{what} {name!r}: the bundle does not know it")
        return names.numbers[name]


def _rule(aggregation: Mapping[str, Any] | None) -> tuple[float, float | None]:
    """How users move: the arguments ``keep`` and weight of a trained user of ``user_state.Users``."""
    if aggregation is None or aggregation["rule"] == "mean":
        return 1.0, None
    beta = aggregation["beta"]
    return beta, np.inf if beta == 1 else 1 / (1 - beta)


def _extended(values: _Floats | None, more: list[float]) -> _Floats | None:
    return None if values is None else np.concatenate((values, np.array(more, np.float32)))


def _open_index(bundle: Bundle, kind: str) -> Index:
    path = bundle.path / f"index.{kind}"
    if path.name not in bundle.manifest["files"]:
        raise UserError(f"{bundle.path}: has no index of {kind}; export it with --ann={kind}")
    from recbole_onebp.serving.ann import Index

    return Index.load(kind, path, bundle.manifest["embedding_size"], len(bundle.item_ids))


def _name(given: Any, what: str) -> str:
    if isinstance(given, str):
        return str(given)
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        return str(int(given))
    raise UserError(f"{what}: {given!r} is no id: expected text, or a whole number")


def _listed(given: Any, what: str) -> Iterable[Any]:
    """Refuse a single text, which would be taken for a list of letters."""
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise UserError(f"{what}: expected a list, got {given!r}")
    return given


def _pair(event: Any) -> tuple[Id, Id]:
    if isinstance(event, (str, bytes)) or not isinstance(event, Sequence) or len(event) != 2:
        raise UserError(f"events: {event!r} is no pair of a user and an item")
    return event[0], event[1]
