from __future__ import annotations

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_onebp.functional import info_nce, moving_aggregate_


def batch_of(run):
    return next(iter(run.train_data))


def test_items_are_the_only_parameters_and_users_are_saved(tiny):
    model = tiny().model
    assert [name for name, _ in model.named_parameters()] == ["item_table"]
    assert set(model.state_dict()) == {"item_table", "user_table"}
    assert model.user_table.shape == (31, 8)
    assert model.item_table.shape == (41, 8)


def test_both_tables_start_xavier_normal_after_a_zero_row(tiny):
    model = tiny(embedding_size=512).model
    for table in (model.user_table, model.item_table.detach()):
        assert not table[0].any()
        n_rows, size = table[1:].shape
        assert table[1:].std().item() == pytest.approx((2 / (n_rows + size)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize("options", [{}, {"backprop": "two"}, {"learner": "sparse_adam", "weight_decay": 0.0}])
def test_padding_is_never_touched(tiny, score, options):
    run = tiny(score=score, **{"weight_decay": 0.1, **options})
    run.fit()
    assert not run.model.user_table[0].any()
    assert not run.model.item_table[0].any()
    assert torch.isfinite(run.model.user_table).all()


def test_every_positive_counts_once(tiny):
    """RecBole's loader repeats a batch once per negative; loss and aggregation count each pair once."""
    run = tiny(train_batch_size=50)
    model, batch = run.model, batch_of(run)
    assert len(batch) == 50
    user, item, negative = batch["user_id"][:10], batch["item_id"][:10], batch["neg_item_id"]
    assert torch.equal(batch["user_id"], user.repeat(5))
    e_u, e_i = model.user_table, model.item_table
    pos_score = (e_u[user] * e_i[item]).sum(1)
    neg_score = torch.stack([(e_u[user] * e_i[negative[n * 10 : n * 10 + 10]]).sum(1) for n in range(5)], dim=1)
    torch.testing.assert_close(model.calculate_loss(batch), info_nce(pos_score, neg_score))

    expected = e_u.clone()
    moving_aggregate_(expected, user, e_i.detach()[user * 0 + item], model.config.beta)
    model.move_users(batch)
    torch.testing.assert_close(model.user_table, expected)


def test_negatives_are_not_the_users_own_items(tiny):
    run = tiny()
    pairs = run.train_data.dataset.inter_feat
    positives = set(zip(pairs["user_id"].tolist(), pairs["item_id"].tolist(), strict=True))
    for batch in run.train_data:
        drawn = set(zip(batch["user_id"].tolist(), batch["neg_item_id"].tolist(), strict=True))
        assert not drawn & positives
        assert 0 not in batch["neg_item_id"]


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_predict_agrees_with_full_sort_and_changes_nothing(tiny, score):
    model = tiny(score=score).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    users = torch.tensor([3, 9])
    full = model.full_sort_predict(Interaction({"user_id": users})).view(2, -1)
    pairs = Interaction({"user_id": users.repeat_interleave(41), "item_id": torch.arange(41).repeat(2)})
    torch.testing.assert_close(model.predict(pairs).view(2, -1), full)
    if score == "cosine":
        assert full.abs().max() <= 1 + 1e-6
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_cosine_aggregates_unit_items_and_stores_the_user_as_it_is(tiny):
    run = tiny(score="cosine", beta=0.0, duplicates="last")
    batch = batch_of(run)
    run.model.move_users(batch)
    moved = batch["user_id"].unique()
    torch.testing.assert_close(run.model.user_table[moved].norm(dim=1), torch.ones(len(moved)))
    half = tiny(score="cosine", beta=0.5, duplicates="mean").model
    half.user_table.mul_(10)
    half.move_users(batch)
    assert half.user_table[moved].norm(dim=1).max() > 1.5


def test_two_backpropagations_train_both_tables_and_move_nobody(tiny):
    run = tiny(backprop="two")
    assert {name for name, _ in run.model.named_parameters()} == {"item_table", "user_table"}
    run.model.calculate_loss(batch_of(run)).backward()
    assert run.model.user_table.grad.abs().sum() > 0
    run.trainer._move_users = run.model.move_users = None  # calling them would raise
    before = run.model.user_table.detach().clone()
    assert run.fit().parameters == (31 + 41) * 8
    assert not torch.equal(run.model.user_table, before)


def test_one_backpropagation_gives_users_no_gradient(tiny):
    run = tiny()
    run.model.calculate_loss(batch_of(run)).backward()
    assert not run.model.user_table.requires_grad
    assert run.model.user_table.grad is None
    assert run.model.item_table.grad.abs().sum() > 0


def test_training_without_onebp_trainer_is_refused(tiny):
    run = tiny()
    run.model._users_are_moved = False  # as returned by get_model, before a trainer is created
    trainer = Trainer(run.config, run.model)
    with pytest.raises(RuntimeError, match="OneBPTrainer"):
        trainer.fit(run.train_data, run.valid_data, saved=False)


def test_a_custom_training_loop_can_move_users(tiny):
    run = tiny()
    run.model._users_are_moved = False
    run.model.users_will_be_moved()
    assert run.model.calculate_loss(batch_of(run)).item() > 0


def test_a_batch_moves_its_users_only_with_aggregation_by_step(tiny):
    run = tiny(aggregation="interval", beta=0.0)
    with pytest.raises(RuntimeError, match="aggregation is 'interval': call move_all_users"):
        run.model.move_users(batch_of(run))


@pytest.mark.parametrize(
    "negatives",
    [
        {"distribution": "popularity", "sample_num": 3, "alpha": 0.5},
        {"distribution": "uniform", "sample_num": 1},
        {"distribution": "uniform", "sample_num": 2, "dynamic": True, "candidate_num": 4},
    ],
)
def test_recboles_negative_sampling_keeps_its_meaning(tiny, negatives):
    run = tiny(train_neg_sample_args=negatives, epochs=2)
    result = run.fit()
    assert 0.2 < result.test["recall@10"] < 0.5  # near chance after two epochs: a list holds 10 of some 30 items


def test_dynamic_negatives_score_higher(tiny):
    """RecBole keeps the best scored of the candidates, so the loss of fresh tables rises."""
    plain = tiny(train_neg_sample_args={"distribution": "uniform", "sample_num": 2})
    hard = tiny(
        train_neg_sample_args={"distribution": "uniform", "sample_num": 2, "dynamic": True, "candidate_num": 16}
    )
    hard.train_data.get_model(hard.model)
    for run in (plain, hard):
        run.model.item_table.data.mul_(10)
        run.model.user_table.mul_(10)
    assert hard.model.calculate_loss(batch_of(hard)) > plain.model.calculate_loss(batch_of(plain)) + 0.1


def test_sparse_adam_touches_only_the_batch(tiny):
    run = tiny(learner="sparse_adam", engine="reference")
    before = run.model.item_table.detach().clone()
    batch = batch_of(run)
    run.trainer._train_epoch([batch], 0)
    seen = torch.cat([batch["item_id"], batch["neg_item_id"]]).unique()
    changed = (run.model.item_table.detach() != before).any(dim=1).nonzero().squeeze(1)
    assert set(changed.tolist()) <= set(seen.tolist())
    assert len(changed) > 0
