"""``OneBPRecommender`` in scikit-learn's tools."""

from __future__ import annotations

import doctest
import pickle

import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, ShuffleSplit

from recbole_onebp import OneBPRecommender, fit
from recbole_onebp.dataframe import estimator
from recbole_onebp.util.errors import UserError
from support.interactions import FAST


def test_it_is_fit(frame):
    model = OneBPRecommender(time="timestamp", **FAST)
    assert model.fit(frame) is model
    rec = fit(frame, time="timestamp", **FAST)
    assert model.recommend(range(30), k=4) == rec.recommend(range(30), k=4)
    test = frame.groupby("user_id").tail(1).assign(item_id=24)
    assert model.score(test) == rec.evaluate(test, ["mrr@10"])["mrr@10"]


def test_parameters(frame):
    model = OneBPRecommender(epochs=3)
    copy = clone(model).set_params(epochs=4, user="customer")
    assert (model.get_params(), copy.get_params()) == ({"epochs": 3}, {"epochs": 4, "user": "customer"})
    with pytest.raises(UserError, match="epoch: fit and OneBP have no such argument or key; did you mean epochs"):
        OneBPRecommender(epoch=3).fit(frame)


def test_it_says_that_it_is_not_fitted(pairs):
    for ask in (lambda model: model.recommend([1]), lambda model: model.score(pairs)):
        with pytest.raises(NotFittedError, match="This OneBPRecommender instance is not fitted yet"):
            ask(OneBPRecommender())


def test_grid_search(frame):
    search = GridSearchCV(OneBPRecommender(**FAST), {"embedding_size": [2, 8]}, cv=ShuffleSplit(2, random_state=0))
    search.fit(frame)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_ == {"embedding_size": [2, 8][scores.argmax()]}
    assert scores[0] != scores[1]
    copy = pickle.loads(pickle.dumps(search.best_estimator_))
    assert copy.recommend([1]) == search.best_estimator_.recommend([1])
    assert copy.recommender_.bundle.manifest["embedding_size"] == search.best_params_["embedding_size"]


def test_the_examples_of_the_docstrings():
    rows = [(f"u{user}", f"i{item}") for user in range(20) for item in range(12) if (user + item) % 2]
    pairs = pd.DataFrame(rows, columns=["user", "item"])
    trained = OneBPRecommender(epochs=2, show_progress=False).fit(pairs)
    given = {"pairs": pairs, "test": pd.DataFrame({"user": ["u0"], "item": ["i0"]}), "model": trained}
    assert doctest.testmod(estimator, extraglobs=given) == (0, 9)
