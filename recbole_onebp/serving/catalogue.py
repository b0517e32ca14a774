"""The items of a recommender: those of the bundle, added ones, and which of them are removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from recbole_onebp.serving.bundle import Bundle
from recbole_onebp.serving.new_items import ItemEstimate
from recbole_onebp.serving.tables import Embeddings, Float32Array, ItemTable
from recbole_onebp.serving.tokens import TokenTable
from recbole_onebp.util.ids import Token

__all__ = ["Catalogue"]


class Catalogue:
    """Items that come and go.  The arrays of the bundle stay as they are.

    Other threads may read while one thread changes it: the weights and the table are replaced as a whole, and before
    the tokens by which their new rows are found.

    Attributes:
        tokens: of all items; those of removed ones are hidden.
        table: all items as they are scored; removed ones are hidden.
        weight: of each item in its users, ``(n_items,)``; None if all weigh 1.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.tokens = TokenTable(bundle.item_ids, "item")
        self.table = ItemTable(Embeddings(bundle.item_encodings), bundle.item_bias)
        self.weight: Float32Array | None = bundle.item_weight
        self._is_trained = np.bincount(bundle.history_item, minlength=len(self.table)) > 0

    @property
    def n_shown(self) -> int:
        """Number of items that are not removed."""
        return len(self.tokens) - len(self.tokens.hidden)

    def is_trained(self, item: Token) -> bool:
        """Whether the item, which may be removed, has train interactions."""
        row = self.tokens.rows.get(item, self.tokens.hidden.get(item, len(self._is_trained)))
        return row < len(self._is_trained) and bool(self._is_trained[row])

    def add(self, estimates: Mapping[Token, ItemEstimate | None]) -> None:
        """Add items.  One that was removed comes back: as it was for None, else as it is estimated now."""
        if not estimates:
            return
        changed = {item: estimate for item, estimate in estimates.items() if estimate is not None}
        back = [item for item in estimates if item in self.tokens.hidden]
        fresh = [item for item in changed if item not in self.tokens.hidden]
        if changed:
            row_of = {**self.tokens.hidden, **{item: len(self.tokens) + place for place, item in enumerate(fresh)}}
            rows = np.array([row_of[item] for item in changed])
            embeddings, bias, weight = (list(column) for column in zip(*changed.values(), strict=True))
            if self.weight is not None:
                more = np.concatenate((self.weight, np.zeros(len(fresh), np.float32)))
                more[rows] = weight
                self.weight = more
            self.table = self.table.with_items(rows, np.concatenate(embeddings), np.array(bias, np.float32))
        for item in fresh:
            self.tokens.add(item)
        self.tokens.show(back)
        self._hide_rows()

    def remove(self, items: Iterable[Token]) -> None:
        """Hide items that are in the catalogue."""
        self.tokens.hide(items)
        self._hide_rows()

    def _hide_rows(self) -> None:
        self.table = self.table.with_hidden(np.array([*self.tokens.hidden.values()], np.int64))
