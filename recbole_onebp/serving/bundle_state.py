"""The users and items of a bundle, and how events and new items change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_onebp.serving.answers import NewItems, RemovedItems, Update
from recbole_onebp.serving.bundle import Bundle, read_fields
from recbole_onebp.serving.catalogue import Catalogue
from recbole_onebp.serving.explain import Composition, compose_user
from recbole_onebp.serving.new_items import ItemEstimate
from recbole_onebp.serving.tables import Float32Array, ItemTable
from recbole_onebp.serving.tokens import TokenTable, as_list, as_pair, as_token
from recbole_onebp.serving.user_state import Aggregation, Users
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRows, Token, TokenLike

__all__ = ["BundleState"]


class BundleState:
    """The part of a recommender that knows users and items.  It does not recommend.

    The arrays of the bundle stay as they are; what changes is kept beside them, in memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._catalogue, self._user_tokens = Catalogue(bundle), TokenTable(bundle.user_ids, "user")
        self._local = bundle.local
        self._aggregation = Aggregation.of(bundle.manifest["aggregation"])
        self._users = Users(bundle.user_encodings, bundle.history_start, bundle.history_item, self._aggregation)

    @property
    def _item_tokens(self) -> TokenTable:
        return self._catalogue.tokens

    @property
    def _items(self) -> ItemTable:
        """All items now.  Whoever needs them twice keeps them, because another thread may replace them."""
        return self._catalogue.table

    @property
    def _item_weight(self) -> Float32Array | None:
        return self._catalogue.weight

    @property
    def n_users(self) -> int:
        """Number of users, new ones included."""
        return len(self._user_tokens)

    @property
    def n_bundle_users(self) -> int:
        """Number of users in the bundle; the others came with events."""
        return len(self.bundle.user_encodings)

    @property
    def n_items(self) -> int:
        """Number of items, with added and without removed ones."""
        return self._catalogue.n_shown

    @property
    def n_added_items(self) -> int:
        """Number of items that were added to those of the bundle, removed ones included."""
        return len(self._item_tokens) - len(self.bundle.item_ids)

    @property
    def user_ids(self) -> Sequence[Token]:
        """All users; new ones come last."""
        return self._user_tokens.tokens

    @property
    def item_ids(self) -> Sequence[Token]:
        """All items without removed ones; added ones come last."""
        return self._item_tokens.shown

    def knows_user(self, user: Token) -> bool:
        """Whether a user is in the bundle or has come with an event.

        Example:
            >>> rec.knows_user("u1"), rec.knows_user("nobody")
            (True, False)
        """
        return user in self._user_tokens

    def knows_item(self, item: Token) -> bool:
        """Whether an item is in the bundle or has been added, and has not been removed.

        Example:
            >>> rec.knows_item("i7"), rec.knows_item("nothing")
            (True, False)
        """
        return item in self._item_tokens

    def remembers_item(self, item: Token) -> bool:
        """Whether an item is known, or was removed.

        Example:
            >>> removed = rec.remove_items(["i8"])
            >>> rec.knows_item("i8"), rec.remembers_item("i8"), rec.remembers_item("nothing")
            (False, True, False)
            >>> back = rec.add_items({"i8": []})
        """
        return item in self._item_tokens or item in self._item_tokens.hidden

    @cached_property
    def _fields(self) -> dict[str, list[str]]:
        return read_fields(self.bundle)

    def fields(self, item: TokenLike) -> dict[str, str]:
        """The columns of the data set's item file for an item; empty if there are none, or the item is unknown.

        Raises:
            UserError: if ``item`` is neither text nor an integer.

        Example:
            >>> rec.fields("i7")
            {'title': 'Item 7'}
        """
        row = self._item_tokens.get(item)
        return {name: values[row] for name, values in self._fields.items() if row is not None and row < len(values)}

    def title(self, item: TokenLike) -> str:
        """The title of an item; empty if there is none, or the item is unknown.

        Raises:
            UserError: if ``item`` is neither text nor an integer.

        Example:
            >>> rec.title("i7")
            'Item 7'
        """
        row = self._item_tokens.get(item)
        return self._titles[row] if row is not None and row < len(self._titles) else ""

    @cached_property
    def _titles(self) -> list[str]:
        return self._fields.get(self.bundle.manifest["title_field"] or "", [])

    def trained_history(self, user: TokenLike) -> list[Token]:
        """The user's train interactions, by time with ``recency``, else by item; empty for a new or unknown user.

        Raises:
            UserError: if ``user`` is neither text nor an integer.

        Example:
            >>> rec.trained_history("nobody")
            []
        """
        row = self._user_tokens.get(user)
        return [] if row is None else self._item_tokens.of(self._users.trained_items(row))

    def history(self, user: TokenLike) -> list[Token]:
        """The user's train interactions, then the events in order; empty for an unknown user.

        Raises:
            UserError: if ``user`` is neither text nor an integer.

        Example:
            >>> update = rec.update([("new", "i7"), ("new", "i9")])
            >>> rec.history("new")
            ['i7', 'i9']
        """
        row = self._user_tokens.get(user)
        return [] if row is None else self._item_tokens.of(self._users.items(row))

    def update(self, events: Iterable[tuple[TokenLike, TokenLike]]) -> Update:
        """Apply events to their users, one after the other, by the rule of the training.

        With ``aggregation: step`` an event does ``e_u <- beta e_u + (1 - beta) w_i e_i``, where the item's weight w_i
        is 1 without ``aggregation_alpha``.  Otherwise e_u is the mean of w_i e_i over the user's items, and the event
        adds one; with ``recency`` the later items count more, and the event is the latest.  A new user starts with its
        first event, and all its items weigh 1, as in :meth:`recommend_history` with ``rule="alike"``.  Items do not
        change.  How events are divided into calls makes no difference, to the last bit.

        Args:
            events: (user, item) pairs in the order in which they happened.

        Raises:
            UserError: if an event is not a pair of ids, or the users were trained by gradient; then no event is
                applied.

        Example:
            >>> update = rec.update([("u1", "i7"), ("new", "i9"), ("u1", "nothing")])
            >>> update.applied, update.new_users, update.unknown
            (2, ['new'], ['nothing'])
        """
        self._check_foldable("update")
        pairs = [as_pair(event) for event in as_list(events, "events")]
        items, unknown = self._item_tokens.find(item for _, item in pairs)
        tokens = [as_token(user, "user") for user, _ in pairs]
        known = items >= 0
        new_users: dict[Token, int] = {}
        users = np.empty(len(tokens), np.int64)
        for place, (token, is_known) in enumerate(zip(tokens, known.tolist(), strict=True)):
            row = self._user_tokens.rows.get(token, -1)
            if row < 0 and is_known:
                row = new_users.setdefault(token, len(self._user_tokens) + len(new_users))
            users[place] = row
        self._users.update(users[known], items[known], self._catalogue.settled, self._item_weight)
        self._catalogue.follow(self._users, users[known], items[known])
        for token in new_users:  # only now, so that other threads find no user without an embedding
            self._user_tokens.add(token)
        return Update(int(known.sum()), list(new_users), unknown)

    def add_items(self, items: Mapping[TokenLike, Iterable[TokenLike] | Mapping[str, Any]]) -> NewItems:
        """Add new items, from the users who interacted with them or from their features.

        From users: the embedding of a new item points in the mean direction of its users.  Length, bias and weight are
        those of items that are about as popular.  The interactions are then applied as events.

        From features, where the model was trained with ``item_features``: embedding and bias are what the item tower
        makes of the features.

        Args:
            items: for each new item the users who interacted with it, or a mapping of fields to values, such as
                ``{"tags": ["graphs", "genes"], "year": 1994}``.

        An item that was removed comes back.  With train interactions it is what training made of it, whatever is
        given; else it is made anew of what is given, or as it was for ``[]`` and ``{}``.

        Returns:
            What was added and what was not; ``unknown`` are the unknown users and values.

        Raises:
            UserError: if an id or a value has a wrong type, the bundle does not have a field, or the users were trained
                by gradient; then no item is added.

        Example:
            >>> new = rec.add_items({"fresh": ["u1", "u2"], "orphan": ["nobody"]})
            >>> new.added, new.refused, new.unknown
            (['fresh'], {'orphan': 'none of its users is in the bundle'}, ['nobody'])
        """
        estimates, report, events = self._checked(items)
        self._catalogue.add(estimates)
        self.update(events)
        return report

    def check_items(self, items: Mapping[TokenLike, Iterable[TokenLike] | Mapping[str, Any]]) -> NewItems:
        """What :meth:`add_items` would add and what not.  Nothing is added.

        Raises:
            UserError: as :meth:`add_items`.

        Example:
            >>> rec.check_items({"i3": ["u1"]}).refused
            {'i3': 'is in the bundle already'}
        """
        return self._checked(items)[1]

    def _checked(
        self, items: Mapping[TokenLike, Iterable[TokenLike] | Mapping[str, Any]]
    ) -> tuple[dict[Token, ItemEstimate | None], NewItems, list[tuple[Token, Token]]]:
        """The estimates of items that can be added, the report, and the events of their users."""
        self._check_foldable("add_items")
        refused, unknown = dict[Token, str](), dict[Token, None]()
        estimates, events = dict[Token, ItemEstimate | None](), list[tuple[Token, Token]]()
        for item, one in ((as_token(name, "item"), given) for name, given in items.items()):
            estimate: ItemEstimate | str | None
            is_described = isinstance(one, Mapping)
            users = [] if is_described else [as_token(user, "user") for user in as_list(one, "users")]
            rows, missing = self._user_tokens.find(users)
            if item in self._item_tokens:
                estimate = "is in the bundle already"
            elif item in self._item_tokens.hidden and (not one or self._catalogue.is_trained(item)):
                estimate = None
            elif isinstance(one, Mapping):
                estimate, missing = self._catalogue.estimator.of_features(item, one)
            else:
                estimate = self._catalogue.estimator.of_users(self._users.rows(rows[rows >= 0]))
            unknown.update(dict.fromkeys(missing))
            if isinstance(estimate, str):
                refused[item] = estimate
                continue
            estimates[item] = estimate
            events += [(user, item) for user, row in zip(users, rows.tolist(), strict=True) if row >= 0]
        return estimates, NewItems(list(estimates), refused, list(unknown)), events

    def remove_items(self, items: Iterable[TokenLike]) -> RemovedItems:
        """Take items out of all answers, at once: from now on they are unknown.

        Users keep them in their histories, and stay what these made of them: explanations name such items.
        :meth:`add_items` brings an item back.

        Args:
            items: ids of items.

        Raises:
            UserError: if an id has a wrong type; then no item is removed.

        Example:
            >>> rec.remove_items(["i8", "nothing"])
            RemovedItems(removed=['i8'], unknown=['nothing'])
            >>> rec.knows_item("i8"), rec.add_items({"i8": []}).added, rec.knows_item("i8")
            (False, ['i8'], True)
        """
        tokens = list(dict.fromkeys(as_token(item, "item") for item in as_list(items, "items")))
        removed = [item for item in tokens if item in self._item_tokens]
        self._catalogue.remove(removed)
        return RemovedItems(removed, [item for item in tokens if item not in removed])

    def _whole(self, rows: Float32Array, compositions: Iterable[Composition | None], table: ItemTable) -> Float32Array:
        """Users with the items that follow their users, as these are now.

        Args:
            rows: users without these items, ``(B, d)``; changed in place.
            compositions: of each user; None if it has no such item.
            table: all items.
        """
        for row, composition in zip(rows, compositions, strict=True):
            if composition is not None:
                own = self._catalogue.follows(composition.items)
                items, weights = composition.items[own], composition.weights[own]
                row += (weights[:, None] * table.embeddings.rows(items)).sum(axis=0)
        return rows

    def _user_rows(self, users: Users, rows: BundleRows, table: ItemTable) -> Float32Array:
        """Embeddings of users ``(m,)`` of a snapshot, shape ``(m, d)``, with the items as they are in a table."""
        follows, weight = self._catalogue.follows, self._item_weight
        having = ((row, users.new_items(row)) for row in rows.tolist())
        compositions = (compose_user(users, row, weight) if follows(new).any() else None for row, new in having)
        return self._whole(users.rows(rows), compositions, table)

    def _check_foldable(self, what: str) -> None:
        if self.bundle.manifest["aggregation"] is None:
            raise UserError(
                f"{what}: the users of this bundle were trained by gradient (backprop: two) and cannot be computed "
                "from their items; train with backprop: one"
            )
