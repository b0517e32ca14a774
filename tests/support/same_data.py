"""Made interactions, every way to split them, and whether two data sets are the same."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

USERS = ["u", "007", "7", "1e3", "1000", "é", "日本", " u", "u ", "#", "\\t", "'q'", "True", "-1", "inf", "\u2028"]
RATED = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
BY_USER = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO", "mode": "full"}
SPLITS = {
    "random, by user": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "RO"},
    "random, of all": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none", "order": "RO"},
    "by time, of all": {"split": {"RS": [7, 2, 1]}, "group_by": None, "order": "TO"},
    "by time, by user": {"split": {"RS": [0.5, 0.25, 0.25]}, "group_by": "user", "order": "TO"},
    "no validation": {"split": {"RS": [0.7, 0.0, 0.3]}, "group_by": "user", "order": "RO"},
    "last two": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO"},
    "last for validation": {"split": {"LS": "valid_only"}, "group_by": "user", "order": "RO"},
    "last for test": {"split": {"LS": "test_only"}, "group_by": "user", "order": "TO"},
    "at a time": {"split": {"TS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO"},
}


def assert_same_columns(theirs, ours):
    """Of a split; our ids are int32 where RecBole's are int64."""
    assert list(theirs) == list(ours)
    for name in theirs:
        assert theirs[name].dtype == ours[name].dtype or (theirs[name].dtype, ours[name].dtype) == (
            torch.int64,
            torch.int32,
        )
        np.testing.assert_array_equal(ours[name], theirs[name])


def assert_same(theirs, ours):
    """As loaded, and as split; returns our three parts."""
    for attribute in ("field2type", "field2source", "field2seqlen", "feat_name_list"):
        assert getattr(theirs, attribute) == getattr(ours, attribute)
    assert str(theirs.alias) == str(ours.alias)
    assert {field: str(ids) for field, ids in theirs.field2token_id.items()} == {
        field: str(ids) for field, ids in ours.field2token_id.items()
    }
    assert theirs.field2id_token.keys() == ours.field2id_token.keys()
    for field, tokens in theirs.field2id_token.items():
        assert ours.field2id_token[field].dtype == tokens.dtype
        assert ours.field2id_token[field].tolist() == tokens.tolist()
    for name in theirs.feat_name_list:
        ids = dict.fromkeys(getattr(ours, name).select_dtypes(np.int32), np.int64)
        pd.testing.assert_frame_equal(getattr(theirs, name), getattr(ours, name).astype(ids))
    assert str(theirs) == str(ours)
    parts = []
    for dataset in (theirs, ours):
        torch.manual_seed(7)
        parts.append(dataset.build())
    for their_part, our_part in zip(*parts, strict=True):
        assert_same_columns(their_part.inter_feat, our_part.inter_feat)
        assert their_part.user_counter == our_part.user_counter
        assert their_part.item_counter == our_part.item_counter
    assert_same_columns(theirs.inter_feat, ours.inter_feat)
    assert str(theirs) == str(ours)
    return parts[1]


def events(n, users=12, items=15, seed=0):
    """Users, items, ratings and times, with repeated pairs and equal times."""
    rng = np.random.default_rng(seed)
    return [
        (USERS[user], f"i{item}", rating, 1000 + time)
        for user, item, rating, time in zip(
            rng.integers(users, size=n),
            rng.integers(items, size=n) ** 2 % items,
            rng.integers(1, 6, size=n) / 2,
            rng.integers(n // 2, size=n),
            strict=True,
        )
    ]
