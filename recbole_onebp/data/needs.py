"""Checks of what a model and its metrics need of a data set: labels, enough items, files of features."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.utils import EvaluatorType, ModelType

from recbole_onebp.config.kinds import learns_from_labels
from recbole_onebp.data.item_embeddings import embedding_files, reads_features
from recbole_onebp.util.errors import UserError

__all__ = ["check_features", "check_needs"]


def check_features(config: Config) -> None:
    """Check that the files of ``load_col`` exist.  Where items have ready embeddings there need be no ``.item`` file.

    Raises:
        UserError: names the file that does not exist.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    features = [kind for kind in config["load_col"] or () if kind != "inter"]
    missing = [kind for kind in features if not (folder / f"{name}.{kind}").is_file()]
    if missing == ["item"] and reads_features(config) and embedding_files(folder, name):
        config["load_col"] = {kind: columns for kind, columns in config["load_col"].items() if kind != "item"}
    elif missing:
        raise UserError(f"load_col: {missing[0]}: no file {folder / f'{name}.{missing[0]}'}")


def check_needs(config: Config, dataset: Any) -> None:
    """Check that the data set has what the model and the metrics need; log what they do with labels and weights.

    Args:
        config: the configuration.
        dataset: RecBole's data set before it is split.

    Raises:
        UserError: for a label that is missing or not between 0 and 1, or ``topk`` beyond the number of items.
    """
    n_items, longest = dataset.item_num - 1, max(config["topk"] or [0])
    if config["eval_type"] == EvaluatorType.RANKING and longest > n_items:
        raise UserError(f"topk: {longest} is more than the {n_items} items of data set {config['dataset']}")
    _check_labels(config, dataset)
    _check_item_features(config, dataset)
    if config["preload_weight"] and not _uses_weights(config.model_class):
        getLogger().warning("preload_weight: not used: %s does not read preloaded weights", config["model"])
    given = config.external_config_dict.get("threshold")
    if given and not config["threshold"]:
        ((field, least),) = given.items()
        message = "threshold: only interactions with %s of %s or more count; the others are left out"
        getLogger().info(message, field, least)


def _check_labels(config: Config, dataset: Any) -> None:
    label, inter, model = config["LABEL_FIELD"], dataset.inter_feat, config["model"]
    learns = learns_from_labels(config, config.model_class)
    if (learns or "labeled" in config["eval_args"]["mode"].values()) and label not in inter:
        what = model if learns else "eval_args.mode: labeled"
        raise UserError(
            f"{what} needs a label: set threshold, such as threshold: {{'rating': 4}}, or load a column {label} of 0 "
            "and 1 by load_col"
        )
    if label not in inter:
        return
    least, most = float(inter[label].min()), float(inter[label].max())
    if learns and config["MODEL_TYPE"] == ModelType.CONTEXT and not 0 <= least <= most <= 1:
        raise UserError(
            f"{label}: the values lie between {least:g} and {most:g}, and {model} needs labels of 0 and 1: set "
            f"threshold, such as threshold: {{'{label}': {most:g}}}"
        )
    if not learns and least < 1:
        getLogger().warning(
            "%s: %d interactions have a value below 1; %s takes every interaction as a positive one all the same",
            label,
            int((inter[label] < 1).sum()),
            model,
        )


def _check_item_features(config: Config, dataset: Any) -> None:
    """Check the features of items that some sequential models name in their settings, by default ``class``."""
    loaded = [] if dataset.item_feat is None else [name for name in dataset.item_feat if name != dataset.iid_field]
    named = {key: config[key] for key in ("selected_features", "item_attribute") if config[key]}
    for key, fields in named.items():
        for field in [fields] if isinstance(fields, str) else fields:
            if field not in loaded:
                raise UserError(
                    f"{key}: {config['model']} needs a feature of items named {field}, and the features loaded are "
                    f"{', '.join(loaded) or 'none'}: set {key}, and load it by load_col: {{'item': [...]}}"
                )


def _uses_weights(model_class: type) -> bool:
    constructors = (vars(kind)["__init__"] for kind in model_class.__mro__ if "__init__" in vars(kind))
    return any(
        "get_preload_weight" in getattr(getattr(constructor, "__code__", None), "co_names", ())
        for constructor in constructors
    )
