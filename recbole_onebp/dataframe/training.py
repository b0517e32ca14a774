"""Train OneBP on the caller's interactions, in the same way as ``recbole-onebp train``, and keep no file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from inspect import signature
from logging import getLogger
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from recbole_onebp.config.keys import keys_read_by, nearest
from recbole_onebp.data.sources.atomic_folder import with_all_items, write_parts
from recbole_onebp.data.sources.item_tables import ItemTable, read_item_table
from recbole_onebp.dataframe.pairs import Columns, each_once, read_rows
from recbole_onebp.dataframe.recommender import FittedRecommender
from recbole_onebp.run.build import build_from, load_config
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.run.record import OnEpoch
from recbole_onebp.run.result import Result
from recbole_onebp.run.run import Run
from recbole_onebp.serving.bundle import Bundle
from recbole_onebp.serving.export.exporter import export
from recbole_onebp.serving.export.trained_run import TrainedRun
from recbole_onebp.trainer import CHOSEN
from recbole_onebp.util import logs
from recbole_onebp.util.errors import UserError, writing
from recbole_onebp.util.files import TemporaryFolder

__all__ = ["fit", "fit_from"]

_NAME = "dataframe"
_FIELDS = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
_OWN = (
    "model", "dataset", "data_path", "load_col", "seq_separator", "encoding", "benchmark_filename", "resume",
    "WEIGHT_FIELD", *_FIELDS,
)  # fmt: skip
"""Keys that :func:`fit` sets, or cannot follow."""
_NOT_KEYS = ("item_features", "output_dir", "show_progress")
"""Settings that are not passed on as they are."""
_DEFAULT_SHARE = 0.1
_DEFAULT_K = 10
"""RecBole's ``topk``."""


def fit(
    data: Any,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    valid: Any = None,
    weight: str | None = None,
    on_epoch: OnEpoch | None = None,
    item_features: Any = None,
    **settings: Any,
) -> FittedRecommender:
    """Train OneBP on a table of interactions.

    Each row says that a user has interacted with an item.  With weights, such as numbers of plays, some say it louder,
    see ``weight_transform``.  Ratings are not used otherwise: leave low ones out.  With times the latest items of a
    user count most, see ``recency``.  A pair that occurs again counts once, with the sum of its weights.

    The number of epochs is chosen on validation.  By default the latest tenth of each user's rows (a random tenth
    without times) is held out for that, and then the model is trained again on all rows.  Rows that you name by
    ``valid`` only choose the epoch: the model does not learn them.  With ``refit=True, epochs=20`` it is trained once,
    on all rows.

    The same rows give the same ids, split, model and metrics as ``recbole-onebp convert`` and ``train``.  No file is
    left behind without ``output_dir``.

    Args:
        data: a DataFrame of pandas or polars, a pyarrow Table, or anything with ``__arrow_c_stream__`` or
            ``__dataframe__``; the path of a CSV, TSV, JSON lines or Parquet file; or a scipy sparse matrix with a row
            per user and a column per item, whose ids are their numbers from 0.
        user: name of the column of users.  By default a usual name (``user_id``, ``user``, ...), or of exactly two
            columns with other names the first.
        item: the same for items (``item_id``, ``product``, ``movie``, ...), or the second.
        time: the same for times (``timestamp``, ``time``): dates, or numbers since 1970.  ``""``: do not use them.
        valid: rows to choose the epoch by: a table like ``data``, or a share of each user's rows, such as 0.2.
        weight: name of a column of weights: numbers above 0.  ``"data"`` for the values of a sparse matrix, in which 0
            is no interaction.
        on_epoch: called after each epoch with its number, loss and validation metrics, see
            :meth:`recbole_onebp.Run.fit`.  Of two trainings only the first has metrics.
        item_features: a table with a row for each item, also for items that nobody has taken, or the path of one: its
            column ``item`` names the item, all others are features.  A column holds numbers, texts, lists of texts
            (several values of an item), or lists of numbers (ready embeddings).
        settings: configuration keys of OneBP and RecBole, such as ``epochs``, ``seed``, ``embedding_size``, ``topk``
            or ``output_dir``.  ``show_progress`` is by default on for a terminal and a notebook.  ``state="INFO"`` logs
            each epoch.

    Returns:
        The trained recommender.

    Raises:
        UserError: for data or a setting that cannot be used, in one line with the column, row and value.

    Example:
        >>> import pandas as pd
        >>> from recbole_onebp import fit
        >>> rows = [(f"u{n}", f"i{m}") for n in range(20) for m in range(12) if (n + m) % 2]
        >>> rec = fit(pd.DataFrame(rows, columns=["customer", "sku"]), epochs=2, show_progress=False)
        >>> [len(answer) for answer in rec.recommend(["u1", "u2"], k=3)]
        [3, 3]
        >>> sorted(rec.result.valid)
        ['hit@10', 'mrr@10', 'ndcg@10', 'precision@10', 'recall@10']
    """
    every = {**settings, "item_features": item_features}
    return fit_from(data, Columns(user, item, time, weight), valid, every, on_epoch=on_epoch)


def fit_from(
    data: Any,
    columns: Columns,
    valid: Any,
    settings: Mapping[str, Any],
    start: Bundle | None = None,
    on_epoch: OnEpoch | None = None,
) -> FittedRecommender:
    """:func:`fit`, perhaps from the users and items of an earlier bundle."""
    known = keys_read_by("OneBP")
    for key in settings:
        if key in _OWN:
            raise UserError(f"{key}: fit sets it; to use RecBole's data sets or other models, see recbole_onebp.build")
        if key not in known:
            names = {*known, *signature(fit).parameters} - {"settings"}
            raise UserError(f"{key}: fit and OneBP have no such argument or key{nearest(key, names)}")
    features = settings.get("item_features")
    items = None if features is None else read_item_table(features, columns.item)
    parts, keys = _parts(data, columns, valid, settings)
    if items is not None:
        ids = next(iter(parts.values()))["item_id"]
        n_items, n_rows = ids.nunique(), len(items.columns)
        items.columns, added = with_all_items(items.columns, ids)
        if added == n_items:
            raise UserError(
                f"item_features: none of its items is in data, which has {str(ids.iloc[0])!r} and others; give both "
                "tables the same ids"
            )
        if added:
            getLogger().warning(
                f"item_features: {added:,} of {n_items:,} items have no row; rows of items without interactions: "
                f"{n_rows + added - n_items:,} of {n_rows:,}"
            )
        keys |= {"item_features": "all", "seq_separator": items.separator}
        keys["load_col"]["item"] = ["item_id", *items.fields]
    holder = TemporaryFolder()
    output_dir = settings.get("output_dir")
    folder = RunFolder.temporary() if output_dir is None else RunFolder(output_dir)
    data_path = (holder.path if output_dir is None else folder.path.resolve()) / "data"
    _write(data_path / _NAME, parts, items)
    keys["data_path"] = str(data_path)
    bar = partial(_bar, settings.get("show_progress"), on_epoch)
    if valid is None and "refit" not in settings:
        run, result = _trained_twice(keys, folder, start, bar)
    else:
        run = _build(keys, folder, start)
        with bar("train") as after:
            result = run.fit(after)
    bundle = holder.path / "bundle"
    export(folder.path, bundle, trained=TrainedRun.of(run))
    return FittedRecommender.open(bundle, holder, result, columns, settings, run)


# ----------------------------------------------------------------------------------------------------------------- data


def _parts(
    data: Any, columns: Columns, valid: Any, settings: Mapping[str, Any]
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The parts of the data set, and the configuration keys."""
    share = _DEFAULT_SHARE if valid is None else valid
    is_share = isinstance(share, Real) and not isinstance(share, bool)
    if is_share and not 0 < share < 1:
        raise UserError(f"valid: {share}: expected a share between 0 and 1, or a table")
    pairs = each_once(read_rows(data, columns, "data"), "data")
    has_times, eval_args = "timestamp" in pairs, settings.get("eval_args") or {}
    keys: dict[str, Any] = {
        "show_progress": False,  # RecBole's bars, of each epoch
        "state": "WARNING",
        **{key: value for key, value in settings.items() if key not in _NOT_KEYS},
        **_FIELDS,
        "model": "OneBP",
        "dataset": _NAME,
        "load_col": {"inter": [*pairs.columns]},
    }
    if "rating" in pairs:
        keys["WEIGHT_FIELD"] = "rating"
    keys |= _cutoffs(settings, pairs["item_id"].nunique())
    if not is_share:
        held_out = _held_out(each_once(read_rows(valid, columns, "valid", time=has_times), "valid"), pairs)
        keys["benchmark_filename"] = ["train", "valid", "test"]
        return {"train": pairs, "valid": held_out, "test": pairs[:0]}, keys
    if pairs["user_id"].value_counts().max() < 2:
        raise UserError(
            "data: every user has only one row, so none can be held out for validation; add users with more rows"
        )
    split = {
        "split": {"RS": [1 - float(share), float(share), 0.0]},
        "order": "TO" if has_times else "RO",
        "group_by": "user",
    }
    keys["eval_args"] = {**split, **eval_args}
    return {"all": pairs}, keys


def _write(folder: Path, parts: Mapping[str, pd.DataFrame], items: ItemTable | None) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{_NAME}.*"):
            if old.suffix in (".inter", ".item", ".npy", ".ids"):
                old.unlink()
        write_parts(folder, _NAME, parts)
        if items is not None:
            items.write(folder, _NAME)


def _cutoffs(settings: Mapping[str, Any], n_items: int) -> dict[str, Any]:
    """``topk``, at most the number of items by default; where it is not RecBole's 10, the metric that fits it."""
    topk = settings.get("topk", min(_DEFAULT_K, n_items))
    first = topk[0] if isinstance(topk, (list, tuple)) and topk else topk
    if first == _DEFAULT_K or {"metrics", "valid_metric"} & settings.keys():
        return {}
    return {"topk": topk, "valid_metric": f"MRR@{first}"}


def _held_out(valid: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``valid`` that can choose an epoch."""
    if [*valid.columns] != [*pairs.columns]:
        raise UserError('valid: it has no column of times, but data has one; name it by time=, or use none by time=""')
    known = np.logical_and.reduce([valid[key].isin(pairs[key].unique()) for key in ("user_id", "item_id")])
    both = pd.concat([pairs, valid], ignore_index=True)
    again = both.duplicated(["user_id", "item_id"]).to_numpy()[len(pairs) :]
    for rows, why in ((~known, "have a user or item that data has not"), (again, "are in data too")):
        if rows.any():
            getLogger().warning("valid: %s of %s rows %s; they are left out", f"{rows.sum():,}", f"{len(rows):,}", why)
    kept = valid[known & ~again]
    if kept.empty:
        raise UserError("valid: none of its rows is a new pair of a user and an item that data has")
    return kept


# ------------------------------------------------------------------------------------------------------------- training


_Bar = Callable[..., AbstractContextManager[OnEpoch]]


def _trained_twice(keys: Mapping[str, Any], folder: RunFolder, start: Bundle | None, bar: _Bar) -> tuple[Run, Result]:
    """Choose the number of epochs on held-out rows, and the weight of a local term; then train on all rows."""
    first = _build(keys, RunFolder.temporary(), start)
    with bar("choose the number of epochs") as after:
        first.trainer.record.on_epoch = after
        best_epoch, valid = first.train(saved=False)
    epochs = {epoch["epoch"]: epoch for epoch in first.trainer.record.epochs}
    chosen = {key: value for key, value in epochs.get(best_epoch, {}).items() if key in CHOSEN}
    run = _build({**keys, **chosen, "refit": True, "epochs": best_epoch + 1}, folder, start)
    with bar("train on all rows", best_epoch + 1) as after:
        result = replace(run.fit(after), valid=valid)
    folder.write_result(asdict(result))
    return run, result


def _build(keys: Mapping[str, Any], folder: RunFolder, start: Bundle | None) -> Run:
    config, folder = load_config(None, keys, folder)
    with logs.shown(config.log_level):
        run = build_from(config, folder)
        if start is not None:
            _start_from(start, run)
        return run


def _start_from(bundle: Bundle, run: Run) -> None:
    """Give users and items of an earlier model their embeddings."""
    dataset: Any = run.dataset
    model: Any = run.model
    for key in ("embedding_size", "score"):
        if bundle.manifest[key] != run.config[key]:
            raise UserError(f"{key}: {run.config[key]}: refit continues a model with {bundle.manifest[key]}; use fit")

    def rows(field: str, tokens: list[str], table: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ids = dataset.field2token_id[field]
        places = [row for row, token in enumerate(tokens) if token in ids]
        internal = torch.tensor([ids[tokens[row]] for row in places], dtype=torch.long)
        return internal, torch.from_numpy(np.array(table[places], np.float32))

    items = {"item_table": bundle.item_encodings}
    if bundle.item_bias is not None and model.item_bias is not None:
        items["item_bias"] = bundle.item_bias
    tables = {name: rows(dataset.iid_field, bundle.item_ids, table) for name, table in items.items()}
    tables["user_table"] = rows(dataset.uid_field, bundle.user_ids, bundle.user_encodings)
    model.start_from(tables)


@contextmanager
def _bar(show: bool | None, on_epoch: OnEpoch | None, what: str, total: int | None = None) -> Iterator[OnEpoch]:
    """A progress bar of epochs; shown on a terminal and in a notebook if ``show`` is None.

    Returns:
        What moves it, and calls ``on_epoch``.
    """
    with tqdm(desc=what, total=total, unit=" epochs", disable=None if show is None else not show) as bar:

        def after(epoch: Mapping[str, Any]) -> None:
            bar.update()
            if on_epoch is not None:
                on_epoch(epoch)

        yield after
