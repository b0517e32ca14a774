"""The users and items of a bundle, and how events and new items change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_onebp.serving.answers import NewItems, Update
from recbole_onebp.serving.bundle import Bundle, read_fields
from recbole_onebp.serving.new_items import ItemEstimate, ItemEstimator, append_values
from recbole_onebp.serving.tables import Embeddings, ItemTable, unit_rows
from recbole_onebp.serving.tokens import TokenTable, as_list, as_pair, as_token
from recbole_onebp.serving.user_state import Aggregation, Users
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token, TokenLike

__all__ = ["BundleState"]


class BundleState:
    """The part of a recommender that knows users and items.  It does not recommend.

    The arrays of the bundle stay as they are; what changes is kept beside them, in memory.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._item_tokens, self._user_tokens = TokenTable(bundle.item_ids, "item"), TokenTable(bundle.user_ids, "user")
        self._items = ItemTable(Embeddings(bundle.item_encodings), bundle.item_bias)
        self._item_weight, self._local = bundle.item_weight, bundle.local
        self._aggregation = Aggregation.of(bundle.manifest["aggregation"])
        self._users = Users(bundle.user_encodings, bundle.history_start, bundle.history_item, self._aggregation)
        self._estimator = ItemEstimator(bundle)

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
        """Number of items, added ones included."""
        return len(self._item_tokens)

    @property
    def user_ids(self) -> Sequence[Token]:
        """All users; new ones come last."""
        return self._user_tokens.tokens

    @property
    def item_ids(self) -> Sequence[Token]:
        """All items; added ones come last."""
        return self._item_tokens.tokens

    def knows_user(self, user: Token) -> bool:
        """Whether a user is in the bundle or has come with an event.

        Example:
            >>> rec.knows_user("u1"), rec.knows_user("nobody")
            (True, False)
        """
        return user in self._user_tokens

    def knows_item(self, item: Token) -> bool:
        """Whether an item is in the bundle or has been added.

        Example:
            >>> rec.knows_item("i7"), rec.knows_item("nothing")
            (True, False)
        """
        return item in self._item_tokens

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
        self._users.update(users[known], items[known], self._items.embeddings, self._item_weight)
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
        self._check_foldable("add_items")
        described = {as_token(item, "item"): one for item, one in items.items() if isinstance(one, Mapping)}
        given = {
            as_token(item, "item"): list(as_list(users, "users"))
            for item, users in items.items()
            if not isinstance(users, Mapping)
        }
        found = {item: self._user_tokens.find(users) for item, users in given.items()}
        unknown = dict.fromkeys(token for _, tokens in found.values() for token in tokens)
        refused = {item: "is in the bundle already" for item in [*given, *described] if item in self._item_tokens}
        estimates: dict[Token, ItemEstimate] = {}
        for item, features in described.items():
            if item in refused:
                continue
            estimate, unknown_values = self._estimator.of_features(item, features)
            unknown.update(dict.fromkeys(unknown_values))
            if isinstance(estimate, str):
                refused[item] = estimate
            else:
                estimates[item] = estimate
        for item, (rows, _) in found.items():
            if item in refused:
                continue
            estimate = self._estimator.estimate(self._users.rows(rows[rows >= 0]), self._items)
            if isinstance(estimate, str):
                refused[item] = estimate
            else:
                estimates[item] = estimate
        if estimates:
            self._append_items(estimates)
        self.update(
            (user, item)
            for item in given
            if item in estimates
            for user, row in zip(given[item], found[item][0].tolist(), strict=True)
            if row >= 0
        )
        return NewItems(list(estimates), refused, list(unknown))

    def _append_items(self, estimates: Mapping[Token, ItemEstimate]) -> None:
        for item in estimates:
            self._item_tokens.add(item)
        rows, bias, weight = (list(column) for column in zip(*estimates.values(), strict=True))
        embeddings = self._items.embeddings
        embeddings.append(np.concatenate(rows))
        self._items = ItemTable(embeddings, append_values(self._items.bias, bias))
        self._item_weight = append_values(self._item_weight, weight)
        self.__dict__.pop("_directions", None)  # computed again when it is next used

    @cached_property
    def _directions(self) -> ItemTable:
        """The items with unit length and without bias."""
        embeddings = self._items.embeddings
        if not self.bundle.cosine:
            embeddings = Embeddings(np.concatenate([unit_rows(block) for _, block in embeddings.blocks()]))
        return ItemTable(embeddings, None)

    def _check_foldable(self, what: str) -> None:
        if self.bundle.manifest["aggregation"] is None:
            raise UserError(
                f"{what}: the users of this bundle were trained by gradient (backprop: two) and cannot be computed "
                "from their items; train with backprop: one"
            )
