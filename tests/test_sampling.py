"""Negative sampling: never a positive, exactly the requested distribution, the same on every device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.sampler import Sampler

from recbole_onebp.data.loaders import FastSampler, PairDataLoader
from recbole_onebp.sampling import DeviceSampler, NegativeSampler
from recbole_onebp.util.errors import UserError

N_USERS, N_ITEMS = 6, 9
DISTRIBUTIONS = ["uniform", "popularity"]


@st.composite
def interactions(draw):
    """Interactions that leave every user a negative with both distributions; user 0 has no interactions."""
    pair = st.tuples(st.integers(1, N_USERS - 1), st.integers(1, N_ITEMS - 1))
    pairs = draw(st.lists(pair, min_size=1, max_size=60))
    occurring = {item for _, item in pairs}
    full = {u for u in range(N_USERS) if occurring <= {item for user, item in pairs if user == u}}
    kept = [pair for pair in pairs if pair[0] not in full]
    still = {item for _, item in kept}
    if not kept or any(still <= {item for user, item in kept if user == u} for u in range(N_USERS)):
        kept = [(1, 1), (2, 2)]
    return np.array(kept).T


@settings(deadline=None)
@given(interactions(), st.sampled_from(DISTRIBUTIONS), st.integers(0, 2**40))
def test_negatives_are_not_items_of_the_user(pairs, distribution, seed):
    user, item = pairs
    sampler = NegativeSampler(user, item, N_USERS, N_ITEMS, seed, distribution, alpha=0.5)
    asked = np.repeat(np.unique(user), 7)
    drawn = sampler.sample(asked, 5)
    assert drawn.shape == (len(asked), 5)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    assert drawn.max() < N_ITEMS
    positives = set(zip(user.tolist(), item.tolist(), strict=True))
    assert not positives & {(int(u), int(i)) for u, row in zip(asked, drawn, strict=True) for i in row}
    if distribution == "popularity":
        assert set(drawn.ravel().tolist()) <= set(item.tolist())


@settings(deadline=None)
@given(interactions(), st.sampled_from(DISTRIBUTIONS), st.integers(0, 2**40), st.integers(-3, 3))
def test_every_device_samples_the_same_items(pairs, distribution, seed, epoch):
    user, item = pairs
    sampler = NegativeSampler(user, item, N_USERS, N_ITEMS, seed, distribution)
    pair = np.arange(len(user)) * 3
    on_device = DeviceSampler(sampler, torch.device("cpu"))
    drawn = on_device.draw(torch.tensor(user), 4, torch.tensor(pair), epoch)
    assert np.array_equal(drawn.numpy(), sampler.draw(user, 4, pair, epoch))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_distribution_is_exact(distribution):
    """Chi-square test: with 19 degrees of freedom, 50 is exceeded once in 7,000 times."""
    rng = np.random.default_rng(1)
    user, item = rng.integers(1, 40, 900), rng.integers(1, 31, 900)
    sampler = NegativeSampler(user, item, 40, 31, seed=5, distribution=distribution, alpha=0.7)
    (u,) = [u for u in range(40) if len(set(item[user == u])) == 10][:1]
    free = np.setdiff1d(np.arange(1, 31), item[user == u])
    weight = np.bincount(item, minlength=31)[free] ** (0.7 if distribution == "popularity" else 0.0)
    expected = 100_000 * weight / weight.sum()
    for drawn in (
        sampler.sample(np.full(20_000, u), 5),
        sampler.draw(np.full(20_000, u), 5, np.arange(20_000), epoch=3),
        np.stack([sampler.draw(np.array([u]), 100, np.array([7]), epoch) for epoch in range(1000)]),
    ):
        count = np.bincount(drawn.ravel(), minlength=31)[free]
        assert count.sum() == 100_000
        assert ((count - expected) ** 2 / expected).sum() < 50


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_shared_negatives_have_the_reported_probability(distribution):
    rng = np.random.default_rng(1)
    item = np.minimum(rng.geometric(0.2, 500), 20)
    sampler = NegativeSampler(np.arange(1, 501), item, 501, 25, seed=5, distribution=distribution, alpha=0.5)
    share = np.exp(sampler.log_probability())
    assert share[0] == 0
    assert share.sum() == pytest.approx(1, abs=1e-6)
    drawn = np.concatenate([sampler.draw_shared(1000, step, epoch=0) for step in range(100)])
    count, expected = np.bincount(drawn, minlength=25), 100_000 * share
    assert not count[expected == 0].any()
    assert ((count - expected) ** 2)[expected > 0] @ (1 / expected[expected > 0]) < 60


def test_samples_depend_on_seed_epoch_and_pair_only():
    user, item = np.array([1, 1, 2, 3]), np.array([1, 2, 3, 4])
    sampler = NegativeSampler(user, item, 5, 1000, seed=1)
    whole = sampler.draw(user, 3, np.arange(4), epoch=2)
    sampler.sample(user, 3)
    assert np.array_equal(sampler.draw(user[2:], 3, np.arange(2, 4), epoch=2), whole[2:])
    assert np.array_equal(sampler.draw(user, 2, np.arange(4), epoch=2), whole[:, :2])
    assert not np.array_equal(sampler.draw(user, 3, np.arange(4), epoch=3), whole)
    assert not np.array_equal(NegativeSampler(user, item, 5, 1000, seed=2).draw(user, 3, np.arange(4), epoch=2), whole)
    assert not np.array_equal(sampler.sample(user, 3), sampler.sample(user, 3))


def test_a_user_with_one_item_left_gets_it():
    item = np.arange(1, 500)
    sampler = NegativeSampler(np.ones(499, dtype=int), item, 2, 501, seed=1)
    assert (sampler.sample(np.array([1, 1]), 50) == 500).all()


@pytest.mark.parametrize(
    ("user", "item", "n_items", "distribution", "message"),
    [
        ([1, 1, 2], [1, 2, 1], 3, "uniform", "user 1 has interacted with all 2 items"),
        ([1], [1], 2, "uniform", "user 1 has interacted with all 1 items"),
        ([1, 1, 2], [1, 2, 1], 9, "popularity", "user 1 has interacted with all 8 items that can be sampled"),
        ([], [], 1, "uniform", "there is no item to sample"),
        ([], [], 5, "popularity", "no item occurs"),
        ([1], [7], 5, "uniform", "items must lie in 1..4"),
        ([1], [0], 5, "uniform", "items must lie in 1..4"),
    ],
)
def test_users_without_negatives_are_refused(user, item, n_items, distribution, message):
    with pytest.raises(UserError, match=message):
        NegativeSampler(np.array(user, dtype=int), np.array(item, dtype=int), 3, n_items, 1, distribution)


def test_unknown_users_are_refused():
    sampler = NegativeSampler(np.array([1]), np.array([1]), 3, 5, seed=1)
    with pytest.raises(UserError, match=r"users must lie in 0\.\.2"):
        sampler.sample(np.array([1, 3]), 1)


@pytest.mark.parametrize(("distribution", "limit"), [("uniform", 5), ("popularity", 13)])
def test_memory_is_a_few_bytes_per_interaction(distribution, limit):
    rng = np.random.default_rng(1)
    sampler = NegativeSampler(
        rng.integers(1, 1000, 200_000), rng.integers(1, 5000, 200_000), 1000, 5000, 1, distribution
    )
    arrays = [value for value in vars(sampler).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) - 8 * 3 * 5000 < limit * 200_000


# ------------------------------------------------------------------------------------------------------ within RecBole


@pytest.mark.parametrize("model", ["OneBP", "BPR"])
def test_recboles_samplers_are_chosen_by_a_key(tiny, model):
    assert isinstance(tiny(model).train_data._sampler, FastSampler) == (model == "OneBP")
    assert isinstance(tiny(model, fast_sampler=True).train_data._sampler, FastSampler)
    assert not isinstance(tiny(model, fast_sampler=False).train_data._sampler, FastSampler)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("phase", ["train", "valid", "test"])
def test_a_baselines_negatives_keep_their_distribution(tiny, distribution, phase):
    args = {"distribution": distribution, "sample_num": 1, "alpha": 0.5}
    run = tiny("BPR", fast_sampler=True, train_neg_sample_args=args)
    fast = getattr(run, f"{phase}_data")._sampler
    assert fast.distribution == (distribution if phase == "train" else "uniform")  # as in RecBole
    stock = Sampler(fast.phases, fast.datasets, fast.distribution, 0.5).set_phase(phase)
    for user in (1, 2):
        assert fast.used_ids[user] == stock.used_ids[user]
    users = np.tile([1, 2], 20_000)
    counts = []
    for sampler in (fast, stock):
        drawn = sampler.sample_by_user_ids(users, None, 2)
        assert drawn.shape == (80_000,)
        assert drawn.dtype == torch.long
        counts.append(np.stack([np.bincount(drawn[start::2], minlength=41) for start in (0, 1)]))
    assert np.array_equal(counts[0] > 0, counts[1] > 0)
    shown = counts[1] > 0
    assert ((counts[0] - counts[1]) ** 2)[shown] @ (1 / (counts[0] + counts[1])[shown]) < 110  # about 50 expected


def test_popularity_counts_train_alone_for_onebp(tiny):
    args = {"distribution": "popularity", "sample_num": 1, "alpha": 1.0}
    for fast in (True, False):
        sampler = tiny(fast_sampler=fast, train_neg_sample_args=args).train_data._sampler
        assert len(sampler._get_candidates_list()) == 300
        assert (
            len(tiny("BPR", fast_sampler=fast, train_neg_sample_args=args).train_data._sampler._get_candidates_list())
            == 360
        )


def test_draws_follow_recboles_seed(tiny):
    users = np.arange(1, 31)
    one, two = (tiny("BPR", fast_sampler=True).train_data._sampler.sample_by_user_ids(users, None, 3) for _ in range(2))
    other = tiny("BPR", fast_sampler=True, seed=3).train_data._sampler.sample_by_user_ids(users, None, 3)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_baselines_learn_with_the_fast_sampler(tiny):
    result = tiny("BPR", fast_sampler=True, epochs=20, learning_rate=0.05).fit()
    assert (
        result.test["recall@10"] > 0.8
    )  # by chance 0.3; nearly 1 for a model that has learned the two groups of users


def test_workers_of_a_loader_sample_too(tiny):
    """Workers are forks of a process that has used threads."""
    run = tiny()
    run.trainer._train_epoch(run.train_data, 0)
    run = tiny("BPR", fast_sampler=True, worker=1)
    positives = run.train_data._sampler.used_ids
    for batch in run.train_data:
        assert not any(
            i in positives[u] for u, i in zip(batch["user_id"].tolist(), batch["neg_item_id"].tolist(), strict=True)
        )


def test_shared_negatives_leave_the_loader_with_pairs(tiny):
    run = tiny(negatives="shared", train_batch_size=50)
    assert isinstance(run.train_data, PairDataLoader)
    batch = next(iter(run.train_data))
    assert len(batch) == 50
    assert "neg_item_id" not in batch
