"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.implicitbpr``; see :mod:`registration`."""

from __future__ import annotations

from typing import Any

import scipy.sparse as sp
import torch
from recbole.config import Config

from recbole_onebp.plugin.outside import FactorModel

__all__ = ["ImplicitBPR"]


class ImplicitBPR(FactorModel):
    """BPR of the library ``implicit`` (Rendle et al. 2009)."""

    def fit(self, pairs: sp.csr_matrix, config: Config, dataset: Any) -> Any:
        """A fitted ``BayesianPersonalizedRanking``."""
        from implicit.bpr import BayesianPersonalizedRanking

        model = BayesianPersonalizedRanking(
            factors=config["embedding_size"],
            learning_rate=config["learning_rate"],
            regularization=config["reg_weight"],
            iterations=config["n_iterations"],
            num_threads=torch.get_num_threads(),
            random_state=config["seed"],
        )
        model.fit(pairs, show_progress=False)
        return model
