"""Rows of a data set: selected and grouped by numpy, where RecBole makes Python lists of row numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

__all__ = ["Groups", "Rows"]


class Rows(Interaction):
    """RecBole's interaction, indexed by arrays directly: RecBole makes a list of them first."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, range):
            index = slice(index.start, index.stop)  # a view
        elif isinstance(index, np.ndarray) and index.dtype == np.int64:
            index = torch.from_numpy(index)
        if isinstance(index, slice) or (isinstance(index, Tensor) and index.dtype == torch.int64):
            return Rows({name: column[index] for name, column in self.interaction.items()})
        return super().__getitem__(index)


@dataclass(frozen=True)
class Groups:
    """Row numbers by group: groups in order of first appearance, rows in order within a group."""

    rows: npt.NDArray[np.int64]
    """All row numbers ``(n,)``."""
    sizes: npt.NDArray[np.int64]
    """Rows of each group ``(n groups,)``."""

    @classmethod
    def of(cls, keys: npt.NDArray[np.int64]) -> Groups:
        group, _ = pd.factorize(keys)
        return cls(np.argsort(group, kind="stable"), np.bincount(group))

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return iter(np.split(self.rows, np.cumsum(self.sizes)[:-1]))

    def spread(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Repeat a value of each group ``(n groups,)`` for each of its rows ``(n,)``."""
        return np.repeat(values, self.sizes)

    @property
    def position(self) -> npt.NDArray[np.int64]:
        """The place of each row in its group, from 0 ``(n,)``."""
        return np.arange(len(self.rows)) - self.spread(np.cumsum(self.sizes) - self.sizes)
