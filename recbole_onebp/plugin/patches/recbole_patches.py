"""RecBole's own errors, on any version of the libraries."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import wrapt

from recbole_onebp.plugin.patches.registry import ModuleView, patch, replace_everywhere

__all__ = [
    "anomaly_detection",
    "download_barrier",
    "knowledge_loader",
    "metric_counts",
    "output_folders",
    "pop_counts",
    "traditional_eval_step",
]


_SINE = "recbole.model.sequential_recommender.sine"


def _sine_detects_anomalies() -> bool:
    *folders, name = _SINE.split(".")[1:]
    source = Path(import_module("recbole").__file__ or "").parent.joinpath(*folders, f"{name}.py")
    return "set_detect_anomaly(True)" in source.read_text(encoding="utf-8")


@patch("no issue yet: since 1.2.1", _sine_detects_anomalies)
def anomaly_detection() -> None:
    """Everything trains several times slower once a sequential model has been asked for: sine.py, which is imported
    with any of them, makes autograd keep a traceback of every operation in the whole process."""

    def as_before(_module: Any, wanted: bool = torch.is_anomaly_enabled()) -> None:
        torch.autograd.set_detect_anomaly(wanted)

    wrapt.register_post_import_hook(as_before, _SINE)


def _counts_are_treated_as_tensors() -> bool:
    collector_module: Any = import_module("recbole.evaluator.collector")
    collector = object.__new__(collector_module.Collector)
    collector.data_struct = collector_module.DataStruct()
    collector.data_struct.set("data.num_items", 1)
    try:
        collector.get_data_struct()
    except AttributeError:
        return True
    return False


@patch("no issue yet: since 1.2.1", _counts_are_treated_as_tensors)
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


def _pop_undercounts() -> bool:
    model = object.__new__(import_module("recbole.model.general_recommender.pop").Pop)
    torch.nn.Module.__init__(model)
    model.ITEM_ID, model.LABEL, model.device = "item", "label", torch.device("cpu")
    model.item_cnt = torch.zeros(2, 1, dtype=torch.long)
    model.calculate_loss({"item": torch.tensor([0, 0, 1]), "label": torch.tensor([1.0, 1.0, 0.0])})
    return bool(model.item_cnt.tolist() != [[2], [0]])


@patch("R#2198, R#1844", _pop_undercounts)
def pop_counts() -> None:
    """Pop counts an item once per batch, however often it occurs there, and counts sampled negatives as interactions:
    its ranking depends on train_batch_size."""

    def remember_label(wrapped: Callable[..., None], model: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        model.LABEL = (kwargs["config"] if "config" in kwargs else args[0])["LABEL_FIELD"]

    def count_all(wrapped: Callable[..., Any], model: Any, args: Any, _kwargs: Any) -> Any:
        (interaction,) = args
        items = interaction[model.ITEM_ID]
        if model.LABEL in interaction:
            items = items[interaction[model.LABEL] > 0]
        items, counts = items.unique(return_counts=True)
        model.item_cnt[items, 0] += counts - 1  # Pop adds one for each itself
        return wrapped({model.ITEM_ID: items})

    pop = import_module("recbole.model.general_recommender.pop")
    wrapt.wrap_function_wrapper(pop, "Pop.__init__", remember_label)
    wrapt.wrap_function_wrapper(pop, "Pop.calculate_loss", count_all)


def _one_epoch_is_not_validated() -> bool:
    return "eval_step" not in import_module("recbole.trainer").TraditionalTrainer.__init__.__code__.co_names


@patch("no issue yet: always", _one_epoch_is_not_validated)
def traditional_eval_step() -> None:
    """Pop, ItemKNN, EASE and similar models have one epoch. With eval_step above 1 it is neither validated nor saved,
    and the run ends in FileNotFoundError at the test."""

    def validate_it(wrapped: Callable[..., None], trainer: Any, args: Any, kwargs: Any) -> None:
        wrapped(*args, **kwargs)
        trainer.eval_step = min(trainer.eval_step, trainer.epochs)  # as Trainer does, but before epochs becomes 1

    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "TraditionalTrainer.__init__", validate_it)


_output_dir: ContextVar[str | None] = ContextVar("output_dir", default=None)


def _with_constant(function: Callable[..., Any], old: str, new: str) -> Callable[..., Any]:
    """A copy of ``function`` with the string literal ``old`` replaced by ``new``."""
    code = function.__code__
    constants = tuple(new if constant == old else constant for constant in code.co_consts)
    return types.FunctionType(code.replace(co_consts=constants), function.__globals__)


def _folders_are_fixed() -> bool:
    utils = import_module("recbole.utils")
    return (
        "./log/" in utils.init_logger.__code__.co_consts
        and "log_tensorboard" in utils.get_tensorboard.__code__.co_consts
    )


@patch("R#1598, R#1884", _folders_are_fixed)
def output_folders() -> None:
    """RecBole writes to ./log/ and ./log_tensorboard/ in the current directory. With output_dir set it writes there
    instead."""
    utils = import_module("recbole.utils")
    init_logger, get_tensorboard = utils.init_logger, utils.get_tensorboard

    # The folders are literals inside the two functions: there is no argument to set.
    def init_logger_in(config: Any) -> None:
        folder = config["output_dir"]
        (_with_constant(init_logger, "./log/", f"{folder}/log/") if folder else init_logger)(config)

    def get_tensorboard_in(logger: Any) -> Any:
        folder = _output_dir.get()
        if folder is None:
            return get_tensorboard(logger)
        return _with_constant(get_tensorboard, "log_tensorboard", f"{folder}/tensorboard")(logger)

    # get_tensorboard is called by Trainer.__init__ and is not given the configuration.
    def remember_folder(wrapped: Callable[..., None], _trainer: Any, args: Any, kwargs: Any) -> None:
        config = kwargs["config"] if "config" in kwargs else args[0]
        token = _output_dir.set(config["output_dir"])
        try:
            wrapped(*args, **kwargs)
        finally:
            _output_dir.reset(token)

    replace_everywhere(init_logger, init_logger_in)
    replace_everywhere(get_tensorboard, get_tensorboard_in)
    wrapt.wrap_function_wrapper("recbole.trainer.trainer", "Trainer.__init__", remember_folder)


def _waits_in_a_single_process() -> bool:
    names = import_module("recbole.data.dataset.dataset").Dataset._download.__code__.co_names
    return "barrier" in names and "is_initialized" not in names


@patch("R#1989", _waits_in_a_single_process)
def download_barrier() -> None:
    """A run whose data set RecBole downloads fails: Dataset._download ends with a barrier of torch.distributed, also
    in a single process, where no process group exists."""

    def barrier() -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    # The module uses one function of torch.distributed.
    dataset_module: Any = import_module("recbole.data.dataset.dataset")
    dataset_module.torch = ModuleView(torch, distributed=types.SimpleNamespace(barrier=barrier))


def _knowledge_loader() -> Any:
    return import_module("recbole.data.dataloader").KnowledgeBasedDataLoader


@patch("R#1755, R#1680", lambda: not hasattr(_knowledge_loader(), "dataset"))
def knowledge_loader() -> None:
    """The loader of knowledge-aware models has no dataset, which metrics such as ItemCoverage, AveragePopularity and
    GiniIndex read of every loader."""
    _knowledge_loader().dataset = property(lambda loader: loader._dataset)
