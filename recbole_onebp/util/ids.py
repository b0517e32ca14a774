"""The three ways to name a user or an item.  The types are aliases: they document signatures and cost nothing.

==============  ==================  ================================================================================
one             many                meaning
==============  ==================  ================================================================================
``Token``       ``Sequence[str]``   external id, as in the data, in bundles and in the HTTP API: ``"196"``
``int``         ``InternalIds``     RecBole's number, from 1; 0 is the padding id
``BundleRow``   ``BundleRows``      row of a bundle's arrays, from 0; there is no padding row
==============  ==================  ================================================================================
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["BundleRow", "BundleRows", "InternalIds", "Token", "TokenLike"]

Token: TypeAlias = str
"""External id of a user or an item."""

TokenLike: TypeAlias = str | int
"""What public functions accept as a token; an integer stands for its digits."""

InternalIds: TypeAlias = npt.NDArray[np.int64]
"""RecBole's ids of users or items; 0 is padding."""

BundleRow: TypeAlias = int
"""Row of a user or an item in the arrays of a bundle, plus the rows added since it was loaded."""

BundleRows: TypeAlias = npt.NDArray[np.int64]
