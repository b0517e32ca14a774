"""Found by RecBole's ``get_model`` as ``recbole.model.general_recommender.implicitals``; see :mod:`registration`."""

from __future__ import annotations

from typing import Any

import scipy.sparse as sp
import torch
from recbole.config import Config

from recbole_onebp.plugin.outside import FactorModel

__all__ = ["ImplicitALS"]


class ImplicitALS(FactorModel):
    """Alternating least squares of the library ``implicit`` (Hu et al. 2008; Takács et al. 2011)."""

    def fit(self, pairs: sp.csr_matrix, config: Config, dataset: Any) -> Any:
        """A fitted ``AlternatingLeastSquares``."""
        from implicit.als import AlternatingLeastSquares

        model = AlternatingLeastSquares(
            factors=config["embedding_size"],
            regularization=config["reg_weight"],
            alpha=config["alpha"],
            iterations=config["n_iterations"],
            num_threads=torch.get_num_threads(),
            random_state=config["seed"],
        )
        model.fit(pairs, show_progress=False)
        return model
