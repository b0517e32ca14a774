"""Significance of differences between models: paired over users, two-sided, corrected for multiple tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["Difference", "holm", "paired"]

Array = npt.NDArray[Any]
ALPHA = 0.05
_RESAMPLES = 2000
_BATCH = 100


@dataclass(frozen=True)
class Difference:
    """The difference of two models over the same users: the first minus the second."""

    mean: float
    low: float
    """Ends of the 95 % bootstrap interval of the mean (percentile, over users)."""
    high: float
    effect: float
    """Cohen's d for pairs: the mean in standard deviations of the users' differences."""
    p: float
    """p-value of the two-sided paired t-test."""


def paired(ours: Array, theirs: Array, seed: int = 0) -> list[Difference]:
    """Differences of many models, or metrics, over the same users.

    Args:
        ours: ``(n users, m)``, or one column ``(n users, 1)`` for all.
        theirs: ``(n users, m)``.
        seed: of the bootstrap, which samples the same users for all columns.
    """
    difference = np.asarray(ours, float) - np.asarray(theirs, float)
    mean, spread = difference.mean(axis=0), difference.std(axis=0, ddof=1)
    low, high = np.percentile(np.concatenate([*_resampled(difference, seed)]), [2.5, 97.5], axis=0)
    found = []
    for column in range(difference.shape[1]):
        same = spread[column] == 0  # as for a model and itself: the t-test is undefined
        p = float(mean[column] == 0) if same else float(stats.ttest_1samp(difference[:, column], 0).pvalue)
        effect = 0.0 if same else float(mean[column] / spread[column])
        found.append(Difference(float(mean[column]), float(low[column]), float(high[column]), effect, p))
    return found


def _resampled(values: Array, seed: int) -> Iterator[Array]:
    """Means over users ``(batch, m)`` of bootstrap samples."""
    rng, n = np.random.default_rng(seed), len(values)
    for _ in range(_RESAMPLES // _BATCH):
        times = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(_BATCH)])
        yield times @ values / n


def holm(p: Array) -> Array:
    """Holm's step-down correction of p-values ``(m,)`` for multiple tests.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    p = np.asarray(p, float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return corrected
