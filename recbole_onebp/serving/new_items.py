"""New items: an embedding, a bias and a weight, from the users who interacted with them or from their features."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from recbole_onebp.serving.bundle import LARGEST_WEIGHT, LEAST_WEIGHT, Bundle
from recbole_onebp.serving.content import ItemContent
from recbole_onebp.serving.tables import Float32Array, IntArray, ItemTable, dots, unit_rows
from recbole_onebp.util.ids import Token

__all__ = ["ItemEstimate", "ItemEstimator"]

_SIMILARLY_POPULAR = 100
"""Number of items whose length and bias are averaged for a new item."""


class ItemEstimate(NamedTuple):
    """What the arrays of a bundle would hold for an item."""

    embedding: Float32Array
    """(1, d)"""
    bias: float
    weight: float


class ItemEstimator:
    """Estimates new items.

    The embedding points in the mean direction of the users.  Its length and the bias are the means over the items of
    the bundle that are about as popular; the weight is the one that training gives to an item of this popularity.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def estimate(self, user_e: Float32Array, items: ItemTable) -> ItemEstimate | str:
        """The estimate of one item, or the reason why there is none.

        Args:
            user_e: embeddings of the users who interacted with it, ``(n, d)``.
            items: the table of items; the rows of the bundle come first.
        """
        direction = unit_rows(unit_rows(user_e).astype(np.float64).sum(axis=0, keepdims=True))
        if not direction.any():
            return "none of its users is in the bundle" if not len(user_e) else "its users cancel out"
        length, bias = self._length_and_bias(len(user_e), items)
        return ItemEstimate(direction * np.float32(length), bias, self._weight(len(user_e)))

    def _length_and_bias(self, n_users: int, items: ItemTable) -> tuple[float, float]:
        """Mean length and bias of the items with about as many users."""
        closest = np.argsort(np.abs(self._popularity - n_users), kind="stable")[:_SIMILARLY_POPULAR]
        rows = items.embeddings.rows(closest)
        length = 1.0 if self._bundle.cosine else float(np.sqrt(dots(rows, rows)).mean())
        return length, 0.0 if items.bias is None else float(items.bias[closest].mean())

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

    def of_features(self, item: Token, features: Mapping[str, Any]) -> tuple[ItemEstimate | str, list[Token]]:
        """The estimate of an item from its features, or the reason why there is none; and the unknown values.

        Raises:
            UserError: for a field that the bundle does not have, or a value of the wrong kind.
        """
        embedding, bias, unknown = self.content.encode(item, features)
        if self._bundle.cosine:
            embedding = unit_rows(embedding)
        if not embedding.any():
            return "none of its values is in the bundle", unknown
        return ItemEstimate(embedding, bias, self._weight(1)), unknown

    @cached_property
    def _popularity(self) -> IntArray:
        """Number of train interactions of each item of the bundle, ``(n_items,)``."""
        return np.bincount(self._bundle.history_item, minlength=len(self._bundle.item_encodings))
