"""ContentKNN: similarities of features, written out, and users that have taken nothing but warm items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_onebp
from recbole_onebp.data.item_features import item_fields
from recbole_onebp.util.errors import UserError
from support.films import GENRES, N_FILMS, N_GENRES, write_films


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("data"))


def build(films, **keys):
    return recbole_onebp.build("ContentKNN", "films", config_dict={**films, **keys})


def test_scores_are_sums_of_cosines(films):
    run = build(films, item_features=["genres"])
    dataset, model = run.train_data._dataset, run.model
    names = dataset.id2token("item_id", np.arange(1, dataset.item_num))
    count = {genre: sum(genre in own for own in GENRES.values()) for own in GENRES.values() for genre in own}
    genres = sorted(count)
    rows = np.zeros((dataset.item_num, len(genres)))
    for number, name in enumerate(names, start=1):
        for genre in GENRES[int(name[1:])]:
            rows[number, genres.index(genre)] = np.log(N_FILMS / count[genre])
    rows[1:] /= np.linalg.norm(rows[1:], axis=1, keepdims=True)
    user, item = (dataset.inter_feat[field].numpy() for field in ("user_id", "item_id"))
    taken = np.zeros((dataset.user_num, dataset.item_num))
    taken[user, item] = 1
    wanted = taken @ rows @ rows.T
    users = torch.arange(1, dataset.user_num)
    scores = model.full_sort_predict({"user_id": users}).view(len(users), -1)
    np.testing.assert_allclose(scores, wanted[1:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.predict({"user_id": users, "item_id": users}), wanted[users, users], rtol=1e-5)


def test_it_finds_films_that_nobody_has_taken(films):
    """Of the 10 cold films of the test part 1 or 2 are of a user's genre, so that a random five have half of them."""
    result = build(films, item_features=["genres"]).fit()
    assert result.test_among["cold"]["recall@5"] > 0.9
    others = recbole_onebp.build("ItemKNN", "films", config_dict={**films, "fast_evaluator": True}).fit()
    assert others.test_among["cold"]["recall@5"] < 0.7


def test_numbers_are_distances_from_the_mean(films):
    dataset = build(films, item_features="all").train_data._dataset
    genres, year = item_fields(dataset)
    assert genres.matrix.shape == (N_FILMS + 1, N_GENRES)
    assert year.tokens is None
    names = dataset.id2token("item_id", np.arange(1, dataset.item_num))
    wanted = np.array([int(name[1:]) for name in names], float)
    wanted = (wanted - wanted.mean()) / wanted.std()
    np.testing.assert_allclose(year.matrix.toarray()[1:, 0], wanted, rtol=1e-4, atol=1e-4)
    assert not year.matrix[[0]].nnz
    assert not genres.matrix[[0]].nnz


@pytest.mark.parametrize(
    ("features", "message"),
    [(["genre"], "item_features: there is no field genre; loaded are genres, year"), (["year", "x"], "no field x")],
)
def test_an_unknown_field_is_one_line(films, features, message):
    with pytest.raises(UserError, match=message):
        build(
            films,
            item_features=features,
            load_col={"inter": ["user_id", "item_id"], "item": ["item_id", "genres", "year"]},
        )


def test_without_features_it_is_one_line(films, tmp_path):
    with pytest.raises(UserError, match=r"item_features: no feature of the items is loaded: data set films"):
        build(films, load_col={"inter": ["user_id", "item_id"], "item": ["item_id"]})
