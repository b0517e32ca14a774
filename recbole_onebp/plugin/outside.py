"""Models of other libraries as models of RecBole, so that a comparison can have them too."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_onebp.plugin.recommenders import UntrainedRecommender

__all__ = ["Fitted", "ImplicitModel", "OutsideModel"]


class Fitted(Protocol):
    """What :meth:`OutsideModel.fit` returns; models of ``implicit`` are such."""

    def recommend(
        self,
        userid: npt.NDArray[np.int64],
        user_items: sp.csr_matrix,
        N: int,  # noqa: N803
        filter_already_liked_items: bool,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """The N best items of users ``(B,)`` and their scores, ``(B, N)`` each."""


class OutsideModel(UntrainedRecommender):
    """A model of another library.  It is fitted once, on the matrix of the train pairs.

    A subclass has the name of its module, which lies where RecBole looks for models, and implements :meth:`fit`.  Where
    the library knows scores, and not only lists, it overrides :meth:`scores`.

    Example:
        A model of your own: put ``mine.py`` and ``Mine.yaml``, with the defaults of its keys, into a folder, and name
        the folder in the environment variable ``RECBOLE_ONEBP_MODELS``.  Then ``--model=Mine`` works everywhere.

        >>> from recbole_onebp.plugin.outside import OutsideModel
        >>> class Mine(OutsideModel):
        ...     def fit(self, pairs, config, dataset):
        ...         from implicit.nearest_neighbours import CosineRecommender
        ...
        ...         model = CosineRecommender(K=config["k"], num_threads=1)
        ...         model.fit(pairs, show_progress=False)
        ...         return model
    """

    package: ClassVar[str] = ""
    """What it imports; where that is not installed, a run or a comparison says so before it begins."""

    def __init__(self, config: Config, dataset: Any) -> None:
        """Fit the model.

        Args:
            config: RecBole's configuration.
            dataset: the train data.
        """
        super().__init__(config, dataset)
        taken = sp.csr_matrix(dataset.inter_matrix(form="csr"), dtype=np.float32)
        taken.data[:] = 1
        # Row 0 of RecBole's users and items is padding, which other libraries would take for one more of them.
        self._pairs: sp.csr_matrix = taken[1:, 1:]
        self._fitted = self.fit(self._pairs, config, dataset)

    def fit(self, pairs: sp.csr_matrix, config: Config, dataset: Any) -> Any:
        """Fit a model.

        Args:
            pairs: 1 for each train pair, float32 ``(n_users - 1, n_items - 1)``.
            config: RecBole's configuration, with the keys of the model.
            dataset: the train data, for what else a model reads.
        """
        raise NotImplementedError

    def scores(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Scores of all items for rows of the matrix ``(B,)``, shape ``(B, n_items - 1)``."""
        items, found = self._fitted.recommend(users, self._pairs[users], self.n_items - 1, False)
        # Models of neighbours name only items with a score above 0, and fill up with item -1, or the lowest number.
        scores = np.zeros((len(users), self.n_items - 1), np.float32)
        row, column = np.nonzero((items >= 0) & (found > np.finfo(np.float32).min))
        scores[row, items[row, column]] = found[row, column]
        return scores

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the users with all items, flattened to ``(B * n_items,)``."""
        users = interaction[self.USER_ID].cpu().numpy()
        scores = np.zeros((len(users), self.n_items), np.float32)
        scores[:, 1:] = self.scores(users - 1)
        return torch.from_numpy(scores).view(-1).to(self.device)


class ImplicitModel(OutsideModel):
    """A model of the library ``implicit`` whose scores are products of the factors of users and items."""

    package = "implicit"
    module: ClassVar[str]
    kind: ClassVar[str]
    """The name of the class."""
    own_keys: ClassVar[tuple[str, ...]]
    """Settings that have the same name in the library, in addition to those of all models."""

    def fit(self, pairs: sp.csr_matrix, config: Config, dataset: Any) -> Any:
        """A fitted model of the library."""
        model = getattr(import_module(self.module), self.kind)(
            factors=config["embedding_size"],
            regularization=config["reg_weight"],
            iterations=config["n_iterations"],
            num_threads=torch.get_num_threads(),
            random_state=config["seed"],
            **{key: config[key] for key in self.own_keys},
        )
        model.fit(pairs, show_progress=False)
        return model

    def scores(self, users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Scores of all items for rows of the matrix ``(B,)``, shape ``(B, n_items - 1)``."""
        scores: npt.NDArray[np.float32] = self._fitted.user_factors[users] @ self._fitted.item_factors.T
        return scores
