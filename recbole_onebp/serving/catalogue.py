"""The items of a recommender: those of the bundle, added ones, and which of them are removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.bundle import Bundle
from recbole_onebp.serving.content import HAS_FEATURES
from recbole_onebp.serving.mirror import Mirror
from recbole_onebp.serving.new_items import ItemEstimate, ItemEstimator
from recbole_onebp.serving.tables import Embeddings, Float32Array, Float64Array, ItemTable
from recbole_onebp.serving.tokens import TokenTable
from recbole_onebp.serving.user_state import Users
from recbole_onebp.util.ids import BundleRow, BundleRows, Token

__all__ = ["Catalogue"]


class Catalogue:
    """Items that come and go.  The arrays of the bundle stay as they are.

    Other threads may read while one thread changes it: weights, table and settled embeddings are replaced as a whole,
    before lookups find the tokens of new rows, and after these tokens have their names.  So a reader first looks up
    tokens, then takes the arrays, then names rows.

    Attributes:
        tokens: of all items; those of removed ones are hidden.
        table: all items as they are scored; removed ones are hidden.
        weight: of each item in its users, ``(n_items,)``; None if all weigh 1.
        settled: the embeddings that no event changes; those of items that follow their users are zero.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.tokens = TokenTable(bundle.item_ids, "item")
        self.table = ItemTable(Embeddings(bundle.item_encodings), bundle.item_bias)
        self.weight: Float32Array | None = bundle.item_weight
        self.estimator = ItemEstimator(bundle)
        self.mirror = Mirror(self.estimator)
        self._bundle = bundle
        self._is_trained = np.ones(len(self.table), bool)
        # Without features, items without users are trained too, as negatives.
        if HAS_FEATURES in bundle.manifest["files"]:
            self._is_trained = np.bincount(bundle.history_item, minlength=len(self.table)) > 0
        self._settle()

    @property
    def n_shown(self) -> int:
        """Number of items that are not removed."""
        return len(self.tokens) - len(self.tokens.hidden)

    def follows(self, items: BundleRows) -> npt.NDArray[np.bool_]:
        """Whether items ``(n,)`` follow their users, because no training knows them."""
        return ~self._is_trained[items.clip(max=len(self._is_trained) - 1)] | (items >= len(self._is_trained))

    def is_trained(self, item: Token) -> bool:
        """Whether training knows an item of the catalogue, which may be removed."""
        return not self.follows(np.array([self.tokens.rows.get(item, self.tokens.hidden.get(item))]))[0]

    def add(self, estimates: Mapping[Token, ItemEstimate | None]) -> None:
        """Add items.  One that was removed comes back: as it was for None, else as it is estimated now."""
        changed = {item: estimate for item, estimate in estimates.items() if estimate is not None}
        for item in changed:
            if item not in self.tokens.hidden:
                self.tokens.append(item)
        self._begin({self.tokens.hidden[item]: estimate for item, estimate in changed.items()})
        self._settle()
        self.tokens.show(estimates)
        self._replace(self.table)

    def _begin(self, estimates: Mapping[BundleRow, ItemEstimate]) -> None:
        """Set items to what is estimated, or what that and their users make of them."""
        if not estimates:
            return
        embeddings, bias, weight, _ = (list(column) for column in zip(*estimates.values(), strict=True))
        self._set(np.array([*estimates]), np.concatenate(embeddings), np.array(bias), np.array(weight))
        having = [
            row
            for row, estimate in estimates.items()
            if self.mirror.begin(row, None if estimate.is_of_users else estimate)
        ]
        self._set(np.array(having, np.int64), *self.mirror.estimates(np.array(having, np.int64)))

    def remove(self, items: Iterable[Token]) -> None:
        """Hide items that are in the catalogue."""
        self.tokens.hide(items)
        self._replace(self.table)

    def follow(self, users: Users, moved: BundleRows, items: BundleRows) -> None:
        """Let items follow the users of events.

        Args:
            users: all users, after the events.
            moved: the user of each event, ``(n,)``.
            items: the item of each event, ``(n,)``.
        """
        concerned = set(moved[self.follows(items)].tolist())
        concerned |= {user for user in set(moved.tolist()) if self.mirror.knows_user(user)}
        changed = set[BundleRow]()
        for user in sorted(concerned):
            taken = np.unique(users.new_items(user))
            taken = taken[self.follows(taken)]
            for row in taken.tolist():
                if row not in self.mirror:
                    self.mirror.begin(row, self._of_bundle(row))
            changed.update(taken.tolist())
            self.mirror.follow(user, users.rows(np.array([user]))[0], taken)
        rows = np.array(sorted(changed), np.int64)
        self._set(rows, *self.mirror.estimates(rows))

    def _of_bundle(self, row: BundleRow) -> ItemEstimate:
        embedding = self._bundle.item_encodings[row : row + 1].astype(np.float32)
        bias, weight = self._bundle.item_bias, self._bundle.item_weight
        return ItemEstimate(
            embedding, 0.0 if bias is None else float(bias[row]), 1.0 if weight is None else float(weight[row])
        )

    def _set(self, rows: BundleRows, embeddings: Float32Array, bias: Float64Array, weight: Float64Array) -> None:
        """Replace rows, and add those beyond the end."""
        if not len(rows):
            return
        if self.weight is not None:
            n_more = max(0, int(rows.max()) + 1 - len(self.weight))
            weights = np.concatenate((self.weight, np.zeros(n_more, np.float32)))
            weights[rows] = weight
            self.weight = weights
        self._replace(self.table.with_items(rows, embeddings, bias.astype(np.float32)))

    def _replace(self, table: ItemTable) -> None:
        """Take a table, without the items that are removed or not shown yet."""
        self.table = table.with_hidden(np.array([*self.tokens.hidden.values()], np.int64))

    def _settle(self) -> None:
        """Make :attr:`settled`."""
        following = np.flatnonzero(~self._is_trained)
        following = np.concatenate((following, np.arange(len(self._is_trained), len(self.table))))
        zeros = np.broadcast_to(np.float32(0), (len(following), self.table.embeddings.size))
        self.settled = Embeddings(self._bundle.item_encodings, following, zeros)
