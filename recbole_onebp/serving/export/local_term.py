"""The local term of a trained model, in the rows of a bundle."""

from __future__ import annotations

import numpy as np

from recbole_onebp.local import LocalTerm
from recbole_onebp.serving.local_table import LocalTable, row_blocks
from recbole_onebp.serving.manifest import LARGEST_RECENCY
from recbole_onebp.serving.tables import LARGEST
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import InternalIds

__all__ = ["local_table"]


def local_table(local: LocalTerm | None, items: InternalIds) -> LocalTable | None:
    """The local term of a model with other rows.

    Args:
        local: the model's, in RecBole's internal ids; None if it has none.
        items: the internal id of each new row, ``(n_items,)``.  All items with entries must be among them.

    Returns:
        The table; None if there is no local term, or its weight is 0.

    Raises:
        UserError: if it is damaged.
    """
    if local is None or local.weight == 0:
        return None
    for name, number, most in (("weight", local.weight, LARGEST), ("recency", local.recency, LARGEST_RECENCY)):
        if not 0 <= number <= most:
            raise UserError(f"the {name} of the local term is {number:g}; expected from 0 to {most:g}; train again")
    old = LocalTable(local.indptr, local.indices, local.values, local.weight, local.recency)
    if len(old.item) != len(old.value) or len(old) <= items.max():
        raise UserError("the arrays of the local term do not fit each other or the items; train again")
    if (fault := old.fault()) is not None:
        raise UserError(f"the local term is damaged: {fault[0]}: {fault[1]}; train again")
    row_of = np.full(len(old), -1)
    row_of[items] = np.arange(len(items))
    count = np.diff(old.start)[items]
    start = np.concatenate(([0], np.cumsum(count)))
    item, value = np.empty(start[-1], np.int32), np.empty(start[-1], np.float32)
    for rows, entries in row_blocks(start):
        entry, _ = old.entries(items[rows])
        of_item = row_of[old.item[entry]]
        order = np.lexsort((of_item, np.repeat(np.arange(rows.stop - rows.start), count[rows])))
        item[entries], value[entries] = of_item[order], old.value[entry[order]]
    if start[-1] != len(old.item) or bool((item < 0).any()):
        raise UserError("the local term has entries for the padding item; train again")
    return LocalTable(start, item, value, old.weight, old.recency)
