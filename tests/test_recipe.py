"""All users moved, weights, leave-one-out, learning rate decay and averages, against an implementation in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from conftest import write_inter
from support.draws import SameDraws

RECIPE = {
    "score": "cosine",
    "negatives": "shared",
    "n_shared_negatives": 16,
    "train_batch_size": 32,
    "item_bias": True,
    "temperature": 0.1,
    "aggregation": "interval",
    "aggregation_interval": 3,
    "aggregation_alpha": 0.5,
    "beta": 0.0,
    "leave_one_out": True,
    "learning_rate": 0.01,
    "learning_rate_decay": 0.5,
    "ema_decay": 0.3,
}


class Restated:
    """One pair at a time, in float64: softmax loss over shared negatives, its gradient, Adam, and the aggregation."""

    def __init__(self, run):
        self.config, self.learning_rate = run.model.config, run.config["learning_rate"]
        pairs = run.train_data.dataset.inter_feat
        pairs = list(zip(pairs["user_id"].tolist(), pairs["item_id"].tolist(), strict=True))
        self.items_of = {user: [i for u, i in pairs if u == user] for user in range(1, 31)}
        count = np.array([sum(i == item for _, i in pairs) for item in range(41)])
        self.weight = run.model.item_weight.numpy()  # made in float32
        expected = (np.maximum(count, 1) / count[count > 0].mean()) ** -self.config.aggregation_alpha
        np.testing.assert_allclose(self.weight[:, 0], expected, rtol=1e-6)
        self.items, self.bias = run.model.item_table.detach().numpy().copy(), np.zeros((41, 1))
        self.users = run.model.user_table.numpy().copy()
        self.shares = self.weight * self.scored(self.items)
        self.t, self.moments = 0, {}
        self.averages, self.n_averaged = [self.items.copy(), self.bias.copy()], 0

    def scored(self, rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-12) if self.cosine else rows

    @property
    def cosine(self):
        return self.config.score == "cosine"

    def user_of(self, user, item):
        """The user embedding in the loss."""
        if not self.config.leave_one_out:
            return self.users[user]
        others = list(self.items_of[user])
        others.remove(item)
        return self.shares[others].mean(axis=0) if others else np.zeros_like(self.users[user])

    def aggregate(self):
        self.shares = self.weight * self.scored(self.items)
        for user, items in self.items_of.items():
            mean = self.shares[items].mean(axis=0)
            self.users[user] = self.config.beta * self.users[user] + (1 - self.config.beta) * mean

    def step(self, batch, learning_rate):
        scored, loss = self.scored(self.items), 0.0
        by_scored, by_bias = np.zeros_like(self.items), np.zeros_like(self.bias)
        for user, item in zip(batch.user, batch.item, strict=True):
            ids = np.array([item, *batch.negative[~np.isin(batch.negative, self.items_of[user])]])
            user_e = self.scored(self.user_of(user, item))
            logits = scored[ids] @ user_e / self.config.temperature + self.bias[ids, 0]
            by_logit = np.exp(logits - logits.max())
            by_logit /= by_logit.sum()
            loss -= np.log(by_logit[0]) / len(batch.user)
            by_logit[0] -= 1
            by_logit /= len(batch.user)
            np.add.at(by_bias[:, 0], ids, by_logit)
            np.add.at(by_scored, ids, np.outer(by_logit / self.config.temperature, user_e))
        if self.cosine:
            along = (by_scored * scored).sum(axis=1, keepdims=True)
            by_scored = (by_scored - along * scored) / np.linalg.norm(self.items, axis=1, keepdims=True).clip(1e-12)
        self.t += 1
        self.adam("items", by_scored, learning_rate)
        if self.config.item_bias:
            self.adam("bias", by_bias, learning_rate)
        if self.config.aggregation == "step":
            for user, item in zip(batch.user, batch.item, strict=True):
                share = self.weight[item] * self.scored(self.items)[item]
                self.users[user] = self.config.beta * self.users[user] + (1 - self.config.beta) * share
        return loss

    def adam(self, name, gradient, learning_rate):
        first, second = self.moments.get(name, (0, 0))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        self.moments[name] = first, second
        first, second = first / (1 - 0.9**self.t), second / (1 - 0.999**self.t)
        setattr(self, name, getattr(self, name) - learning_rate * first / (np.sqrt(second) + 1e-8))

    def average(self):
        kept = min(self.config.ema_decay, self.n_averaged / (9 + self.n_averaged))
        for average, table in zip(self.averages, (self.items, self.bias), strict=True):
            average[:] = kept * average + (1 - kept) * table
        self.n_averaged += 1

    def change_places(self):
        (self.items, self.bias), self.averages = self.averages, [self.items, self.bias]

    def epoch(self, batches, number):
        learning_rate = self.learning_rate * self.config.learning_rate_decay**number
        losses, last = [], len(batches)
        if number > 0:
            self.change_places()
            if self.config.leave_one_out:  # others are made of the trained items, not of their averages
                self.shares = self.weight * self.scored(self.items)
        for done, batch in enumerate(batches, start=1):
            losses.append(self.step(batch, learning_rate))
            if done == last:  # an epoch has fewer than 50 steps
                self.average()
                self.change_places()
            interval = self.config.aggregation == "interval" and done % self.config.aggregation_interval == 0
            if interval or (self.config.aggregation != "step" and done == last):
                self.aggregate()
        return sum(losses)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aggregation_interval": 5},  # a divisor of the 10 steps of an epoch
        {"aggregation": "epoch"},
        {"score": "dot", "temperature": 1.0},
        {"leave_one_out": False, "beta": 0.6},
        {"leave_one_out": False, "beta": 0.6, "aggregation": "epoch", "aggregation_alpha": 1.0},
        {"leave_one_out": False, "beta": 0.9, "aggregation": "step", "item_bias": False},
    ],
)
def test_three_epochs_equal_the_implementation_in_numpy(tiny, options):
    run = tiny(**{**RECIPE, **options}, engine="reference")
    run.model.double()
    run.trainer._schedule_of(run.train_data)
    restated = Restated(run)
    for epoch in range(3):
        expected = restated.epoch(list(run.trainer._schedule.batches(epoch)), epoch)
        assert run.trainer._train_epoch(SameDraws(run, epoch), epoch) == pytest.approx(expected, abs=1e-9)
    np.testing.assert_allclose(run.model.item_table.detach().numpy(), restated.items, rtol=0, atol=1e-9)
    np.testing.assert_allclose(run.model.user_table.numpy(), restated.users, rtol=0, atol=1e-9)
    if run.model.config.item_bias:
        np.testing.assert_allclose(run.model.item_bias.detach().numpy(), restated.bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_users_start_at_the_mean_of_their_items(tiny, score):
    run = tiny(**{**RECIPE, "score": score})
    restated = Restated(run)
    expected = [restated.shares[items].mean(axis=0) for items in restated.items_of.values()]
    np.testing.assert_allclose(run.model.user_table[1:].numpy(), expected, rtol=0, atol=1e-6)
    assert not run.model.user_table[0].any()


@pytest.fixture
def with_a_lone_item(tmp_path):
    """Users with one train item, and with more."""
    rows = [(f"u{user}", f"i{item}") for user in range(12) for item in range(1 + user)] + [("u12", "i12")]
    write_inter(tmp_path / "data" / "tiny", rows)
    return {**RECIPE, "data_path": str(tmp_path / "data")}


@pytest.mark.parametrize("engine", ["reference", "fast"])
@pytest.mark.parametrize("score", ["dot", "cosine"])
def test_only_biases_are_updated_for_users_with_one_item(tiny, with_a_lone_item, engine, score):
    run = tiny(**{**with_a_lone_item, "score": score, "engine": engine})
    dataset, before = run.train_data._dataset, run.model.item_table.detach().clone()
    lone = dataset.inter_feat["user_id"] == run.dataset.token2id("user_id", "u0")
    dataset.inter_feat = dataset.inter_feat[lone]
    (item,) = dataset.inter_feat["item_id"]
    run.trainer._train_epoch(SameDraws(run, 0) if engine == "reference" else run.train_data, 0)
    assert torch.equal(run.model.item_table, before)
    assert run.model.item_bias[item] > 0
    assert torch.isfinite(run.model.user_table).all()


def test_leaving_one_out_is_the_mean_of_the_others(tiny, with_a_lone_item):
    model = tiny(**with_a_lone_item).model
    counts = []
    for user in range(1, 13):
        items = model.history.item[model.history.start[user] : model.history.start[user + 1]]
        counts.append(len(items))
        for item in items:
            others = model.weighted_items[items[items != item]].mean(dim=0).nan_to_num()
            (one,) = model.users_of(torch.tensor([user]), item.unsqueeze(0))
            torch.testing.assert_close(one, others, rtol=0, atol=1e-6)
    assert min(counts) == 1
    assert max(counts) > 5


@pytest.mark.parametrize("aggregation", ["step", "epoch"])
def test_fresh_users_are_the_mean_of_the_final_items(tiny, aggregation):
    options = {**RECIPE, "leave_one_out": False, "aggregation": aggregation, "beta": 0.9, "epochs": 2, "local": "none"}
    moved, fresh = tiny(**options), tiny(**options, user_encoding="fresh")
    moved.trainer.fit(moved.train_data, saved=False)
    fresh.trainer.fit(fresh.train_data, saved=False)
    assert torch.equal(moved.model.user_table, fresh.model.user_table)  # the key does not affect training
    before, model, restated = fresh.model.user_table.clone(), fresh.model.eval(), Restated(fresh)
    users = [restated.shares[items].mean(axis=0) for items in restated.items_of.values()]
    expected = restated.scored(np.array(users)) @ restated.scored(restated.items).T
    expected = expected + 0.1 * model.item_bias.detach().numpy().T
    pairs = Interaction({"user_id": torch.arange(1, 31).repeat_interleave(41), "item_id": torch.arange(41).repeat(30)})
    with torch.no_grad():
        full = model.full_sort_predict(Interaction({"user_id": torch.arange(1, 31)})).view(30, 41)
        np.testing.assert_allclose(full.numpy(), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.predict(pairs).view(30, 41), full)
    assert model.scored_users() is model.scored_users()
    assert torch.equal(model.user_table, before)
    with torch.no_grad():
        model.item_table[5] += 1
        assert not torch.allclose(model.full_sort_predict(pairs[:41]).view(41, 41)[0], full[0])


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_the_learning_rate_decays_by_epoch_and_continues_after_a_checkpoint(tiny, engine, tmp_path, caplog):
    caplog.set_level("INFO")
    run = tiny(**RECIPE, engine=engine, epochs=3, recbole_checkpoint=True)
    run.fit()
    assert run.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.0025)
    for epoch, rate in enumerate(("0.01", "0.005", "0.0025")):
        assert f"epoch {epoch} learning rate: {rate}" in caplog.text
    again = tiny(**RECIPE, engine=engine, epochs=5, output_dir=str(tmp_path / "again"))
    run.trainer._save_checkpoint(2)
    again.trainer.resume_checkpoint(run.trainer.saved_model_file)
    assert again.trainer.start_epoch == 3
    again.trainer._train_epoch(again.train_data, 3)
    assert again.trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.00125)


def test_a_checkpoint_holds_no_more_than_before(tiny):
    assert set(tiny(**RECIPE).model.state_dict()) == {"item_table", "item_bias", "user_table", "local_weight"}


def test_the_recipe_learns(tiny):
    result = tiny(**{**RECIPE, "learning_rate": 0.05, "learning_rate_decay": 0.95}, epochs=30).fit()
    assert result.test["recall@10"] > 0.4
