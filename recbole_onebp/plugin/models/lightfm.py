"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.lightfm``; see :mod:`registration`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from recbole.config import Config

from recbole_onebp.data.item_embeddings import reads_features
from recbole_onebp.data.item_features import item_fields
from recbole_onebp.plugin.outside import OutsideModel

__all__ = ["LightFM"]


class LightFM(OutsideModel):
    """The hybrid model of the library ``lightfm`` (Kula 2015), with WARP: an item is its id and its values.

    ``item_features`` are read as OneBP reads them: the values of a field by TF-IDF, of length 1 in every item.
    """

    package = "lightfm"

    def fit(self, pairs: sp.csr_matrix, config: Config, dataset: Any) -> Any:
        """The embeddings of users and items, with their biases."""
        from lightfm import LightFM as Model

        values = item_fields(dataset, config["item_features"]) if reads_features(config) else []
        features = sp.hstack([sp.identity(pairs.shape[1]), *(field.matrix[1:] for field in values)], "csr", np.float32)
        for name in ("indices", "indptr"):  # LightFM reads indices of 4 bytes only
            setattr(features, name, getattr(features, name).astype(np.int32))
        model = Model(
            no_components=config["embedding_size"],
            loss="warp",
            learning_rate=config["learning_rate"],
            item_alpha=config["reg_weight"],
            user_alpha=config["reg_weight"],
            random_state=config["seed"],
        )
        model.fit(
            pairs.tocoo(), item_features=features, epochs=config["n_iterations"], num_threads=torch.get_num_threads()
        )
        return model.get_user_representations(), model.get_item_representations(features)

    def scores(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Scores of all items for rows of the matrix ``(B,)``, shape ``(B, n_items - 1)``."""
        (user_bias, user_e), (item_bias, item_e) = self._fitted
        scores: npt.NDArray[np.float32] = user_e[users] @ item_e.T + item_bias + user_bias[users, None]
        return scores
