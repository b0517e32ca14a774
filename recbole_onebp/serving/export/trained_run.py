"""Reading a finished run, which a stranger may have made: no setting in it names a file, and nothing is unpickled."""

from __future__ import annotations

import codecs
import glob
import math
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, StringConstraints
from recbole.utils import get_model

from recbole_onebp.config.fields import Intervals, IntervalsOrTokens, key_of, validated
from recbole_onebp.config.schema import OneBPConfig
from recbole_onebp.config.settings import RunSettings
from recbole_onebp.data.checks import check_files
from recbole_onebp.run.build import load_data, parse_config, present
from recbole_onebp.run.checkpoint.model_file import read_model
from recbole_onebp.run.checkpoint.state import data_of, differences
from recbole_onebp.run.folder import plain
from recbole_onebp.run.run import Run
from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import read_json

__all__ = ["TrainedRun", "read_results", "read_run", "read_settings"]

_Word = Annotated[str, StringConstraints(pattern=r"^[^./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,199}$")]
"""Part of a file's name: no separator, and no leading dot."""
_Words = Annotated[list[_Word], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_Separator = Annotated[str, StringConstraints(pattern=r"^(.|\n|[^\\^$.|?*+()\[\]{}]{1,10})$")]
"""One letter, or a few that mean themselves: pandas reads longer ones as a regular expression."""
_Columns = dict[_Word, list[str] | Literal["*"]] | None
_MAX_TEXT = 1 << 20
_UNFIT = (
    ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What RecBole raises for settings that it does not check."""


class _DataKeys(BaseModel):
    """RecBole's keys that say how data files are read, with the types that RecBole expects but does not check."""

    model_config = ConfigDict(strict=True, extra="ignore")

    dataset: _Word
    data_path: str = ""
    preset: _Word = "default"
    encoding: str = "utf-8"
    field_separator: _Separator = "\t"
    seq_separator: _Separator = " "
    USER_ID_FIELD: str = ""
    ITEM_ID_FIELD: str = ""
    RATING_FIELD: str = ""
    TIME_FIELD: str = ""
    LABEL_FIELD: str = ""
    NEG_PREFIX: str = ""
    seq_len: dict[str, int] | None = None
    load_col: _Columns = None
    unload_col: _Columns = None
    unused_col: _Columns = None
    additional_feat_suffix: _Words | None = None
    benchmark_filename: _Words | None = None
    rm_dup_inter: Literal["first", "last"] | None = None
    filter_inter_by_user_or_item: bool | None = None
    user_inter_num_interval: Intervals | None = None
    item_inter_num_interval: Intervals | None = None
    val_interval: dict[str, IntervalsOrTokens] | None = None
    threshold: dict[str, FiniteFloat] | None = None
    alias_of_user_id: list[str] | None = None
    alias_of_item_id: list[str] | None = None
    preload_weight: dict[str, str] | None = None
    normalize_field: list[str] | None = None
    normalize_all: bool | None = None
    numerical_features: list[str] | None = None
    discretization: dict[str, dict[str, str | int]] | None = None
    repeatable: bool | None = None


_NEEDED = (
    frozenset({"model", "seed", "reproducibility", "refit", "epochs"})
    | _DataKeys.model_fields.keys()
    | OneBPConfig.model_fields.keys()
    | {name for name, field in RunSettings.model_fields.items() if key_of(field).scope in ("data", "evaluation")}
)
"""The keys that the model and its data depend on.  All others of a run are left out."""


class TrainedRun(NamedTuple):
    """A finished run with its data; train, validation and test part as RecBole's data sets, None if empty."""

    config: Any
    model: Any
    dataset: Any
    train: Any
    valid: Any
    test: Any

    @classmethod
    def of(cls, run: Run) -> TrainedRun | None:
        """A run of this process after training; None if its model is on a GPU, or shared with other processes."""
        model: Any = run.model
        if model.user_table.device.type != "cpu" or model.shard is not None:
            return None
        parts = (None if loader is None else loader._dataset for loader in (run.valid_data, run.test_data))
        return cls(run.config, model, run.dataset, run.train_data._dataset, *parts)


def read_run(run_dir: Path, data_path: Path | None = None) -> TrainedRun:
    """Load model and data of a run, and check that the data have not changed.

    Args:
        run_dir: its folder.
        data_path: the folder that holds the data set's folder, in place of the one that the run names.

    Raises:
        UserError: if the run has no trained OneBP, a setting is not allowed, or the data have changed.
    """
    state, _, given, trained_on = read_model(run_dir / "model.safetensors")
    if given.get("model") != "OneBP":
        raise UserError(f"{run_dir}: a run of {str(given.get('model'))[:80]}; only OneBP can be exported")
    kept = _allowed(run_dir, given)
    if data_path is not None:
        kept["data_path"] = str(data_path)
    try:
        # RecBole unpickles certain files of its checkpoint_dir, so it gets an empty one.
        with tempfile.TemporaryDirectory(prefix="recbole-onebp-") as empty:
            return _read(run_dir, kept, state, trained_on, empty)
    except _UNFIT as e:
        raise UserError(f"{run_dir}: its settings do not fit its data: {type(e).__name__}: {e}") from e


def _allowed(run_dir: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the export needs, checked."""
    kept = {key: value for key, value in given.items() if key in _NEEDED}
    try:
        validated(_DataKeys, kept)
        codecs.lookup(kept.get("encoding") or "utf-8")
    except UserError as error:
        raise UserError(f"{run_dir / 'model.safetensors'}: {error}") from None
    except (LookupError, ValueError) as error:
        raise UserError(f"{run_dir / 'model.safetensors'}: encoding: {error}") from None
    return kept


def _read(run_dir: Path, given: Mapping[str, Any], state: Mapping[str, Any], trained_on: Any, empty: str) -> TrainedRun:
    local = "ridge" if "local_weight" in state else "none"  # older runs do not name this key
    config = parse_config(None, {"local": local, **given, **_FORCED, "checkpoint_dir": empty})
    for name in ("user_table", "item_table"):
        table = state.get(name)
        if table is None or table.ndim != 2 or not table.is_floating_point():
            raise UserError(f"{run_dir}: model.safetensors is not a OneBP model: it has no table {name}")
        if table.shape[1] != config["embedding_size"]:
            raise UserError(
                f"{run_dir}: model.safetensors: {name} has {table.shape[1]} dimensions, but embedding_size is "
                f"{config['embedding_size']}"
            )
    _check_data(config)
    check_files(config)
    dataset, train_data, valid_data, test_data = load_data(config)
    tables = len(state["user_table"]), len(state["item_table"])
    if tables != (dataset.user_num, dataset.item_num):
        raise UserError(
            f"{run_dir}: the model has {tables[0] - 1} users and {tables[1] - 1} items, the data at "
            f"{config['data_path']} {dataset.user_num - 1} and {dataset.item_num - 1}: the data have changed since "
            "training"
        )
    model = get_model("OneBP")(config, train_data._dataset)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{run_dir}: model.safetensors is not a OneBP model: {error}") from None
    loaders = {"train": train_data, "valid": present(valid_data), "test": present(test_data)}
    if trained_on and (changed := differences(trained_on, data_of(dataset, loaders))):
        raise UserError(f"{run_dir}: the data at {config['data_path']} have changed since training: {changed}")
    return TrainedRun(config, model, dataset, train_data._dataset, valid_data._dataset, test_data._dataset)


_FORCED = {
    "use_gpu": False,
    "show_progress": False,
    "data_cache": False,  # a stranger's data folder may hold a cache too
    "save_dataset": False,
    "save_dataloaders": False,
    "dataset_save_path": None,
    "dataloaders_save_path": None,
}


def _check_data(config: Any) -> None:
    """Refuse data files that are devices, pipes or sockets: opening one could wait for ever."""
    folder = Path(config["data_path"])
    for path in sorted(folder.glob(f"{glob.escape(config['dataset'])}*")):
        for file in path.rglob("*") if path.is_dir() else [path]:
            try:
                mode = file.stat().st_mode
            except OSError as error:
                raise UserError(f"{file}: cannot be read: {error.strerror or error}") from None
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UserError(f"{file}: is not a plain file")


# ---------------------------------------------------------------------------------- what is copied into the manifest


def read_settings(run_dir: Path) -> dict[str, Any]:
    """``config.yaml`` of a run as plain values; infinities and NaN are None, because JSON has neither.

    Raises:
        UserError: if it is missing, is no mapping, or stands for more than a megabyte of text.
    """
    path = run_dir / "config.yaml"
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: there is no such folder; give the output_dir of a run of recbole-onebp train")
    if not path.exists() and not path.is_symlink():
        raise UserError(f"{run_dir}: is no run, for it has no config.yaml; give the output_dir of recbole-onebp train")
    settings = safe_yaml.read_plain(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected lines of 'key: value'")
    if _length(settings) > _MAX_TEXT:
        raise UserError(f"{path}: stands for more than {_MAX_TEXT:,} letters")
    return _finite(plain(settings))


def read_results(run_dir: Path) -> dict[str, Any]:
    """Metrics and best epoch in ``result.json`` of a run; empty if the run was not evaluated.

    Raises:
        UserError: if the file holds anything but metrics.
    """
    path = run_dir / "result.json"
    result = read_json(path, _MAX_TEXT) if path.exists() or path.is_symlink() else {}
    if not isinstance(result, dict) or not isinstance(result.get("best_epoch"), (int, type(None))):
        raise UserError(f"{path}: expected the result of a run")
    metrics = {part: result.get(part, {}) for part in ("valid", "test")}
    for part, values in metrics.items():
        if not isinstance(values, dict) or not all(
            re.fullmatch(r"[\w@.+-]{1,100}", name) and type(value) in (int, float, type(None))
            for name, value in values.items()
        ):
            raise UserError(f"{path}: {part}: expected metrics with numbers")
    return {"metrics": _finite(metrics), "best_epoch": result.get("best_epoch")}


def _length(value: Any) -> int:
    """Letters of all texts in a value.  It ends early: aliases in YAML let one text stand in many places."""
    length, left = 0, [value]
    while left and length <= _MAX_TEXT:
        one = left.pop()
        if isinstance(one, dict):
            left += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set)):
            left += one
        else:
            length += len(one) if isinstance(one, (str, bytes)) else 8
    return length


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
