"""One run: train a model, choose the epoch, test it, and write the run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from logging import getLogger
from time import perf_counter
from typing import Any, Literal

import pandas as pd
import torch

from recbole_onebp.config import RunConfig
from recbole_onebp.run.environment import device_name, peak_rss_mb, versions
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.run.recbole_errors import (
    memory_as_user_error,
    missing_package_as_user_error,
    recbole_warnings_ignored,
    too_few_items_as_user_error,
    worker_memory_as_user_error,
)
from recbole_onebp.run.record import OnEpoch, floats
from recbole_onebp.run.result import Result
from recbole_onebp.run.turns import Turn
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError

__all__ = ["Run"]

_COLD_SHARE = 0.05


@dataclass
class Run:
    """A model, its data and its trainer, ready to :meth:`fit`.

    Example:
        >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 1})
        >>> result = run.fit()
        >>> result.epochs_run, run.model.item_table.shape
        (1, torch.Size([1683, 64]))
        >>> run.per_user_metrics("test").columns.tolist()  # a row per user
        ['recall@10', 'mrr@10', 'ndcg@10', 'hit@10', 'precision@10']
    """

    config: RunConfig
    folder: RunFolder
    dataset: Any
    train_data: Any
    valid_data: Any
    test_data: Any
    model: torch.nn.Module
    trainer: Any
    data_seconds: float
    model_seconds: float
    turn: Turn = field(default_factory=Turn, repr=False)
    _trained: bool = field(default=False, init=False)

    def per_user_metrics(self, part: Literal["valid", "test"] = "test") -> pd.DataFrame:
        """The metrics of each user, computed with the current model; after :meth:`fit` that is the best epoch's.

        See :func:`recbole_onebp.evaluation.full_sort.per_user_metrics`; ``.to_parquet(path)`` writes the table.

        Raises:
            UserError: for another part, a part that the run has not, or an evaluation that is not by user.

        Example:
            >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 1})
            >>> _ = run.train(saved=False)
            >>> list(run.per_user_metrics("valid").columns)
            ['recall@10', 'mrr@10', 'ndcg@10', 'hit@10', 'precision@10']
        """
        from recbole_onebp.evaluation.full_sort import per_user_metrics

        if part not in ("valid", "test"):
            raise UserError(f"per-user metrics: there is no part {part!r}; parts: valid, test")
        data = self.valid_data if part == "valid" else self.test_data
        if data is None:
            raise UserError(f"per-user metrics: the run has no {part} part")
        self.trainer.eval_collector.data_collect(self.train_data)  # as in fit, for metrics that need item popularity
        return per_user_metrics(self.trainer, data)

    def train(
        self, saved: bool = True, on_validation: Callable[[int, float], None] | None = None
    ) -> tuple[int, dict[str, float]]:
        """Train and choose the epoch on validation, without the test part.

        Args:
            saved: write the best model and checkpoints.
            on_validation: called after each validation with the epoch and its ``valid_metric``.  An exception that it
                raises ends the training.

        Returns:
            Number and validation metrics of the best epoch.

        Example:
            >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 1})
            >>> best_epoch, valid = run.train(saved=False)
            >>> best_epoch, sorted(valid)[:2]
            (0, ['hit@10', 'mrr@10'])
        """
        if self._trained:
            raise RuntimeError("this run has been trained already; build another one")
        self._trained = True
        try:
            with self._running():
                return self._train(saved, on_validation)
        finally:
            self.folder.unlock()

    def _train(self, saved: bool, on_validation: Callable[[int, float], None] | None) -> tuple[int, dict[str, float]]:
        trainer, show_progress = self.trainer, self.config["show_progress"]
        # RecBole's trainers of decision trees do not have this argument.
        callback = {} if on_validation is None else {"callback_fn": on_validation}
        saving = trainer.saver.running() if saved and trainer.saver is not None else nullcontext()
        try:
            with missing_package_as_user_error(self.config["model"]), saving:
                trainer.fit(self.train_data, self.valid_data, saved=saved, show_progress=show_progress, **callback)
        except BaseException:
            with suppress(OSError, UserError):  # report the first error, not one from closing
                self._close()
            raise
        self._close()
        return trainer.record.best(trainer.best_valid_score, trainer.valid_metric)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Messages are seen, and RecBole's errors for bad input are one line each."""
        config, n_items = self.config, self.dataset.item_num - 1
        with (
            self.turn.taken(),
            logs.shown(config.log_level),
            recbole_warnings_ignored(),
            memory_as_user_error(),
            worker_memory_as_user_error(config["worker"]),
            too_few_items_as_user_error(config["model"], config["dataset"], n_items),
        ):
            yield

    def _close(self) -> None:
        self.trainer.record.write()
        self.trainer.tensorboard.close()  # ends its thread

    def fit(self, on_epoch: OnEpoch | None = None) -> Result:
        """Train, choose the epoch on validation, test it once if there is a test part, and write the run folder.

        Runs of several threads wait for one another, because they share the global generators.

        Args:
            on_epoch: called after each epoch with its line of ``metrics.jsonl``.  An exception that it raises ends the
                training.

        Raises:
            UserError: if the folder cannot be written, or another process uses it.

        Example:
            >>> settings = {"epochs": 1, "output_dir": "saved/first"}  # doctest: +SKIP
            >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict=settings)  # doctest: +SKIP
            >>> result = run.fit(on_epoch=lambda line: print(line["train_loss"]))  # doctest: +SKIP
            >>> result.test["ndcg@10"]  # doctest: +SKIP
        """
        if on_epoch is not None:
            self.trainer.record.on_epoch = on_epoch
        self.folder.lock()
        try:
            with self._running():
                return self._fit()
        finally:
            self.folder.unlock()

    def _fit(self) -> Result:
        config, trainer, record = self.config, self.trainer, self.trainer.record
        start = perf_counter()
        best_epoch, best_valid = self.train()
        fit_seconds = perf_counter() - start if trainer.saver is None else trainer.saver.seconds
        start = perf_counter()
        # Without a test part this only loads the best model.
        test = trainer.evaluate(self.test_data, load_best_model=True, show_progress=config["show_progress"])
        test_seconds = perf_counter() - start
        test_among, test_by_train_pairs = self._test_by_items()

        valid_seconds, shard = record.total("valid_seconds"), getattr(self.model, "shard", None)
        result = Result(
            model=config["model"],
            dataset=config["dataset"],
            seed=config["seed"],
            epochs_run=len(record.epochs),
            best_epoch=best_epoch,
            valid=best_valid,
            test=floats(test),
            seconds={
                "data": self.data_seconds,
                "train": self.model_seconds + fit_seconds - valid_seconds,
                "valid": valid_seconds,
                "test": test_seconds,
            },
            epoch_seconds=[epoch["train_seconds"] for epoch in record.epochs],
            peak_rss_mb=peak_rss_mb(),
            n_users=self.dataset.user_num - 1,
            n_items=self.dataset.item_num - 1,
            n_train=len(self.train_data.dataset) if shard is None else shard.n_pairs,
            parameters=_n_parameters(self.model),
            recency=getattr(self.model, "recency", None),
            local=None if (local := getattr(self.model, "local", None)) is None else local.summary(),
            versions=versions(),
            device=device_name(config["device"]),
            test_among=test_among,
            test_by_train_pairs=test_by_train_pairs,
        )
        for part in ("valid", "test"):
            shown = "  ".join(f"{name}: {value:.4f}" for name, value in getattr(result, part).items())
            getLogger().info("%s, epoch %d: %s", part, best_epoch, shown or "not evaluated")
        by_pairs = {f"items with {number} train pairs": values for number, values in test_by_train_pairs.items()}
        for items, values in {**{f"{kind} items": values for kind, values in test_among.items()}, **by_pairs}.items():
            shown = "  ".join(f"{name}: {value:.4f}" for name, value in values.items())
            getLogger().info("test, %s: %s", items, shown)
        self.folder.draw_curves(record.epochs, trainer.valid_metric, f"{result.model} on {result.dataset}")
        self.folder.write_result(asdict(result))
        return result

    def _test_by_items(self) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
        """``test_among`` and ``test_by_train_pairs`` of the result."""
        part = self.test_data
        gauc = "gauc" in (metric.lower() for metric in self.config["metrics"])
        if getattr(part, "cold_share", 0) < _COLD_SHARE or gauc:
            return {}, {}
        self.trainer.wandblogger.log_wandb = False  # the metrics that it keeps are those of the test
        kinds = ("all", "warm", "cold") if part.cold_share < 1 else ("all", "cold")
        among = {items: part.among(items) for items in kinds}
        found = [
            {items: floats(self.trainer.evaluate(of, load_best_model=False)) for items, of in parts.items()}
            for parts in (among, part.by_train_pairs())
        ]
        return found[0], found[1]


def _n_parameters(model: torch.nn.Module) -> int:
    """Number of parameters trained by gradient, including the users of all ranks."""
    shard, own = getattr(model, "shard", None), sum(p.numel() for p in model.parameters() if p.requires_grad)
    users = getattr(model, "user_table", None)
    if shard is None or not isinstance(users, torch.nn.Parameter):
        return own
    return own + (shard.n_users - len(users)) * users.shape[1]
