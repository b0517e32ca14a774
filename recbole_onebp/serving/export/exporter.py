"""From the folder of a run to a bundle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import yaml
from recbole.utils import get_model

from recbole_onebp.data.checks import check_files
from recbole_onebp.run.build import load_data, parse_config
from recbole_onebp.run.checkpoint.model_file import read_model
from recbole_onebp.run.checkpoint.state import data_of, differences
from recbole_onebp.run.environment import versions
from recbole_onebp.serving.ann import Index, quality
from recbole_onebp.serving.bundle import write_bundle
from recbole_onebp.serving.export.card import Parts, evaluate_groups, model_card
from recbole_onebp.serving.export.onnx_scorer import check_packages, write_onnx
from recbole_onebp.serving.search import Encodings, Hidden, ItemTable, unit_rows
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.hashes import sha256

__all__ = ["export"]

_ANN_K = 20

_PRIVATE = ("checkpoint_dir", "data_path", "device", "output_dir")
"""Keys that tell of the machine, not of the model."""


def export(
    run_dir: str | Path,
    bundle_dir: str | Path,
    dtype: Literal["float32", "float16"] = "float32",
    force: bool = False,
    ann: str | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write the bundle of a run.

    Users without a train item are left out: nothing has ever moved them.  A new event adds them.

    Args:
        run_dir: the folder that training wrote.  Its data must be where they were.
        bundle_dir: where to; must not exist unless ``force``.
        dtype: of the encodings.
        force: replace an earlier bundle.
        ann: ``faiss`` or ``hnswlib``: with an index for approximate search.
        onnx: with the scorer as ``scorer.onnx``.

    Returns:
        The bundle's manifest.  Its ``ann`` tells how much of the exact lists the index finds, and how fast.

    Raises:
        UserError: for a folder without a trained OneBP, data that have changed, or a place that cannot be written.
    """
    run_dir, bundle_dir = Path(run_dir), Path(bundle_dir)
    if onnx:
        check_packages()
    state, _, given, trained_on = read_model(run_dir / "model.safetensors")
    if given.get("model") != "OneBP":
        raise UserError(f"{run_dir}: a run of {given.get('model')}; only OneBP can be exported")
    config = parse_config(None, {**given, "use_gpu": False})
    check_files(config)
    dataset, train_data, valid_data, test_data = load_data(config)
    train = train_data._dataset
    model = get_model("OneBP")(config, train)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        if not {"user_table", "item_table"} <= state.keys():
            raise UserError(f"{run_dir}: model.safetensors is no OneBP: {error}") from None
        raise UserError(
            f"{run_dir}: its model has {len(state['user_table']) - 1} users and {len(state['item_table']) - 1} items, "
            f"the data at {config['data_path']} {dataset.user_num - 1} and {dataset.item_num - 1}: they have changed "
            "since"
        ) from None
    loaders = {"train": train_data, "valid": None if config["refit"] else valid_data, "test": test_data}
    if trained_on and (changed := differences(trained_on, data_of(dataset, loaders))):
        raise UserError(f"{run_dir}: the data at {config['data_path']} have changed since: {changed}")

    user, item = _pairs(train)
    items, item_ids = _by_id(dataset.field2id_token[dataset.iid_field], np.arange(1, dataset.item_num))
    users, user_ids = _by_id(dataset.field2id_token[dataset.uid_field], np.unique(user))
    parts = Parts.of(users, items, dataset.user_num, dataset.item_num, (user, item), _pairs_of(valid_data, test_data))
    item_e, user_e = model.item_table.detach()[items], model.scored_users().detach()[users]
    if model.config.score == "cosine":
        item_e = torch.nn.functional.normalize(item_e, dim=-1)
    arrays: dict[str, npt.NDArray[Any]] = {
        "item_encodings": item_e.numpy().astype(dtype),
        "user_encodings": user_e.numpy().astype(dtype),
        "history_start": parts.start,
        "history_item": parts.item.astype(np.int32),
    }
    if model.item_bias is not None:
        arrays["item_bias"] = (model.config.temperature * model.item_bias.detach()[items, 0]).numpy()
    if model.item_weight is not None:
        arrays["item_weight"] = model.item_weight[items, 0].numpy()
    for name in arrays:
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"{run_dir}: {name} are not all finite in {dtype}; train anew, or export float32")

    texts: dict[str, Any] = {"item_ids": item_ids, "user_ids": user_ids}
    fields = _read_fields(config, item_ids)
    if fields:
        texts["item_fields"] = fields
    manifest = _manifest(run_dir, config, model.config, parts, fields, dtype)
    table = ItemTable(Encodings(arrays["item_encodings"]), arrays.get("item_bias"))
    cosine, user_table = model.config.score == "cosine", arrays["user_encodings"]
    others: dict[str, Callable[[Path], object]] = {}
    if ann is not None:
        index = Index.build(ann, table)
        others[f"index.{ann}"] = index.save
        manifest["ann"] = {"kind": ann, "k": _ANN_K, **_quality(index, table, parts, user_table, cosine)}
    if onnx:
        others["scorer.onnx"] = lambda path: write_onnx(path, table, cosine, user_table)
    groups = evaluate_groups(parts, table, user_table, cosine, max(config["topk"]))
    write_bundle(bundle_dir, manifest, arrays, texts, model_card(manifest, groups), replace=force, others=others)
    return manifest


def _quality(
    index: Index, table: ItemTable, parts: Parts, user_table: npt.NDArray[np.floating], cosine: bool
) -> dict[str, float]:
    """Of the index, on some of the users."""
    users = np.unique(np.linspace(0, len(user_table) - 1, 500).astype(np.int64))
    user_e = Encodings(user_table).rows(users)
    seen = [parts.item[parts.start[user] : parts.start[user + 1]] for user in users]
    return quality(index, table, unit_rows(user_e) if cosine else user_e, Hidden.of(seen), _ANN_K)


def _pairs(dataset: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Internal ids of users and items."""
    return dataset.inter_feat[dataset.uid_field].numpy(), dataset.inter_feat[dataset.iid_field].numpy()


def _pairs_of(*loaders: Any) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    return [_pairs(loader._dataset) for loader in loaders]


def _by_id(tokens: npt.NDArray[Any], internal: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Internal ids in the order of their tokens, and these: as numbers where all are plain ones, else as text."""
    names = [str(tokens[number]) for number in internal]
    plain = all(name.isascii() and name.isdigit() and str(int(name)) == name for name in names)
    keys: Sequence[Any] = [int(name) for name in names] if plain else names
    order = sorted(range(len(names)), key=keys.__getitem__)
    return internal[order], [names[place] for place in order]


def _columns(path: Path, config: Any) -> list[str]:
    """Names of the columns of an atomic file."""
    with open(path, encoding=config["encoding"]) as file:
        return [column.split(":")[0] for column in file.readline().rstrip("\n").split(config["field_separator"])]


def _read_fields(config: Any, item_ids: Sequence[str]) -> dict[str, list[str]]:
    """Columns of the data set's item file, as text, whether or not the run has loaded them."""
    path = Path(config["data_path"]) / f"{config['dataset']}.item"
    if not path.is_file():
        return {}
    lines = path.read_text(encoding=config["encoding"]).splitlines()
    names = _columns(path, config)
    key = config["ITEM_ID_FIELD"]
    if key not in names:
        raise UserError(f"{path}: its first line names no column {key}; it has {', '.join(names) or 'none'}")
    rows = [line.split(config["field_separator"]) for line in lines[1:]]
    by_id = {row[names.index(key)]: row for row in rows if len(row) == len(names)}
    empty = [""] * len(names)
    described = [by_id.get(item, empty) for item in item_ids]
    return {name: [row[place] for row in described] for place, name in enumerate(names) if name != key}


def _manifest(
    run_dir: Path, config: Any, settings: Any, parts: Parts, fields: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    folder = Path(config["data_path"])
    files = sorted(file for kind in ("inter", "item", "user") for file in folder.glob(f"{config['dataset']}*.{kind}"))
    result_file = run_dir / "result.json"
    result = json.loads(result_file.read_text(encoding="utf-8")) if result_file.is_file() else {}
    written = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    titles = [name for word in ("title", "name") for name in fields if word in name.lower()]
    # The others are means of all items, or were moved towards these.
    rule = "moving" if settings.aggregation == "step" and settings.user_encoding == "moved" else "mean"
    moves = settings.backprop == "one"
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": "OneBP",
        "score": settings.score,
        "aggregation": {"rule": rule, "beta": settings.beta, "alpha": settings.aggregation_alpha} if moves else None,
        "embedding_size": settings.embedding_size,
        "dtype": dtype,
        "n_users": len(parts.start) - 1,
        "n_items": parts.n_items,
        "n_interactions": len(parts.item),
        "title_field": titles[0] if titles else None,
        "metrics": _finite({part: result.get(part, {}) for part in ("valid", "test")}),
        "best_epoch": result.get("best_epoch"),
        "ordered": any(config["TIME_FIELD"] in _columns(file, config) for file in files if file.suffix == ".inter"),
        "data": {"name": config["dataset"], "files": {file.name: {"sha256": sha256(file)} for file in files}},
        "config": _finite({key: value for key, value in written.items() if key not in _PRIVATE}),
        "versions": versions(),
    }


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
