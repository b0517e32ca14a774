"""The loader of RecBole's full-sort evaluation, with sparse matrices instead of Python sets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from logging import getLogger
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.sampler import Sampler
from torch import Tensor

from recbole_onebp.config.schema import default_of
from recbole_onebp.distributed.sharding import item_count
from recbole_onebp.util.errors import UserError

__all__ = ["FastFullSortEvalDataLoader"]

DEFAULT_MEMORY_MB = default_of("eval_memory_mb")
"""Fits the last-level cache.  Above 32 MB, glibc allocates each block with mmap."""

_TRAIN_PAIRS = (("0", 0, 0), ("1 to 4", 1, 4), ("5 to 19", 5, 19), ("20 and more", 20, np.inf))
_SCORE_BYTES = 4
_RANK_BYTES = 100
"""Bytes per score, including what RecBole allocates while it ranks all items (GAUC)."""


class FastFullSortEvalDataLoader(FullSortEvalDataLoader):
    """Blocks of users with their positive items and the items to hide, in the format of RecBole's loader.

    A block has as many users as ``eval_memory_mb`` allows.

    Attributes:
        candidates: whether each item is ranked, ``(n_items,)``; None if all are.  The others are neither recommended
            nor relevant.
        positives: the interactions of this part that count as relevant, ``(n_users, n_items)``, bool CSR.
        history: the items to hide, in the same form: interactions of the earlier parts that are not in this part.
        uid_list: the users with positives, ascending.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        sampler: Any,
        shuffle: bool = False,
        items: Literal["all", "warm", "cold"] | None = None,
        relevant: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Read one part of the data.

        Args:
            config: RecBole's configuration; ``eval_memory_mb`` limits the size of a block's scores.
            dataset: the part to evaluate, built by RecBole.
            sampler: RecBole's sampler with this part's phase; it knows the earlier parts.
            shuffle: not supported; logged and ignored, as in RecBole.
            items: those to rank; by default ``eval_items``.
            relevant: whether each of them counts as relevant, ``(n_items,)``; by default all do.

        Raises:
            UserError: if only some items are to be ranked, and this evaluation cannot do so.
        """
        self.logger = getLogger()
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self._own = self.positives = _union([dataset], dataset)
        # With repeatable: True RecBole uses another sampler and hides nothing.
        self._seen = sampler.datasets[: sampler.phases.index(sampler.phase) + 1] if isinstance(sampler, Sampler) else []
        self.candidates = _candidates(items or config["eval_items"] or "all", config, dataset, self._seen)
        for counts in (None if self.candidates is None else self.candidates.numpy(), relevant):
            if counts is not None:
                self.positives = sp.csr_array(self.positives.multiply(counts))
                self.positives.eliminate_zeros()
        self.uid_list = torch.from_numpy(np.flatnonzero(np.diff(self.positives.indptr)))
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        self.sample_size = len(self.uid_list)
        if shuffle:
            self.logger.warning("FullSortEvalDataLoader can't shuffle")
        # Skip the parent's __init__, which fills Python sets user by user.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    def __bool__(self) -> bool:
        """RecBole's trainer skips an empty part; a rank without users has to collect the values of the others."""
        return len(self) > 0 or hasattr(self._dataset, "shard")

    @cached_property
    def history(self) -> sp.csr_array:
        """Computed when first used, because it reads the whole train part."""
        return _union(self._seen, self._dataset) > self._own

    def _init_batch_size_and_step(self) -> None:
        n_items = self._dataset.item_num
        budget = (self.config["eval_memory_mb"] or DEFAULT_MEMORY_MB) * 2**20
        self.step = max(1, int(budget // (n_items * self._bytes_a_score())))
        self.set_batch_size(self.step * n_items)

    def _bytes_a_score(self) -> int:
        if "gauc" in (metric.lower() for metric in self.config["metrics"]):
            return _RANK_BYTES
        if self.config.model_class.full_sort_predict is not AbstractRecommender.full_sort_predict:
            return _SCORE_BYTES
        # RecBole's trainer then pairs every user with every item, with all their features.
        features = (self.user_df, self._dataset.get_item_feature())
        return _SCORE_BYTES + sum(column[:1].nbytes for feature in features for column in feature.interaction.values())

    def collate_fn(self, index: Sequence[int]) -> tuple[Interaction, tuple[Tensor, Tensor] | Tensor, Tensor, Tensor]:
        """A block of users, the (row, item) pairs to hide, and rows and items of the positives.

        Where not all items are candidates, a mask ``(B, n_items)`` takes the place of the pairs; both are indices.
        """
        users = self.user_df[np.array(index)]
        ids = users[self.uid_field].numpy()
        hidden: tuple[Tensor, Tensor] | Tensor = _pairs(self.history[ids])
        if self.candidates is not None:
            mask = (~self.candidates).repeat(len(ids), 1)
            mask[hidden] = True
            hidden = mask
        return users, hidden, *_pairs(self.positives[ids])

    def among(self, items: Literal["all", "warm", "cold"]) -> FastFullSortEvalDataLoader:
        """The same part, with other items ranked."""
        return type(self)(self.config, self._dataset, self._sampler, items=items)

    def by_train_pairs(self) -> dict[str, FastFullSortEvalDataLoader]:
        """The same part with all items ranked, and those relevant that have so many train pairs."""
        count, n_train = item_count(self._dataset).numpy(), item_count(self._seen[0]).numpy()
        groups = {name: (n_train >= least) & (n_train <= most) for name, least, most in _TRAIN_PAIRS}
        return {
            name: type(self)(self.config, self._dataset, self._sampler, items="all", relevant=relevant)
            for name, relevant in groups.items()
            if count[relevant].any()
        }

    @property
    def cold_share(self) -> float:
        """Share of the pairs, of all ranks, whose item has no train pair."""
        count = item_count(self._dataset).numpy()
        if self.candidates is not None:
            count = count * self.candidates.numpy()
        if not self._seen or not count.any():
            return 0.0
        return float(count[item_count(self._seen[0]).numpy() == 0].sum() / count.sum())

    # Attributes that RecBole's case studies and its users read.

    @property
    def uid2positive_item(self) -> _ItemsOfUsers:
        return _ItemsOfUsers(self.positives)

    @property
    def uid2history_item(self) -> _ItemsOfUsers:
        return _ItemsOfUsers(self.history)

    @property
    def uid2items_num(self) -> npt.NDArray[np.int64]:
        return np.diff(self.positives.indptr).astype(np.int64)


class _ItemsOfUsers:
    """Rows of a CSR matrix in RecBole's format: a tensor of items for one user, an array of tensors for many users.

    For users that are not in the part, RecBole has ``None`` and later fails on it; here such users have their items.
    """

    def __init__(self, matrix: sp.csr_array) -> None:
        self._matrix = matrix

    def __len__(self) -> int:
        return int(self._matrix.shape[0])

    def __getitem__(self, users: Any) -> Any:
        picked = np.arange(len(self))[users]
        if picked.ndim == 0:
            return self._items(picked)
        rows = np.empty(len(picked), dtype=object)
        rows[:] = [self._items(user) for user in picked]
        return rows

    def _items(self, user: Any) -> Tensor:
        start, stop = self._matrix.indptr[user : user + 2]
        return torch.from_numpy(self._matrix.indices[start:stop].astype(np.int64))


def _candidates(items: str, config: Config, part: Dataset, seen: Sequence[Dataset]) -> Tensor | None:
    """Whether each item is ranked in a part of the data, ``(n_items,)``; ``seen`` begins with the train part."""
    if items == "all":
        return None
    obstacle = None if seen else "repeatable: True"
    if "gauc" in (metric.lower() for metric in config["metrics"]):
        obstacle = "the metric GAUC"
    if obstacle:
        raise UserError(f"eval_items: {items} cannot be combined with {obstacle}; leave it out, or use eval_items: all")
    count, is_warm = item_count(part).numpy(), item_count(seen[0]).numpy() > 0
    chosen = (count > 0) & ~is_warm if items == "cold" else is_warm
    if count.any() and not count[chosen].any():
        raise UserError(f"eval_items: {items}: there is no such item in the part that is evaluated")
    return torch.from_numpy(chosen)


def _union(datasets: Iterable[Dataset], like: Dataset) -> sp.csr_array:
    """The distinct interactions of all data sets; the shape is that of ``like``."""
    shape = like.user_num, like.item_num
    union = sp.csr_array(shape, dtype=bool)
    for dataset in datasets:
        ids = (dataset.inter_feat[field].numpy() for field in (like.uid_field, like.iid_field))
        user, item = (column.astype(np.int32, copy=False) for column in ids)
        union = union + sp.csr_array((np.ones(len(user), dtype=bool), (user, item)), shape=shape)
    return union


def _pairs(block: sp.csr_array) -> tuple[Tensor, Tensor]:
    """Row and column of each entry."""
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    return torch.from_numpy(row), torch.from_numpy(block.indices.astype(np.int64))
