"""What a person should know of a data set: sizes, repeats, order, and whether validation looks like test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from recbole_onebp.data.order import are_in_order, has_times

__all__ = ["Difference", "Inspection", "Tenths", "inspect"]

_TENTHS = 10
_UNLIKE, _SIGNIFICANT = 0.1, 0.001
"""Validation is unlike test if a mean differs by more than this many standard deviations, and not by chance."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean of something over the pairs of validation and of test, and whether users differ in it."""

    what: str
    valid: float
    test: float
    effect: float
    """Difference of the means in standard deviations over all pairs of both parts."""
    p_value: float
    """Of a paired t test over the users who have both parts; NaN with fewer than two such users."""

    @property
    def is_unlike(self) -> bool:
        return abs(self.effect) > _UNLIKE and self.p_value < _SIGNIFICANT


@dataclass(frozen=True)
class Tenths:
    """Whether the pairs of a user are in order of time, judged without any time.

    For each pair, take the share of its item's other pairs that lie in the test part; then average it by place in the
    line of a user, from the first to the last tenth, over lines of at least ten pairs.  If the test part was drawn at
    random, and pairs are in any order, both lines are flat and at the same level.
    """

    train: list[float]
    test: list[float]
    slope: float
    """Rise over the train line, mean over users with at least ten train pairs."""
    t: float
    p_value: float
    """Of the slope, by a t test over these users."""
    n_users: int


@dataclass(frozen=True)
class Inspection:
    """Parts of a data set as frames with the columns ``user``, ``item`` and, if known, ``time``."""

    parts: Mapping[str, pd.DataFrame]
    n_users: int
    n_items: int
    in_order: bool
    """Whether train comes before validation, and validation before test, in time."""

    @property
    def has_times(self) -> bool:
        return all("time" in part for part in self.parts.values())

    @cached_property
    def _every(self) -> pd.DataFrame:
        return pd.concat(self.parts.values())

    @cached_property
    def tied(self) -> float:
        """Share of the pairs that have the time of another pair of their user; 0 without times."""
        if not self.has_times:
            return 0.0
        return float(self._every.duplicated(["user", "time"], keep=False).mean())

    @cached_property
    def has_two_times(self) -> bool:
        """Whether anybody has two different times."""
        if not self.has_times:
            return False
        times = self._every.groupby("user")["time"]
        return bool((times.max() > times.min()).any())

    @property
    def density(self) -> float:
        return sum(map(len, self.parts.values())) / max(self.n_users * self.n_items, 1)

    @cached_property
    def per_user(self) -> list[int]:
        """Fewest, median and most train pairs of a user."""
        counts = self.parts["train"]["user"].value_counts()
        return [int(counts.min()), int(counts.median()), int(counts.max())] if len(counts) else [0, 0, 0]

    @cached_property
    def repeats(self) -> dict[str, int]:
        """Pairs of each part that are in it more than once."""
        return {name: int(part.duplicated(["user", "item"]).sum()) for name, part in self.parts.items()}

    @cached_property
    def overlaps(self) -> dict[str, int]:
        """Pairs of validation and test that are in an earlier part too."""
        names, found = list(self.parts), {}
        codes = {
            name: part["user"].to_numpy(np.int64) * (self.n_items + 1) + part["item"].to_numpy()
            for name, part in self.parts.items()
        }
        for number, name in enumerate(names[1:], start=1):
            earlier = np.concatenate([codes[other] for other in names[:number]])
            found[name] = int(np.isin(codes[name], earlier).sum())
        return found

    @cached_property
    def differences(self) -> list[Difference]:
        """How validation differs from test; empty if one of them is."""
        if any(self.parts[name].empty for name in ("train", "valid", "test")):
            return []
        train = self.parts["train"]
        count = np.bincount(train["item"], minlength=self.n_items + 1)
        kinds: dict[str, Floats] = {
            "popularity of items (log of 1 + train pairs)": np.log1p(count),
            "pairs whose item is not in train (share)": (count == 0).astype(float),
        }
        if self.has_times:
            place = _places(train)
            total = np.bincount(train["item"], weights=place, minlength=self.n_items + 1)
            age = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
            kinds["place of items in train lines (0 first, 1 last)"] = age
        return [_difference(what, values, self.parts["valid"], self.parts["test"]) for what, values in kinds.items()]

    @cached_property
    def tenths(self) -> Tenths | None:
        """See :class:`Tenths`; None without times, or without users who have a line of ten pairs in train and test."""
        train, test = pd.concat([self.parts["train"], self.parts["valid"]], ignore_index=True), self.parts["test"]
        if not self.has_times or test.empty or train.empty:
            return None
        in_train, in_test = (np.bincount(part["item"], minlength=self.n_items + 1) for part in (train, test))
        others = in_train + in_test - 1
        train, test = (part[part.groupby("user")["item"].transform("size") >= _TENTHS] for part in (train, test))
        lines, slopes = [], np.empty(0)
        for part, own in ((train, 0), (test, 1)):
            item = part["item"].to_numpy()
            place, has_others = _places(part), others[item] > 0
            user, item, place = part["user"].to_numpy()[has_others], item[has_others], place[has_others]
            if not len(item):
                return None
            share = (in_test[item] - own) / others[item]
            tenth = np.minimum((place * _TENTHS).astype(int), _TENTHS - 1)
            sums, counts = np.bincount(tenth, share, _TENTHS), np.bincount(tenth, minlength=_TENTHS)
            lines.append((sums / np.maximum(counts, 1)).tolist())
            if part is train:
                slopes = _slopes(user, place, share)
        if len(slopes) < 2:
            return None
        test_of_zero = stats.ttest_1samp(slopes, 0.0)
        t, p_value = float(test_of_zero.statistic), float(test_of_zero.pvalue)
        return Tenths(lines[0], lines[1], float(slopes.mean()), t, p_value, len(slopes))


def inspect(train: Any, valid: Any, test: Any) -> Inspection:
    """Look at the parts of a data set.

    Args:
        train: RecBole's data set of this part; so for the others, which may be empty.
        valid: likewise.
        test: likewise.
    """
    parts = {}
    for name, part in (("train", train), ("valid", valid), ("test", test)):
        columns = {"user": part.inter_feat[part.uid_field], "item": part.inter_feat[part.iid_field]}
        if has_times(part):
            columns["time"] = part.inter_feat[part.time_field]
        parts[name] = pd.DataFrame({key: column.numpy() for key, column in columns.items()})
    return Inspection(parts, train.user_num - 1, train.item_num - 1, are_in_order([train, valid, test]))


def _places(part: pd.DataFrame) -> Floats:
    """Place of each pair in its user's line by time, from 0 to less than 1."""
    number = part.sort_values("time", kind="stable").groupby("user").cumcount().reindex(part.index)
    return (number / part.groupby("user")["item"].transform("size")).to_numpy(float)


def _slopes(user: npt.NDArray[Any], x: Floats, y: Floats) -> Floats:
    """The slope of y by x for each user, by least squares."""
    frame = pd.DataFrame({"user": user, "x": x, "y": y})
    frame[["x", "y"]] -= frame.groupby("user")[["x", "y"]].transform("mean")
    sums = pd.DataFrame({"user": user, "xy": frame["x"] * frame["y"], "xx": frame["x"] ** 2}).groupby("user").sum()
    return (sums["xy"] / sums["xx"])[sums["xx"] > 0].to_numpy(float)


def _difference(what: str, of_item: Floats, valid: pd.DataFrame, test: pd.DataFrame) -> Difference:
    values = [pd.Series(of_item[part["item"]], index=part["user"]).dropna() for part in (valid, test)]
    both = np.concatenate(values)
    in_valid, in_test = (float(value.mean()) for value in values)
    deviation = float(both.std())
    effect = (in_test - in_valid) / deviation if deviation > 0 else 0.0
    of_users = pd.concat([value.groupby(level=0).mean() for value in values], axis=1, join="inner")
    if len(of_users) < 2 or deviation == 0:
        return Difference(what, in_valid, in_test, effect, float("nan"))
    p_value = float(stats.ttest_rel(of_users[0], of_users[1]).pvalue)
    return Difference(what, in_valid, in_test, effect, p_value)
