"""The recommender that :func:`recbole_onebp.fit` returns: it can also be evaluated, saved, trained on and pickled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from logging import getLogger
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.evaluator import Evaluator
from recbole.evaluator.register import metric_information

from recbole_onebp.dataframe.pairs import Columns, read_rows
from recbole_onebp.run.record import OnEpoch
from recbole_onebp.run.result import Result
from recbole_onebp.run.run import Run
from recbole_onebp.serving.bundle import copy_bundle
from recbole_onebp.serving.recommender import Recommender
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import TemporaryFolder
from recbole_onebp.util.ids import Token

__all__ = ["FittedRecommender", "Metrics"]

_TOPK_METRICS = sorted(name for name, needs in metric_information.items() if needs == ["rec.topk"])


class Metrics(dict[str, float]):
    """Metrics by name, such as ``recall@20``.

    Attributes:
        n_users: number of users that were evaluated.
        unknown_users: users that the model does not know; they are left out.
        unknown_items: items that the model does not know; they count as not found.
    """

    n_users: int
    unknown_users: list[Token]
    unknown_items: list[Token]


class FittedRecommender(Recommender):
    """A recommender with its training.  A pickle holds the bytes of its bundle, and no object of a library.

    Events that came by :meth:`update` are neither pickled nor saved.

    Attributes:
        result: what ``result.json`` of the training holds.
        run: the training with RecBole's configuration, data set and trainer; None after unpickling.
    """

    result: Result
    run: Run | None
    _holder: TemporaryFolder
    _columns: Columns
    _settings: Mapping[str, Any]

    @classmethod
    def open(
        cls,
        bundle: Path,
        holder: TemporaryFolder,
        result: Result,
        columns: Columns,
        settings: Mapping[str, Any],
        run: Run | None = None,
    ) -> FittedRecommender:
        """Open the bundle of a training; ``holder`` is the folder that it lies in, and is removed with the object."""
        rec = cls.load(bundle)
        assert isinstance(rec, cls)
        rec.result, rec.run, rec._holder, rec._columns, rec._settings = result, run, holder, columns, settings
        return rec

    def save(self, path: str | Path, force: bool = False) -> None:
        """Write the bundle, which :meth:`Recommender.load`, ``recbole-onebp recommend`` and ``serve`` read.

        It is what training has made: later events, added and removed items are not in it.  A warning counts the items.

        Args:
            path: the folder.
            force: replace an earlier bundle.

        Raises:
            UserError: if it cannot be written, or the folder exists and must not be replaced.

        Example:
            >>> rec.save("bundle")
            >>> Recommender.load("bundle").recommend(["u1"]) == rec.recommend(["u1"])
            True
        """
        self._tell_what_is_not_saved()
        copy_bundle(self.bundle, Path(path), force)

    def evaluate(self, test: Any, metrics: Iterable[str] | None = None) -> Metrics:
        """Metrics of the lists of the users in a table of interactions, by RecBole's definitions.

        All items but those of the user's history are ranked.  Rows of a user's history are therefore left out, and
        likewise users that the model does not know.  Unknown items count as not found.

        Args:
            test: a table like the one for :func:`recbole_onebp.fit`, with the same names of columns.
            metrics: names with a length, such as ``recall@20``; by default those of the configuration.

        Raises:
            UserError: for an unknown metric, a table that cannot be read, or one without a row that counts.

        Example:
            >>> metrics = rec.evaluate(test, metrics=["recall@5", "ndcg@5"])
            >>> sorted(metrics), metrics.n_users
            (['ndcg@5', 'recall@5'], 2)
        """
        wanted = _parsed([metrics] if isinstance(metrics, str) else metrics or self._metrics())
        rows = read_rows(test, self._columns, "test", time=False, weight=False)
        liked = {str(user): set(items) for user, items in rows.groupby("user_id", observed=True)["item_id"]}
        unknown_users = [user for user in liked if not self.knows_user(user)]
        new = {user: items.difference(self.history(user)) for user, items in liked.items() if self.knows_user(user)}
        users = [user for user, items in new.items() if items]
        if not users:
            raise UserError("test: no row is of a user that the model knows and an item that the user has not had")
        unknown_items = sorted({item for user in users for item in new[user] if not self.knows_item(item)})
        longest = max(k for _, k in wanted)
        hits = np.zeros((len(users), longest + 1), np.int64)
        for row, (user, answer) in enumerate(zip(users, self.recommend(users, longest), strict=True)):
            hits[row, : len(answer)] = [item in new[user] for item, _ in answer]
            hits[row, -1] = len(new[user])
        n_pairs = sum(map(len, liked.values()))
        left_out = n_pairs - sum(map(len, new.values()))
        if left_out:
            message = "test: %d of %d pairs are left out: of unknown users, or in the history"
            getLogger().warning(message, left_out, n_pairs)
        if unknown_items:
            getLogger().warning("test: items that the model does not know: %d", len(unknown_items))
        found = Metrics(_computed(hits, wanted, self.bundle.manifest["config"]["metric_decimal_place"]))
        found.n_users, found.unknown_users, found.unknown_items = len(users), unknown_users, unknown_items
        return found

    def refit(
        self, data: Any, valid: Any = None, on_epoch: OnEpoch | None = None, **settings: Any
    ) -> FittedRecommender:
        """Train another recommender, which begins with the embeddings of this one: a warm start.

        By default no row is held out, because the embeddings know the old ones already: the training has as many
        epochs as this recommender's, and the same weight of the local term.

        Args:
            data: all rows to learn, old and new; users and items that are not in it are forgotten.
            valid: a table of newer rows to choose the epoch by; the model does not learn them.
            on_epoch: see :func:`recbole_onebp.fit`.
            settings: replace those of this recommender.

        Raises:
            UserError: see :func:`recbole_onebp.fit`; also for another ``embedding_size`` or ``score``, and for a share
                as ``valid``.

        Example:
            >>> later = rec.refit(data, epochs=1)
            >>> later.n_items == rec.n_items
            True
        """
        from recbole_onebp.dataframe.training import fit_from  # here, because that module imports this one

        if isinstance(valid, Real):
            raise UserError(f"valid: {valid}: a share would hold out rows that the model knows already; give a table")
        once: dict[str, Any] = {}
        if valid is None:
            once = {"refit": True, "epochs": self.result.best_epoch + 1}
            if self.bundle.manifest["config"]["local"] != "none":
                once["local_weight"] = self.result.local["weight"] if self.result.local else 0.0
        kept = {key: value for key, value in self._settings.items() if key not in ("output_dir", "refit")}
        return fit_from(data, self._columns, valid, {**kept, **once, **settings}, self.bundle, on_epoch)

    def _metrics(self) -> list[str]:
        """The metrics of the configuration that need lists only."""
        config = self.bundle.manifest["config"]
        names = [name.lower() for name in config["metrics"]]
        return [f"{name}@{k}" for name in names if name in _TOPK_METRICS for k in config["topk"]]

    def _tell_what_is_not_saved(self) -> None:
        removed = sum(row < len(self.bundle.item_ids) for row in self._item_tokens.hidden.values())
        if self.n_added_items or removed:
            message = "not in the bundle: %d items that were added after training; still in it: %d that were removed"
            getLogger().warning(message, self.n_added_items, removed)

    def __reduce__(self) -> tuple[Any, ...]:
        self._tell_what_is_not_saved()
        files = {file.name: file.read_bytes() for file in sorted(self.bundle.path.iterdir())}
        return _unpickled, (files, self.result, self._columns, dict(self._settings))


def _unpickled(
    files: Mapping[str, bytes], result: Result, columns: Columns, settings: Mapping[str, Any]
) -> FittedRecommender:
    holder = TemporaryFolder()
    for name, content in files.items():
        (holder.path / name).write_bytes(content)
    return FittedRecommender.open(holder.path, holder, result, columns, settings)


def _parsed(metrics: Iterable[str]) -> list[tuple[str, int]]:
    """Names and lengths."""
    parsed = []
    for metric in metrics:
        name, _, k = metric.lower().partition("@")
        if name not in _TOPK_METRICS or not k.isdecimal() or int(k) < 1:
            known = ", ".join(_TOPK_METRICS)
            raise UserError(f"metrics: {metric}: expected one of {known} and a length, such as recall@20")
        parsed.append((name, int(k)))
    return parsed


def _computed(hits: Any, wanted: list[tuple[str, int]], decimals: int) -> dict[str, float]:
    """RecBole's metrics of lists ``(n, k)`` of hits, and a last column with the numbers of relevant items."""
    config = {
        "metrics": [name for name, _ in wanted],
        "topk": [k for _, k in wanted],
        "metric_decimal_place": decimals,
    }
    struct = DataStruct()
    struct.set("rec.topk", torch.from_numpy(hits))
    computed = Evaluator(config).evaluate(struct)
    return {f"{name}@{k}": float(computed[f"{name}@{k}"]) for name, k in wanted}
