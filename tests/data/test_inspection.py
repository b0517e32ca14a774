"""What ``recbole-onebp inspect`` says of data that are in order, and of data that are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from conftest import write_inter
from recbole_onebp.cli import main
from recbole_onebp.data.inspection import Inspection

N_USERS, N_ITEMS, LINE = 300, 400, 60


def drifting(rng, in_order=True):
    """Each user moves on from low items to high ones; in order, or shuffled."""
    rows = []
    for user in range(1, N_USERS + 1):
        items = np.sort(rng.choice(np.arange(1, N_ITEMS + 1), LINE, replace=False))
        items = np.clip(items + rng.integers(-30, 31, LINE), 1, N_ITEMS)
        items = items if in_order else rng.permutation(items)
        rows += [(user, item, place) for place, item in enumerate(items)]
    return pd.DataFrame(rows, columns=["user", "item", "time"]).drop_duplicates(["user", "item"], ignore_index=True)


def parts_of(rows, last):
    """20 % for test, which come last, and 10 % for validation: the last before them, or random ones."""
    place = rows.groupby("user").cumcount()
    is_test = place >= 0.8 * LINE
    rng = np.random.default_rng(3)
    is_valid = ~is_test & ((place >= 0.7 * LINE) if last else (rng.random(len(rows)) < 1 / 8))
    return {"train": rows[~is_test & ~is_valid], "valid": rows[is_valid], "test": rows[is_test]}


def inspected(rows, last=True):
    parts = {name: part.reset_index(drop=True) for name, part in parts_of(rows, last).items()}
    return Inspection(parts, N_USERS, N_ITEMS, last)


def place_of_items(found):
    return next(one for one in found.differences if one.what.startswith("place of items"))


def test_lines_in_order_rise():
    found = inspected(drifting(np.random.default_rng(0))).tenths
    assert found.slope > 0.1
    assert found.p_value < 1e-10
    assert found.train == sorted(found.train)
    assert found.test[-1] > found.train[-1] > found.train[0]


def test_lines_in_any_order_are_flat():
    found = inspected(drifting(np.random.default_rng(0), in_order=False)).tenths
    assert found.p_value > 0.01
    assert np.mean(found.test) == pytest.approx(np.mean(found.train), abs=0.05)


def test_a_random_test_part_is_at_one_level_with_train():
    """A pair itself does not count in the share of its item: few pairs of an item would lift the test line."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"user": np.repeat(np.arange(1, 501), 40), "item": rng.integers(1, 2001, 20_000)})
    rows = rows.drop_duplicates(ignore_index=True)
    rows["time"] = rng.permutation(len(rows))
    part = rng.choice(["train", "valid", "test"], len(rows), p=[0.6, 0.1, 0.3])
    parts = {name: rows[part == name].reset_index(drop=True) for name in ("train", "valid", "test")}
    found = Inspection(parts, 500, 2000, False).tenths
    assert np.mean(found.test) == pytest.approx(np.mean(found.train), abs=0.01)
    assert found.p_value > 0.01


def test_pairs_of_one_time_are_counted():
    part = pd.DataFrame({"user": [1, 1, 1, 2], "item": [1, 2, 3, 1], "time": [5.0, 5.0, 6.0, 5.0]})
    empty = part[:0]
    found = Inspection({"train": part, "valid": empty, "test": empty}, 2, 3, True)
    assert (found.tied, found.has_two_times) == (0.5, True)
    assert not Inspection({"train": part[:2], "valid": empty, "test": empty}, 2, 3, True).has_two_times
    assert Inspection({"train": part.drop(columns="time"), "valid": empty, "test": empty}, 2, 3, True).tied == 0


def test_a_random_validation_part_is_unlike_a_test_part_that_comes_last():
    rows = drifting(np.random.default_rng(0))
    place = place_of_items(inspected(rows, last=False))
    assert place.is_unlike
    assert place.test > place.valid
    closer = place_of_items(inspected(rows))
    assert abs(closer.effect) < abs(place.effect) / 2


def test_random_parts_are_alike():
    shuffled = drifting(np.random.default_rng(0), in_order=False)
    assert not any(one.is_unlike for one in inspected(shuffled).differences)


def test_counts():
    train = pd.DataFrame({"user": [1, 1, 1, 2], "item": [1, 2, 2, 1]})
    valid, test = pd.DataFrame({"user": [1], "item": [2]}), pd.DataFrame({"user": [2, 2], "item": [2, 3]})
    found = Inspection({"train": train, "valid": valid, "test": test}, 2, 3, False)
    assert found.repeats == {"train": 1, "valid": 0, "test": 0}
    assert found.overlaps == {"valid": 1, "test": 0}
    assert found.per_user == [1, 2, 3]
    assert found.density == pytest.approx(7 / 6)
    unseen = {one.what: one for one in found.differences}["pairs whose item is not in train (share)"]
    assert (unseen.valid, unseen.test) == (0, 0.5)
    assert found.tenths is None


@pytest.fixture
def mine(tmp_path):
    rows = drifting(np.random.default_rng(0))
    header = "user_id:token\titem_id:token\ttimestamp:float"
    for name, part in parts_of(rows, last=False).items():
        write_inter(tmp_path / "mine", part.to_numpy().tolist(), header).rename(
            tmp_path / "mine" / f"mine.{name}.inter"
        )
    return [
        "inspect", "--dataset=mine", f"--data_path={tmp_path}", "--benchmark_filename=['train','valid','test']",
        "--load_col={'inter': ['user_id', 'item_id', 'timestamp']}",
    ]  # fmt: skip


def test_pairs_of_large_data_do_not_collide():
    parts = {"train": [(1, 5)], "valid": [(2, 3)], "test": [(42950, 67301)]}
    frames = {name: pd.DataFrame(rows, columns=["user", "item"], dtype=np.int32) for name, rows in parts.items()}
    assert Inspection(frames, 50_000, 100_000, False).overlaps == {"valid": 0, "test": 0}


def test_the_command(mine, capsys, tmp_path):
    assert main([*mine, f"--picture={tmp_path / 'order.png'}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("mine: 300 users, 400 items")
    assert "times: the parts overlap in time" in out
    assert "warning: validation is unlike test" in out
    assert imread(tmp_path / "order.png").std() > 0
    assert main([*mine, f"--picture={tmp_path / 'order'}"]) == 0
    assert (tmp_path / "order").read_bytes() == (tmp_path / "order.png").read_bytes()


def test_a_picture_that_cannot_be_drawn(tiny_path, capsys):
    code = main(["inspect", "--dataset=tiny", f"--data_path={tiny_path}", "--picture=order.png",
                 "--load_col={'inter': ['user_id', 'item_id']}", "--topk=[5]", "--valid_metric=NDCG@5"])  # fmt: skip
    assert code == 2
    assert "tiny has no times" in capsys.readouterr().err
