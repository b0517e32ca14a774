"""The four ways to name a user or an item.  The types are aliases: they document signatures and cost nothing.

==============  ==================  ================================================================================
one             many                meaning
==============  ==================  ================================================================================
``Token``       ``Sequence[str]``   external id, as in the data, in bundles and in the HTTP API: ``"196"``
``InternalId``  ``InternalIds``     RecBole's number, from 1; 0 is the padding id
``BundleRow``   ``BundleRows``      row of a bundle's arrays, from 0; there is no padding row
``ShardRow``    ``ShardRows``       row of the part of the user table that one process holds; row 0 is the padding row
==============  ==================  ================================================================================
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["BundleRow", "BundleRows", "InternalId", "InternalIds", "ShardRow", "ShardRows", "Token", "TokenLike"]

Token: TypeAlias = str
"""External id of a user or an item."""

TokenLike: TypeAlias = str | int
"""What public functions accept as a token; an integer stands for its digits."""

InternalId: TypeAlias = int
"""RecBole's id of a user or an item; 0 is padding."""

InternalIds: TypeAlias = npt.NDArray[np.int64]

BundleRow: TypeAlias = int
"""Row of a user or an item in the arrays of a bundle, plus the rows added since it was loaded."""

BundleRows: TypeAlias = npt.NDArray[np.int64]

ShardRow: TypeAlias = int
"""Row of a user in the table that one process of a distributed run holds; 0 is padding."""

ShardRows: TypeAlias = npt.NDArray[np.int64]
