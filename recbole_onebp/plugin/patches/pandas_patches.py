"""pandas 3: copy on write, read-only columns, and ``Series.agg``."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import wrapt

from recbole_onebp.plugin.patches.registry import ModuleView, patch

__all__ = ["fill_nan", "inplace_keyword", "read_only_columns", "sequence_lengths"]


def _chained_fillna_is_lost() -> bool:
    frame = pd.DataFrame({"x": [np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame["x"].fillna(value=0.0, inplace=True)
    return bool(frame["x"].isna().any())


def _read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
    """``pd.read_csv`` that leaves no NaN in RecBole's sequence columns (``name:token_seq``)."""
    frame = pd.read_csv(*args, **kwargs)
    sequences = [column for column in frame.columns if str(column).endswith("_seq")]
    # As objects: RecBole replaces each cell by an array, which pandas 3's str columns cannot hold.
    frame[sequences] = frame[sequences].astype(object).fillna("")
    return frame


@patch("no issue yet: silent since pandas 3", _chained_fillna_is_lost)
def fill_nan() -> None:
    """Dataset fills missing features by df[field].fillna(inplace=True), which does nothing under pandas 3's copy on
    write: NaN reaches the model silently."""
    dataset_module: Any = import_module("recbole.data.dataset.dataset")
    feature_type = import_module("recbole.utils").FeatureType

    def fill_first(wrapped: Callable[[], None], dataset: Any, _args: Any, _kwargs: Any) -> None:
        for feat_name in dataset.feat_name_list:
            feat = getattr(dataset, feat_name)
            for field in feat:
                kind = dataset.field2type[field]
                if kind == feature_type.TOKEN:
                    feat[field] = feat[field].fillna(0)
                elif kind == feature_type.FLOAT:
                    feat[field] = feat[field].fillna(feat[field].mean())
        with warnings.catch_warnings():  # RecBole's chained assignments, which find nothing left to fill
            warnings.simplefilter("ignore")
            wrapped()

    def quietly(wrapped: Callable[..., Any], _dataset: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():  # RecBole's fillna of what _read_csv has filled already
            warnings.simplefilter("ignore")
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(dataset_module, "Dataset._fill_nan", fill_first)
    wrapt.wrap_function_wrapper(dataset_module, "Dataset._load_feat", quietly)
    dataset_module.pd = ModuleView(pd, read_csv=_read_csv)


def _agg_gets_the_whole_column() -> bool:
    with warnings.catch_warnings():  # pandas 2 warns here of the change in pandas 3
        warnings.simplefilter("ignore")
        return bool(np.isscalar(pd.Series([[1], [2, 3]]).agg(len)))


@patch("no issue yet: since pandas 3", _agg_gets_the_whole_column)
def sequence_lengths() -> None:
    """The lengths of a sequence feature are computed by column.agg(len), which under pandas 3 is the length of the
    column: movie titles, tags and all other token_seq fields cannot be loaded."""

    def len_of_each(obj: Any) -> Any:
        return obj.map(len) if isinstance(obj, pd.Series) else len(obj)

    # The calls stand in the middle of six long methods, where neither a subclass nor a wrapper reaches: the name len is
    # replaced in these three modules, which take the length of a whole column nowhere else.
    for name in ("dataset", "kg_dataset", "sequential_dataset"):
        import_module(f"recbole.data.dataset.{name}").len = len_of_each  # type: ignore[attr-defined]


def _frames_are_read_only() -> bool:
    return not pd.DataFrame({"x": [0.0]})["x"].to_numpy().flags.writeable


@patch("no issue yet: since pandas 3", _frames_are_read_only)
def read_only_columns() -> None:
    """Dataset turns columns into tensors without a copy. pandas 3 returns them read-only, and torch warns, although
    nothing writes to these tensors."""

    def quietly(wrapped: Callable[..., Any], _dataset: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper("recbole.data.dataset.dataset", "Dataset._dataframe_to_interaction", quietly)


def _inplace_is_deprecated() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pd.DataFrame({"x": [0]}).drop(index=0, inplace=True)
    return bool(caught)


@patch("no issue yet: since pandas 3.1", _inplace_is_deprecated)
def inplace_keyword() -> None:
    """Datasets pass inplace=True to pandas, which warns that the keyword is deprecated: with python -W error, or
    pytest's filterwarnings = error, no data set can be loaded."""

    def quietly(wrapped: Callable[..., Any], _dataset: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The inplace keyword")
            return wrapped(*args, **kwargs)

    for name, kind in (("dataset", "Dataset"), ("kg_dataset", "KnowledgeBasedDataset")):
        module = import_module(f"recbole.data.dataset.{name}")
        for method, function in [*vars(getattr(module, kind)).items()]:
            # What another patch has wrapped is quiet already.
            constants = function.__code__.co_consts if type(function) is types.FunctionType else ()
            if any(isinstance(names, tuple) and "inplace" in names for names in constants):
                wrapt.wrap_function_wrapper(module, f"{kind}.{method}", quietly)
