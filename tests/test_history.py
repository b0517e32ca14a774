"""The order of a user's items: how much each counts, in training and in prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_onebp.data.order import are_in_order
from recbole_onebp.history import WINDOW, History
from recbole_onebp.recency import LATEST, recency_weights, trends
from recbole_onebp.util.errors import UserError

USER = torch.tensor([1, 2, 1, 1, 2, 1])
ITEM = torch.tensor([5, 3, 2, 4, 1, 6])
TIME = torch.tensor([30.0, 9.0, 10.0, 40.0, 8.0, 20.0])
SHARES = torch.arange(14.0).reshape(7, 2)


INTERVAL = {"aggregation": "interval", "beta": 0.0}


def history(recency=0.0, earlier=0.0, time=TIME):
    return History(USER, ITEM, 4, 7, time, recency, earlier)


def weighted(items, weights):
    return sum(w * SHARES[i] for i, w in zip(items, weights, strict=True)) / sum(weights)


def test_items_are_in_order_of_time():
    found = history()
    assert found.start.tolist() == [0, 0, 4, 6, 6]
    assert found.item.tolist() == [2, 6, 5, 4, 1, 3]


def test_without_times_items_are_sorted():
    assert history(time=None).item.tolist() == [2, 4, 5, 6, 1, 3]


def test_pairs_of_the_same_time_keep_their_order():
    assert history(time=torch.zeros(6)).item.tolist() == [5, 2, 4, 6, 3, 1]


def test_the_latest_count_most():
    mean = history(recency=1.0).mean(SHARES)
    torch.testing.assert_close(mean[1], weighted([2, 6, 5, 4], [1 / 4, 1 / 3, 1 / 2, 1]))
    torch.testing.assert_close(mean[2], weighted([1, 3], [1 / 2, 1]))
    assert not mean[3].any(), "a user without items"


def test_leaving_out_an_item():
    found = history(recency=1.0)
    others = found.without(torch.tensor([1, 2]), torch.tensor([5, 3]), found.mean(SHARES)[[1, 2]], SHARES[[5, 3]])
    torch.testing.assert_close(others, torch.stack([weighted([2, 6, 4], [1 / 4, 1 / 3, 1]), SHARES[1]]))


def test_earlier_items():
    found = history(earlier=1.0)
    user, item = torch.tensor([1, 1, 2, 1]), torch.tensor([4, 2, 3, 5])
    expected = [weighted([2, 6, 5], [1 / 3, 1 / 2, 1]), torch.zeros(2), SHARES[1], weighted([2, 6], [1 / 2, 1])]
    torch.testing.assert_close(found.earlier(user, item, SHARES), torch.stack(expected))


def test_earlier_items_end_with_the_window():
    n = WINDOW + 10
    found = History(torch.ones(n).long(), torch.arange(n), 2, n, torch.arange(n), 0.0, 0.0)
    shares = torch.eye(n)
    user = found.earlier(torch.tensor([1]), torch.tensor([n - 1]), shares)[0]
    assert user.nonzero().squeeze(1).tolist() == list(range(9, n - 1))


def test_items_that_are_very_old_do_not_count():
    assert (recency_weights(np.arange(LATEST + 5), 0.0) == 1).all()
    weights = recency_weights(np.arange(LATEST + 5), 0.5)
    assert weights[LATEST - 1] == LATEST**-0.5
    assert not weights[LATEST:].any()


def test_trends_do_not_depend_on_how_interactions_are_divided():
    rng = np.random.default_rng(3)
    item, age = rng.integers(0, 9, 500), rng.integers(0, 1200, 500)
    whole = trends(item, age, 10)
    parts = []
    for rows in (slice(0, 130), slice(130, 500)):
        trends(item[rows], age[rows], 10, lambda part: parts.append(part) or part)
    assert (trends(item[:130], age[:130], 10, lambda _: parts[0] + parts[1]) == whole).all()
    weight = np.where(age < LATEST, (age + 1.0) ** -0.25, 0)
    late = np.bincount(item, weight / weight.mean(), 10)
    np.testing.assert_allclose(whole, np.log((late + 10) / (np.bincount(item, minlength=10) + 10)), atol=1e-5)
    assert whole[9] == 0


# --------------------------------------------------------------------------------------------------------- in a run


def test_data_in_order_set_the_defaults(timed):
    model = timed().model
    assert (model.recency, model.users_from_earlier_items, model.trend_weight) == (1.0, True, 4.0)


def test_a_random_split_sets_none(timed):
    model = timed(eval_args={"order": "RO", "split": {"RS": [0.8, 0.1, 0.1]}}).model
    assert (model.recency, model.users_from_earlier_items, model.trend_weight) == (0, False, 0)
    assert model.trend is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**INTERVAL, "recency": 0.5}, "recency: 0.5: the interactions have no times: load a column timestamp"),
        ({**INTERVAL, "training_history": "earlier"}, "training_history: earlier: the interactions have no times"),
        ({**INTERVAL, "item_bias": True, "trend_weight": 1.0}, "trend_weight: 1: the interactions have no times"),
        ({"trend_weight": 1.0, "item_bias": False}, "trend_weight: 1.0 with item_bias: False: the trend is a part"),
        ({"recency": "later"}, "recency"),
        ({"recency": -1}, "recency"),
        ({"aggregation": "step", "recency": 1.0}, "aggregation: step with recency"),
    ],
)
def test_what_is_refused(tiny, options, said):
    with pytest.raises(UserError, match=said):
        tiny(**options)


def test_the_parts_decide_whether_data_are_in_order(timed):
    run = timed()
    train, valid, test = (loader._dataset for loader in (run.train_data, run.valid_data, run.test_data))
    assert are_in_order([train, valid, test])
    assert not are_in_order([valid, train, test])
    assert not are_in_order([train, test, valid])


def test_users_for_prediction_are_the_weighted_means(timed):
    run = timed(epochs=1, recency=1.5, aggregation_alpha=0.25)
    run.fit()
    model, train = run.model, run.train_data._dataset.inter_feat
    items = torch.nn.functional.normalize(model.item_table.detach(), dim=1) * model.item_weight
    for user in (1, 7, 30):
        rows = (train["user_id"] == user).nonzero().squeeze(1)
        latest_first = rows[train["timestamp"][rows].argsort(descending=True)]
        weights = torch.arange(1, len(rows) + 1).double().pow(-model.recency).float().unsqueeze(1)
        expected = (weights * items[train["item_id"][latest_first]]).sum(0) / weights.sum()
        torch.testing.assert_close(model.user_table[user], expected, rtol=0, atol=1e-6)


def test_trends_are_added_for_prediction_alone(timed):
    plain, run = timed(epochs=1, trend_weight="none"), timed(epochs=1, trend_weight=2.0)
    for each in (plain, run):
        each.fit()
    assert torch.equal(plain.model.item_table, run.model.item_table)
    user, item = torch.full((3,), 5), torch.tensor([1, 8, 20])
    pairs = Interaction({"user_id": user, "item_id": item})
    before, after = (each.model.eval().predict(pairs) for each in (plain, run))
    start, items, _ = run.model.history.arrays
    age = np.repeat(start[1:], np.diff(start)) - 1 - np.arange(len(items))
    added = run.model.config.temperature * 2.0 * trends(items, age, run.model.n_items)[item.numpy()]
    np.testing.assert_allclose((after - before).detach().numpy(), added, atol=1e-6)
    assert abs(added).max() > 1e-3
    all_items = run.model.full_sort_predict(Interaction({"user_id": torch.tensor([5])})).view(-1)
    torch.testing.assert_close(all_items[item], after)


def test_pairs_with_few_earlier_items_weigh_less(timed):
    model = timed(half_weight_at=2.0).model
    start, items = int(model.history.start[5]), model.history.item
    user, item = torch.full((3,), 5), items[[start, start + 2, start + 6]]
    assert model.pair_weight(user, item).tolist() == [0.0, 0.5, 0.75]
    assert timed(half_weight_at=0.0).model.pair_weight(user, item) is None
    assert timed(half_weight_at=2.0, training_history="all").model.pair_weight(user, item) is None


@pytest.mark.parametrize("training_history", ["earlier", "all"])
def test_all_users_move_at_each_aggregation_and_before_the_epoch(timed, training_history):
    """Before the epoch, because a checkpoint does not hold what they were made of."""
    run = timed(engine="reference", train_batch_size=64, aggregation_interval=1, training_history=training_history)
    calls, move = [], run.model.move_all_users
    run.model.move_all_users = lambda: calls.append(move())
    run.trainer._train_epoch(run.train_data, 0)
    assert len(calls) == 1 + 5


def test_what_comes_later_does_not_change_the_user_of_a_pair(timed):
    """The users of pairs see no later item: training on the pair itself would be too easy."""
    model = timed().model
    start, items = model.history.start[5], model.history.item
    user, item = torch.tensor([5]), items[start + 3 : start + 4]
    before = model.users_of(user, item)
    with torch.no_grad():
        model.item_table[items[start + 3 : model.history.start[6]]] += 1.0
    model.move_all_users()
    assert torch.equal(model.users_of(user, item), before)
    with torch.no_grad():
        model.item_table[items[start + 2]] += 1.0
    assert torch.equal(model.users_of(user, item), before)  # until the next aggregation
    model.move_all_users()
    assert not torch.equal(model.users_of(user, item), before)
