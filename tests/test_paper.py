"""OneBP against a short implementation of the paper's method in float64."""

from __future__ import annotations

from itertools import islice

import pytest
import torch


class Reference:
    """Tables, loss, Adam and user update as in the paper and its code, one pair at a time."""

    def __init__(self, users, items, beta, temperature, learning_rate, weight_decay):
        self.users, self.items = users.clone(), items.clone()
        self.beta, self.temperature, self.lr, self.l2 = beta, temperature, learning_rate, weight_decay
        self.m, self.v, self.t = torch.zeros_like(items), torch.zeros_like(items), 0

    def step(self, user, item, negative, duplicates):
        items = self.items.clone().requires_grad_()
        loss = 0
        for u, i, negatives in zip(user, item, negative, strict=True):
            e_u = self.users[u]
            pos = (e_u @ items[i] / self.temperature).exp()
            neg = (items[negatives] @ e_u / self.temperature).exp().sum()
            loss = loss - (pos / (pos + neg)).log() / len(user)
        (grad,) = torch.autograd.grad(loss, items)
        self._adam(grad)
        self._move(user, item, duplicates)
        return loss.item()

    def _adam(self, grad):
        grad = grad + self.l2 * self.items
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * grad
        self.v = 0.999 * self.v + 0.001 * grad**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        self.items -= self.lr * m / (v.sqrt() + 1e-8)

    def _move(self, user, item, duplicates):
        if duplicates == "last":  # the reference code's indexed assignment, where the last pair of a user wins
            last = {int(u): int(i) for u, i in zip(user, item, strict=True)}
            user, item = list(last), list(last.values())
        for u, i in zip(user, item, strict=True):
            self.users[u] = self.beta * self.users[u] + (1 - self.beta) * self.items[i]


@pytest.mark.parametrize("duplicates", ["last", "sequential"])
def test_fifty_steps_equal_the_papers_method(tiny, duplicates):
    settings = {"beta": 0.9, "temperature": 0.7, "learning_rate": 0.01, "weight_decay": 1e-3}
    run = tiny(duplicates=duplicates, train_batch_size=100, engine="reference", **settings)
    model = run.model.double()
    reference = Reference(model.user_table, model.item_table.detach(), **settings)
    for _ in range(4):
        batches = list(islice(run.train_data, 13))
        for batch in batches:
            n_pairs = len(batch) // 5
            assert n_pairs in (20, len(run.train_data.dataset) % 20)
            negative = batch["neg_item_id"].view(5, n_pairs).T
            total = reference.step(batch["user_id"][:n_pairs], batch["item_id"][:n_pairs], negative, duplicates)
            assert run.trainer._train_epoch([batch], 0) == pytest.approx(total, abs=1e-10)
    assert reference.t >= 50
    torch.testing.assert_close(model.item_table.detach(), reference.items, rtol=0, atol=1e-10)
    torch.testing.assert_close(model.user_table, reference.users, rtol=0, atol=1e-10)
