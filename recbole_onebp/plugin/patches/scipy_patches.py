"""scipy 1.13: a private method that RecBole's graph models call."""

from __future__ import annotations

from typing import Any

import scipy.sparse as sp

from recbole_onebp.plugin.patches.registry import patch

__all__ = ["dok_matrix_update"]


@patch("R#2034, R#2090, R#2185", lambda: not hasattr(sp.dok_matrix, "_update"))
def dok_matrix_update() -> None:
    """LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK fill their graph by dok_matrix._update, which scipy 1.13
    removed."""

    def _update(self: Any, data: dict[tuple[int, int], float]) -> None:
        self._dict.update(data)

    sp.dok_matrix._update = _update
