"""RecBole's full-sort evaluation, faster: the same lists, hits and metrics.

RecBole's own trainer, evaluator and metric classes are used.  Replaced are the loader
(:mod:`recbole_onebp.evaluation.full_sort_loader`), the collector, which reduces a block of scores to what the metrics
need, and for some models the computation of scores (:mod:`recbole_onebp.evaluation.bounded`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
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
from recbole_onebp.evaluation.bounded import Product, RoundedItems, ranking_threads
from recbole_onebp.evaluation.topk import top_items
from recbole_onebp.util.compiled import njit
from recbole_onebp.util.errors import UserError

__all__ = ["FastCollector", "bounded_ranking", "evaluate_weights", "per_user_metrics"]


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
        local_factors: what the local term is multiplied by, see :func:`evaluate_weights`; the values collected then
            have an axis of these after that of the users.  None for the model's own weight.
        needs_scores: whether a metric needs more than the best items.
    """

    OURS = ("rec.items", "rec.topk")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.data_struct = _Parts()
        self._needed = {name for name in self.OURS if self.register.need(name)}
        self.shard: Shard | None = None
        self.local_factors: tuple[float, ...] | None = None
        self.needs_scores = any(self.register.need(name) for name in ("rec.meanrank", "rec.score", "data.label"))
        for name in self.OURS:  # so that RecBole's collector does not compute them too
            setattr(self.register, name, False)

    def eval_batch_collect(
        self, scores_tensor: Tensor | Product, interaction: Interaction, positive_u: Tensor, positive_i: Tensor
    ) -> None:
        """Collect from a block of scores ``(B, n_items)``; the positives are pairs of a row and an item."""
        if self._needed:
            k, n_items = max(self.topk), scores_tensor.shape[1]
            if isinstance(scores_tensor, Product):
                items = scores_tensor.top_items(k, self.local_factors or (1.0,))
            else:
                items = top_items(scores_tensor, k).unsqueeze(1)
            if "rec.items" in self._needed:
                self.data_struct.update_tensor("rec.items", items)
            if "rec.topk" in self._needed:
                self.data_struct.update_tensor("rec.topk", _hits(items, positive_u * n_items + positive_i, n_items))
        if self.shard is not None:
            users = interaction[self.config["USER_ID_FIELD"]].cpu()
            self.data_struct.update_tensor("users", self.shard.whole_ids(users))
        if isinstance(scores_tensor, Product):
            if not self.needs_scores:
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
        collected = self.data_struct._data_dict
        if self.shard is not None:
            widths = {"rec.items": max(self.topk), "rec.topk": max(self.topk) + 1}
            for name in self._needed:  # this rank may have no user with a relevant item
                collected.setdefault(
                    name, torch.empty((0, len(self.local_factors or (1.0,)), widths[name]), dtype=torch.long)
                )
            collected.setdefault("users", torch.empty(0, dtype=torch.long))
            self._gather()
        if self.local_factors is None:
            collected.update({name: collected[name].squeeze(1) for name in self._needed if name in collected})
        return super().get_data_struct()


@contextmanager
def bounded_ranking(trainer: Any, data: Any) -> Iterator[None]:
    """While active, the trainer's full-sort evaluation skips scores that cannot be among a user's best.

    This is for models with ``ranking_vectors(interaction)``, which returns vectors of the users ``(B, d)`` and of all
    items ``(n, d)`` whose products are the scores.  ``local_scores(interaction)``, where there is one, returns what is
    added to some of them.  Other models, GPUs, and parts of which not all items are ranked are evaluated as usual.
    """
    if not ranks_products(trainer, data):
        yield
        return
    model = trainer.model
    with ranking_threads() as pool:
        tables: list[RoundedItems] = []  # filled at the first block, after the trainer has loaded the best model

        def score_block(batch: Any) -> tuple[Interaction, Product, Tensor, Tensor]:
            interaction, hidden, positive_u, positive_i = batch
            users, items = model.ranking_vectors(interaction)
            tables[:] = tables or [RoundedItems(items)]
            local = None
            if getattr(model, "local", None) is not None:
                local = lambda rows: model.local_scores(interaction[rows])  # noqa: E731
            return interaction, Product(users, tables[0], hidden, pool, local), positive_u, positive_i

        trainer._full_sort_batch_eval = score_block  # instead of RecBole's method
        try:
            yield
        finally:
            del trainer._full_sort_batch_eval


class _EachWeight:
    """Evaluates what a :class:`FastCollector` has collected for several weights, with RecBole's evaluator."""

    def __init__(self, evaluator: Evaluator, n_weights: int) -> None:
        self._evaluator, self._n_weights = evaluator, n_weights
        self.results: list[dict[str, float]] = []

    def evaluate(self, collected: DataStruct) -> dict[str, float]:
        """The metrics with the first weight."""
        for n in range(self._n_weights):
            of_one = DataStruct()
            for name, value in collected._data_dict.items():
                of_one.set(name, value[:, n] if name in FastCollector.OURS else value)
            self.results.append(self._evaluator.evaluate(of_one))
        return self.results[0]


def evaluate_weights(trainer: Any, data: Any, weights: Sequence[float], **options: Any) -> list[dict[str, float]]:
    """RecBole's metrics with each of several weights of the local term.  It changes the model's weight.

    Where rankings are made of products, the users are passed once, and what does not depend on the weight is computed
    once.

    Args:
        trainer: of a model with a ``local_weight``.
        data: the part to evaluate.
        weights: powers of two, or 0.
        options: for the trainer's ``evaluate``.
    """
    collector, stock, weight = trainer.eval_collector, trainer.evaluator, trainer.model.local_weight

    def evaluate(with_weight: float) -> dict[str, float]:
        weight.fill_(with_weight)
        found: dict[str, float] = trainer.evaluate(data, load_best_model=False, **options)
        return found

    if not isinstance(collector, FastCollector) or collector.needs_scores or not ranks_products(trainer, data):
        return [evaluate(one) for one in weights]
    each = trainer.evaluator = _EachWeight(stock, len(weights))
    collector.local_factors = tuple(weights)
    try:
        evaluate(1.0)
    finally:
        trainer.evaluator, collector.local_factors = stock, None
    return each.results


def ranks_products(trainer: Any, data: Any) -> bool:
    """Whether :func:`bounded_ranking` applies to an evaluation."""
    has_vectors, ranks_all = hasattr(trainer.model, "ranking_vectors"), getattr(data, "candidates", None) is None
    return has_vectors and ranks_all and trainer.device.type == "cpu"


def _hits(items: Tensor, positives: Tensor, n_items: int) -> Tensor:
    """Whether each of the items ``(B, W, k)`` is a positive of its row, and the number of positives, ``(B, W, k + 1)``.

    Positives are given as ``row * n_items + item``.
    """
    keys = positives.cpu().numpy()
    if (np.diff(keys) <= 0).any():
        keys = np.unique(keys)
    hits = np.zeros((*items.shape[:2], items.shape[2] + 1), dtype=np.int64)
    _mark_hits(items.cpu().numpy(), keys // n_items, keys % n_items, hits)
    return torch.from_numpy(hits)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _mark_hits(items: Any, rows: Any, positives: Any, hits: Any) -> None:
    for row, positive in zip(rows, positives):  # noqa: B905 (numba's zip has no strict)
        hits[row, :, -1] += 1
        for n in range(items.shape[1]):
            for place, item in enumerate(items[row, n]):
                if item == positive:
                    hits[row, n, place] = 1


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
