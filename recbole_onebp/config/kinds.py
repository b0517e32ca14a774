"""What each kind of RecBole's models needs of the configuration: negatives, labels, and metrics that fit the mode.

General, sequential and knowledge-aware models take every interaction as a positive one.  Context-aware models learn
from labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_onebp.util.errors import UserError

__all__ = ["check_data_keys", "check_eval_items", "check_metrics", "check_negatives", "learns_from_labels", "prepare"]


def prepare(given: Mapping[str, Any], final: dict[str, Any], model_class: type) -> None:
    """Fill in what follows from the kind of the model, before RecBole checks the configuration.

    Sequential models with ``loss_type: CE`` get no negatives, unless the user asked for some.  ``threshold`` becomes a
    filter of interactions for models that take every interaction as a positive one.

    Args:
        given: the keys that the user set.
        final: the whole configuration; changed.
        model_class: RecBole's class of the model.

    Raises:
        UserError: for a ``threshold`` that cannot be used.
    """
    if (
        final["MODEL_TYPE"] == ModelType.SEQUENTIAL
        and final.get("loss_type") == "CE"
        and not hasattr(model_class, "input_type")
        and "train_neg_sample_args" not in given
    ):
        final["train_neg_sample_args"] = None
    if final.get("threshold"):
        _apply_threshold(given, final, model_class)
    _load_item_features(final)


def _apply_threshold(given: Mapping[str, Any], final: dict[str, Any], model_class: type) -> None:
    ((field, least),) = final["threshold"].items()
    _load(field, given, final)
    if learns_from_labels(final, model_class) or "labeled" in _modes(final):
        return
    if final["benchmark_filename"] is not None:
        raise UserError(
            f"benchmark_filename: {final['benchmark_filename']} with threshold: {final['model']} takes every "
            "interaction as a positive one, and RecBole uses such parts as they are; leave threshold out, or filter "
            "by recbole-onebp convert --min_rating"
        )
    intervals = final["val_interval"] or {}
    if field in intervals:
        raise UserError(f"threshold and val_interval: both are about {field}; leave one of the two out")
    final["val_interval"] = {**intervals, field: f"[{least},inf)"}
    final["threshold"] = None


def _load(field: str, given: Mapping[str, Any], final: dict[str, Any]) -> None:
    """Add a column of the interactions to ``load_col``, if the user has not set that."""
    columns = final["load_col"]
    inter = "*" if columns is None else columns.get("inter", [])
    if inter == "*" or field in inter:
        return
    if "load_col" in given:
        raise UserError(f"threshold: {field} is not loaded; add it to load_col: {{'inter': {[*inter, field]}}}")
    final["load_col"] = {**columns, "inter": [*inter, field]}


def _load_item_features(final: dict[str, Any]) -> None:
    """Add the file of items to ``load_col`` if a model reads it."""
    wanted, columns = final.get("item_features"), final["load_col"]
    if (wanted == "all" or isinstance(wanted, list)) and columns is not None and "item" not in columns:
        final["load_col"] = {**columns, "item": "*" if wanted == "all" else [final["ITEM_ID_FIELD"], *wanted]}


def learns_from_labels(final: Any, model_class: type) -> bool:
    """Whether the model is trained with labels of the data, and not with negatives that are drawn."""
    negatives = final["train_neg_sample_args"]
    drawn = negatives not in (None, "None") and negatives.get("distribution") not in (None, "None", "none")
    if drawn:
        return False
    constructors = (vars(kind)["__init__"] for kind in model_class.__mro__ if "__init__" in vars(kind))
    return final["MODEL_TYPE"] == ModelType.DECISIONTREE or any(
        "LABEL_FIELD" in getattr(getattr(constructor, "__code__", None), "co_consts", ())
        for constructor in constructors
    )


def check_data_keys(final: Mapping[str, Any]) -> None:
    """Refuse names of columns that are none, a split without parts, and ``load_col`` without the ids.

    Raises:
        UserError: says what is allowed.
    """
    split = final["eval_args"].get("split")
    if split is not None and (len(split) != 1 or ("RS" in split and not sum(split["RS"]))):
        raise UserError(
            f"eval_args.split: {split}: expected one way to split, such as {{'RS': [0.8, 0.1, 0.1]}} or "
            "{'LS': 'valid_and_test'}"
        )
    for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD", "LABEL_FIELD"):
        if not isinstance(final[key] or "", str) or (key in ("USER_ID_FIELD", "ITEM_ID_FIELD") and not final[key]):
            raise UserError(f"{key}: {final[key]!r} is not allowed: expected the name of a column")
    columns, ids = final["load_col"], [final["USER_ID_FIELD"], final["ITEM_ID_FIELD"]]
    inter = "*" if columns is None else columns.get("inter", [])
    if inter != "*" and not set(ids) <= {*inter}:
        raise UserError(f"load_col: {columns}: expected the ids among the columns, such as {{'inter': {ids}}}")


def check_negatives(final: Mapping[str, Any]) -> None:
    """Refuse a model that compares an item with a negative one, if no negatives are drawn."""
    needs = final["MODEL_INPUT_TYPE"] == InputType.PAIRWISE or final["MODEL_TYPE"] == ModelType.KNOWLEDGE
    if needs and final["train_neg_sample_args"] in (None, "None"):
        raise UserError(
            f"train_neg_sample_args: None: {final['model']} learns from negatives; leave the key out, or set "
            "{'distribution': 'uniform', 'sample_num': 1}"
        )


def check_eval_items(final: Mapping[str, Any]) -> None:
    """Refuse ``eval_items`` where not all items are ranked for each user.

    Raises:
        UserError: says what it needs.
    """
    items = final.get("eval_items", "all")
    if items != "all" and (_modes(final) != {"full"} or final["MODEL_TYPE"] == ModelType.SEQUENTIAL):
        raise UserError(f"eval_items: {items} needs eval_args.mode: full, and a model that is not sequential")


def check_metrics(final: Mapping[str, Any]) -> None:
    """Refuse metrics of two kinds, and metrics that do not fit ``eval_args.mode``.

    Raises:
        UserError: says which metrics go with which mode.
    """
    metrics = final["metrics"]
    names = [metrics] if isinstance(metrics, str) else metrics
    if not names:
        raise UserError("metrics: none given; expected a list such as ['Recall', 'NDCG']")
    ranking = [name for name in names if metric_types.get(name.lower()) == EvaluatorType.RANKING]
    value = [name for name in names if metric_types.get(name.lower()) == EvaluatorType.VALUE]
    rule = (
        "eval_args.mode full goes with ranking metrics (Recall, NDCG, MRR, Hit, Precision, ...), labeled with value "
        "metrics (AUC, LogLoss, MAE, RMSE), uniN and popN with either; set metrics and valid_metric of one kind"
    )
    if ranking and value:
        raise UserError(f"metrics: {ranking[0]} is a ranking metric and {value[0]} a value metric: {rule}")
    for mode, wrong in (("full", value), ("labeled", ranking)):
        if wrong and mode in _modes(final):
            raise UserError(f"metrics: {', '.join(wrong)} with eval_args.mode: {mode}: {rule}")


def _modes(final: Mapping[str, Any]) -> set[str]:
    """The evaluation modes of validation and test."""
    mode = final["eval_args"].get("mode", "full")
    return {mode} if isinstance(mode, str) else {*mode.values()} or {"full"}
