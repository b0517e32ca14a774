"""New items, and removed ones, in a recommender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from recbole_onebp.serving.answers import FeaturePart, NewItems, RemovedItems
from recbole_onebp.serving.bundle_state import BundleState
from recbole_onebp.serving.content import HAS_FEATURES
from recbole_onebp.serving.new_items import ItemEstimate
from recbole_onebp.serving.tables import TINY, Float32Array, unit_rows
from recbole_onebp.serving.tokens import as_list, as_new_token, as_token
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRow, Token, TokenLike

__all__ = ["ChangingItems", "Described"]

_Description: TypeAlias = Iterable[TokenLike] | Mapping[str, Any]
Described: TypeAlias = Mapping[str, _Description] | Mapping[TokenLike, _Description]
"""For each new item the users who interacted with it, or its fields."""


class ChangingItems(BundleState):
    """The part of a recommender that adds and removes items."""

    @property
    def n_added_items(self) -> int:
        """Number of items that were added to those of the bundle, removed ones included."""
        return len(self._item_tokens) - len(self.bundle.item_ids)

    def remembers_item(self, item: Token) -> bool:
        """Whether an item is known, or was removed.

        Example:
            >>> removed = rec.remove_items(["i8"])
            >>> rec.knows_item("i8"), rec.remembers_item("i8"), rec.remembers_item("nothing")
            (False, True, False)
            >>> back = rec.add_items({"i8": []})
        """
        return item in self._item_tokens or item in self._item_tokens.hidden

    def add_items(self, items: Described) -> NewItems:
        """Add new items, from the users who interacted with them or from their features.

        From users: the embedding of a new item points in the mean direction of its users.  Length, bias and weight are
        those of items that are about as popular.  The interactions are then applied as events.

        From features, where the model was trained with ``item_features``: embedding and bias are what the item tower
        makes of the features.  Other fields of the bundle's items, such as titles, are shown.

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
        for item, given in ((as_token(name, "item"), one) for name, one in items.items()):
            if item in estimates and isinstance(given, Mapping) and given:
                self._given[item] = dict(given)
        self._catalogue.add(estimates)
        self.update(events)
        return report

    def check_items(self, items: Described) -> NewItems:
        """What :meth:`add_items` would add and what not.  Nothing is added.

        Raises:
            UserError: as :meth:`add_items`.

        Example:
            >>> rec.check_items({"i3": ["u1"]}).refused
            {'i3': 'is in the bundle already'}
        """
        return self._checked(items)[1]

    def _checked(
        self, items: Described
    ) -> tuple[dict[Token, ItemEstimate | None], NewItems, list[tuple[Token, Token]]]:
        """The estimates of items that can be added, the report, and the events of their users."""
        self._check_foldable("add_items")
        if not isinstance(items, Mapping):
            raise UserError(f"items: expected a mapping of ids to users or fields, got {type(items).__name__}")
        refused, unknown = dict[Token, str](), dict[Token, None]()
        estimates, events = dict[Token, ItemEstimate | None](), list[tuple[Token, Token]]()
        for item, one in ((as_token(name, "item"), given) for name, given in items.items()):
            if not self.remembers_item(item):
                as_new_token(item, "item")
            estimate: ItemEstimate | str | None
            is_described = isinstance(one, Mapping)
            users = [] if is_described else [as_token(user, "user") for user in as_list(one, "users")]
            rows, missing = self._user_tokens.find(users)
            if item in self._item_tokens:
                estimate = "is in the bundle already"
            elif item in self._item_tokens.hidden and (not one or self._catalogue.is_trained(item)):
                estimate = None
            elif isinstance(one, Mapping):
                estimate, missing = self._catalogue.estimator.of_features(item, one, shown=self._fields)
            else:
                estimate = self._catalogue.estimator.of_users(self._users.rows(rows[rows >= 0]))
            unknown.update(dict.fromkeys(missing))
            if isinstance(estimate, str):
                refused[item] = estimate
                continue
            estimates[item] = estimate
            events += [(user, item) for user, row in zip(users, rows.tolist(), strict=True) if row >= 0]
        return estimates, NewItems(list(estimates), refused, list(unknown)), events

    def _feature_parts(self, target: BundleRow, user_e: Float32Array) -> list[FeaturePart]:
        """What the features of an item add to its score by a user ``(1, d)``; empty if training knows the item."""
        item, catalogue = self._item_tokens.tokens[target], self._catalogue
        if not catalogue.follows(np.array([target]))[0] or HAS_FEATURES not in self.bundle.manifest["files"]:
            return []
        content = catalogue.estimator.content
        is_added = target >= len(self.bundle.item_ids)
        given = self._given.get(item, {}) if is_added else self.fields(item)
        features = {name: value for name, value in given.items() if name in content.names and value != ""}
        if not is_added:
            features = {name: content.values(name, text) for name, text in features.items()}
        share = catalogue.mirror.share_of_features(target)
        if self.bundle.cosine:
            share /= max(float(np.linalg.norm(content.encode(item, features)[0])), TINY)
            user_e = unit_rows(user_e)
        products = content.products(item, features, user_e[0])
        parts = [FeaturePart(name, value, share * product) for name, value, product in products]
        return sorted(parts, key=lambda part: -part.score)

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
