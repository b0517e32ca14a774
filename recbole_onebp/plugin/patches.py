"""The patches, one function each.

Every patch is guarded by a feature test of the thing that is broken, never by a version comparison, so it switches
itself off where it is not needed.  ``R#n`` is issue or pull request n of RUCAIBox/RecBole.

To add one: write a function with a docstring that says what breaks, decorate it with :func:`_patch`, and add a test
to ``tests/test_compat.py`` that fails without it.
"""

from __future__ import annotations

import functools
import io
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import wrapt

from recbole_onebp.util.files import write_atomically

__all__ = ["PATCHES", "STATUS", "Patch", "apply_all"]


@dataclass(frozen=True)
class Patch:
    """A repair of RecBole: what it is for, whether it is needed here, and how it is done."""

    name: str
    why: str
    issue: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


PATCHES: dict[str, Patch] = {}
STATUS: dict[str, str] = {}
"""Patch name -> ``applied``, ``not needed`` or ``failed: <reason>``; empty until RecBole is imported."""


def _patch(issue: str, needed: Callable[[], bool]) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(function: Callable[[], None]) -> Callable[[], None]:
        name = function.__name__
        why = " ".join((function.__doc__ or "").split())
        PATCHES[name] = Patch(name, why, issue, needed, function)
        return function

    return add


def apply_all() -> None:
    """Apply every patch that is needed and has not been applied, and record the outcome in :data:`STATUS`."""
    with _importable_ray():
        import_module("recbole.quick_start")
    for patch in PATCHES.values():
        if STATUS.get(patch.name) in ("applied", "not needed"):
            continue
        try:
            needed = patch.needed()
            if needed:
                patch.apply()
            STATUS[patch.name] = "applied" if needed else "not needed"
        except Exception as error:  # a broken patch must not take RecBole's import down with it, but must be seen
            STATUS[patch.name] = f"failed: {type(error).__name__}: {error}"
            warnings.warn(f"recbole_onebp: patch {patch.name} {STATUS[patch.name]}", stacklevel=2)


def _replace(original: Any, replacement: Any) -> None:
    """Put ``replacement`` wherever a module of RecBole holds ``original``, copies by ``from ... import`` included."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "recbole":
            for key, value in list(vars(module).items()):
                if value is original:
                    setattr(module, key, replacement)


# ----------------------------------------------------------------------------------------------------------------- ray


class _NoRay(types.ModuleType):
    """Stands in for ``ray.tune`` where ray is absent or broken."""

    def report(self, *_args: Any, **_metrics: Any) -> None:
        """Do nothing: RecBole's ``objective_function`` reports to ray whether or not ray is searching."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"ray.{self.__name__.split('.')[-1]}.{name} needs ray, which is missing or broken here")


def _ray_is_broken() -> bool:
    before = set(sys.modules)
    try:
        import_module("ray.tune")
    except Exception:  # ray 2.6.3 dies of an AttributeError on numpy 2, of others on other stacks
        for name in set(sys.modules) - before:  # what a failed import leaves behind would be taken for ray
            if name.split(".")[0] == "ray":
                del sys.modules[name]
        return True
    return False


@contextmanager
def _importable_ray() -> Iterator[None]:
    """Let RecBole's ``from ray import tune`` succeed, without leaving a false ray to the rest of the program."""
    if "recbole.quick_start.quick_start" in sys.modules or not _ray_is_broken():
        yield
        return
    ray = types.ModuleType("ray")
    tune = _NoRay("ray.tune")
    ray.tune = tune  # type: ignore[attr-defined]
    sys.modules.update({"ray": ray, "ray.tune": tune})
    try:
        yield
    finally:
        for name in ("ray", "ray.tune"):
            del sys.modules[name]


def _ray_was_replaced() -> bool:
    return isinstance(import_module("recbole.quick_start.quick_start").tune, _NoRay)


@_patch("R#1518, R#1820", _ray_was_replaced)
def ray_stub() -> None:
    """RecBole imports ray at the top of quick_start, though only its own hyper-parameter search uses it; ray <= 2.6.3
    does not import on numpy 2 and has no release for Python 3.12."""
    # Nothing to do here: a stub stood in for ray while quick_start was imported (_importable_ray).


# --------------------------------------------------------------------------------------------------------------- numpy

_NUMPY_ALIASES: dict[str, Any] = {
    "bool": np.bool_,
    "int": np.int_,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int_,
    "unicode": np.str_,
}


def _numpy_lost_aliases() -> bool:
    return "float" not in vars(np)  # hasattr would have numpy warn


@_patch("R#1604, R#2162, R#2216", _numpy_lost_aliases)
def numpy_aliases() -> None:
    """Data structures, metrics and layers read np.float, np.bool, ..., gone since numpy 1.24; Config, which brings them
    back, does so from aliases that numpy 2 removed."""

    def compatibility_settings(_self: Any = None) -> None:
        for name, value in _NUMPY_ALIASES.items():
            if name not in vars(np):
                setattr(np, name, value)

    import_module("recbole.config").Config.compatibility_settings = compatibility_settings
    compatibility_settings()  # RecBole's data structures need them before there is a Config


# --------------------------------------------------------------------------------------------------------------- scipy


@_patch("R#2034, R#2090, R#2185", lambda: not hasattr(sp.dok_matrix, "_update"))
def dok_matrix_update() -> None:
    """LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK fill their graph by dok_matrix._update, gone in 1.13."""

    def _update(self: Any, data: dict[tuple[int, int], float]) -> None:
        self._dict.update(data)

    sp.dok_matrix._update = _update


# -------------------------------------------------------------------------------------------------------------- pandas


def _chained_fillna_is_lost() -> bool:
    frame = pd.DataFrame({"x": [np.nan]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame["x"].fillna(value=0.0, inplace=True)
    return bool(frame["x"].isna().any())


@_patch("no issue yet: silent since pandas 3", _chained_fillna_is_lost)
def fill_nan() -> None:
    """Dataset fills missing features by df[field].fillna(inplace=True), which does nothing under pandas 3's copy on
    write: NaN reaches the model without a word."""
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
        with warnings.catch_warnings():  # the chained assignments, of which nothing is left to do
            warnings.simplefilter("ignore")
            wrapped()

    class Pandas(types.ModuleType):
        """pandas, whose ``read_csv`` leaves no NaN in RecBole's sequence columns (``name:token_seq``)."""

        def __getattr__(self, name: str) -> Any:
            return getattr(pd, name)

        @staticmethod
        def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
            frame = pd.read_csv(*args, **kwargs)
            sequences = [column for column in frame.columns if str(column).endswith("_seq")]
            # As objects: each cell will be replaced by an array, which pandas 3's str columns do not take.
            frame[sequences] = frame[sequences].astype(object).fillna("")
            return frame

    def quietly(wrapped: Callable[..., Any], _dataset: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():  # its fillna, on what read_csv has filled already
            warnings.simplefilter("ignore")
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper(dataset_module, "Dataset._fill_nan", fill_first)
    wrapt.wrap_function_wrapper(dataset_module, "Dataset._load_feat", quietly)
    dataset_module.pd = Pandas("pandas")


def _agg_takes_the_whole_column() -> bool:
    with warnings.catch_warnings():  # pandas 2 says here that pandas 3 will
        warnings.simplefilter("ignore")
        return bool(np.isscalar(pd.Series([[1], [2, 3]]).agg(len)))


@_patch("no issue yet: since pandas 3", _agg_takes_the_whole_column)
def sequence_lengths() -> None:
    """The lengths of a sequence feature are taken by column.agg(len), which under pandas 3 is the length of the
    column: movie titles, tags and all other token_seq fields cannot be loaded."""

    def len_of_each(obj: Any) -> Any:
        return obj.map(len) if isinstance(obj, pd.Series) else len(obj)

    # These modules take the length of a column nowhere else.
    for name in ("dataset", "kg_dataset", "sequential_dataset"):
        import_module(f"recbole.data.dataset.{name}").len = len_of_each  # type: ignore[attr-defined]


def _frames_are_read_only() -> bool:
    return not pd.DataFrame({"x": [0.0]})["x"].to_numpy().flags.writeable


@_patch("no issue yet: since pandas 3", _frames_are_read_only)
def read_only_columns() -> None:
    """Dataset turns columns into tensors without a copy; pandas 3 hands them out read-only, and torch warns of
    tensors that nobody writes to."""

    def quietly(wrapped: Callable[..., Any], _dataset: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return wrapped(*args, **kwargs)

    wrapt.wrap_function_wrapper("recbole.data.dataset.dataset", "Dataset._dataframe_to_interaction", quietly)


# --------------------------------------------------------------------------------------------------------------- torch


def _old_scaler_is_deprecated() -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.amp.GradScaler(enabled=False)
    return any(issubclass(warning.category, FutureWarning) for warning in caught)


@_patch("no issue yet: since torch 2.4", _old_scaler_is_deprecated)
def grad_scaler() -> None:
    """Every epoch makes a torch.cuda.amp.GradScaler, which is deprecated for torch.amp.GradScaler and says so."""
    trainer_module: Any = import_module("recbole.trainer.trainer")
    # All that RecBole's trainers take from the old module.
    trainer_module.amp = types.SimpleNamespace(
        GradScaler=torch.amp.GradScaler, autocast=functools.partial(torch.amp.autocast, "cuda")
    )


def _trusting_load(*args: Any, **kwargs: Any) -> Any:
    return torch.load(*args, **{"weights_only": False, **kwargs})


def _atomic_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(f, (str, os.PathLike)):
        write_atomically(Path(f), lambda temporary: torch.save(obj, temporary, *args, **kwargs))
    else:
        torch.save(obj, f, *args, **kwargs)


class _CheckpointTorch(types.ModuleType):
    """torch, as RecBole's modules see it: ``load`` trusts the file, ``save`` leaves the old file or the new one."""

    load = staticmethod(_trusting_load)
    save = staticmethod(_atomic_save)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


_PRETRAINED = [
    f"recbole.model.{kind}_recommender.{name}"
    for kind, name in [
        ("general", "convncf"),
        ("general", "nais"),
        ("general", "neumf"),
        ("general", "ract"),
        ("sequential", "s3rec"),
        ("context_aware", "kd_dagfm"),
    ]
]


def _load_refuses_objects() -> bool:
    buffer = io.BytesIO()
    torch.save(import_module("recbole.utils").ModelType.GENERAL, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer)
    except Exception:
        return True
    return False


def _saves_in_place() -> bool:
    save = import_module("recbole.trainer").Trainer._save_checkpoint
    return "replace" not in save.__code__.co_names


@_patch("R#2212", lambda: _load_refuses_objects() or _saves_in_place())
def checkpoints() -> None:
    """RecBole's checkpoints hold a pickled Config, which torch.load refuses since 2.6; and they are written in place,
    so that a run stopped while it saves loses the old one too. Only RecBole's own calls change: torch.load stays as
    strict as it is."""

    def use(module: Any) -> None:
        module.torch = _CheckpointTorch("torch")

    use(import_module("recbole.trainer.trainer"))
    for name in _PRETRAINED:
        wrapt.register_post_import_hook(use, name)

    # load_data_and_model imports torch inside, where no name of its module reaches: for this one, torch.load is
    # exchanged until its first call, which is the function's first statement.
    quick_start = import_module("recbole.quick_start.quick_start")
    original = quick_start.load_data_and_model

    @wrapt.decorator
    def trusting(wrapped: Callable[..., Any], _instance: Any, args: Any, kwargs: Any) -> Any:
        strict = torch.load

        def load_once(*load_args: Any, **load_kwargs: Any) -> Any:
            torch.load = strict
            return _trusting_load(*load_args, **load_kwargs)

        torch.load = load_once
        try:
            return wrapped(*args, **kwargs)
        finally:
            torch.load = strict

    _replace(original, trusting(original))


# ------------------------------------------------------------------------------------------------------------- metrics


def _counts_are_taken_for_tensors() -> bool:
    collector_module: Any = import_module("recbole.evaluator.collector")
    collector = object.__new__(collector_module.Collector)
    collector.data_struct = collector_module.DataStruct()
    collector.data_struct.set("data.num_items", 1)
    try:
        collector.get_data_struct()
    except AttributeError:
        return True
    return False


@_patch("no issue yet: since 1.2.1", _counts_are_taken_for_tensors)
def metric_counts() -> None:
    """ItemCoverage, GiniIndex, AveragePopularity and TailPercentage cannot be computed: the numbers of items and users
    and their counters are sent to the CPU as if they were tensors."""

    def tensors_only(wrapped: Callable[[], Any], collector: Any, _args: Any, _kwargs: Any) -> Any:
        collected = collector.data_struct._data_dict
        counts = {name: value for name, value in collected.items() if not hasattr(value, "cpu")}
        for name in counts:
            del collected[name]
        struct = wrapped()
        for values in (collected, struct._data_dict):
            values.update(counts)
        return struct

    wrapt.wrap_function_wrapper("recbole.evaluator.collector", "Collector.get_data_struct", tensors_only)


# ----------------------------------------------------------------------------------------------------------- baselines


def _pop_undercounts() -> bool:
    model = object.__new__(import_module("recbole.model.general_recommender.pop").Pop)
    torch.nn.Module.__init__(model)
    model.ITEM_ID, model.LABEL, model.device = "item", "label", torch.device("cpu")
    model.item_cnt = torch.zeros(2, 1, dtype=torch.long)
    model.calculate_loss({"item": torch.tensor([0, 0, 1]), "label": torch.tensor([1.0, 1.0, 0.0])})
    return bool(model.item_cnt.tolist() != [[2], [0]])


@_patch("R#2198, R#1844", _pop_undercounts)
def pop_counts() -> None:
    """Pop counts an item that occurs several times in a batch once, and sampled negatives as if they had been taken:
    its ranking depends on train_batch_size."""

    def know_label(wrapped: Callable[..., None], model: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        model.LABEL = (kwargs["config"] if "config" in kwargs else args[0])["LABEL_FIELD"]

    def count_all(wrapped: Callable[..., Any], model: Any, args: Any, _kwargs: Any) -> Any:
        (interaction,) = args
        items = interaction[model.ITEM_ID]
        if model.LABEL in interaction:
            items = items[interaction[model.LABEL] > 0]
        items, counts = items.unique(return_counts=True)
        model.item_cnt[items, 0] += counts - 1  # it counts one of each itself
        return wrapped({model.ITEM_ID: items})

    pop = import_module("recbole.model.general_recommender.pop")
    wrapt.wrap_function_wrapper(pop, "Pop.__init__", know_label)
    wrapt.wrap_function_wrapper(pop, "Pop.calculate_loss", count_all)


def _one_epoch_is_not_validated() -> bool:
    return "eval_step" not in import_module("recbole.trainer").TraditionalTrainer.__init__.__code__.co_names


@_patch("no issue yet: always", _one_epoch_is_not_validated)
def traditional_eval_step() -> None:
    """Pop, ItemKNN, EASE and their like have one epoch, which eval_step above 1 leaves without validation and without
    the checkpoint that is to be tested: the run ends in FileNotFoundError."""

    def validate_it(wrapped: Callable[..., None], trainer: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        trainer.eval_step = min(trainer.eval_step, trainer.epochs)  # as Trainer does, before the epochs become one

    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "TraditionalTrainer.__init__", validate_it)


# ------------------------------------------------------------------------------------------------------------- folders

_output_dir: ContextVar[str | None] = ContextVar("output_dir", default=None)


def _with_constant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """``function`` with the literal ``old`` in its code read as ``new``."""
    code = function.__code__
    constants = tuple(new if constant == old else constant for constant in code.co_consts)
    return types.FunctionType(code.replace(co_consts=constants), function.__globals__)


def _folders_are_fixed() -> bool:
    utils = import_module("recbole.utils")
    return (
        "./log/" in utils.init_logger.__code__.co_consts
        and "log_tensorboard" in utils.get_tensorboard.__code__.co_consts
    )


@_patch("R#1598, R#1884", _folders_are_fixed)
def output_folders() -> None:
    """RecBole writes to ./log/ and ./log_tensorboard/ wherever it is started; with output_dir set it writes there."""
    utils = import_module("recbole.utils")
    init_logger, get_tensorboard = utils.init_logger, utils.get_tensorboard

    def init_logger_in(config: Any) -> None:
        folder = config["output_dir"]
        (_with_constant(init_logger, "./log/", f"{folder}/log/") if folder else init_logger)(config)

    def get_tensorboard_in(logger: Any) -> Any:
        folder = _output_dir.get()
        if folder is None:
            return get_tensorboard(logger)
        return _with_constant(get_tensorboard, "log_tensorboard", f"{folder}/tensorboard")(logger)

    def remember_folder(wrapped: Callable[..., None], _trainer: Any, args: Any, kwargs: Any) -> None:
        config = kwargs["config"] if "config" in kwargs else args[0]
        token = _output_dir.set(config["output_dir"])
        try:
            wrapped(*args, **kwargs)
        finally:
            _output_dir.reset(token)

    _replace(init_logger, init_logger_in)
    _replace(get_tensorboard, get_tensorboard_in)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Trainer.__init__", remember_folder)


# ------------------------------------------------------------------------------------------------------------ download


def _waits_for_nobody() -> bool:
    names = import_module("recbole.data.dataset.dataset").Dataset._download.__code__.co_names
    return "barrier" in names and "is_initialized" not in names


@_patch("R#1989", _waits_for_nobody)
def download_barrier() -> None:
    """A data set that RecBole downloads ends the run: Dataset._download closes with a barrier of torch.distributed,
    also in a single process, where there is no group to wait for."""

    def barrier() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    class Torch(types.ModuleType):
        """torch, whose ``distributed`` has the one function that this module calls."""

        distributed = types.SimpleNamespace(barrier=barrier)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    import_module("recbole.data.dataset.dataset").torch = Torch("torch")  # type: ignore[attr-defined]


# ----------------------------------------------------------------------------------------------------------- distutils


@_patch("R#2039", lambda: find_spec("distutils") is None)
def distutils_version() -> None:
    """thop, which counts a model's operations for run_recbole, imports distutils, gone in Python 3.12 (setuptools
    brings it back where it is installed)."""
    from packaging.version import Version

    distutils, version = types.ModuleType("distutils"), types.ModuleType("distutils.version")
    version.LooseVersion = Version  # type: ignore[attr-defined]
    sys.modules.update({"distutils": distutils, "distutils.version": version})
    try:
        import_module("thop.profile")
    finally:
        for name in ("distutils", "distutils.version"):
            del sys.modules[name]
