"""Rows that miss steps of Adam are, when they are brought up to date, where torch's Adam has them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_onebp.engine import adam, kernels
from recbole_onebp.engine.cpu import Trained

ROWS, SIZE, STEPS = 12, 5, 70


@pytest.fixture(scope="module")
def gradients():
    """Of each step, 0 for most rows; row 1 has one at every step, row 11 none at all, row 10 only in the first step."""
    rng = np.random.default_rng(0)
    touched = rng.random((STEPS, ROWS)) < 0.1
    touched[:, 1], touched[:, 10:] = True, False
    touched[0, 10] = True
    return np.where(touched[:, :, None], rng.standard_normal((STEPS, ROWS, SIZE)), 0).astype(np.float32)


def start():
    return torch.nn.Parameter(torch.linspace(-1, 1, ROWS * SIZE).view(ROWS, SIZE))


def step_by_kernels(trained, gradient):
    """A step whose gradient is the sum of one place for each touched row."""
    touched = np.flatnonzero(gradient.any(axis=1)).astype(np.int32)
    links = kernels.Links(np.full(ROWS, -1, np.int32), np.empty(len(touched), np.int32))
    kernels.link(touched, links, np.empty(ROWS, np.int32))
    terms = kernels.GradientTerms(
        np.ones(len(touched), np.float32), gradient[touched], 1, np.empty((0, 0, SIZE), np.float32)
    )
    kernels.step_rows(trained.rows(touched), links, terms, False, trained.next_step())


def stepped(gradients, weight_decay=0.0):
    parameter = start()
    optimizer = torch.optim.Adam([parameter], lr=0.01, weight_decay=weight_decay)
    trained = Trained(parameter, optimizer, False, stepped=np.zeros(ROWS, np.int32))
    for number, gradient in enumerate(gradients):
        step_by_kernels(trained, gradient)
        if (number + 1) % adam.MOST_MISSED == 0:
            trained.settle()
    return parameter, optimizer, trained


def by_torch(gradients, weight_decay=0.0):
    parameter = start()
    optimizer = torch.optim.Adam([parameter], lr=0.01, weight_decay=weight_decay)
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter, optimizer


def test_rows_that_missed_steps_read_as_torch_has_them(gradients):
    expected, _ = by_torch(gradients)
    parameter, _, trained = stepped(gradients)
    assert (trained.rows_now.stepped[1:] < STEPS).any()
    memory = np.empty(SIZE, np.float32)
    for row in range(1, ROWS):
        now = torch.from_numpy(adam.current_row(trained.rows_now, row, memory).copy())
        torch.testing.assert_close(now, expected[row].detach(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(parameter[1:], expected[1:], rtol=1e-5, atol=1e-6)  # until they have caught up


def test_settled_rows_and_moments_are_those_of_torch(gradients):
    expected, theirs = by_torch(gradients)
    parameter, optimizer, trained = stepped(gradients)
    trained.settle()
    torch.testing.assert_close(parameter[1:], expected[1:], rtol=1e-5, atol=1e-6)
    for moment in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(
            optimizer.state[parameter][moment][1:], theirs.state[expected][moment][1:], rtol=1e-4, atol=1e-6
        )


def test_with_weight_decay_no_row_misses_a_step(gradients):
    expected, _ = by_torch(gradients, weight_decay=0.1)
    parameter, _, trained = stepped(gradients, weight_decay=0.1)
    assert not trained.misses_steps
    torch.testing.assert_close(parameter[1:], expected[1:], rtol=1e-5, atol=1e-5)
