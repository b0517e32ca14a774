"""New items: an embedding, a bias and a weight, from the users who interacted with them or from their features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from recbole_onebp.serving.bundle import LARGEST_WEIGHT, LEAST_WEIGHT, Bundle
from recbole_onebp.serving.content import ItemContent
from recbole_onebp.serving.tables import Float32Array, IntArray, dots, unit_rows
from recbole_onebp.util.ids import Token

__all__ = ["Alike", "ItemEstimate", "ItemEstimator"]

_SIMILARLY_POPULAR = 100
"""Number of items whose length and bias are averaged for a new item."""


class ItemEstimate(NamedTuple):
    """What the arrays of a bundle would hold for an item."""

    embedding: Float32Array
    """(1, d)"""
    bias: float
    weight: float
    is_of_users: bool = False
    """Whether it is made of users alone, not of features."""


class Alike(NamedTuple):
    """What the trained items with about as many users have."""

    length: float
    """Mean length of their embeddings."""
    bias: float
    """Mean bias."""
    weight: float
    """What training gives to an item with so many users."""


class ItemEstimator:
    """Estimates new items.

    From users: the embedding points in their mean direction; length, bias and weight are those of trained items with
    about as many users.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._alike: dict[int, Alike] = {}

    @property
    def size(self) -> int:
        """Dimension d."""
        return int(self._bundle.manifest["embedding_size"])

    def of_users(self, user_e: Float32Array) -> ItemEstimate | str:
        """The estimate of an item from the users ``(n, d)`` who interacted with it, or why there is none."""
        direction = unit_rows(unit_rows(user_e).astype(np.float64).sum(axis=0, keepdims=True))
        if not direction.any():
            return "none of its users is in the bundle" if not len(user_e) else "its users cancel out"
        length, bias, weight = self.alike(len(user_e))
        return ItemEstimate(direction * np.float32(length), bias, weight, is_of_users=True)

    def alike(self, n_users: int) -> Alike:
        """Means of the 100 trained items whose numbers of users are closest."""
        found = self._alike.get(n_users)
        if found is None:
            trained = np.flatnonzero(self._popularity)
            distance = np.abs(self._popularity[trained] - n_users)
            closest = trained[np.argsort(distance, kind="stable")[:_SIMILARLY_POPULAR]]
            rows = self._bundle.item_encodings[closest].astype(np.float32)
            length = 1.0 if self._bundle.cosine or not len(rows) else float(np.sqrt(dots(rows, rows)).mean())
            bias = self._bundle.item_bias
            mean_bias = 0.0 if bias is None or not len(rows) else float(bias[closest].mean())
            found = self._alike[n_users] = Alike(length, mean_bias, self._weight(n_users))
        return found

    def _weight(self, n_users: int) -> float:
        """Weight of an item with so many users, see :func:`recbole_onebp.functional.popularity_weights`."""
        aggregation = self._bundle.manifest["aggregation"]
        alpha = float(aggregation["alpha"]) if aggregation else 0.0
        counts = self._popularity[self._popularity > 0]
        if not len(counts):
            return 1.0
        with np.errstate(over="ignore"):
            weight = float((n_users / counts.mean()) ** -alpha)
        return min(max(weight, LEAST_WEIGHT), LARGEST_WEIGHT)

    @cached_property
    def content(self) -> ItemContent:
        """The features of items.

        Raises:
            UserError: if the bundle has none, or they are damaged.
        """
        return ItemContent.read(self._bundle)

    def of_features(
        self, item: Token, given: Mapping[str, Any], shown: Iterable[str] = ()
    ) -> tuple[ItemEstimate | str, list[Token]]:
        """The estimate of an item from its features, or the reason why there is none; and the unknown values.

        Args:
            item: its id, for messages.
            given: its fields.
            shown: fields that are shown, and left out here if they are no features.

        Raises:
            UserError: for a field that the bundle does not have, or a value of the wrong kind.
        """
        left_out = set(shown).difference(self.content.names)
        features = {name: value for name, value in given.items() if name not in left_out}
        embedding, bias, unknown = self.content.encode(item, features)
        if self._bundle.cosine:
            embedding = unit_rows(embedding)
        if not embedding.any():
            return "has no value that counts in the bundle", unknown
        return ItemEstimate(embedding, bias, self._weight(1)), unknown

    @cached_property
    def _popularity(self) -> IntArray:
        """Number of train interactions of each item of the bundle, ``(n_items,)``."""
        return np.bincount(self._bundle.history_item, minlength=len(self._bundle.item_encodings))
