"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.contentknn``; see :mod:`registration`."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_onebp.data.item_features import item_fields
from recbole_onebp.plugin.recommenders import UntrainedRecommender

__all__ = ["ContentKNN"]


class ContentKNN(UntrainedRecommender):
    """The score of an item is the sum of its similarities to the user's train items, by features; nothing is trained.

    The similarity of two items is the sum over the fields of the cosine of their values, weighted by TF-IDF (for
    numbers the product of their distances from the mean).  So items that nobody has taken yet have scores.  This is the
    baseline of whatever learns from features.
    """

    def __init__(self, config: Config, dataset: Any) -> None:
        """Build the profiles of the users.

        Args:
            config: RecBole's configuration; ``item_features`` names the fields, by default all that are loaded.
            dataset: the train data.

        Raises:
            UserError: if there are no such fields.
        """
        super().__init__(config, dataset)
        fields = item_fields(dataset, config["item_features"])
        self._items = sp.csr_array(sp.hstack([field.matrix for field in fields]))  # (n_items, n_values)
        taken = dataset.inter_matrix(form="csr").astype(np.float32)
        taken.data[:] = 1
        self._users = sp.csr_array(taken @ self._items)  # (n_users, n_values)

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of pairs of users and items, ``(B,)``."""
        user, item = (interaction[field].cpu().numpy() for field in (self.USER_ID, self.ITEM_ID))
        return torch.from_numpy(self._users[user].multiply(self._items[item]).sum(axis=1)).to(self.device)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the users with all items, flattened to ``(B * n_items,)``."""
        users = self._users[interaction[self.USER_ID].cpu().numpy()]
        return torch.from_numpy((users @ self._items.T).toarray()).view(-1).to(self.device)
