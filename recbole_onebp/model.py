"""OneBP: a two-tower recommender whose user tower needs no gradient.

Source: Chen and Wang, "One Backpropagation in Two Tower Recommendation Models", arXiv 2403.18227.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_onebp.config.schema import AUTO_LOCAL_RECENCY, AUTO_RECENCY, AUTO_TREND_WEIGHT, OneBPConfig
from recbole_onebp.cooccurrence import Interactions, latest
from recbole_onebp.data.item_features import item_fields
from recbole_onebp.data.order import has_times
from recbole_onebp.data.weights import weights_of
from recbole_onebp.distributed.ranks import current
from recbole_onebp.distributed.sharding import Shard, item_count
from recbole_onebp.functional import bilateral_softmax, info_nce, moving_aggregate_, popularity_weights
from recbole_onebp.history import History
from recbole_onebp.local import LocalScores, LocalTerm
from recbole_onebp.recency import trends
from recbole_onebp.tower import Tower
from recbole_onebp.util.errors import UserError

__all__ = ["OneBP"]


class OneBP(GeneralRecommender):
    """Items are trained by gradient; a user is a moving aggregation of the embeddings of its items.

    With ``backprop: two`` both tables are trained by gradient and users are not moved: the paper's TwoBP.

    Attributes:
        tower: makes the rows of items from features; None with ``item_features: none``.
        item_table: item embeddings ``(n_items, d)``: a parameter, or a buffer with what the tower last made.
        user_table: user embeddings ``(n_users, d)``: a buffer, or a parameter with ``backprop: two``.
        item_bias: ``(n_items, 1)``, like ``item_table``; None without ``item_bias: True``.
        trend: what is added to the item biases for prediction, ``(n_items, 1)``; None with ``trend_weight: none``.
        new_item_bias: with a tower, what is added to the biases of items without the row of an id.
        shared_negatives: with ``negatives: shared``, the negatives of the next step, ``(M,)``; set by the trainer.
        history: the train items of all users; None where nothing needs them.
        recency: exponent of the weight of an item by its age, see :func:`~recbole_onebp.recency.recency_weights`.
        users_from_earlier_items: whether the users of pairs are made of the items before the pair.
        item_weight: weight of each item in the aggregation, ``(n_items, 1)``; None with ``aggregation_alpha: 0``.
        shard: in several processes, the users of this rank; else None.
        leaves_one_out: whether the users of pairs are made of all other items.
        weighted_items: where users of pairs are made of items, the items' weighted vectors at the last aggregation,
            ``(n_items, d)``.
        local_weight: with ``local: ridge``, the weight of the local term, a scalar; chosen by the trainer.

    Row 0 of every table is RecBole's padding: it starts at zero and is never trained, sampled or recommended.

    Example:
        >>> from recbole_onebp import build
        >>> model = build("OneBP", "ml-100k", config_dict={"embedding_size": 8}).model
        >>> model.user_table.shape, [name for name, _ in model.named_parameters()]
        (torch.Size([944, 8]), ['item_table', 'item_bias'])
    """

    input_type: InputType = InputType.PAIRWISE

    config: OneBPConfig
    tower: Tower | None
    recency: float
    local_recency: float
    trend_weight: float
    users_from_earlier_items: bool
    leaves_one_out: bool
    item_table: Tensor
    user_table: Tensor
    item_bias: Tensor | None
    trend: Tensor | None
    new_item_bias: Tensor
    shared_negatives: Tensor
    history: History
    item_weight: Tensor | None
    weighted_items: Tensor | None
    local_weight: Tensor
    log_q: Tensor | None = None
    """Log probability of each item in the shared draws, ``(n_items,)``, with ``logq_correction: True``."""

    def __init__(self, config: Config, dataset: Dataset) -> None:
        """Create the tables.

        Args:
            config: RecBole's configuration; :class:`~recbole_onebp.config.schema.OneBPConfig` checks it.
            dataset: the train data.

        Raises:
            UserError: for an invalid configuration.
        """
        super().__init__(config, dataset)
        self.config = OneBPConfig.from_recbole(config)
        size = self.config.embedding_size
        self.shard: Shard | None = getattr(dataset, "shard", None)
        users = _xavier_rows(self.n_users, size) if self.shard is None else _xavier_rows_of(self.shard, size)
        items = _xavier_rows(self.n_items, size)
        self.tower = self._make_tower(dataset, items)
        self._keep("item_table", items, self.tower is None)
        self._keep("user_table", users, self.config.backprop == "two")
        bias = torch.zeros(self.n_items, 1) if self.config.item_bias else None
        self._keep("item_bias", bias, self.tower is None)
        if self.tower is not None:
            self.register_buffer("new_item_bias", torch.zeros(()))
            self.make_items()
        self._users_are_moved = False
        self._ranked: tuple[list[int], Tensor] | None = None
        self._fresh_users: tuple[int, Tensor] | None = None
        self._local: LocalTerm | None = None
        if self.config.local == "ridge":
            weight = self.config.local_weight
            self.register_buffer("local_weight", torch.tensor(1.0 if weight == "auto" else weight))
        self._keep_history(dataset)
        self._start_users()

    def _keep(self, name: str, table: Tensor | None, is_trained: bool) -> None:
        """Keep a table as a parameter or as a buffer."""
        if is_trained:
            self.register_parameter(name, None if table is None else nn.Parameter(table))
        else:
            self.register_buffer(name, table)

    def _start_users(self) -> None:
        if self.config.aggregation == "interval" or self.weighted_items is not None:
            self._aggregate(beta=0.0)

    @torch.no_grad()
    def start_from(self, tables: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Begin training with rows of an earlier model; the other rows stay as they are.

        Args:
            tables: name of a table -> internal ids ``(n,)`` and their rows ``(n, ...)``; the bias in units of scores.

        Raises:
            UserError: if items are made of features: their rows do not say what they were made of.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"embedding_size": 2, "local": "none"}).model
            >>> model.start_from({"item_table": (torch.tensor([3]), torch.tensor([[0.6, 0.8]]))})
            >>> model.item_table[3]
            tensor([0.6000, 0.8000], grad_fn=<SelectBackward0>)
        """
        if self.tower is not None:
            raise UserError("item_features: items that are made of features cannot start from earlier ones; use fit")
        for name, (ids, rows) in tables.items():
            scale = self.config.temperature if name == "item_bias" else 1.0
            getattr(self, name)[ids] = rows.view(len(ids), -1).to(self.item_table) / scale
            if name == "item_bias" and self.trend is not None:  # the trend of the data of today is added again
                getattr(self, name)[ids] -= self.trend[ids]
        self._start_users()

    def _make_tower(self, dataset: Dataset, ids: Tensor) -> Tower | None:
        """The tower of the features that the configuration asks for; items without train pairs have no row of an id."""
        config = self.config
        if config.item_features == "none":
            return None
        fields = item_fields(dataset, config.item_features)
        has_pairs = item_count(dataset) > 0
        if config.id_dropout == 1:
            has_pairs = torch.zeros_like(has_pairs)
        return Tower(fields, ids, has_pairs, config.item_bias, config.learner == "sparse_adam")

    @torch.no_grad()
    def make_items(self) -> None:
        """Let the tower make the rows and biases of all items; call it after the tower has changed.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"item_features": ["class"], "local": "none"}).model
            >>> with torch.no_grad():
            ...     _ = model.tower.id_table.zero_()
            >>> model.make_items()
            >>> bool((model.item_table == model.tower.all_rows()).all())
            True
        """
        assert self.tower is not None
        self.item_table.copy_(self.tower.all_rows())
        if self.item_bias is not None:
            self.item_bias.copy_(self.tower.all_biases())

    @torch.no_grad()
    def calibrate_new_items(self) -> None:
        """Lower the biases of items without the row of an id; call it once after :meth:`make_items`, for evaluation.

        The row of an id makes an item differ from others with its features.  Without it, an item is more like the
        average user.  The biases are lowered by what leaving out ids would add to the mean score of the other items.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"item_features": ["class"], "local": "none"}).model
            >>> model.make_items()
            >>> model.calibrate_new_items()
            >>> model.new_item_bias.shape
            torch.Size([])
        """
        tower = self.tower
        if tower is None or tower.id_bias is None or self.item_bias is None or not tower.has_id.any():
            return
        rows = self.item_table[tower.has_id]
        more = self._scaled(rows - tower.id_table[tower.has_id]) - self._scaled(rows)
        users = self.user_table if self.shard is None else self.shard.whole_table(self.user_table, current())
        user = current().broadcast(self._scaled(users[1:]).mean(dim=0))
        gain = float((more @ user).mean()) / self.config.temperature - float(tower.id_bias[tower.has_id].mean())
        self.new_item_bias.fill_(-gain)
        self.item_bias[~tower.has_id] -= gain
        self.item_bias[0] = 0

    def _keep_history(self, dataset: Dataset) -> None:
        """Keep what aggregation needs of the train interactions, outside checkpoints: it is computed from the data."""
        config = self.config
        self._resolve_order(dataset)
        self.register_module("history", None)
        uses = config.aggregation != "step", config.user_encoding == "fresh", config.negatives == "shared"
        if any(uses) or self.trend_weight or config.local == "ridge":
            inter, times = dataset.inter_feat, None
            if self.recency or self.users_from_earlier_items or self.trend_weight or self.local_recency:
                times = inter[dataset.time_field]
            user, item, strength = inter[self.USER_ID], inter[self.ITEM_ID], None
            if config.WEIGHT_FIELD is not None:
                strength = weights_of(dataset, config.WEIGHT_FIELD, config.weight_transform)
            self.history = History(
                user, item, self.n_users, self.n_items, times, self.recency, config.training_recency, strength
            )
        self.register_buffer("trend", self._trend() if self.trend_weight else None, persistent=False)
        weight = None
        if self.config.aggregation_alpha > 0:
            weight = popularity_weights(item_count(dataset), self.config.aggregation_alpha).unsqueeze(1)
        self.register_buffer("item_weight", weight, persistent=False)
        uses_items = self.leaves_one_out or self.users_from_earlier_items
        weighted = torch.zeros_like(self.item_table, requires_grad=False) if uses_items else None
        self.register_buffer("weighted_items", weighted, persistent=False)

    def _trend(self) -> Tensor:
        start, item, _ = self.history.arrays
        age = np.repeat(start[1:], np.diff(start)) - 1 - np.arange(len(item))
        ranks = current()

        def summed(part: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            return torch.stack(ranks.gather(torch.from_numpy(part))).sum(dim=0).numpy()

        found = torch.from_numpy(trends(item, age, self.n_items, summed)).float()
        return self.trend_weight * found.unsqueeze(1)

    def _resolve_order(self, dataset: Dataset) -> None:
        """Set what depends on whether the data are in order.

        Raises:
            UserError: if a key needs times and there are none.
        """
        config, in_order = self.config, getattr(dataset, "in_order", False)
        self.recency = _resolved(config.recency, AUTO_RECENCY if in_order else 0.0)
        self.trend_weight = _resolved(config.trend_weight, AUTO_TREND_WEIGHT if in_order and config.item_bias else 0.0)
        self.local_recency = _resolved(config.local_recency, AUTO_LOCAL_RECENCY if in_order else 0.0)
        self.users_from_earlier_items = config.training_history == "earlier" or (
            config.training_history == "auto" and in_order
        )
        self.leaves_one_out = config.leave_one_out and not self.users_from_earlier_items
        needing = {
            "training_history: earlier": self.users_from_earlier_items,
            f"recency: {self.recency:g}": self.recency,
            f"trend_weight: {self.trend_weight:g}": self.trend_weight,
            f"local_recency: {self.local_recency:g}": self.local_recency and config.local == "ridge",
        }
        if any(needing.values()) and not has_times(dataset):
            key = next(key for key, needs in needing.items() if needs)
            raise UserError(
                f"{key}: the interactions have no times: load a column {dataset.time_field} by load_col, or name it by "
                "time= in fit"
            )

    def use_of_order(self) -> str:
        """What the keys that depend on the order of the data have become, as the log has it.

        Example:
            >>> from recbole_onebp import build
            >>> build("OneBP", "ml-100k").model.use_of_order()
            'not used'
        """
        used = {
            "recency": f"{self.recency:g}" if self.recency else "",
            "training_history": "earlier" if self.users_from_earlier_items else "",
            "trend_weight": f"{self.trend_weight:g}" if self.trend_weight else "",
            "local_recency": f"{self.local_recency:g}" if self.local_recency and self.config.local == "ridge" else "",
        }
        return ", ".join(f"{key}: {value}" for key, value in used.items() if value) or "not used"

    # --------------------------------------------------------------------------------------------------- embeddings

    def _rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table; the gradient is sparse for ``sparse_adam``."""
        return F.embedding(ids, table, padding_idx=0, sparse=self.config.learner == "sparse_adam")

    def _look_up(self, table: Tensor, ids: Tensor) -> Tensor:
        """Rows of a table as used in scores: scaled to unit length with ``score: cosine``."""
        return self._scaled(self._rows(table, ids))

    def _trained_items(self, item: Tensor) -> Tensor:
        """Rows of items as used in the loss; the gradient reaches what they are made of."""
        if self.tower is not None:
            return self._scaled(self.tower.rows(item))
        return self._look_up(self.item_table, item)

    def _bias(self, item: Tensor, in_loss: bool = False) -> Tensor | float:
        """The items' biases in units of scores, shape of ``item``: the temperature divides scores, but not biases."""
        if self.item_bias is None:
            return 0.0
        tower = self.tower if in_loss else None
        biases = self._rows(self.item_bias, item) if tower is None else tower.biases(item)
        if not in_loss and self.trend is not None:
            biases = biases + self.trend[item]
        return self.config.temperature * biases.squeeze(-1)

    def score_biases(self) -> Tensor | None:
        """What is added to the scores of all items, trends included, ``(n_items, 1)``; None without ``item_bias``.

        Example:
            >>> from recbole_onebp import build
            >>> build("OneBP", "ml-100k", config_dict={"local": "none"}).model.score_biases().shape
            torch.Size([1683, 1])
        """
        if self.item_bias is None:
            return None
        return self.config.temperature * (self.item_bias if self.trend is None else self.item_bias + self.trend)

    def _scaled(self, embeddings: Tensor) -> Tensor:
        return F.normalize(embeddings, dim=-1) if self.config.score == "cosine" else embeddings

    def users_of(self, user: Tensor, item: Tensor) -> Tensor:
        """The user embeddings of train pairs, ``(B, d)``, as used in the loss.

        With ``leave_one_out: True`` they are the mean of the user's items without the item of the pair, and with
        ``training_history: earlier`` that of the items before it, in both cases as of the last aggregation.  They are
        zero where there is no such item, so only the biases are updated for such pairs.

        Example:
            >>> from recbole_onebp import build
            >>> run = build("OneBP", "ml-100k", config_dict={"local": "none"})
            >>> pairs = run.train_data.dataset.inter_feat[:5]
            >>> run.model.users_of(pairs["user_id"], pairs["item_id"]).shape
            torch.Size([5, 64])
        """
        if self.weighted_items is None:
            return self._rows(self.user_table, user)
        if self.users_from_earlier_items:
            return self.history.earlier(user, item, self.weighted_items)
        return self.history.without(user, item, self.user_table[user], self.weighted_items[item])

    # --------------------------------------------------------------------------------------------------------- loss

    def pair_weight(self, user: Tensor, item: Tensor) -> Tensor | None:
        """Weight of train pairs in the loss, ``(B,)``; None if all weigh the same.

        It is that of the interaction, and by ``half_weight_at`` that of the number of items before it.

        Example:
            >>> from recbole_onebp import build
            >>> by_time = {"local": "none", "eval_args": {"order": "TO", "split": {"RS": [8, 1, 1]}}}
            >>> model = build("OneBP", "ml-100k", config_dict=by_time).model
            >>> first, second = model.history.item[model.history.start[1] :][:2]
            >>> model.pair_weight(torch.tensor([1, 1]), torch.stack([first, second]))  # n / (n + 1), n items before
            tensor([0.0000, 0.5000])
        """
        half = self.config.half_weight_at if self.users_from_earlier_items else 0.0
        strength = self.history.strength_of(user, item) if self.config.WEIGHT_FIELD else None
        if not half:
            return strength
        n_earlier = self.history.n_earlier(user, item).float()
        by_number = n_earlier / (n_earlier + half)
        return by_number if strength is None else by_number * strength

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The InfoNCE loss of a batch from RecBole's loader.

        With ``negatives: per_pair`` the loader repeats the B pairs N times, once for each block of negatives; every
        pair counts once here.  With ``shared`` it returns the B pairs, and the negatives are ``shared_negatives``.

        Args:
            interaction: users and items of B pairs, repeated N times, and B * N negatives; or the B pairs alone.

        Returns:
            The mean loss of the B pairs, a scalar tensor.

        Raises:
            RuntimeError: if users would not be moved, as when training with RecBole's own Trainer.

        Example:
            A training loop of your own; :class:`~recbole_onebp.trainer.OneBPTrainer` has a faster one.

            >>> from recbole_onebp import build
            >>> run = build("OneBP", "ml-100k", config_dict={"preset": "paper"})
            >>> optimizer = torch.optim.Adam(run.model.parameters(), lr=0.001)
            >>> run.model.users_will_be_moved()
            >>> batch = next(iter(run.train_data))
            >>> loss = run.model.calculate_loss(batch)
            >>> loss.backward()
            >>> _ = optimizer.step()
            >>> run.model.move_users(batch)
        """
        if self.config.backprop == "one" and not self._users_are_moved:
            raise RuntimeError(
                "the users of OneBP have no gradient and must be moved by OneBPTrainer, which is not in use. Use the "
                "trainer that recbole.utils.get_trainer(config['MODEL_TYPE'], 'OneBP') returns. In your own training "
                "loop, call users_will_be_moved() once. With aggregation: step, call move_users(batch) after each "
                "optimizer step; otherwise call move_all_users() at the start of each epoch, every "
                "aggregation_interval steps and at its end."
            )
        user, item = self._positives(interaction)
        user_e = self._scaled(self.users_of(user, item))  # (B, d); a constant with backprop: one
        pos_score = (user_e * self._trained_items(item)).sum(dim=-1) + self._shift(item)
        if self.config.negatives == "shared":
            negative = self.shared_negatives  # (M,)
            neg_score = user_e @ self._trained_items(negative).T + self._shift(negative)  # (B, M)
            neg_score = neg_score.masked_fill(self.history.has(user, negative), -torch.inf)
        else:
            negative = interaction[self.NEG_ITEM_ID].view(-1, len(user)).T  # (B, N)
            negative_e = self._look_up(self.item_table, negative)  # (B, N, d)
            neg_score = (negative_e @ user_e.unsqueeze(-1)).squeeze(-1) + self._shift(negative)
        temperature, negative_weight = self.config.temperature, self.config.negative_weight
        pair_weight = self.pair_weight(user, item)
        if negative_weight:
            return bilateral_softmax(pos_score, neg_score, temperature, negative_weight, pair_weight)
        return info_nce(pos_score, neg_score, temperature, pair_weight)

    def _shift(self, item: Tensor) -> Tensor | float:
        """Added to the items' scores in the loss: the bias, minus the log probability if that is corrected for."""
        shift = self._bias(item, in_loss=True)
        return shift if self.log_q is None else shift - self.config.temperature * self.log_q[item]

    def _positives(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Users and items of a batch, ``(B,)`` each: the first of the loader's equal blocks."""
        n_pairs = len(interaction) // self.config.repeats
        return interaction[self.USER_ID][:n_pairs], interaction[self.ITEM_ID][:n_pairs]

    # -------------------------------------------------------------------------------------------------- aggregation

    def users_will_be_moved(self) -> None:
        """Declare that the caller moves the users, by :meth:`move_users` or :meth:`move_all_users`.

        Without this call, :meth:`calculate_loss` raises an error; its example has it.
        """
        self._users_are_moved = True

    def move_users(self, interaction: Interaction) -> None:
        """Move a batch's users towards their items; called after each optimizer step, as in the paper.

        Args:
            interaction: the batch that was passed to :meth:`calculate_loss`.

        Raises:
            RuntimeError: unless ``aggregation`` is ``step``.

        Example:
            >>> from recbole_onebp import build
            >>> run = build("OneBP", "ml-100k", config_dict={"preset": "paper"})
            >>> batch = next(iter(run.train_data))
            >>> before = run.model.user_table.clone()
            >>> run.model.move_users(batch)
            >>> moved = (run.model.user_table != before).any(dim=1).nonzero().flatten()
            >>> set(moved.tolist()) == set(batch["user_id"].tolist())
            True
        """
        if self.config.aggregation != "step":
            raise RuntimeError(f"aggregation is {self.config.aggregation!r}: call move_all_users instead")
        self.move(*self._positives(interaction))

    @torch.no_grad()
    def move(self, user: Tensor, item: Tensor) -> None:
        """:meth:`move_users` for pairs of users and items, ``(B,)`` each."""
        moving_aggregate_(self.user_table, user, self._weighted_items(item), self.config.beta, self.config.duplicates)

    def move_all_users(self) -> None:
        """Move every user towards the mean of all its train items.

        Raises:
            RuntimeError: with ``aggregation: step``.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model
            >>> with torch.no_grad():
            ...     _ = model.item_table[1:].fill_(0.1)
            >>> model.move_all_users()  # 64 equal numbers of a vector of length 1 are 1/8
            >>> model.user_table[1, :3]
            tensor([0.1250, 0.1250, 0.1250])
        """
        if self.config.aggregation == "step":
            raise RuntimeError("aggregation is 'step': call move_users instead")
        self._aggregate(self.config.beta)

    @torch.no_grad()
    def _aggregate(self, beta: float) -> None:
        self.user_table.copy_(self._aggregated(self.weigh_items(), beta))

    @torch.no_grad()
    def weigh_items(self) -> Tensor:
        """The items' weighted vectors of now, ``(n_items, d)``, which ``weighted_items`` takes too if it is kept."""
        if self.tower is not None:
            self.make_items()
        weighted = self._weighted_items()
        if self.weighted_items is not None:
            self.weighted_items.copy_(weighted)
        return weighted

    def _aggregated(self, weighted: Tensor, beta: float) -> Tensor:
        """The users after a move, ``(n_users, d)``; users without items are unchanged."""
        start = self.history.start
        moved = beta * self.user_table + (1 - beta) * self.history.mean(weighted)
        return torch.where((start[1:] > start[:-1]).unsqueeze(1), moved, self.user_table)

    def _weighted_items(self, item: Tensor | EllipsisType = ...) -> Tensor:
        """The weighted item embeddings that users aggregate, w_i e_i."""
        embeddings = self._scaled(self.item_table[item])
        return embeddings if self.item_weight is None else embeddings * self.item_weight[item]

    # --------------------------------------------------------------------------------------------------- prediction

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of pairs of users and items, shape ``(B,)``.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model.eval()
            >>> pairs = Interaction({"user_id": torch.tensor([1, 2]), "item_id": torch.tensor([5, 5])})
            >>> model.predict(pairs).shape
            torch.Size([2])
        """
        user_e = self._look_up(self.scored_users(), interaction[self.USER_ID])
        item_e = self._look_up(self.item_table, interaction[self.ITEM_ID])
        score = (user_e * item_e).sum(dim=-1) + self._bias(interaction[self.ITEM_ID])
        if (local := self.local) is None:
            return score
        user, item = (interaction[field].cpu().numpy() for field in (self.USER_ID, self.ITEM_ID))
        return score + torch.from_numpy(local.pairs(user, item, *self.history.arrays)).to(score.device)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the users with all items, padding included, flattened to ``(B * n_items,)``.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model.eval()
            >>> scores = model.full_sort_predict(Interaction({"user_id": torch.tensor([1, 2])}))
            >>> scores.view(2, -1).shape
            torch.Size([2, 1683])
        """
        user_e, item_e = self.ranking_vectors(interaction)
        scores = user_e @ item_e.T
        if (local := self.local_scores(interaction)) is not None:
            local.found().add_to(scores)
        return scores.view(-1)

    def local_scores(self, interaction: Interaction) -> LocalScores | None:
        """What the local term adds to the scores of the users; None without it.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model
            >>> model.local_scores(Interaction({"user_id": torch.tensor([1])})) is None
            True
        """
        if (local := self.local) is None:
            return None
        return local.scores(interaction[self.USER_ID].cpu().numpy(), *self.history.arrays)

    @property
    def local(self) -> LocalTerm | None:
        """The local term with its current weight, fitted when it is first used; None if there is none, or its weight
        is 0.

        Example:
            >>> from recbole_onebp import build
            >>> build("OneBP", "ml-100k", config_dict={"local_neighbors": 20}).model.local.summary()["neighbors"]
            20
        """
        if self.config.local == "none" or not (weight := float(self.local_weight)):
            return None
        if self._local is None:
            config = self.config
            self._local = LocalTerm.fitted(
                self._counted(),
                self.local_recency,
                config.local_neighbors,
                config.local_reg,
                None if self.tower is None else self.tower.features(),
                self.item_table.device,
            )
        return replace(self._local, weight=weight)

    def _counted(self) -> Interactions:
        """The interactions of all users, of all ranks, that the local term is fitted to."""
        start, item, strength = self.history.arrays
        kept = latest(start, self.config.local_history, self.history.is_ordered)
        user = torch.from_numpy(np.repeat(np.arange(len(start) - 1), np.diff(start))[kept])
        n_users = self.n_users
        if self.shard is not None:
            user, n_users = self.shard.whole_ids(user), self.shard.n_users
        ranks = current()
        own = [user, torch.from_numpy(item[kept])]
        if len(strength):
            own.append(torch.from_numpy(strength[kept]))
        users, items, *weights = (torch.cat(ranks.gather(part)).numpy() for part in own)
        return Interactions.of(users, items, n_users, self.n_items, *weights)

    def ranking_vectors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Vectors of the users ``(B, d)`` and of all items ``(n_items, d)`` whose dot products are the towers' scores.

        With ``item_bias`` their size is d + 1.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model.eval()
            >>> users, items = model.ranking_vectors(Interaction({"user_id": torch.tensor([1, 2])}))
            >>> users.shape, items.shape
            (torch.Size([2, 65]), torch.Size([1683, 65]))
        """
        user_e = self._look_up(self.scored_users(), interaction[self.USER_ID])
        if self.item_bias is not None:
            user_e = F.pad(user_e, (0, 1), value=1.0)
        return user_e, self._ranked_items()

    def scored_users(self) -> Tensor:
        """The user embeddings for predictions, ``(n_users, d)``.

        This is the user table, or with ``user_encoding: fresh`` the mean of each user's current items, computed once
        per evaluation.

        Example:
            >>> from recbole_onebp import build
            >>> model = build("OneBP", "ml-100k", config_dict={"local": "none"}).model
            >>> model.scored_users() is model.user_table
            True
        """
        if self.config.user_encoding == "moved":
            return self.user_table
        version = self.item_table._version
        if self.training or self._fresh_users is None or self._fresh_users[0] != version:
            with torch.no_grad():
                self._fresh_users = version, self._aggregated(self._weighted_items(), beta=0.0)
        return self._fresh_users[1]

    def _ranked_items(self) -> Tensor:
        """Item vectors of :meth:`ranking_vectors`, computed once per evaluation."""
        parts = [self.item_table] if self.item_bias is None else [self.item_table, self.item_bias]
        versions = [part._version for part in parts]
        if self._ranked is None or self._ranked[0] != versions:
            items = self._scaled(self.item_table)
            if (bias := self.score_biases()) is not None:
                items = torch.cat((items, bias), dim=1)
            if self.training or torch.is_grad_enabled():
                return items
            self._ranked = versions, items
        return self._ranked[1]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """See torch.  In several processes, each rank takes its own rows from a table of all users."""
        table = state_dict.get("user_table")
        if self.shard is not None and table is not None and len(table) == self.shard.n_users:
            state_dict = {**state_dict, "user_table": self.shard.own_rows(table)}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def train(self, mode: bool = True) -> OneBP:
        """Switch between training and evaluation, see torch; this clears what was computed for an evaluation."""
        self._ranked = self._fresh_users = None
        return super().train(mode)


def _resolved(given: str | float, auto: float) -> float:
    """The number that a key with ``auto`` and ``none`` stands for."""
    return {"auto": auto, "none": 0.0}[given] if isinstance(given, str) else float(given)


def _xavier_rows(n_rows: int, size: int) -> Tensor:
    """A table of xavier-normal rows after a zero padding row."""
    table = torch.zeros(n_rows, size)
    nn.init.xavier_normal_(table[1:])
    return table


_ROWS_AT_ONCE = 1 << 16


def _xavier_rows_of(shard: Shard, size: int) -> Tensor:
    """One rank's rows of :func:`_xavier_rows`, without the table of all users in memory.

    Torch's generator fills a tensor with the same numbers in parts as in one call, if the length of each part is a
    multiple of 16 and that of the last is at least 16.
    """
    n_users, table = shard.n_users - 1, torch.zeros(1 + len(range(shard.n_users)[shard.rows]), size)
    deviation = math.sqrt(2 / (n_users + size))
    filled, start = 1, 0
    while start < n_users:
        end = n_users if n_users - start < 2 * _ROWS_AT_ONCE else start + _ROWS_AT_ONCE
        drawn = torch.empty(end - start, size).normal_(0, deviation)
        own = drawn[(shard.rank - start) % shard.world_size :: shard.world_size]
        table[filled : filled + len(own)] = own
        filled, start = filled + len(own), end
    return table
