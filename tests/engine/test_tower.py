"""Items with features: the fast engine against autograd, cold items, ids left out, settings that contradict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_onebp
from recbole_onebp.data.item_features import item_fields
from recbole_onebp.engine.cpu_tower import TowerEngine
from recbole_onebp.engine.cuda_tower import DeviceTowerEngine
from recbole_onebp.util.errors import UserError
from support.draws import SameDraws
from support.films import COLD, write_films


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("data"))


def build(films, **keys):
    sizes = {"embedding_size": 8, "n_shared_negatives": 16, "train_batch_size": 32, "learning_rate": 0.02, "epochs": 3}
    sizes["local"] = "none"  # the towers alone
    settings = {**films, "item_features": "all", **sizes, **keys}
    return recbole_onebp.build("OneBP", "films", config_dict=settings)


@pytest.mark.parametrize("engine", [TowerEngine, DeviceTowerEngine])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"learner": "sparse_adam", "id_dropout": 0.5},
        {"weight_decay": 0.01, "id_dropout": 0.3},
        {"score": "dot", "item_bias": False},
        {"negative_weight": 1.25, "aggregation": "epoch"},
        {"id_dropout": 1.0, "item_features": ["genres"]},
        {"aggregation_interval": 3, "logq_correction": True, "beta": 0.5},
    ],
)
def test_tables_and_moments_agree_with_autograd(films, engine, options):
    reference, fast = build(films, engine="reference", **options), build(films, engine="fast", **options)
    trainer = fast.trainer
    schedule = trainer._schedule_of(fast.train_data)
    trainer._engine = engine(fast.model, trainer.optimizer, schedule, trainer.value_optimizer)
    for epoch in range(3):
        expected = reference.trainer._train_epoch(SameDraws(fast, epoch), epoch)
        assert fast.trainer._train_epoch(fast.train_data, epoch) == pytest.approx(expected, rel=1e-4)
    theirs, ours = reference.model.state_dict(), fast.model.state_dict()
    assert theirs.keys() == ours.keys()
    assert {"item_table", "tower.id_table", "tower.value_table"} < ours.keys()
    for name, table in theirs.items():
        torch.testing.assert_close(ours[name], table, rtol=0, atol=2e-5)
    for name in ("optimizer", "value_optimizer"):
        theirs, ours = (getattr(run.trainer, name).state_dict()["state"] for run in (reference, fast))
        assert theirs.keys() == ours.keys()
        for number, state in theirs.items():
            assert float(ours[number]["step"]) == float(state["step"])
            torch.testing.assert_close(ours[number]["ema"], state["ema"], rtol=0, atol=2e-5)
            for moment in ("exp_avg", "exp_avg_sq"):
                dense = state[moment].to_dense() if state[moment].is_sparse else state[moment]
                torch.testing.assert_close(ours[number][moment], dense, rtol=2e-3, atol=1e-6)


def test_rows_are_ids_and_values(films):
    run = build(films)
    run.fit()
    model, dataset = run.model, run.train_data._dataset
    features = np.concatenate([field.matrix.toarray() for field in item_fields(dataset)], axis=1)
    tower = model.tower
    values = 0.5 * tower.value_table.detach().numpy()  # a field weighs half of the id
    np.testing.assert_array_equal(tower.values()[0], values)
    wanted = tower.id_table.detach().numpy() + features @ values
    np.testing.assert_allclose(model.item_table, wanted, atol=1e-6)
    bias = tower.id_bias.detach().numpy() + features @ tower.values()[1].numpy()
    bias[1:][~tower.has_id[1:]] += model.new_item_bias.numpy()
    np.testing.assert_allclose(model.item_bias, bias, atol=1e-6)
    cold = dataset.token2id("item_id", [f"f{film}" for film in (*COLD["valid"], *COLD["test"])])
    assert not tower.id_table[cold].any()
    assert not tower.id_bias[cold].any()
    assert model.item_table[cold].norm(dim=1).min() > 0


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_films_that_nobody_has_taken_are_recommended(films, engine):
    """A user takes the films of its genre, one or two of the ten cold ones: five at random have half of them."""
    keys = {"epochs": 10, "engine": engine}
    with_features = build(films, item_features=["genres"], **keys).fit()
    ids = build(films, item_features="none", **keys).fit()
    assert with_features.test_among["cold"]["recall@5"] > 0.8
    assert ids.test_among["cold"]["recall@5"] < 0.7
    assert with_features.test["ndcg@5"] > ids.test["ndcg@5"]
    assert with_features.test_among["warm"]["ndcg@5"] > 0.95 * ids.test_among["warm"]["ndcg@5"]


def test_ids_are_left_out_at_the_rate_that_is_asked_for(films):
    run = build(films, id_dropout=0.25)
    schedule = run.trainer._schedule_of(run.train_data)
    kept = np.concatenate([schedule.kept_ids(step, epoch) for step in range(20) for epoch in range(5)])
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_array_equal(schedule.kept_ids(3, 1), schedule.kept_ids(3, 1))
    assert (schedule.kept_ids(3, 1) != schedule.kept_ids(4, 1)).any()


def test_items_without_train_pairs_are_no_negatives(films):
    run = build(films)
    schedule, train = run.trainer._schedule_of(run.train_data), run.train_data._dataset
    drawn = np.concatenate([schedule.shared_negatives(step, 0) for step in range(200)])
    assert {*drawn.tolist()} == {*train.inter_feat["item_id"].tolist()}


def test_a_resumed_run_is_the_same_bit_for_bit(films, tmp_path):
    films = {**films, "id_dropout": 0.3}
    whole = build(films, epochs=4, output_dir=str(tmp_path / "whole"))
    whole.fit()
    build(films, epochs=2, output_dir=str(tmp_path / "half")).fit()
    resumed = build(films, epochs=4, output_dir=str(tmp_path / "half"), resume="auto")
    resumed.fit()
    for name, table in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], table), name


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"negatives": "per_pair"}, "items with features are trained with negatives: shared"),
        ({"aggregation": "step"}, "aggregation: interval or epoch"),
        ({"backprop": "two"}, "item_features with backprop: two: items with features are trained with backprop: one"),
        ({"item_features": ["genres", "x"]}, "x"),
        ({"item_features": "genres"}, r"'genres' is not allowed: .* or a list, such as \[genres\]"),
        ({"item_features": 3}, "item_features: 3 is not allowed: input should be 'none' or 'all', or a valid list"),
        ({"id_dropout": 1.5}, "id_dropout: 1.5 is not allowed"),
        ({"clip_grad_norm": {"max_norm": 1}}, "item_features: not with enable_amp or clip_grad_norm"),
    ],
)
def test_what_does_not_go_together_is_one_line(films, keys, message):
    with pytest.raises(UserError, match=message):
        build(films, **keys)


def test_new_items_are_as_likely_as_others_with_the_ids_left_out(films):
    """Leaving out its id brings an item closer to the average user; this is taken from the biases of new items."""
    model = build(films).model
    with torch.no_grad():
        model.tower.id_bias[1:] = 0.5
        model.make_items()
        before = model.item_bias.clone()
        model.calibrate_new_items()
        has_id, cosine, user = model.tower.has_id, torch.nn.functional.normalize, model.user_table[1:]
        whole = model.item_table[has_id]
        scores = [cosine(user, dim=1) @ cosine(rows, dim=1).T for rows in (whole - model.tower.id_table[has_id], whole)]
    gain = float((scores[0] - scores[1]).mean()) / 0.1 - 0.5
    lowered = ~has_id
    lowered[0] = False
    torch.testing.assert_close(model.item_bias[lowered], before[lowered] - gain)
    torch.testing.assert_close(model.item_bias[has_id], before[has_id])
    assert model.item_bias[0] == 0
