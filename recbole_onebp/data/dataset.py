"""RecBole's dataset without what makes it large: strings, lists and counters as long as the interactions."""

from __future__ import annotations

import inspect
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
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

from recbole_onebp.data import interactions
from recbole_onebp.data.cache import DataCache, State

__all__ = ["OneBPDataset"]

_FIELDS = ("field2type", "field2source", "field2seqlen", "field2bucketnum")
_PLAIN = (FeatureType.TOKEN, FeatureType.FLOAT)


class OneBPDataset(Dataset):
    """RecBole's dataset, built in a fraction of its memory: same ids, same features, same split under the same seed.

    Token columns of an interaction file are codes and a vocabulary from the start, rows are grouped, split and counted
    by numpy.  A file that is not plain (quotes, sequences, missing tokens, ...) is read by RecBole, at RecBole's cost.
    Beyond RecBole's files it reads columnar ones, see :mod:`~recbole_onebp.data.interactions`.  Interactions alone,
    without features of users or items, are kept in a cache, see :mod:`~recbole_onebp.data.cache`.

    Ids in ``inter_feat`` are int32 where no features share them; batches have RecBole's int64.
    """

    def _from_scratch(self) -> None:
        cache = DataCache(self.config)
        kept = cache.load()
        if kept is None:
            super()._from_scratch()
            if not self._is_plain() or not cache.save(self._state()):
                return
            kept = cache.load()  # what was made lies in memory, this on the disk
        if kept is not None:
            self._get_preset()
            self._get_field_from_config()
            self._restore(kept)

    def _is_plain(self) -> bool:
        """Whether the interactions are all there is."""
        return (
            self.feat_name_list == ["inter_feat"]
            and not self._preloaded_weight
            and all(self.field2type[field] in _PLAIN for field in self.inter_feat)
            and all(dtype.kind in "if" for dtype in self.inter_feat.dtypes)  # buckets of numbers are lists
        )

    def _state(self) -> State:
        fields = {name: {key: _value(value) for key, value in getattr(self, name).items()} for name in _FIELDS}
        values = {
            "fields": fields,
            "alias": {name: list(map(str, fields)) for name, fields in self.alias.items()},
            "rest_fields": list(map(str, self._rest_fields)),
            "file_sizes": getattr(self, "file_size_list", None),
            "columns": list(self.inter_feat),
        }
        columns = {f"column {name}": self.inter_feat[name].to_numpy() for name in self.inter_feat}
        tokens = {f"tokens {field}": tokens for field, tokens in self.field2id_token.items()}
        return State(values, columns | tokens)

    def _restore(self, state: State) -> None:
        values, arrays = state.values, state.arrays
        kinds: dict[str, Callable[[Any], Any]] = {"field2type": FeatureType, "field2source": FeatureSource}
        for name in _FIELDS:
            kind = kinds.get(name, int)
            setattr(self, name, {key: kind(value) for key, value in values["fields"][name].items()})
        for name, tokens in arrays.items():
            kind_of_array, _, field = name.partition(" ")
            if kind_of_array == "tokens":
                self.field2id_token[field], self.field2token_id[field] = tokens, _TokenIds(tokens)
        self.alias = {name: np.array(fields) for name, fields in values["alias"].items()}
        self._rest_fields = np.array(values["rest_fields"])
        if values["file_sizes"] is not None:
            self.file_size_list = values["file_sizes"]
        self.inter_feat = pd.DataFrame({name: arrays[f"column {name}"] for name in values["columns"]}, copy=False)
        self.user_feat = self.item_feat = None
        self.feat_name_list = ["inter_feat"]

    def _load_feat(self, filepath: str, source: Any) -> pd.DataFrame | None:
        if source is not FeatureSource.INTERACTION:
            return super()._load_feat(filepath, source)
        path, show_progress = Path(filepath), bool(self.config["show_progress"])
        if path.suffix not in interactions.COLUMNAR:
            read = partial(_read, show_progress=show_progress)
            return _given(Dataset._load_feat, pd=SimpleNamespace(read_csv=read))(self, filepath, source)
        encoding = self.config["encoding"]
        titles = interactions.header(path, [self.uid_field, self.iid_field], encoding)
        lines = f"{self.config['field_separator'].join(titles)}\n"

        def read_columns(_filepath: str, usecols: list[str], **_: Any) -> pd.DataFrame:
            return interactions.read(path, {title: titles[title] for title in usecols}, encoding, show_progress)

        names = {"open": lambda *_args, **_kwargs: StringIO(lines), "pd": SimpleNamespace(read_csv=read_columns)}
        return _given(Dataset._load_feat, **names)(self, filepath, source)

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        def find(folder: str, name: str) -> str:
            return str(interactions.find(Path(folder), name.removesuffix(".inter")))

        found = SimpleNamespace(path=SimpleNamespace(join=find, exists=os.path.exists, isfile=os.path.exists))
        _given(Dataset._load_inter_feat, os=found, pd=SimpleNamespace(concat=_concat))(self, token, dataset_path)

    def _remap(self, remap_list: list[tuple[Any, str, Any]]) -> None:
        if len(remap_list) != 1 or not isinstance(remap_list[0][0][remap_list[0][1]].array, pd.Categorical):
            super()._remap(remap_list)
            return
        feat, field, _ = remap_list[0]
        codes, tokens = feat[field].array.codes, feat[field].array.categories
        seen = pd.unique(codes)  # in order of first appearance
        seen = seen[seen >= 0]
        ids = np.zeros(len(tokens) + 1, dtype=np.int32)  # the last is a missing token's, whose code is -1
        ids[seen] = np.arange(1, 1 + len(seen), dtype=np.int32)
        feat[field] = ids[codes]
        table = interactions.token_table(tokens[seen])
        self.field2id_token[field], self.field2token_id[field] = table, _TokenIds(table)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        columns = self.inter_feat[index].interaction.items()
        rows = Interaction({name: rows.long() if rows.dtype == torch.int32 else rows for name, rows in columns})
        return self.join(rows) if join else rows

    def _filter_by_inter_num(self) -> None:
        _given(Dataset._filter_by_inter_num, Counter=_count)(self)

    def _concat_remaped_tokens(self, remap_list: list[tuple[Any, str, Any]]) -> tuple[Any, npt.NDArray[np.int64]]:
        columns = [feat[field].array for feat, field, _ in remap_list]
        if any(kind != FeatureType.TOKEN for *_, kind in remap_list) or not isinstance(columns[0], pd.Categorical):
            return super()._concat_remaped_tokens(remap_list)
        # pandas factorizes these as it does RecBole's strings: by first appearance.
        return union_categoricals([*map(_as_categorical, columns)]), np.cumsum([*map(len, columns)])[:-1]

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        with warnings.catch_warnings():  # pandas 3 hands columns out read-only; nobody writes to these tensors
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            ids = {name: torch.from_numpy(data[name].to_numpy()) for name in data if data[name].dtype == np.int32}
        others = super()._dataframe_to_interaction(data.drop(columns=list(ids))).interaction
        return _Rows({name: ids[name] if name in ids else others[name] for name in data})

    def counter(self, field: str) -> Counter[int]:
        return _given(Dataset.counter, Counter=_count)(self, field)

    @property
    def avg_actions_of_users(self) -> float:
        return self._mean_count(self.uid_field)

    @property
    def avg_actions_of_items(self) -> float:
        return self._mean_count(self.iid_field)

    def _mean_count(self, field: str) -> float:
        counts = np.bincount(self.inter_feat[field])
        return float(np.mean(counts[counts > 0]))

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


def _value(value: Any) -> Any:
    """What JSON holds of a type, a source or a number."""
    return getattr(value, "value", value)


class _TokenIds(Mapping[str, int]):
    """Internal ids by token, as RecBole's dictionary, which is made when somebody asks."""

    def __init__(self, tokens: npt.NDArray[np.str_]) -> None:
        self._tokens = tokens

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self._tokens)}

    def __getitem__(self, token: str) -> int:
        return self._ids[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return repr(self._ids)


def _as_categorical(column: Any) -> pd.Categorical:
    """A column of interactions as it is, one of user or item features made alike."""
    if isinstance(column, pd.Categorical):
        return interactions.with_objects(column)
    codes, tokens = pd.factorize(np.asarray(column, object))
    return interactions.categorical(codes, pd.Index(tokens, dtype=object))


def _concat(frames: list[pd.DataFrame], ignore_index: bool) -> pd.DataFrame:
    """``pd.concat``, where categorical columns stay categorical though their categories differ."""
    joined = {
        name: interactions.concat([frame[name].array for frame in frames])
        for name in frames[0]
        if all(name in frame and isinstance(frame[name].dtype, pd.CategoricalDtype) for frame in frames)
    }
    whole = pd.concat([frame.drop(columns=list(joined)) for frame in frames], ignore_index=ignore_index)
    order = dict.fromkeys(name for frame in frames for name in frame)
    for name, column in joined.items():
        whole[name] = column
    return whole[list(order)]


def _read(
    filepath: str,
    delimiter: str,
    usecols: list[str],
    dtype: dict[str, Any],
    encoding: str | None,
    engine: str,
    show_progress: bool,
) -> pd.DataFrame:
    """``pd.read_csv`` as RecBole calls it, with categorical columns in place of strings."""
    path = Path(filepath)
    if interactions.is_plain(path, delimiter, encoding) and not any(title.endswith("_seq") for title in usecols):
        # RecBole's reader has the last word on what is wrong.
        with suppress(ValueError):
            kinds = {title: dtype[title] for title in usecols}
            frame = interactions.read_text(path, delimiter, kinds, encoding, show_progress)
            if frame is not None:
                return frame
    return recbole_dataset.pd.read_csv(
        filepath, delimiter=delimiter, usecols=usecols, dtype=dtype, encoding=encoding, engine=engine
    )
