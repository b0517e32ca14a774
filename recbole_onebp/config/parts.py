"""Checks of keys against a predefined split (``benchmark_filename``) and against ``refit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.utils import ModelType

from recbole_onebp.util.errors import UserError

__all__ = ["check_parts"]

_FILTERS = ("rm_dup_inter", "val_interval", "user_inter_num_interval", "item_inter_num_interval")


def check_parts(given: Mapping[str, Any], defaults: Mapping[str, Any], final: Mapping[str, Any]) -> None:
    """Refuse keys that RecBole would silently ignore, and a ``refit`` that is not possible.

    Args:
        given: the keys that the user set.
        defaults: the keys of the YAML files of defaults.
        final: the whole configuration.

    Raises:
        UserError: for ``benchmark_filename`` with a filter or a split, which RecBole would ignore; for ``refit``
            without a number of epochs, or without a separate validation part.
    """
    parts, split = final["benchmark_filename"], given.get("eval_args") or {}
    clashing = [key for key in _FILTERS if given.get(key) not in (None, defaults.get(key))]
    clashing += ["eval_args.split"] if split.get("split") else []
    clashing += ["eval_args.order"] if split.get("order") == "TO" else []
    if parts is not None and clashing:
        raise UserError(
            f"benchmark_filename: {parts} with {clashing[0]}: RecBole uses such parts as they are and would ignore "
            "the latter; leave one of the two out, or filter and split by recbole-onebp convert"
        )
    if parts is not None and len(parts) not in (2, 3):
        raise UserError(
            f"benchmark_filename: {parts}: expected the parts train and test, or train, validation and test"
        )
    if final.get("refit"):
        _check_refit(given, final)


def _check_refit(given: Mapping[str, Any], final: Mapping[str, Any]) -> None:
    parts, kind = final["benchmark_filename"], final["MODEL_TYPE"]
    if kind == ModelType.DECISIONTREE:
        raise UserError(f"refit: true with {final['model']}: its trainer needs a validation part")
    if "epochs" not in given and kind != ModelType.TRADITIONAL:  # these train in one pass
        raise UserError("refit: true needs epochs, the number chosen on validation: nothing stops training early")
    if parts is not None and len(parts) == 2:
        raise UserError(f"refit: true with benchmark_filename: {parts}: there is no validation part to add to train")
    if parts is not None and len(set(parts)) < len(parts):
        raise UserError(
            f"refit: true with benchmark_filename: {parts}: would train on a part twice, or on the test part"
        )
    for key in ("save_dataloaders", "dataloaders_save_path"):
        if final.get(key):
            raise UserError(f"refit: true with {key}: loaders would be saved or loaded with other parts; leave one out")
