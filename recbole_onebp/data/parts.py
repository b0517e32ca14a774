"""The train, validation and test parts that a run uses: RecBole's, with what its configuration changes."""

from __future__ import annotations

from itertools import pairwise
from logging import getLogger
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from recbole.config import Config
from recbole.data.interaction import cat_interactions
from recbole.utils import ModelType

from recbole_onebp.util.errors import UserError

__all__ = ["prepare_parts"]

_CHUNK = 1 << 22


def prepare_parts(config: Config, dataset: Any) -> None:
    """Make RecBole's ``dataset.build()`` return three parts as the configuration asks for.

    Two parts of ``benchmark_filename`` are train and test; validation is then empty.  With ``refit: true`` train is
    train and validation together, and validation is empty.  Pairs that are in two parts are counted and logged.
    Interactions are put in order of time where that counts, before RecBole reads their times as 32-bit numbers, of
    which those of about a minute are the same: with ``order: TO``, as its own sort keeps the order, and in a part of
    ``benchmark_filename`` in which somebody's rows are not in order.
    """

    def build() -> list[Any]:
        del dataset.build  # restores the method of the class: the parts are copies of the data set
        if dataset.time_field in dataset.inter_feat:
            if config["benchmark_filename"]:
                dataset.inter_feat = _parts_in_order(dataset)
            elif config["eval_args"]["order"] == "TO":
                rows = dataset.inter_feat
                dataset.inter_feat = rows.sort_values(dataset.time_field, kind="stable", ignore_index=True)
        parts = [*dataset.build()]
        if len(parts) == 2:
            parts.insert(1, _empty(parts[0]))
        if config["refit"]:
            parts = _with_validation_in_train(*parts)
        _tell_shared_pairs(config, *parts)
        return parts

    dataset.build = build


def _parts_in_order(dataset: Any) -> pd.DataFrame:
    """The rows of all parts; those of a part by time, unless each user's already are."""
    rows = dataset.inter_feat
    ends = np.cumsum([0, *dataset.file_size_list])
    if ends[-1] != len(rows):  # rows were left out, so it is not known which part a row belongs to
        return rows
    parts = [rows.iloc[start:end] for start, end in pairwise(ends)]
    in_order = [_in_order(part[dataset.uid_field].to_numpy(), part[dataset.time_field].to_numpy()) for part in parts]
    if all(in_order):
        return rows
    by_time = [
        part if is_in_order else part.sort_values(dataset.time_field, kind="stable")
        for part, is_in_order in zip(parts, in_order, strict=True)
    ]
    return pd.concat(by_time, ignore_index=True)


def _in_order(user: npt.NDArray[Any], time: npt.NDArray[Any]) -> bool:
    """Whether each user's times rise: all do, or users stand together, and times rise in each."""
    rises, same = np.diff(time) >= 0, np.diff(user) == 0
    return bool(rises.all() or (rises[same].all() and len(time) - same.sum() == len(np.unique(user))))


def _empty(part: Any) -> Any:
    return part.copy(part.inter_feat[:0])


def _with_validation_in_train(train: Any, valid: Any, test: Any) -> list[Any]:
    """The history that is excluded from recommendations in the test does not change: it is both parts anyway."""
    if len(valid) == 0:
        raise UserError("refit: true: there is no validation part to add to the train part; leave refit out")
    both = train.copy(cat_interactions([train.inter_feat, valid.inter_feat]))
    return [both, _empty(valid), test]


def _tell_shared_pairs(config: Config, train: Any, valid: Any, test: Any) -> None:
    """Log how many pairs of the test and validation parts a model has seen in training."""
    if config["repeatable"] or config["MODEL_TYPE"] in (ModelType.CONTEXT, ModelType.DECISIONTREE):
        return
    cure = (
        "drop repeated pairs (rm_dup_inter: first, or recbole-onebp convert)"
        if config["benchmark_filename"] is None
        else "take them out of the files of benchmark_filename"
    )
    for name, part in (("test", test), ("validation", valid)):
        shared = _n_shared(_codes(train), _codes(part))
        if shared:
            getLogger().warning(
                "%d of %d interactions of the %s part are in the train part too: a model is tested on what it has "
                "seen, and metrics are too good; %s, or set repeatable: true if repeats are to be recommended",
                shared,
                len(part),
                name,
                cure,
            )


def _codes(part: Any) -> npt.NDArray[np.int64]:
    """A number for each interaction's pair of user and item."""
    user, item = (part.inter_feat[field].numpy() for field in (part.uid_field, part.iid_field))
    return user.astype(np.int64) * part.item_num + item


def _n_shared(train: npt.NDArray[np.int64], part: npt.NDArray[np.int64]) -> int:
    """How many of the numbers in ``part`` are also in ``train``.

    A table of bits leaves few candidates in the long ``train``, which need not be sorted.
    """
    size = 16 * len(part) + 1
    marked = np.zeros(size, dtype=bool)
    marked[part % size] = True
    chunks = (train[start : start + _CHUNK] for start in range(0, len(train), _CHUNK))
    candidates = [chunk[marked[chunk % size]] for chunk in chunks]
    return int(np.isin(part, np.concatenate(candidates)).sum()) if candidates else 0
