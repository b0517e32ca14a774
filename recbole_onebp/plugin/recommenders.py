"""What our models other than OneBP have in common, as RecBole's trainer and evaluation call them."""

from __future__ import annotations

from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor, nn

__all__ = ["ListRecommender", "UntrainedRecommender"]


class ListRecommender(GeneralRecommender):
    """A model that scores all items at once: single pairs are picked from them."""

    input_type: InputType = InputType.POINTWISE

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of pairs of users and items, ``(B,)``."""
        scores = self.full_sort_predict(interaction).view(-1, self.n_items)
        return scores.gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)


class UntrainedRecommender(ListRecommender):
    """A model that is ready when it is made, such as ``ItemKNN`` of RecBole's."""

    type: ModelType = ModelType.TRADITIONAL

    def __init__(self, config: Config, dataset: Any) -> None:
        """Call this first.

        Args:
            config: RecBole's configuration.
            dataset: the train data.
        """
        super().__init__(config, dataset)
        self._unused = nn.Parameter(torch.zeros(1))  # RecBole makes an optimizer of the parameters

    def forward(self) -> None:
        """Do nothing: there is nothing to train."""

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Zero, for RecBole's trainer."""
        return self._unused.sum()
