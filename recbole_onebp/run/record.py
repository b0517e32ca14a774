"""The record of a run's epochs, and the mixin that makes any RecBole trainer keep it and save the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from recbole.trainer import Trainer

from recbole_onebp.config import RunConfig
from recbole_onebp.run.checkpoint.saver import Saver
from recbole_onebp.run.folder import RunFolder

__all__ = ["OnEpoch", "Record", "floats", "recorded"]

OnEpoch = Callable[[Mapping[str, Any]], object]
"""Takes what ``metrics.jsonl`` holds of an epoch: ``epoch`` (from 0), ``train_loss``, ``train_seconds``, ``valid``
(metrics by name; none without validation), ``valid_seconds`` and more."""


@dataclass
class Record:
    """What a trainer did in each epoch; written to ``metrics.jsonl``."""

    folder: RunFolder
    epochs: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0
    """Number of epochs that are in the file already."""
    on_epoch: OnEpoch = field(default=lambda epoch: None, repr=False)
    """Called with each epoch when it is complete."""

    def train(self, epoch: int, seconds: float, loss: Any, extra: Mapping[str, float]) -> None:
        """Add an epoch.

        Args:
            epoch: its number, from 0.
            seconds: training time.
            loss: of the epoch: a number, several, or None.
            extra: more numbers to record.
        """
        losses = loss if isinstance(loss, tuple) else (loss,)
        total = None if None in losses else float(sum(losses))
        self.epochs.append(
            {"epoch": epoch, "train_loss": total, "train_seconds": seconds, "valid": {}, "valid_seconds": 0.0, **extra}
        )

    def validate(self, seconds: float, result: Mapping[str, float], chosen: Mapping[str, float]) -> None:
        """Add the validation metrics of the last epoch, and what validation has chosen."""
        self.epochs[-1].update(valid=floats(result), valid_seconds=seconds, **chosen)

    def write(self) -> None:
        """Write the epochs that are not in the file yet.  An epoch is complete when the next one begins."""
        for epoch in self.epochs[self.written :]:
            self.folder.add_epoch(epoch)
            self.written += 1
            self.on_epoch(epoch)

    def total(self, key: str) -> float:
        return float(sum(epoch[key] for epoch in self.epochs))

    def best(self, score: float, metric: str) -> tuple[int, dict[str, float]]:
        """Number and validation metrics of the last epoch with this score; without validation, the last epoch."""
        best = [epoch for epoch in self.epochs if epoch["valid"].get(metric) == score] or self.epochs[-1:]
        return (best[-1]["epoch"], best[-1]["valid"]) if best else (-1, {})


def floats(result: Mapping[str, Any] | None) -> dict[str, float]:
    """Metrics as RecBole returns them, as plain numbers."""
    return {key: float(value) for key, value in (result or {}).items()}


class _Recorded:
    """Mixin for a trainer class: records time, loss and validation of each epoch, and calls the saver."""

    config: RunConfig
    record: Record
    saver: Saver | None = None

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.record.write()
        before = 0.0 if self.saver is None else self.saver.begin_epoch(epoch_idx)
        start = perf_counter()
        loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)  # type: ignore[misc]
        self.record.train(epoch_idx, before + perf_counter() - start, loss, getattr(self, "encoding_stats", {}))
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        score, result = super()._valid_epoch(*args, **kwargs)  # type: ignore[misc]
        self.record.validate(perf_counter() - start, result, getattr(self, "chosen", {}))
        return score, result

    def _save_checkpoint(self, epoch: int, *args: Any, **kwargs: Any) -> None:
        """RecBole calls this when the model is the best so far, and after the last epoch if there is no validation."""
        if epoch < 0:  # no epoch was left to train: the best model stays
            return
        if self.saver is not None:
            self.saver.save_best(epoch)
        if self.config["recbole_checkpoint"]:
            super()._save_checkpoint(epoch, *args, **kwargs)  # type: ignore[misc]

    def evaluate(self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, **kwargs: Any) -> Any:
        """Load the best model from ``model.safetensors``; RecBole's own method unpickles a file."""
        if load_best_model and model_file is None and isinstance(self, Trainer):
            load_best_model = False
            if self.saver is not None:  # without a saver there was one epoch, whose model is still in place
                self.saver.load_best()
        return super().evaluate(eval_data, load_best_model, model_file, **kwargs)  # type: ignore[misc]


def recorded(trainer_class: type[Trainer]) -> type[Trainer]:
    """A subclass of a RecBole trainer that keeps a :class:`Record` and saves the run.  It has the same name."""
    return type(trainer_class.__name__, (_Recorded, trainer_class), {"__module__": trainer_class.__module__})
