"""The result of a run: what ``result.json`` holds."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """What ``result.json`` holds.  Counts exclude RecBole's padding row; epochs are numbered from 0, as in RecBole.

    Example:
        >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 1, "local": "none"})
        >>> result = run.fit()
        >>> result.n_users, result.n_items, result.best_epoch, result.local
        (943, 1682, 0, None)
    """

    model: str
    dataset: str
    seed: int
    epochs_run: int
    best_epoch: int
    """The epoch whose model was tested: the best on validation, or the last one without validation."""
    valid: dict[str, float]
    test: dict[str, float]
    seconds: dict[str, float]
    """Wall-clock time of ``data``, ``train``, ``valid`` and ``test``.  Constructing the model counts as training,
    because some models do all their work there."""
    epoch_seconds: list[float]
    """Training time of each epoch, without validation."""
    peak_rss_mb: float
    n_users: int
    n_items: int
    n_train: int
    parameters: int
    """Number of parameters trained by gradient.  A user table that is moved, not trained, does not count."""
    recency: float | None
    """Of the users in predictions, given or chosen on validation; None for other models than OneBP."""
    local: dict[str, float] | None
    """The local term that predictions used: ``weight``, ``recency``, ``neighbors`` and ``reg``; None without one."""
    versions: dict[str, str]
    device: str
    test_among: dict[str, dict[str, float]] = field(default_factory=dict)
    """The test metrics with ``all`` items, and with ``warm`` and ``cold`` ones ranked among themselves; empty if fewer
    than a twentieth of the test pairs are of cold items, which have no train pairs."""
    test_by_train_pairs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Likewise, with all items ranked, and only those relevant that have so many train pairs."""
