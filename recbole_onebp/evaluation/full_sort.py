"""RecBole's full-sort evaluation with the waste taken out: the same lists, hits and metrics.

RecBole's own trainer, evaluator and metric classes run as they are.  What is replaced is the loader that feeds them
(sparse matrices instead of Python sets, blocks of users that fit a memory budget) and the collector that reduces a
block of scores to what the metrics need (one scan a user instead of a selection and a matrix of users x items).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.sampler import Sampler
from torch import Tensor

from recbole_onebp.config.schema import default_of
from recbole_onebp.distributed.ranks import current
from recbole_onebp.distributed.sharding import Shard
from recbole_onebp.evaluation.bounded import MIN_ITEMS, ItemTable, Product, multiplies_int8, ranking_threads
from recbole_onebp.evaluation.topk import top_items
from recbole_onebp.util.compiled import njit
from recbole_onebp.util.errors import UserError

__all__ = ["FastCollector", "FastFullSortEvalDataLoader", "bounded_ranking", "per_user_metrics"]

DEFAULT_MEMORY_MB = default_of("eval_memory_mb")
"""Fits the last-level cache.  Above 32 MB, glibc allocates each block with mmap."""

_SCORE_BYTES = 4
_RANK_BYTES = 100
"""Of a score and what RecBole holds beside it while it ranks all items (GAUC)."""


# ---------------------------------------------------------------------------------------------------------------- data


class FastFullSortEvalDataLoader(FullSortEvalDataLoader):
    """Blocks of users with the items to find and the items to hide, as RecBole's loader hands them out.

    Attributes:
        positives: the items to find, ``(n_users, n_items)``, bool CSR.
        history: the items to hide, alike: taken in this part or an earlier one, and not to be found.
        uid_list: the users with something to find, ascending.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler: Any, shuffle: bool = False) -> None:
        """Take over one part of the data.

        Args:
            config: RecBole's configuration; ``eval_memory_mb`` bounds a block's scores.
            dataset: the part to evaluate, built by RecBole.
            sampler: RecBole's, of this part's phase: it knows the earlier parts.
            shuffle: not possible; logged and ignored, as RecBole does.
        """
        self.logger = getLogger()
        self.uid_field, self.iid_field = dataset.uid_field, dataset.iid_field
        self.positives = _union([dataset], dataset)
        # With repeatable: True it is another sampler, and RecBole hides nothing.
        self._seen = sampler.datasets[: sampler.phases.index(sampler.phase) + 1] if isinstance(sampler, Sampler) else []
        self.uid_list = torch.from_numpy(np.flatnonzero(np.diff(self.positives.indptr)))
        self.user_df = dataset.join(Interaction({self.uid_field: self.uid_list}))
        self.sample_size = len(self.uid_list)
        if shuffle:
            self.logger.warning("FullSortEvalDataLoader can't shuffle")
        # Past the parent's, which fills Python sets user by user.
        super(FullSortEvalDataLoader, self).__init__(config, dataset, sampler, shuffle=False)

    @cached_property
    def history(self) -> sp.csr_array:
        """Made when the first evaluation asks: it takes as long as the train part is."""
        return _union(self._seen, self._dataset) > self.positives

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
        # RecBole's trainer then pairs every user with every item, features and all.
        features = (self.user_df, self._dataset.get_item_feature())
        return _SCORE_BYTES + sum(column[:1].nbytes for feature in features for column in feature.interaction.values())

    def collate_fn(self, index: Sequence[int]) -> tuple[Interaction, tuple[Tensor, Tensor], Tensor, Tensor]:
        """A block of users, and the (row, item) pairs to hide and to find."""
        users = self.user_df[np.array(index)]
        ids = users[self.uid_field].numpy()
        return users, _pairs(self.history[ids]), *_pairs(self.positives[ids])

    # What RecBole's case studies and its users read.

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
    """Rows of a CSR matrix as RecBole keeps them: a tensor of items for a user, an array of tensors for many.

    RecBole has ``None`` for a user without a row in the part, and trips over it; here the user has its items.
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


def _union(datasets: Iterable[Dataset], like: Dataset) -> sp.csr_array:
    """Which user has taken which item in any of the data sets; the shape is that of ``like``."""
    shape = like.user_num, like.item_num
    union = sp.csr_array(shape, dtype=bool)
    for dataset in datasets:
        ids = (dataset.inter_feat[field].numpy() for field in (like.uid_field, like.iid_field))
        user, item = (column.astype(np.int32, copy=False) for column in ids)
        union = union + sp.csr_array((np.ones(len(user), dtype=bool), (user, item)), shape=shape)
    return union


def _pairs(block: sp.csr_array) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries."""
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    return torch.from_numpy(row), torch.from_numpy(block.indices.astype(np.int64))


# ------------------------------------------------------------------------------------------------------------- metrics


class _Parts(DataStruct):
    """What is collected, block by block; put together once, where RecBole copies all of it for every block."""

    def update_tensor(self, name: str, value: Tensor) -> None:
        self._data_dict.setdefault(name, []).append(value.detach())

    def join(self) -> None:
        for name, value in self._data_dict.items():
            if isinstance(value, list):
                self._data_dict[name] = torch.cat(value)


class FastCollector(Collector):
    """Reduces a block of scores to the best items and the hits among them; the rest is RecBole's.

    Attributes:
        shard: in several processes, the train part of this one's users; what they collect is then gathered.
    """

    _OURS = ("rec.items", "rec.topk")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.data_struct = _Parts()
        self._needed = {name for name in self._OURS if self.register.need(name)}
        self.shard: Shard | None = None
        self._needs_scores = any(self.register.need(name) for name in ("rec.meanrank", "rec.score", "data.label"))
        for name in self._OURS:  # RecBole's part of the work is what the register still asks for
            setattr(self.register, name, False)

    def eval_batch_collect(
        self, scores_tensor: Tensor | Product, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect from a block of scores ``(B, n_items)``; the positives are pairs of a row and an item."""
        if self._needed:
            k, n_items = max(self.topk), scores_tensor.shape[1]
            items = scores_tensor.top_items(k) if isinstance(scores_tensor, Product) else top_items(scores_tensor, k)
            if "rec.items" in self._needed:
                self.data_struct.update_tensor("rec.items", items)
            if "rec.topk" in self._needed:
                self.data_struct.update_tensor("rec.topk", _hits(items, positive_u * n_items + positive_i, n_items))
        if self.shard is not None:
            users = interaction[self.config["USER_ID_FIELD"]].cpu()
            self.data_struct.update_tensor("users", self.shard.everybodys(users))
        if isinstance(scores_tensor, Product):
            if not self._needs_scores:
                return
            scores_tensor = scores_tensor.scores()
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def _gather(self) -> None:
        """What all ranks have collected, user by user as one process does, on each of them."""
        collected, ranks = self.data_struct._data_dict, current()
        order = torch.cat(ranks.gather(collected.pop("users"))).argsort()
        for name, values in collected.items():
            if name.startswith("rec."):
                # Items, ranks and counts fit 4 bytes.
                small = values.cpu() if values.is_floating_point() else values.cpu().int()
                collected[name] = torch.cat(ranks.gather(small))[order].to(values.dtype)

    def data_collect(self, train_data: Any) -> None:
        """From the train data, of all ranks."""
        super().data_collect(train_data)
        if self.shard is not None and self.register.need("data.count_items"):
            occurs = torch.nonzero(self.shard.item_count).squeeze(1)
            counts = zip(occurs.tolist(), self.shard.item_count[occurs].tolist(), strict=True)
            self.data_struct.set("data.count_items", Counter(dict(counts)))

    def get_data_struct(self) -> DataStruct:
        self.data_struct.join()
        if self.shard is not None:
            self._gather()
        return super().get_data_struct()


@contextmanager
def bounded_ranking(trainer: Any) -> Iterator[None]:
    """While active, the trainer's full-sort evaluation does not compute the scores that cannot matter.

    This is for models with ``ranking_vectors(interaction)``, which returns vectors of the users ``(B, d)`` and of all
    items ``(n, d)`` whose products are the scores.  Other models, few items, GPUs and processors without 8-bit products
    are evaluated as usual.
    """
    model = trainer.model
    if (
        not hasattr(model, "ranking_vectors")
        or model.n_items < MIN_ITEMS
        or trainer.device.type != "cpu"
        or not multiplies_int8()
    ):
        yield
        return
    with ranking_threads() as pool:
        tables: list[ItemTable] = []  # made at the first block: the trainer loads the best model before

        def score_block(batch: Any) -> tuple[Interaction, Product, Tensor, Tensor]:
            interaction, hidden, positive_u, positive_i = batch
            users, items = model.ranking_vectors(interaction)
            tables[:] = tables or [ItemTable(items)]
            return interaction, Product(users, tables[0], hidden, pool), positive_u, positive_i

        trainer._full_sort_batch_eval = score_block  # instead of RecBole's method
        try:
            yield
        finally:
            del trainer._full_sort_batch_eval


def _hits(items: Tensor, positives: Tensor, n_items: int) -> Tensor:
    """``(B, k + 1)``: whether each of the items ``(B, k)`` is a positive of its row; last, how many the row has.

    Positives are ``row * n_items + item``.
    """
    keys = positives.cpu().numpy()
    if (np.diff(keys) <= 0).any():
        keys = np.unique(keys)
    hits = np.zeros((len(items), items.shape[1] + 1), dtype=np.int64)
    _mark_hits(items.cpu().numpy(), keys // n_items, keys % n_items, hits)
    return torch.from_numpy(hits)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark_hits(items: Any, rows: Any, positives: Any, hits: Any) -> None:
    for row, positive in zip(rows, positives):  # noqa: B905 (numba's zip takes no more)
        hits[row, -1] += 1
        for place, item in enumerate(items[row]):
            if item == positive:
                hits[row, place] = 1


class _PerUserEvaluator(Evaluator):
    """RecBole's evaluator, that keeps the values of each user before the metrics average them."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.values: dict[str, npt.NDArray[Any]] = {}
        for metric in self.metric_class.values():
            if hasattr(metric, "topk_result"):
                metric.topk_result = self._keep

    def _keep(self, metric: str, value: npt.NDArray[Any]) -> dict[str, float]:
        self.values.update({f"{metric}@{k}": value[:, k - 1] for k in self.config["topk"]})
        return {}


def per_user_metrics(trainer: Any, eval_data: Any) -> pd.DataFrame:
    """RecBole's metrics of every evaluated user, of the trainer's model as it stands.

    Args:
        trainer: any of RecBole's; the metrics and cut-offs are those of its configuration.
        eval_data: a full-sort or a sampled (``uni100``, ...) evaluation loader, such as ``run.test_data``.

    Returns:
        A row a user with something to find, indexed by external user id, and a column a metric and cut-off, such as
        ``recall@10``; the mean of a column is the metric that RecBole reports.  Metrics of all users at once (GAUC,
        item coverage, Gini index, Shannon entropy) have no column.

    Raises:
        UserError: for an evaluation that is not by user.
    """
    if current().is_distributed:
        raise UserError("per-user metrics: not of a run in several processes; export it, and evaluate it in one")
    users = getattr(eval_data, "uid_list", None)
    if users is None:
        raise UserError(
            "per-user metrics: this evaluation is not by user: it ranks for every interaction, or scores them"
        )
    stock, trainer.evaluator = trainer.evaluator, _PerUserEvaluator(trainer.config)
    try:
        trainer.evaluate(eval_data, load_best_model=False)
        values = trainer.evaluator.values
    finally:
        trainer.evaluator = stock
    dataset = eval_data._dataset
    index = pd.Index(dataset.id2token(dataset.uid_field, np.asarray(users)), name=dataset.uid_field)
    return pd.DataFrame(values, index=index)
