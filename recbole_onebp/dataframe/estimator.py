"""OneBP as an estimator of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from recbole_onebp.dataframe.recommender import FittedRecommender
from recbole_onebp.dataframe.training import fit
from recbole_onebp.serving.answers import Answers
from recbole_onebp.util.ids import TokenLike

__all__ = ["OneBPRecommender"]


class OneBPRecommender(BaseEstimator):
    """:func:`recbole_onebp.fit` as an estimator, for ``clone``, ``cross_validate`` and ``GridSearchCV``.

    Attributes:
        recommender_: the trained recommender, after :meth:`fit`.

    Example:
        >>> from sklearn.base import clone
        >>> model = OneBPRecommender(user="customer", item="sku", epochs=2)
        >>> clone(model).set_params(embedding_size=8)
        OneBPRecommender(embedding_size=8, epochs=2, item='sku', user='customer')
    """

    recommender_: FittedRecommender

    def __init__(self, **settings: Any) -> None:
        """Keep the arguments of :func:`recbole_onebp.fit` other than the data; :meth:`fit` checks them."""
        self._settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings that were given.

        Example:
            >>> OneBPRecommender(epochs=2).get_params()
            {'epochs': 2}
        """
        return dict(self._settings)

    def set_params(self, **params: Any) -> OneBPRecommender:
        """Change settings, or add some.

        Example:
            >>> OneBPRecommender(epochs=2).set_params(epochs=3).get_params()
            {'epochs': 3}
        """
        self._settings = {**self._settings, **params}
        return self

    def fit(self, X: Any, y: None = None) -> OneBPRecommender:  # noqa: N803  scikit-learn's name
        """Train on a table of interactions; see :func:`recbole_onebp.fit`.  ``y`` is not used.

        Example:
            >>> model = OneBPRecommender(epochs=2, show_progress=False)
            >>> model.fit(pairs).recommender_  # pairs: a DataFrame with the columns user and item
            <FittedRecommender: 20 users, 12 items>
        """
        self.recommender_ = fit(X, **self._settings)
        return self

    def recommend(self, users: Iterable[TokenLike], k: int = 10, **options: Any) -> Answers:
        """The best items of users; see :meth:`recbole_onebp.Recommender.recommend`.

        Example:
            >>> [len(answer) for answer in model.recommend(["u1", "nobody"], k=3)]
            [3, 0]
        """
        check_is_fitted(self, "recommender_")
        return self.recommender_.recommend(users, k, **options)

    def score(self, X: Any, y: None = None) -> float:  # noqa: N803
        """The ``valid_metric`` (MRR@10 by default) of a table; see :meth:`FittedRecommender.evaluate`.

        Example:
            >>> 0 <= model.score(test) <= 1  # test: a DataFrame like pairs
            True
        """
        check_is_fitted(self, "recommender_")
        metric = self.recommender_.bundle.manifest["config"]["valid_metric"]
        return next(iter(self.recommender_.evaluate(X, [metric]).values()))
