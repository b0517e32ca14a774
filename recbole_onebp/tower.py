"""The item tower: what the embedding of an item is made of where items have features.

An item's row is the row of its id plus the weighted sum of the rows of its values (tags, authors, numbers, ...), so an
item that nobody has taken has an embedding too: that of its values.  With ``id_dropout`` the ids of a share of the
items of each step are left out in training, so that values learn to stand for items alone (Volkovs, Yu, Poutanen,
"DropoutNet", NeurIPS 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_onebp.data.item_features import ItemField

__all__ = ["Tower", "sums_of"]

_SHARE = 0.5
"""What the values of a field weigh beside the row of the id; with as much as the id they learn its part too, and warm
items lose by it (docs/features.md)."""


class Tower(nn.Module):
    """Rows and biases of items, from their ids and their values.

    Attributes:
        fields: the features of the items, in the order of their values.
        id_table: a row for each item, parameter ``(n_items, d)``; zero for items without train pairs.
        id_bias: parameter ``(n_items, 1)``; None without biases, like ``value_bias``.
        value_table: a row for each value of each field, parameter ``(n_values, d)``.
        value_bias: parameter ``(n_values, 1)``.
        has_id: whether each item has the row of its id, ``(n_items,)``.
        start: the values of item i are ``value[start[i] : start[i + 1]]``, ``(n_items + 1,)``.
        value: numbers of values.
        weight: of each value in its item, see :meth:`features`.
        kept: which items have the rows of their ids in the next step, ``(n_items,)``; set by the trainer.
    """

    id_table: nn.Parameter
    id_bias: nn.Parameter | None
    value_table: nn.Parameter
    value_bias: nn.Parameter | None
    start: Tensor
    value: Tensor
    weight: Tensor
    kept: Tensor
    has_id: Tensor

    def __init__(self, fields: Sequence[ItemField], ids: Tensor, has_pairs: Tensor, biases: bool, sparse: bool) -> None:
        """Create the tables.

        Args:
            fields: the features of the items.
            ids: the first rows of the ids, ``(n_items, d)``.
            has_pairs: whether each item has the row of its id, ``(n_items,)``.
            biases: whether items have biases.
            sparse: whether the gradients of ids are sparse, as ``sparse_adam`` needs them.
        """
        super().__init__()
        self.fields: tuple[ItemField, ...] = tuple(fields)
        features = self.features()
        (n_items, n_values), size = features.shape, ids.shape[1]
        self.sparse: bool = sparse
        self.id_table = nn.Parameter(torch.where(has_pairs.unsqueeze(1), ids, 0.0))
        self.id_bias = nn.Parameter(torch.zeros(n_items, 1)) if biases else None
        self.value_table = nn.Parameter(torch.empty(n_values, size).normal_(0, math.sqrt(2 / (n_items + size))))
        self.value_bias = nn.Parameter(torch.zeros(n_values, 1)) if biases else None
        for name, array in (("start", features.indptr), ("value", features.indices)):
            self.register_buffer(name, torch.from_numpy(array).long(), persistent=False)
        self.register_buffer("weight", torch.from_numpy(features.data), persistent=False)
        self.register_buffer("has_id", has_pairs, persistent=False)
        self.register_buffer("kept", torch.ones(n_items, dtype=torch.bool), persistent=False)

    def features(self) -> sp.csr_array:
        """The weight of each value in each item, ``(n_items, n_values)``: half of that in its field."""
        return sp.csr_array(_SHARE * sp.hstack([field.matrix for field in self.fields], "csr"))

    def values(self) -> tuple[Tensor, Tensor | None]:
        """Rows and biases of values for the weights of :class:`~recbole_onebp.data.item_features.ItemField`."""
        bias = None if self.value_bias is None else _SHARE * self.value_bias.detach()
        return _SHARE * self.value_table.detach(), bias

    @property
    def of_values(self) -> list[nn.Parameter]:
        """The feature-value tables, which are large: SparseAdam updates only the rows that occur in a step."""
        return [table for table in (self.value_table, self.value_bias) if table is not None]

    def rows(self, item: Tensor) -> Tensor:
        """The rows of items ``(m,)`` in a step, ``(m, d)``."""
        return self._sum(item, self.id_table, self.value_table, self.kept)

    def biases(self, item: Tensor) -> Tensor:
        """The biases of items ``(m,)`` in a step, ``(m, 1)``."""
        assert self.id_bias is not None
        assert self.value_bias is not None
        return self._sum(item, self.id_bias, self.value_bias, self.kept)

    @torch.no_grad()
    def all_rows(self) -> Tensor:
        """The rows of all items with their ids, ``(n_items, d)``."""
        return self._sum(None, self.id_table, self.value_table)

    @torch.no_grad()
    def all_biases(self) -> Tensor:
        """The biases of all items with their ids, ``(n_items, 1)``."""
        assert self.id_bias is not None
        assert self.value_bias is not None
        return self._sum(None, self.id_bias, self.value_bias)

    def bags(self, item: Tensor, n_values: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The values of items.

        Args:
            item: ``(m,)``.
            n_values: number of values of all of them, if it is known; on a GPU it would be waited for.

        Returns:
            Numbers of values ``(n_values,)``, their weights, and where the values of each item begin, ``(m + 1,)``.
        """
        count = self.start[item + 1] - self.start[item]
        start = F.pad(count.cumsum(0), (1, 0))
        n_values = int(start[-1]) if n_values is None else n_values
        place = torch.arange(n_values, device=item.device)
        place += torch.repeat_interleave(self.start[item] - start[:-1], count, output_size=n_values)
        return self.value[place], self.weight[place], start

    def _sum(self, item: Tensor | None, ids: Tensor, values: Tensor, kept: Tensor | None = None) -> Tensor:
        """The rows of some or all items, of one of the two pairs of tables."""
        value, weight, start = (self.value, self.weight, self.start) if item is None else self.bags(item)
        own = ids
        if item is not None:
            own = F.embedding(item, ids, padding_idx=0, sparse=self.sparse)
            own = own * kept[item].unsqueeze(1) if kept is not None else own
        return own + sums_of(values, value, weight, start)


def sums_of(table: Tensor, value: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """The weighted sums of rows of ``table``, one for each bag of values, see :meth:`Tower.bags`; ``(m, d)``."""
    return F.embedding_bag(
        value, table, start, mode="sum", sparse=True, include_last_offset=True, per_sample_weights=weight
    )
