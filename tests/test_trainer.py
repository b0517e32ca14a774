from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from recbole_onebp import OneBPTrainer
from recbole_onebp.functional import moving_aggregate_
from recbole_onebp.util.errors import UserError


def test_users_move_after_each_step_with_the_new_items(tiny):
    run = tiny(engine="reference")
    batch = next(iter(run.train_data))
    n_pairs = len(batch) // 5
    user, item = batch["user_id"][:n_pairs], batch["item_id"][:n_pairs]
    expected, old_items = run.model.user_table.clone(), run.model.item_table.detach().clone()
    run.trainer._train_epoch([batch], 0)
    new_items = run.model.item_table.detach()
    assert not torch.equal(new_items, old_items)
    moving_aggregate_(expected, user, new_items[item], 0.99)
    torch.testing.assert_close(run.model.user_table, expected)


def test_users_move_once_an_epoch_towards_the_mean_of_their_items(tiny):
    run = tiny(aggregation="epoch", beta=0.5, epochs=1)
    expected = run.model.user_table.clone()
    run.trainer._train_epoch(run.train_data, 0)
    pairs = run.train_data.dataset.inter_feat
    for user in range(1, 31):
        items = run.model.item_table.detach()[pairs["item_id"][pairs["user_id"] == user]]
        expected[user] = 0.5 * expected[user] + 0.5 * items.mean(dim=0)
    torch.testing.assert_close(run.model.user_table, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("overflow", [False, True])
def test_a_step_that_amp_skips_moves_nobody(tiny, fused, overflow):
    """A plain Adam is not stepped at all; a fused one is, and skips inside."""
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch has no GradScaler for the CPU")
    run = tiny()
    model, trainer = run.model, run.trainer
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=fused)
    optimizer.register_step_post_hook(trainer._after_step)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    users, items = model.user_table.clone(), model.item_table.detach().clone()
    loss = trainer._loss_of_batch(next(iter(run.train_data)))
    scaler.scale(loss).backward()
    if overflow:
        model.item_table.grad[5] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.item_table, items) == overflow
    assert torch.equal(model.user_table, users) == overflow


@pytest.mark.parametrize("aggregation", ["step", "epoch"])
def test_evaluation_moves_nobody_and_does_not_depend_on_its_batches(tiny, aggregation):
    run = tiny(aggregation=aggregation, epochs=2)
    run.fit()
    before = run.model.user_table.clone()
    results = []
    for size in (41, 410, 100_000):
        run.config["eval_batch_size"] = size
        run.test_data.update_config(run.config)
        results.append(run.trainer.evaluate(run.test_data, load_best_model=False))
    assert results[0] == results[1] == results[2]
    assert torch.equal(run.model.user_table, before)


@pytest.mark.parametrize("score", ["dot", "cosine"])
@pytest.mark.parametrize(("backprop", "aggregation"), [("one", "step"), ("one", "epoch"), ("two", "step")])
def test_it_learns(tiny, score, backprop, aggregation):
    """Users of one camp must be shown the items of their camp: the other half of the catalogue is noise."""
    options = {"temperature": 0.2} if score == "cosine" else {}
    beta = 0.9 if aggregation == "step" else 0.3
    run = tiny(score=score, aggregation=aggregation, backprop=backprop, beta=beta, epochs=60, **options)
    run.fit()
    dataset, model = run.dataset, run.model
    camp = torch.tensor([int(token[1:]) // 20 for token in dataset.field2id_token["item_id"][1:]])
    scores = model.full_sort_predict({"user_id": torch.arange(1, 31)}).view(30, -1)[:, 1:].detach()
    top = scores.topk(12).indices
    own = torch.tensor([1 - int(token[1:]) % 2 for token in dataset.field2id_token["user_id"][1:]])
    assert (camp[top] == own.unsqueeze(1)).float().mean() > 0.95


def test_stats_are_logged_and_collapse_is_told(tiny, caplog):
    caplog.set_level(logging.INFO)
    run = tiny()
    run.trainer._train_epoch(run.train_data, 0)
    assert set(run.trainer.encoding_stats) == {"user_norm", "item_norm", "user_spread"}
    assert "user_spread" in caplog.text
    assert "collapsed" not in caplog.text
    run.model.user_table[1:] = 1.0
    run.trainer._watch(1)
    assert "collapsed" in caplog.text


@pytest.mark.parametrize("duplicates", ["sequential", "last", "mean"])
def test_two_runs_with_one_seed_are_bit_equal(tiny, duplicates, tmp_path):
    states, results = [], []
    for number in range(2):
        run = tiny(duplicates=duplicates, output_dir=str(tmp_path / str(number)))
        results.append(run.fit())
        states.append(run.model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert results[0].test == results[1].test
    other = tiny(seed=7)
    other.fit()
    assert not torch.equal(other.model.user_table, states[0]["user_table"])


def test_early_stopping_tests_the_best_epoch(tiny):
    run = tiny(epochs=40, stopping_step=2, learning_rate=0.2)
    result = run.fit()
    assert result.epochs_run < 40
    assert result.best_epoch == result.epochs_run - 1 - 3
    best = run.trainer.record.epochs[result.best_epoch]["valid"]
    assert result.valid == best
    assert result.test == dict(run.trainer.evaluate(run.test_data, load_best_model=True))


def test_resume_checkpoint_brings_back_users_and_still_moves_them(tiny, tmp_path):
    first = tiny(output_dir=str(tmp_path / "first"), recbole_checkpoint=True)
    first.fit()
    second = tiny(output_dir=str(tmp_path / "second"), epochs=6)
    second.trainer.resume_checkpoint(str(tmp_path / "first" / "checkpoint.pth"))
    assert second.trainer.start_epoch >= 1
    before = second.model.user_table.clone()
    second.trainer._train_epoch(second.train_data, 3)
    assert not torch.equal(second.model.user_table, before)


def test_progress_bars_and_tensorboard_work(tiny, tmp_path, capfd):
    run = tiny(show_progress=True)
    run.fit()
    captured = capfd.readouterr()
    assert "Train" in captured.err
    events = list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert events
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = set()
    for event in events:
        accumulator = EventAccumulator(str(event))
        accumulator.Reload()
        written |= set(accumulator.Tags()["scalars"])
    assert {"Loss/Train", "Encoding/user_spread", "Vaild_score"} <= written


def test_weights_and_biases_get_losses_and_metrics(tiny, monkeypatch):
    wandb = MagicMock(run=None)
    wandb.init.side_effect = lambda **_: setattr(wandb, "run", SimpleNamespace(summary={}))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    seen = []
    result = tiny(epochs=2, log_wandb=True, wandb_project="camps").fit(on_epoch=seen.append)
    assert wandb.init.call_args.kwargs["project"] == "camps"
    logged = [call.args[0] for call in wandb.log.call_args_list]
    assert [one["train/train_loss"] for one in logged if "train_step" in one] == [one["train_loss"] for one in seen]
    assert [one["valid/ndcg@10"] for one in logged if "valid_step" in one] == [one["valid"]["ndcg@10"] for one in seen]
    assert {name.removeprefix("eval/"): value for name, value in wandb.run.summary.items()} == result.test


def test_the_trainer_of_a_run_is_ours(tiny):
    assert isinstance(tiny().trainer, OneBPTrainer)
    assert not isinstance(tiny("BPR").trainer, OneBPTrainer)


def test_recboles_distributed_mode_is_refused(tiny):
    run = tiny()
    run.config["single_spec"] = False
    with pytest.raises(UserError, match="would lose user updates"):
        OneBPTrainer(run.config, run.model)


BY_CHANCE = (0.2, 0.5)
"""Recall@10 after three epochs on ``tiny`` is near chance: a list holds 10 of some 30 items that are left."""


def test_amp_on_the_cpu(tiny):
    result = tiny(enable_amp=True).fit()
    assert BY_CHANCE[0] < result.test["recall@10"] < BY_CHANCE[1]


def test_gradient_clipping(tiny):
    result = tiny(clip_grad_norm={"max_norm": 1.0}).fit()
    assert BY_CHANCE[0] < result.test["recall@10"] < BY_CHANCE[1]


def test_build_needs_no_seed_of_the_caller(tiny):
    torch.manual_seed(123)
    one = tiny().model.user_table
    torch.manual_seed(321)
    assert torch.equal(one, tiny().model.user_table)
