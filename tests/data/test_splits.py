"""Splits follow RecBole's rules and are the same on every machine."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from recbole.data.dataset import Dataset

from recbole_onebp.data.sources.splits import by_ratio, by_time, cold_items, leave_one_out

small_ints = st.integers(0, 6)
USERS = st.lists(small_ints, min_size=1, max_size=80)


@given(user=USERS, ratios=st.sampled_from([(0.8, 0.1, 0.1), (0.9, 0.1), (1, 1, 1), (0.7, 0.2, 0.1), (0.5, 0.0, 0.5)]))
def test_ratios_count_as_recbole_counts(user, ratios):
    part = by_ratio(pd.Series(user), ratios, seed=1)
    shares = [ratio / sum(ratios) for ratio in ratios]
    for one in set(user):
        n = user.count(one)
        bounds = [0, *Dataset._calcu_split_ids(None, n, shares), n]
        sizes = np.bincount(part[np.array(user) == one], minlength=len(ratios))
        assert sizes.tolist() == np.diff(bounds).tolist()


@given(user=USERS, data=st.data())
def test_leave_one_out_takes_the_last(user, data):
    time = data.draw(st.lists(small_ints, min_size=len(user), max_size=len(user)))
    part = leave_one_out(pd.Series(user), pd.Series(time), seed=1)
    for one in set(user):
        rows = sorted((t, n) for n, (u, t) in enumerate(zip(user, time, strict=True)) if u == one)
        index = [[n for _, n in rows]]
        expected = Dataset._split_index_by_leave_one_out(None, index, 2)
        assert [np.flatnonzero((part == k) & (np.array(user) == one)).tolist() for k in range(3)] == [
            sorted(rows) for rows in expected
        ]


@given(time=st.lists(st.integers(0, 50), min_size=3, max_size=60))
def test_by_time_leaks_no_later_row_into_an_earlier_part(time):
    part = by_time(pd.Series(time), (0.6, 0.2, 0.2))
    latest = [max((t for t, p in zip(time, part, strict=True) if p == k), default=-1) for k in range(3)]
    earliest = [min((t for t, p in zip(time, part, strict=True) if p == k), default=99) for k in range(3)]
    assert latest[0] < earliest[1] or latest[1] == -1
    assert max(latest[0], latest[1]) < earliest[2] or latest[2] == -1
    assert (part == 0).sum() >= round(0.6 * len(time))


def test_by_time_cuts_where_it_says():
    assert by_time(pd.Series(range(10)), (0.8, 0.1, 0.1)).tolist() == [0] * 8 + [1, 2]
    assert by_time(pd.Series([5, 5, 1, 1, 9]), (0.2, 0.4, 0.4)).tolist() == [1, 1, 0, 0, 2]


def test_draws_are_the_same_everywhere():
    """Fixed values: a split must not move with the version of numpy."""
    user = pd.Series([1] * 10 + [2] * 5)
    drawn = by_ratio(user, (0.6, 0.2, 0.2), seed=2020).tolist()
    assert drawn == [2, 2, 1, 0, 0, 0, 0, 0, 1, 0, 0, 2, 1, 0, 0]
    assert by_ratio(user, (0.6, 0.2, 0.2), seed=2021).tolist() != drawn


@given(seed=st.integers(0, 9), n_items=st.integers(10, 40))
def test_cold_items_have_all_their_rows_in_one_part(seed, n_items):
    rows = np.random.default_rng(seed).integers(0, [5, n_items], size=(4000, 2))
    user, item = pd.Series(rows[:, 0]), pd.Series(rows[:, 1])
    part = cold_items(user, item, (0.6, 0.2, 0.2), seed)
    parts = [set(item[part == number]) for number in range(3)]
    cold = [parts[number] - parts[0] for number in (1, 2)]
    n = item.nunique()
    assert not cold[0] & cold[1]
    assert len(cold[0]) + len(cold[1]) == round(0.4 * n)
    assert len(cold[1]) == round(0.2 * n)
    warm = item.isin(parts[0])
    np.testing.assert_array_equal(part[warm], by_ratio(user[warm], (0.6, 0.2, 0.2), seed))
