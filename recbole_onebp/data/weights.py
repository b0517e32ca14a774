"""The weights of the interactions of a data set: a column that the key ``WEIGHT_FIELD`` names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.utils import FeatureType
from torch import Tensor

from recbole_onebp.data.interactions import Table, row_of
from recbole_onebp.distributed.ranks import current
from recbole_onebp.util.errors import UserError
from recbole_onebp.weights import ALLOWED, Transform, are_allowed, transformed

__all__ = ["check_weights", "weights_of"]


def check_weights(table: Table, frame: pd.DataFrame, field: str) -> None:
    """Check the weights of a file before RecBole fills in means for those that are missing.

    Raises:
        UserError: names the file, the row and the value.
    """
    if field not in frame or not pd.api.types.is_numeric_dtype(frame[field]):
        return  # weights_of says so
    values = frame[field].to_numpy()
    wrong = np.flatnonzero(~are_allowed(values))
    if len(wrong):
        raise UserError(
            f"{table.path}, {row_of(table, wrong[0])}: {field} is {values[wrong[0]]:g}, no weight: expected {ALLOWED}"
        )


def weights_of(dataset: Any, field: str, by: Transform) -> Tensor:
    """The weights of the interactions of a part of the data, ``(n,)``, with mean 1 over all ranks.

    Args:
        dataset: the part.
        field: the column.
        by: the transform.

    Raises:
        UserError: if there is no such column of numbers, if RecBole has changed them, or a pair occurs twice.
    """
    rows = dataset.inter_feat
    if field not in rows or dataset.field2type[field] != FeatureType.FLOAT:
        numbers = [name for name in rows.columns if dataset.field2type[name] == FeatureType.FLOAT]
        raise UserError(
            f"WEIGHT_FIELD: {field}: no such column of numbers is loaded, but {', '.join(numbers) or 'none'}; load it "
            f"by load_col, and call it {field}:float in the file"
        )
    weight, user, item = (rows[name].numpy() for name in (field, dataset.uid_field, dataset.iid_field))
    if weight.ndim > 1 or not are_allowed(weight).all():
        raise UserError(
            f"WEIGHT_FIELD: {field}: its values are changed by normalize_field, normalize_all or discretization; leave "
            "that key out"
        )
    code = np.sort(user.astype(np.int64) * dataset.item_num + item)
    if len(twice := np.flatnonzero(code[1:] == code[:-1])):
        one, other = divmod(int(code[twice[0]]), dataset.item_num)
        raise UserError(
            f"WEIGHT_FIELD: {field}: user {dataset.id2token(dataset.uid_field, one)} has several rows of item "
            f"{dataset.id2token(dataset.iid_field, other)}; add up their weights, or keep a row by rm_dup_inter: first"
        )
    strength = transformed(weight, user, by)
    everywhere = np.concatenate(current().gather(torch.from_numpy(strength)))
    # fsum: the mean does not depend on how the users are divided between processes.
    return torch.from_numpy(strength * (len(everywhere) / math.fsum(everywhere))).float()
