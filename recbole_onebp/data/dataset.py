"""RecBole's dataset with less memory: no Python strings, lists or counters as long as the interactions."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_onebp.data.cache import State
from recbole_onebp.data.categories import as_categorical, concat_frames, token_table
from recbole_onebp.data.interactions import COLUMNAR, InteractionFiles, Table
from recbole_onebp.data.order import are_in_order, check_times
from recbole_onebp.data.rows import Groups, Rows
from recbole_onebp.data.weights import check_weights

__all__ = ["OneBPDataset"]

_FIELDS = ("field2type", "field2source", "field2seqlen", "field2bucketnum")
_PLAIN = (FeatureType.TOKEN, FeatureType.FLOAT)


class OneBPDataset(Dataset):
    """RecBole's dataset in a fraction of its memory: same ids, same features, same split with the same seed.

    Token columns of interactions are codes and a vocabulary from the start; numpy groups, splits and counts rows.
    RecBole reads an atomic file that is not plain (quotes, sequences, missing tokens, ...), at its usual cost.
    Columnar files are read too, see :mod:`~recbole_onebp.data.interactions`.  Interactions without features of users
    or items are cached, see :mod:`~recbole_onebp.data.cache`.

    Ids in ``inter_feat`` are int32 where no features share them; in batches they are int64, as in RecBole.
    """

    in_order = False
    """Whether each user's train interactions come before those of validation, and these before those of test."""

    def build(self) -> list[Dataset]:
        """See RecBole.  The parts know whether they are in order of time."""
        parts: list[Dataset] = super().build()
        in_order = are_in_order(parts)
        for part in parts:
            part.in_order = in_order
        return parts

    def _from_scratch(self) -> None:
        self._files = InteractionFiles.take_from(self.config)
        cache, cached = self._files.cache, self._files.cached
        if cached is None:
            super()._from_scratch()
            if self._is_plain() and cache.save(self._state()):
                cached = cache.load()  # frees the memory: these arrays are mapped from the disk
        del self._files
        if cached is not None:
            self._get_preset()
            self._get_field_from_config()
            try:
                self._restore(cached)
            except (LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"its folder .cache is damaged; remove it: {error!r}") from None

    def _is_plain(self) -> bool:
        """Whether there are only interactions, with columns of ids and numbers."""
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

    def _load_inter_feat(self, token: str, dataset_path: str) -> None:
        frames: list[Any] = []
        longest: dict[str, int] = {}
        for table in self._files.tables:
            if not table.path.exists():
                raise ValueError(f"File {table.path} not exist.")
            frames.append(self._load_table(table))
            check_times(table, frames[-1], self.time_field)
            if self.config["WEIGHT_FIELD"] is not None:
                check_weights(table, frames[-1], self.config["WEIGHT_FIELD"])
            for field, length in self.field2seqlen.items():
                longest[field] = max(length, longest.get(field, 0))
        if self.benchmark_filename_list is None:
            (self.inter_feat,) = frames
        else:
            self.inter_feat, self.file_size_list = concat_frames(frames), [*map(len, frames)]
            self.field2seqlen: dict[str, int] = longest

    def _load_table(self, table: Table) -> pd.DataFrame | None:
        """The columns of ``load_col`` without ``unload_col``; RecBole reads atomic files that are not plain."""
        source = FeatureSource.INTERACTION
        load_col, unload_col = self._get_load_and_unload_col(source)
        titles = table.titles([self.uid_field, self.iid_field])
        names = {title.rpartition(":")[0]: title for title in titles}
        wanted = {
            field: title
            for field, title in names.items()
            if (load_col is None or field in load_col) and field not in (unload_col or ())
        }
        columns = {title: titles[title] for title in wanted.values()}
        frame = table.read(columns, bool(self.config["show_progress"])) if columns else None
        if frame is None:  # a columnar file is read by us or not at all
            return None if table.path.suffix in COLUMNAR else super()._load_feat(str(table.path), source)
        for field, title in wanted.items():
            kind = FeatureType(title.rpartition(":")[2])
            self.field2source[field], self.field2type[field], self.field2seqlen[field] = source, kind, 1
            if kind == FeatureType.FLOAT:
                self.field2bucketnum[field] = 2
        return frame.set_axis([*wanted], axis=1)

    def _remap(self, remap_list: list[tuple[Any, str, Any]]) -> None:
        if len(remap_list) != 1 or not isinstance(remap_list[0][0][remap_list[0][1]].array, pd.Categorical):
            super()._remap(remap_list)
            return
        feat, field, _ = remap_list[0]
        codes, tokens = feat[field].array.codes, feat[field].array.categories
        seen = pd.unique(codes)  # in order of first appearance
        seen = seen[seen >= 0]
        ids = np.zeros(len(tokens) + 1, dtype=np.int32)  # the last entry is for missing tokens, whose code is -1
        ids[seen] = np.arange(1, 1 + len(seen), dtype=np.int32)
        feat[field] = ids[codes]
        table = token_table(tokens[seen])
        self.field2id_token[field], self.field2token_id[field] = table, _TokenIds(table)

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        columns = self.inter_feat[index].interaction.items()
        rows = Interaction({name: rows.long() if rows.dtype == torch.int32 else rows for name, rows in columns})
        return self.join(rows) if join else rows

    def _filter_inter_by_user_or_item(self) -> None:
        """See RecBole, which leaves out interactions of users and items without features, and does not say so."""
        n_rows = len(self.inter_feat)
        super()._filter_inter_by_user_or_item()
        if left_out := n_rows - len(self.inter_feat):
            message = (
                "%s: %s of %s interactions are left out: the .user or .item file has no row of their user or item; "
                "filter_inter_by_user_or_item: False keeps them"
            )
            self.logger.warning(message, self.dataset_name, f"{left_out:,}", f"{n_rows:,}")

    def _filter_by_inter_num(self) -> None:
        """As RecBole's, but counted by pandas: RecBole's counters take a Python object for each row."""
        names = {self.uid_field: "user_feat", self.iid_field: "item_feat"}
        keys = {self.uid_field: "user_inter_num_interval", self.iid_field: "item_inter_num_interval"}
        intervals = {field: self._parse_intervals_str(self.config[key]) for field, key in keys.items()}
        while any(intervals.values()):
            banned = {
                field: self._get_illegal_ids_by_inter_num(
                    field, getattr(self, names[field]), _count(self.inter_feat[field] if interval else ()), interval
                )
                for field, interval in intervals.items()
            }
            if not any(banned.values()):
                break
            dropped = np.zeros(len(self.inter_feat), bool)
            for field, ids in banned.items():
                feat = getattr(self, names[field])
                if feat is not None:
                    setattr(self, names[field], feat[~feat[field].isin(ids)])
                dropped |= self.inter_feat[field].isin(ids).to_numpy()
            self.inter_feat = self.inter_feat[~dropped]

    def _concat_remaped_tokens(self, remap_list: list[tuple[Any, str, Any]]) -> tuple[Any, npt.NDArray[np.int64]]:
        columns = [feat[field].array for feat, field, _ in remap_list]
        if any(kind != FeatureType.TOKEN for *_, kind in remap_list) or not isinstance(columns[0], pd.Categorical):
            return super()._concat_remaped_tokens(remap_list)
        # pandas factorizes these as it does RecBole's strings: by first appearance.
        return union_categoricals([*map(as_categorical, columns)]), np.cumsum([*map(len, columns)])[:-1]

    def _dataframe_to_interaction(self, data: pd.DataFrame) -> Interaction:
        with warnings.catch_warnings():  # pandas 3 returns read-only columns; nothing writes to these tensors
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            ids = {name: torch.from_numpy(data[name].to_numpy()) for name in data if data[name].dtype == np.int32}
        others = super()._dataframe_to_interaction(data.drop(columns=list(ids))).interaction
        return Rows({name: ids[name] if name in ids else others[name] for name in data})

    def counter(self, field: str) -> Counter[int]:
        if self.field2type.get(field) != FeatureType.TOKEN or field not in self.inter_feat:
            return super().counter(field)  # raises RecBole's error
        return _count(self.inter_feat[field])

    @property
    def avg_actions_of_users(self) -> float:
        return self._mean_count(self.uid_field)

    @property
    def avg_actions_of_items(self) -> float:
        return self._mean_count(self.iid_field)

    def _mean_count(self, field: str) -> float:
        counts = np.bincount(self.inter_feat[field])
        return float(np.mean(counts[counts > 0]))

    def _grouped_index(self, group_by_list: npt.NDArray[np.int64]) -> Groups:
        return Groups.of(group_by_list)

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

    def _split_index_by_leave_one_out(self, grouped_index: Groups, leave_one_num: int) -> list[npt.NDArray[np.int64]]:
        left_out = np.minimum(leave_one_num, grouped_index.sizes - 1)
        from_end = grouped_index.spread(grouped_index.sizes) - grouped_index.position  # the last row of a group has 1
        part = np.where(from_end <= grouped_index.spread(left_out), leave_one_num + 1 - from_end, 0)
        return [grouped_index.rows[part == number] for number in range(leave_one_num + 1)]


def _count(values: Any = ()) -> Counter[Any]:
    """``Counter(values)``, counted by pandas."""
    counts = pd.Series(values).value_counts(sort=False, dropna=False)
    return Counter(counts[counts > 0].to_dict())


def _value(value: Any) -> Any:
    """A type, a source or a number as a plain value for JSON."""
    return getattr(value, "value", value)


class _TokenIds(Mapping[str, int]):
    """Internal ids by token. RecBole's dictionary is made only when it is used."""

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
