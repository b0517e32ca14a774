"""RecBole's dataset without what makes it large: strings, lists and counters as long as the interactions."""

from __future__ import annotations

import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from recbole.data.dataset import Dataset
from recbole.data.dataset import dataset as recbole_dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

__all__ = ["OneBPDataset"]

_CHUNK = 1 << 16
"""Lines that are read at a time."""


class OneBPDataset(Dataset):
    """RecBole's dataset, built in a fraction of its memory: same ids, same features, same split under the same seed.

    Token columns of an interaction file are codes and a vocabulary from the start, rows are grouped, split and counted
    by numpy.  A file that is not plain (quotes, sequences, missing tokens, ...) is read by RecBole, at RecBole's cost.
    """

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        if source is not FeatureSource.INTERACTION:
            return super()._load_feat(filepath, source)
        return _given(Dataset._load_feat, pd=SimpleNamespace(read_csv=_read))(self, filepath, source)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        _given(Dataset._load_inter_feat, pd=SimpleNamespace(concat=_concat))(self, token, dataset_path)

    def _filter_by_inter_num(self) -> None:
        _given(Dataset._filter_by_inter_num, Counter=_count)(self)

    def _concat_remaped_tokens(self, remap_list: list[tuple[Any, str, Any]]) -> tuple[Any, npt.NDArray[np.int64]]:
        columns = [feat[field].array for feat, field, _ in remap_list]
        if any(kind != FeatureType.TOKEN for *_, kind in remap_list) or not isinstance(columns[0], pd.Categorical):
            return super()._concat_remaped_tokens(remap_list)
        # pandas factorizes these as it does RecBole's strings: by first appearance.
        return union_categoricals([*map(_as_categorical, columns)]), np.cumsum([*map(len, columns)])[:-1]

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        return _Rows(super()._dataframe_to_interaction(data).interaction)

    def counter(self, field: str) -> Counter[int]:
        return _given(Dataset.counter, Counter=_count)(self, field)

    @property
    def avg_actions_of_users(self) -> float:
        return _given(Dataset.avg_actions_of_users.fget, Counter=_count)(self)

    @property
    def avg_actions_of_items(self) -> float:
        return _given(Dataset.avg_actions_of_items.fget, Counter=_count)(self)

    def _grouped_index(self, group_by_list: npt.NDArray[np.int64]) -> _Groups:
        return _Groups.of(group_by_list)

    def split_by_ratio(self, ratios: Sequence[float], group_by: str | None = None) -> list[Dataset]:
        if group_by is None:
            return super().split_by_ratio(ratios)
        groups = self._grouped_index(self.inter_feat[group_by].numpy())
        shares = [ratio / sum(ratios) for ratio in ratios]
        sizes, size_of_group = np.unique(groups.sizes, return_inverse=True)
        # RecBole's rounding; (n sizes, n parts - 1)
        ends = np.array([self._calcu_split_ids(tot=int(size), ratios=shares) for size in sizes])
        position, part = groups.position, np.zeros(len(groups.rows), np.int8)
        for end in ends.T:
            part += position >= groups.spread(end[size_of_group])
        self._drop_unused_col()
        return [self.copy(self.inter_feat[groups.rows[part == number]]) for number in range(len(ratios))]

    def _split_index_by_leave_one_out(self, grouped_index: _Groups, leave_one_num: int) -> list[npt.NDArray[np.int64]]:
        left_out = np.minimum(leave_one_num, grouped_index.sizes - 1)
        from_end = grouped_index.spread(grouped_index.sizes) - grouped_index.position  # the last row of a group has 1
        part = np.where(from_end <= grouped_index.spread(left_out), leave_one_num + 1 - from_end, 0)
        return [grouped_index.rows[part == number] for number in range(leave_one_num + 1)]


class _Rows(Interaction):
    """An interaction that takes row numbers as they are: RecBole makes a list of them first."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, range):
            index = slice(index.start, index.stop)  # a view
        elif isinstance(index, np.ndarray) and index.dtype == np.int64:
            index = torch.from_numpy(index)
        if isinstance(index, slice) or (isinstance(index, Tensor) and index.dtype == torch.int64):
            return _Rows({name: column[index] for name, column in self.interaction.items()})
        return super().__getitem__(index)


@dataclass(frozen=True)
class _Groups:
    """Row numbers group by group: groups in order of first appearance, rows in order within a group."""

    rows: npt.NDArray[np.int64]
    """All row numbers ``(n,)``."""
    sizes: npt.NDArray[np.int64]
    """Rows of each group ``(n groups,)``."""

    @classmethod
    def of(cls, keys: npt.NDArray[np.int64]) -> _Groups:
        group, _ = pd.factorize(keys)
        return cls(np.argsort(group, kind="stable"), np.bincount(group))

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return iter(np.split(self.rows, np.cumsum(self.sizes)[:-1]))

    def spread(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A value of each group ``(n groups,)`` for each of its rows ``(n,)``."""
        return np.repeat(values, self.sizes)

    @property
    def position(self) -> npt.NDArray[np.int64]:
        """Where each row stands in its group, from 0 ``(n,)``."""
        return np.arange(len(self.rows)) - self.spread(np.cumsum(self.sizes) - self.sizes)


def _given(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A function of RecBole's that reads these names of its module as we say."""
    function = inspect.unwrap(function)
    return FunctionType(function.__code__, {**function.__globals__, **names}, argdefs=function.__defaults__)


def _count(values: Any = ()) -> Counter[Any]:
    """``Counter(values)``, counted by pandas."""
    counts = pd.Series(values).value_counts(sort=False, dropna=False)
    return Counter(counts[counts > 0].to_dict())


def _categorical(codes: npt.NDArray[Any], tokens: Any) -> pd.Categorical:
    # As objects: pandas 3 would copy them into a store of its own.
    return pd.Categorical.from_codes(codes, pd.Index(tokens, dtype=object))


def _as_categorical(column: Any) -> pd.Categorical:
    """A column of interactions as it is, one of user or item features made alike."""
    return column if isinstance(column, pd.Categorical) else _categorical(*pd.factorize(np.asarray(column, object)))


def _concat(frames: list[pd.DataFrame], ignore_index: bool) -> pd.DataFrame:
    """``pd.concat``, where categorical columns stay categorical though their categories differ."""
    for name in frames[0]:
        if all(name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype) for frame in frames):
            tokens = union_categoricals([frame[name] for frame in frames]).categories
            for frame in frames:
                frame[name] = frame[name].cat.set_categories(tokens)
    return pd.concat(frames, ignore_index=ignore_index)


def _read(
    filepath: str, delimiter: str, usecols: list[str], dtype: dict[str, Any], encoding: str | None, engine: str
) -> pd.DataFrame:
    """``pd.read_csv`` as RecBole calls it, with categorical columns in place of strings."""
    if _is_plain(filepath, delimiter, encoding) and not any(title.endswith("_seq") for title in usecols):
        # RecBole's reader has the last word on what is wrong.
        with suppress(ValueError):
            frame = _read_in_chunks(filepath, delimiter, usecols, dtype, encoding)
            if frame is not None:
                return frame
    return recbole_dataset.pd.read_csv(
        filepath, delimiter=delimiter, usecols=usecols, dtype=dtype, encoding=encoding, engine=engine
    )


_ODD = re.compile(rb'["\0]|\r(?!\n)')


def _is_plain(path: str, delimiter: str, encoding: str | None) -> bool:
    """Whether pandas' C engine reads this file as its Python engine does, which RecBole uses."""
    if len(delimiter) > 1:  # a regular expression
        return False
    with open(path, encoding=encoding) as lines:
        header, first = next(lines), next((line for line in lines if line.strip()), "")
        if first.count(delimiter) > header.count(delimiter):
            return False
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            if _ODD.search(block + file.read(1) if block.endswith(b"\r") else block):
                return False
    return True


def _read_in_chunks(
    path: str, delimiter: str, usecols: list[str], dtype: dict[str, Any], encoding: str | None
) -> pd.DataFrame | None:
    """The columns, token columns as categories in order of first appearance; None if a token is missing."""
    ids: dict[str, defaultdict[str, int]] = {
        title: defaultdict(count().__next__) for title in usecols if dtype[title] is str
    }
    pieces: dict[str, list[npt.NDArray[Any]]] = {title: [] for title in usecols}
    as_objects = {title: object if title in ids else kind for title, kind in dtype.items()}
    with pd.read_csv(
        path, sep=delimiter, usecols=usecols, dtype=as_objects, encoding=encoding, chunksize=_CHUNK
    ) as chunks:
        for chunk in chunks:
            if chunk[list(ids)].isna().to_numpy().any():
                return None
            for title in usecols:
                column = chunk[title].to_numpy()
                if title in ids:
                    column = np.fromiter(map(ids[title].__getitem__, column), np.int32, len(column))
                pieces[title].append(column)
    frame = pd.DataFrame({title: np.concatenate(parts) for title, parts in pieces.items()}, copy=False)
    for title, tokens in ids.items():
        frame[title] = _categorical(frame[title].to_numpy(), [*tokens])
    return frame
