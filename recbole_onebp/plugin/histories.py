"""RecBole's sequential models as general recommenders, so that they are split and ranked as all others are.

RecBole splits and evaluates sequential models pair by pair: each test pair is predicted from all that came before,
other test pairs included.  General models rank the items once for each user, from the train part.  Here a sequential
model is asked the same: it learns to predict each train pair from the pairs of its user before, and ranks the items
once, from the latest train items.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any, ClassVar

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recbole_onebp.plugin.recommenders import ListRecommender
from recbole_onebp.util.errors import UserError

__all__ = ["HistoryModel"]

_KEYS = {"LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "item_length", "NEG_PREFIX": "neg_"}
"""RecBole's names of the fields of a sequential model."""


class HistoryModel(ListRecommender):
    """A sequential model of RecBole's with ``loss_type: CE``, fed with train histories."""

    inner: ClassVar[type[SequentialRecommender]]

    def __init__(self, config: Config, dataset: Any) -> None:
        """Put the train pairs in order, and make the model.

        Args:
            config: RecBole's configuration; ``history_length`` is the number of latest items that the model sees.
            dataset: the train data, with times.

        Raises:
            UserError: if there are no times.
        """
        super().__init__(config, dataset)
        times, pairs = dataset.time_field, dataset.inter_feat
        if times not in pairs:
            raise UserError(f"{config['model']}: needs the order of the interactions; load {times} or name TIME_FIELD")
        user, item, time = (pairs[field].numpy() for field in (self.USER_ID, self.ITEM_ID, times))
        order = np.lexsort((time, user))
        user, item = user[order], item[order]
        self._length = int(config["history_length"])
        first = np.searchsorted(user, np.arange(self.n_users + 1))
        # The items in order, with room before the first, so that the latest n are one slice.
        self._items = torch.from_numpy(np.concatenate((np.zeros(self._length, np.int64), item.astype(np.int64))))
        self._first = torch.from_numpy(first)
        key = user.astype(np.int64) * self.n_items + item
        self._key, self._place = (torch.from_numpy(array) for array in np.unique(key, return_index=True))
        self.model = self.inner(
            ChainMap({**_KEYS, "MAX_ITEM_LIST_LENGTH": self._length}, config.final_config_dict), dataset
        )

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Embeddings of histories, ``(B, d)``."""
        embeddings: Tensor = self.model(item_seq, item_seq_len)
        return embeddings

    def _histories(self, user: Tensor, end: Tensor) -> dict[str, Tensor]:
        """The latest items of users ``(B,)`` before a place in the order, as sequential models take them."""
        length = (end - self._first[user]).clamp(max=self._length)
        column = torch.arange(self._length)
        place = (end - length)[:, None] + column + self._length
        items = torch.where(column < length[:, None], self._items[place.clamp(max=len(self._items) - 1)], 0)
        # A user without a history has one of the padding item.
        return {
            self.model.ITEM_SEQ: items.to(self.device),
            self.model.ITEM_SEQ_LEN: length.clamp(min=1).to(self.device),
        }

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The loss of pairs, each predicted from those of its user before."""
        user, item = interaction[self.USER_ID].cpu(), interaction[self.ITEM_ID].cpu()
        place = self._place[torch.searchsorted(self._key, user * self.n_items + item)]
        later = place > self._first[user]  # the first pair of a user has nothing before it
        user, item, place = user[later], item[later], place[later]
        batch = {**self._histories(user, place), self.model.POS_ITEM_ID: item.to(self.device)}
        loss: Tensor = self.model.calculate_loss(batch)
        return loss

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the users with all items, flattened to ``(B * n_items,)``."""
        user = interaction[self.USER_ID].cpu()
        scores: Tensor = self.model.full_sort_predict(self._histories(user, self._first[user + 1]))
        return scores.reshape(-1)
