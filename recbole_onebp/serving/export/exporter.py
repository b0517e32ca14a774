"""Write the bundle of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from recbole_onebp.data.interactions import tables_of
from recbole_onebp.run.environment import versions
from recbole_onebp.serving.ann import INDEX_FILE, Index, quality
from recbole_onebp.serving.bundle import LARGEST_WEIGHT, check_path, write_bundle
from recbole_onebp.serving.content import described
from recbole_onebp.serving.export.card import Parts, evaluate_groups, model_card
from recbole_onebp.serving.export.item_fields import read_item_fields
from recbole_onebp.serving.export.local_term import local_table
from recbole_onebp.serving.export.onnx_scorer import check_packages, write_onnx
from recbole_onebp.serving.export.trained_run import TrainedRun, read_results, read_run, read_settings
from recbole_onebp.serving.local_table import LOCAL_FILES, LocalTable
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.search import Excluded
from recbole_onebp.serving.tables import LARGEST, Embeddings, ItemTable, unit_rows
from recbole_onebp.util.errors import UserError, printable
from recbole_onebp.util.hashes import sha256
from recbole_onebp.util.ids import InternalIds, Token
from recbole_onebp.weights import Transform

__all__ = ["export"]

_ANN_K = 20
"""Length of the lists for the recall of an index."""

_PRIVATE = ("checkpoint_dir", "data_path", "device", "output_dir")
"""Keys that describe the machine, not the model."""


def export(
    run_dir: str | Path,
    bundle_dir: str | Path,
    dtype: Literal["float32", "float16"] = "float32",
    force: bool = False,
    ann: str | None = None,
    onnx: bool = False,
    data_path: str | Path | None = None,
    tell: Callable[[str], object] = lambda line: None,
    trained: TrainedRun | None = None,
) -> dict[str, Any]:
    """Write the bundle of a run.

    Users without a train item are left out, because their embeddings are not trained.  Their first event adds them.
    The run is data and never code: of its settings only those count that the model and its data need, and nothing is
    unpickled.  It also names the folder of its data; ``tell`` says which one.

    Args:
        run_dir: the folder of a finished run.  Its data must still be at the same place, or at ``data_path``.
        bundle_dir: the folder to write.  It must not exist unless ``force``.
        dtype: of the embeddings.
        force: replace an earlier bundle.
        ann: ``faiss`` to add an index for approximate search.
        onnx: add the scorer as ``scorer.onnx``.
        data_path: the folder that holds the data set's folder, if it is not where the run says.
        tell: called with a line for the user.
        trained: the run as it is in memory, so that model and data are not read, nor the local term fitted, again.

    Returns:
        The manifest of the bundle.  With ``ann``, its key ``ann`` holds recall and speed of the index.

    Raises:
        UserError: if the run has no trained OneBP, its data have changed, or the bundle cannot be written.
    """
    run_dir, bundle_dir = Path(run_dir), Path(bundle_dir)
    if ann not in (None, "faiss"):
        raise UserError(f"ann: {ann!r} is not allowed; expected faiss")
    if onnx:
        check_packages()
    check_path(bundle_dir, force)  # before the run is read
    settings, results = read_settings(run_dir), read_results(run_dir)
    run = trained or read_run(run_dir, None if data_path is None else Path(data_path))
    tell(printable(f"data: {run.config['data_path']}"))
    config, dataset, model, cosine = run.config, run.dataset, run.model, run.model.config.score == "cosine"
    user, item = _pairs(run.train)
    items, item_ids = _by_id(dataset.field2id_token[dataset.iid_field], np.arange(1, dataset.item_num))
    users, user_ids = _by_id(dataset.field2id_token[dataset.uid_field], np.unique(user))
    others = _pairs(run.valid), _pairs(run.test)
    if held_out := sum(len(part[0]) for part in others):
        tell(
            f"lists may contain {held_out:,} interactions held out for validation and test, which the histories of "
            f"{len(user):,} train interactions lack; for use, train on all rows (docs/serving.md, The final model)"
        )
    fitted = model.local
    local = local_table(fitted, items)
    in_order = model.recency or (local is not None and local.recency)
    time = run.train.inter_feat[run.train.time_field].numpy() if in_order else None
    field, transform = model.config.WEIGHT_FIELD, model.config.weight_transform
    weight = None if field is None else run.train.inter_feat[field].numpy()
    parts = Parts.of(users, items, dataset.user_num, dataset.item_num, (user, item), others, time, weight)
    arrays = _arrays(model, users, items, parts, dtype, local)
    for name in arrays:
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{run_dir}: {name} has values that are not finite in {dtype}; train again, or use float32")
        largest = LARGEST_WEIGHT if name == "item_weight" else LARGEST
        if arrays[name].dtype.kind == "f" and float(np.abs(arrays[name]).max(initial=0)) > largest:
            raise UserError(f"{run_dir}: {name} has values beyond {largest:g}; train again with other settings")

    texts: dict[str, Any] = {"item_ids": item_ids, "user_ids": user_ids}
    if model.tower is not None:
        texts["item_values"] = described(model.tower.fields, model.config.temperature * float(model.new_item_bias))
    fields = read_item_fields(config, item_ids)
    if fields:
        texts["item_fields"] = fields
    kept = {key: value for key, value in settings.items() if key not in _PRIVATE}
    manifest = {**_manifest(config, model, parts, fields, dtype), **results, "config": kept}
    if local is not None:
        manifest["local"] = fitted.summary()
    if weight is not None:
        manifest["weights"] = {"transform": transform, "default": float(np.median(weight))}
    table = ItemTable(Embeddings(arrays["item_encodings"]), arrays.get("item_bias"))
    user_table = arrays["user_encodings"]
    files: dict[str, Callable[[Path], object]] = {}
    if ann is not None:
        index = Index.build(table)
        files[INDEX_FILE] = index.save
        found = _quality(index, table, parts, user_table, cosine, local, transform)
        manifest["ann"] = {"kind": ann, "k": _ANN_K, **found}
    if onnx:
        files["scorer.onnx"] = lambda path: write_onnx(path, table, cosine, user_table, has_local=local is not None)
        if local is not None:
            tell("scorer.onnx: has the scores of the towers alone, without the local term")
    k = min(max(config["topk"]), parts.n_items)
    groups = evaluate_groups(parts, table, user_table, cosine, k, local, transform)
    write_bundle(bundle_dir, manifest, arrays, texts, model_card(manifest, groups), replace=force, others=files)
    return manifest


def _arrays(
    model: Any, users: InternalIds, items: InternalIds, parts: Parts, dtype: str, local: LocalTable | None
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the bundle, by file name."""
    item_e, user_e = model.item_table.detach()[items], model.scored_users().detach()[users]
    if model.config.score == "cosine":
        item_e = torch.nn.functional.normalize(item_e, dim=-1)
    arrays: dict[str, npt.NDArray[Any]] = {
        "item_encodings": item_e.numpy().astype(dtype),
        "user_encodings": user_e.numpy().astype(dtype),
        "history_start": parts.start,
        "history_item": parts.item.astype(np.int32),
    }
    if parts.weight is not None:
        arrays["history_weight"] = parts.weight.astype(np.float32)
    if (bias := model.score_biases()) is not None:
        arrays["item_bias"] = bias.detach()[items, 0].numpy()
    if model.tower is not None:
        values, value_bias = model.tower.values()
        arrays["value_encodings"] = values.numpy()
        if value_bias is not None:
            arrays["value_bias"] = (model.config.temperature * value_bias[:, 0]).numpy()
    if model.item_weight is not None:
        arrays["item_weight"] = model.item_weight[items, 0].numpy()
    if local is not None:
        names = (name.removesuffix(".npy") for name in LOCAL_FILES)
        arrays |= zip(names, (local.start, local.item, local.value), strict=True)
    return arrays


def _quality(
    index: Index,
    table: ItemTable,
    parts: Parts,
    user_table: npt.NDArray[np.floating],
    cosine: bool,
    local: LocalTable | None,
    transform: Transform,
) -> dict[str, float]:
    """Recall and speed of the index, on at most 500 users."""
    users = np.unique(np.linspace(0, len(user_table) - 1, 500).astype(np.int64))
    user_e = Embeddings(user_table).rows(users)
    histories = parts.histories(users)
    strengths = parts.strengths(users, transform)
    scorer = Scorer(table, unit_rows(user_e) if cosine else user_e, local, histories, strengths=strengths)
    return quality(index, scorer, Excluded.of(histories), _ANN_K)


def _pairs(dataset: Any | None) -> tuple[InternalIds, InternalIds]:
    """Users and items of all interactions; none of a part that is empty."""
    if dataset is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return dataset.inter_feat[dataset.uid_field].numpy(), dataset.inter_feat[dataset.iid_field].numpy()


def _by_id(tokens: npt.NDArray[Any], internal: InternalIds) -> tuple[InternalIds, list[Token]]:
    """Internal ids sorted by token, and the tokens.  They are sorted as numbers if all are plain numbers."""
    names = [str(tokens[number]) for number in internal]
    plain = all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names)
    keys: Sequence[Any] = [int(name) for name in names] if plain else names
    order = sorted(range(len(names)), key=keys.__getitem__)
    return internal[order], [names[place] for place in order]


def _manifest(config: Any, model: Any, parts: Parts, fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    folder, settings, tables = Path(config["data_path"]), model.config, tables_of(config)
    paths = [*(table.path for table in tables), *(folder / f"{config['dataset']}.{kind}" for kind in ("item", "user"))]
    inside = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths]
    files = [file for found in inside for file in found if file.is_file()]
    ids = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    columns = {title.partition(":")[0] for table in tables for title in table.titles(ids)}
    titles = [name for word in ("title", "name") for name in fields if word in name.lower()]
    # All other users are the means of their items, or were moved towards them.
    rule = "moving" if settings.aggregation == "step" and settings.user_encoding == "moved" else "mean"
    moves = settings.backprop == "one"
    kept = {"rule": rule, "beta": settings.beta, "alpha": settings.aggregation_alpha}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": "OneBP",
        "score": settings.score,
        "aggregation": {**kept, "recency": model.recency} if moves else None,
        "embedding_size": settings.embedding_size,
        "dtype": dtype,
        "n_users": len(parts.start) - 1,
        "n_items": parts.n_items,
        "n_interactions": len(parts.item),
        "title_field": titles[0] if titles else None,
        "ordered": config["TIME_FIELD"] in columns,
        "data": {
            "name": config["dataset"],
            "files": {file.relative_to(folder).as_posix(): {"sha256": sha256(file)} for file in files},
        },
        "versions": versions(),
    }
