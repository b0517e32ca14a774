"""The users and items of a bundle, and how events and new items change them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from recbole_onebp.serving.answers import Update
from recbole_onebp.serving.bundle import Bundle, read_fields
from recbole_onebp.serving.catalogue import Catalogue
from recbole_onebp.serving.content import as_text
from recbole_onebp.serving.explain import Composition, compose_user
from recbole_onebp.serving.tables import Float32Array, Float64Array, ItemTable
from recbole_onebp.serving.tokens import TokenTable, as_event, as_list, as_token
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
        self._given: dict[Token, Mapping[str, Any]] = {}
        """The fields of added items, as they were given."""
        self._weights = bundle.manifest.get("weights")
        transform = None if self._weights is None else self._weights["transform"]
        self._aggregation = Aggregation.of(bundle.manifest["aggregation"])._replace(transform=transform)
        self._users = Users(
            bundle.user_encodings, bundle.history_start, bundle.history_item, self._aggregation, bundle.history_weight
        )

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
    def user_ids(self) -> Sequence[Token]:
        """All users; new ones come last."""
        return self._user_tokens.tokens

    @property
    def item_ids(self) -> Sequence[Token]:
        """All items without removed ones; added ones come last."""
        return self._item_tokens.shown

    @property
    def has_weights(self) -> bool:
        """Whether the model was trained on weights of interactions: then events and histories may have some."""
        return self._weights is not None

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
        if row is None:
            return {}
        added = self._given.get(self._item_tokens.tokens[row], {})
        return {
            name: values[row] if row < len(values) else as_text(added.get(name, ""))
            for name, values in self._fields.items()
        }

    def title(self, item: TokenLike) -> str:
        """The title of an item; empty if there is none, or the item is unknown.

        Raises:
            UserError: if ``item`` is neither text nor an integer.

        Example:
            >>> rec.title("i7")
            'Item 7'
        """
        row = self._item_tokens.get(item)
        if row is None or row < len(self._titles):
            return "" if row is None else self._titles[row]
        return self.fields(item).get(self.bundle.manifest["title_field"] or "", "")

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

    def update(self, events: Iterable[tuple[TokenLike, TokenLike] | tuple[TokenLike, TokenLike, float]]) -> Update:
        """Apply events to their users, one after the other, by the rule of the training.

        With ``aggregation: step`` an event does ``e_u <- beta e_u + (1 - beta) w_i e_i``, where the item's weight w_i
        is 1 without ``aggregation_alpha``.  Otherwise e_u is the mean of w_i e_i over the user's items, and the event
        adds one; with ``recency`` the later items count more, and the event is the latest.  A new user starts with its
        first event, and all its items weigh 1, as in :meth:`recommend_history` with ``rule="alike"``.  Items
        without train interactions, such as those of ``add_items``, follow their users; all others stay as trained.
        How events are divided into calls makes no difference, to the last bit.

        Args:
            events: (user, item) pairs in the order in which they happened.  Where the model was trained on weights of
                interactions, (user, item, weight); without a weight an event counts as the median of those in training.

        Raises:
            UserError: if an event is not a pair of ids, it has a weight and the model was trained without, or the users
                were trained by gradient; then no event is applied.

        Example:
            >>> update = rec.update([("u1", "i7"), ("new", "i9"), ("u1", "nothing")])
            >>> update.applied, update.new_users, update.unknown
            (2, ['new'], ['nothing'])
        """
        self._check_foldable("update")
        parsed = [as_event(event) for event in as_list(events, "events")]
        items, unknown = self._item_tokens.find(item for _, item, _ in parsed)
        tokens = [as_token(user, "user") for user, _, _ in parsed]
        given = self._weights_of([weight for _, _, weight in parsed], "events")
        known = items >= 0
        new_users: dict[Token, int] = {}
        users = np.empty(len(tokens), np.int64)
        for place, (token, is_known) in enumerate(zip(tokens, known.tolist(), strict=True)):
            row = self._user_tokens.rows.get(token, -1)
            if row < 0 and is_known:
                row = new_users.setdefault(token, len(self._user_tokens) + len(new_users))
            users[place] = row
        of_known = None if given is None else given[known]
        self._users.update(users[known], items[known], self._catalogue.settled, self._item_weight, of_known)
        self._catalogue.follow(self._users, users[known], items[known])
        for token in new_users:  # only now, so that other threads find no user without an embedding
            self._user_tokens.append(token)
        self._user_tokens.show(new_users)
        return Update(int(known.sum()), list(new_users), unknown)

    def check_events(self, weights: Iterable[float | None]) -> None:
        """Raise :class:`UserError` if :meth:`update` would refuse events with these weights, or all events.

        Example:
            >>> rec.check_events([None, None])
            >>> rec.check_events([3.0])  # doctest: +ELLIPSIS
            Traceback (most recent call last):
                ...
            recbole_onebp.util.errors.UserError: events: this bundle was trained without weights of interactions; ...
        """
        self._check_foldable("update")
        self._weights_of(list(weights), "events")

    def _weights_of(self, weights: Sequence[float | None], where: str) -> Float64Array | None:
        """The weights of interactions, ``(n,)``, the usual one where none is given; None if the model has no weights.

        Raises:
            UserError: if one is given and the model was trained without.
        """
        if self._weights is not None:
            usual = self._weights["default"]
            return np.array([usual if weight is None else weight for weight in weights], np.float64)
        if any(weight is not None for weight in weights):
            raise UserError(f"{where}: this bundle was trained without weights of interactions; leave them out")
        return None

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
        compositions = (
            compose_user(users, row, weight) if len(new) and follows(new).any() else None for row, new in having
        )
        return self._whole(users.rows(rows), compositions, table)

    def _check_foldable(self, what: str) -> None:
        if self.bundle.manifest["aggregation"] is None:
            raise UserError(
                f"{what}: the users of this bundle were trained by gradient (backprop: two) and cannot be computed "
                "from their items; train with backprop: one"
            )
