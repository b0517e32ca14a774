"""RecBole's full-sort evaluation, faster: the same lists, hits and metrics.

RecBole's own trainer, evaluator and metric classes are used.  Replaced are the loader
(:mod:`recbole_onebp.evaluation.full_sort_loader`), the collector, which reduces a block of scores to what the metrics
need, and for some models the computation of scores (:mod:`recbole_onebp.evaluation.bounded`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator
from recbole.evaluator.collector import DataStruct
from torch import Tensor

from recbole_onebp.distributed.ranks import current
from recbole_onebp.distributed.sharding import Shard
from recbole_onebp.evaluation.bounded import MIN_ITEMS, ItemTable, Product, multiplies_int8, ranking_threads
from recbole_onebp.evaluation.topk import top_items
from recbole_onebp.util.compiled import njit
from recbole_onebp.util.errors import UserError

__all__ = ["FastCollector", "bounded_ranking", "per_user_metrics"]


class _Parts(DataStruct):
    """Collected values, block by block.  They are concatenated once; RecBole copies all of them for every block."""

    def update_tensor(self, name: str, value: Tensor) -> None:
        self._data_dict.setdefault(name, []).append(value.detach())

    def join(self) -> None:
        for name, value in self._data_dict.items():
            if isinstance(value, list):
                self._data_dict[name] = torch.cat(value)


class FastCollector(Collector):
    """Reduces a block of scores to the best items and the hits among them; everything else is RecBole's.

    Attributes:
        shard: in several processes, the shard of the train part; the values of all ranks are then gathered.
    """

    _OURS = ("rec.items", "rec.topk")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.data_struct = _Parts()
        self._needed = {name for name in self._OURS if self.register.need(name)}
        self.shard: Shard | None = None
        self._needs_scores = any(self.register.need(name) for name in ("rec.meanrank", "rec.score", "data.label"))
        for name in self._OURS:  # so that RecBole's collector does not compute them too
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
            self.data_struct.update_tensor("users", self.shard.whole_ids(users))
        if isinstance(scores_tensor, Product):
            if not self._needs_scores:
                return
            scores_tensor = scores_tensor.scores()
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)

    def _gather(self) -> None:
        """Gather the values of all ranks on every rank, in the order of users of one process."""
        collected, ranks = self.data_struct._data_dict, current()
        order = torch.cat(ranks.gather(collected.pop("users"))).argsort()
        for name in sorted(name for name in collected if name.startswith("rec.")):
            values = collected[name]
            # Items, ranks and counts fit into 4 bytes.
            small = values.cpu() if values.is_floating_point() else values.cpu().int()
            collected[name] = torch.cat(ranks.gather(small))[order].to(values.dtype)

    def data_collect(self, train_data: Any) -> None:
        """Collect from the train data; in several processes from that of all ranks."""
        super().data_collect(train_data)
        if self.shard is not None and self.register.need("data.count_items"):
            occurs = torch.nonzero(self.shard.item_count).squeeze(1)
            counts = zip(occurs.tolist(), self.shard.item_count[occurs].tolist(), strict=True)
            self.data_struct.set("data.count_items", Counter(dict(counts)))

    def get_data_struct(self) -> DataStruct:
        self.data_struct.join()
        if self.shard is not None:
            widths = {"rec.items": max(self.topk), "rec.topk": max(self.topk) + 1}
            for name in self._needed:  # this rank may have no user with a relevant item
                self.data_struct._data_dict.setdefault(name, torch.empty((0, widths[name]), dtype=torch.long))
            self.data_struct._data_dict.setdefault("users", torch.empty(0, dtype=torch.long))
            self._gather()
        return super().get_data_struct()


@contextmanager
def bounded_ranking(trainer: Any) -> Iterator[None]:
    """While active, the trainer's full-sort evaluation skips scores that cannot be among a user's best.

    This is for models with ``ranking_vectors(interaction)``, which returns vectors of the users ``(B, d)`` and of all
    items ``(n, d)`` whose products are the scores.  ``local_scores(interaction)``, where there is one, returns what is
    added to some of them.  Other models, few items, GPUs and processors without 8-bit products
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
        tables: list[ItemTable] = []  # filled at the first block, after the trainer has loaded the best model

        def score_block(batch: Any) -> tuple[Interaction, Product, Tensor, Tensor]:
            interaction, hidden, positive_u, positive_i = batch
            users, items = model.ranking_vectors(interaction)
            tables[:] = tables or [ItemTable(items)]
            added = None
            if getattr(model, "local", None) is not None:
                added = lambda rows: model.local_scores(interaction[rows])  # noqa: E731
            return interaction, Product(users, tables[0], hidden, pool, added), positive_u, positive_i

        trainer._full_sort_batch_eval = score_block  # instead of RecBole's method
        try:
            yield
        finally:
            del trainer._full_sort_batch_eval


def _hits(items: Tensor, positives: Tensor, n_items: int) -> Tensor:
    """Whether each of the items ``(B, k)`` is a positive of its row, and the number of positives, ``(B, k + 1)``.

    Positives are given as ``row * n_items + item``.
    """
    keys = positives.cpu().numpy()
    if (np.diff(keys) <= 0).any():
        keys = np.unique(keys)
    hits = np.zeros((len(items), items.shape[1] + 1), dtype=np.int64)
    _mark_hits(items.cpu().numpy(), keys // n_items, keys % n_items, hits)
    return torch.from_numpy(hits)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark_hits(items: Any, rows: Any, positives: Any, hits: Any) -> None:
    for row, positive in zip(rows, positives):  # noqa: B905 (numba's zip has no strict)
        hits[row, -1] += 1
        for place, item in enumerate(items[row]):
            if item == positive:
                hits[row, place] = 1


class _PerUserEvaluator(Evaluator):
    """RecBole's evaluator, which also keeps the values of each user before the metrics average them."""

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
    """RecBole's metrics for every evaluated user, with the trainer's current model.

    Args:
        trainer: any of RecBole's trainers; metrics and cut-offs are those of its configuration.
        eval_data: a full-sort or a sampled (``uni100``, ...) evaluation loader, such as ``run.test_data``.

    Returns:
        One row per user with positives, indexed by external user id, and one column per metric and cut-off, such as
        ``recall@10``.  The mean of a column is the metric that RecBole reports.  Metrics over all users together (GAUC,
        item coverage, Gini index, Shannon entropy) have no column.

    Raises:
        UserError: in several processes, or if the evaluation does not rank items for each user.
    """
    if current().is_distributed:
        raise UserError("per-user metrics: not available in several processes; evaluate in one process")
    users = getattr(eval_data, "uid_list", None)
    if users is None:
        raise UserError(
            "per-user metrics: this evaluation is not by user: it ranks items per interaction, or scores interactions"
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
