"""From names to a run, in the same way for OneBP and for any RecBole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.trainer import TraditionalTrainer, Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_onebp.config import OneBPConfig, RunConfig
from recbole_onebp.config.files import file_names
from recbole_onebp.data.checks import check_dataset, check_files
from recbole_onebp.data.needs import check_features, check_needs
from recbole_onebp.data.parts import prepare_parts
from recbole_onebp.data.sources.fetch import provide, tell_if_unordered
from recbole_onebp.distributed.ranks import DEFAULT_TIMEOUT, Ranks, current, join, launched_rank
from recbole_onebp.distributed.sharding import share_users
from recbole_onebp.run.checkpoint.resume import check_resumable, find_checkpoint, run_folder_of
from recbole_onebp.run.checkpoint.saver import Saver
from recbole_onebp.run.checkpoint.state import summary_of
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.run.recbole_errors import (
    as_user_error,
    check_package,
    memory_as_user_error,
    missing_package_as_user_error,
    recbole_warnings_ignored,
)
from recbole_onebp.run.record import Record, recorded
from recbole_onebp.run.run import Run
from recbole_onebp.run.turns import Turn, one_at_a_time
from recbole_onebp.util import logs
from recbole_onebp.util.compiled import tell_of_compilation
from recbole_onebp.util.errors import UserError

__all__ = ["build", "build_from", "load_config", "load_data", "parse_config", "present", "read_config"]


def build(
    model: str,
    dataset: str,
    config_file_list: Sequence[str] | str | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Run:
    """Load the data and make the model and its trainer.  Does not read ``sys.argv``.

    Args:
        model: ``OneBP`` or any RecBole model.
        dataset: ``ml-100k``, which RecBole includes; a folder below ``data_path``; or a name that ``recbole-onebp
            fetch`` knows, which is fetched if there is no such folder.
        config_file_list: YAML files; later ones override earlier ones.  One file may be given as a plain string.
        config_dict: overrides the files.

    Raises:
        UserError: for any input that the caller can fix, in one line.

    Example:
        >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 20, "output_dir": "out"})
        >>> run.dataset.user_num, run.dataset.item_num  # with RecBole's row 0, the padding
        (944, 1683)
    """
    config, folder = load_config(config_file_list, {**(config_dict or {}), "model": model, "dataset": dataset})
    with logs.shown(config.log_level):
        return build_from(config, folder)


# -------------------------------------------------------------------------------------------------------- configuration


def load_config(
    config_file_list: Sequence[str] | str | None, config_dict: Mapping[str, Any], folder: RunFolder | None = None
) -> tuple[RunConfig, RunFolder]:
    """The checked configuration and the run's folder, which stays locked until the run is over.

    Args:
        config_file_list: see :func:`build`.
        config_dict: see :func:`build`.
        folder: in place of ``output_dir``.

    Raises:
        UserError: for a bad key or value, or a folder that cannot be written or that another run uses.
    """
    config = read_config(config_file_list, config_dict)
    check_package(config["model"])
    given, resume = config["output_dir"], config["resume"]
    if resume == "auto" and not given:
        raise UserError("resume: auto needs output_dir: that is where it looks for a checkpoint")
    if resume not in (None, "auto") and not given:
        given = run_folder_of(resume)
    with one_at_a_time():
        if _join(config).rank > 0:
            folder = RunFolder.temporary()
        elif folder is None:
            folder = RunFolder(given) if given else RunFolder.fresh(config["dataset"], config["model"])
        folder.lock()
    config["output_dir"] = config["checkpoint_dir"] = str(folder.path)
    return config, folder


def _join(config: RunConfig) -> Ranks:
    """Join the other processes of the run, if it has more than one."""
    if launched_rank() is None:
        return current()
    if config["model"] != "OneBP":
        raise UserError(f"nproc: {config['model']} trains in one process; only OneBP trains in several")
    gpu = config["device"].type == "cuda"
    ranks = join(gpu, config["dist_timeout"] or DEFAULT_TIMEOUT)
    if gpu:
        if torch.cuda.device_count() < ranks.local_world_size:
            raise UserError(
                f"gpu_id: {config['gpu_id']} names {torch.cuda.device_count()} devices for {ranks.local_world_size} "
                "processes per host; name as many, such as --gpu_id=0,1"
            )
        torch.cuda.set_device(ranks.local_rank)
        config["device"] = torch.device("cuda", ranks.local_rank)
    if ranks.rank > 0:
        config["state"], config["show_progress"], config["log_wandb"] = "ERROR", False, False
    return ranks


def read_config(config_file_list: Sequence[str] | str | None, config_dict: Mapping[str, Any]) -> RunConfig:
    """The checked configuration.  Fetches the data set if needed, and checks its files.

    Raises:
        UserError: for a bad key or value, or a bad data set.
    """
    config = parse_config(config_file_list, config_dict)
    provide(config["dataset"], Path(config["data_path"]).parent)
    columns, time = (config["load_col"] or {}).get("inter"), config["TIME_FIELD"]
    if columns and time in columns and tell_if_unordered(config["dataset"], Path(config["data_path"])):
        config["load_col"] = {**config["load_col"], "inter": [name for name in columns if name != time]}
    check_files(config)
    check_features(config)
    return config


def parse_config(config_file_list: Sequence[str] | str | None, config_dict: Mapping[str, Any]) -> RunConfig:
    """The checked configuration, without a look at the data set.

    Raises:
        UserError: for a bad key or value.
    """
    with one_at_a_time(), as_user_error("configuration"), missing_package_as_user_error(str(config_dict.get("model"))):
        config = RunConfig(config_file_list=file_names(config_file_list), config_dict=dict(config_dict))
        if config["model"] == "OneBP":
            OneBPConfig.from_recbole(config)  # before anything is loaded or written
    return config


# ------------------------------------------------------------------------------------------------- data, model, trainer


def load_data(config: RunConfig) -> tuple[Any, Any, Any, Any]:
    """The data set, and the loaders of its train, validation and test parts.

    Raises:
        UserError: for bad files, or data that cannot be split.
    """
    split_seed = config["split_seed"]
    init_seed(config["seed"] if split_seed is None else split_seed, config["reproducibility"])
    with as_user_error(f"data set {config['dataset']}"), _no_pickles(config):
        dataset = create_dataset(config)
        check_dataset(config, dataset)
        check_needs(config, dataset)
        prepare_parts(config, dataset)
        if current().is_distributed:
            share_users(dataset, current(), summary_of)
        return dataset, *data_preparation(config, dataset)


@contextmanager
def _no_pickles(config: RunConfig) -> Iterator[None]:
    """Keep RecBole from unpickling data.

    Without these keys RecBole looks for fixed names in ``checkpoint_dir``, where a stranger may have left files.
    """
    keys = ("dataset_save_path", "dataloaders_save_path")
    for key in keys:
        if config[key]:
            raise UserError(f"{key}: names a pickle, which may run code; data_cache keeps data sets without pickles")
    for key in keys:
        config[key] = "\0"  # no path holds a null character, so this file does not exist
    try:
        yield
    finally:
        for key in keys:
            config[key] = None


def build_from(config: RunConfig, folder: RunFolder) -> Run:
    """Load the data and make the model and trainer, for what :func:`load_config` returned.

    Seeds are set in the same places as in RecBole's ``run_recbole``.

    Raises:
        UserError: for bad data, or a checkpoint that does not fit.
    """
    turn = Turn()
    try:
        with turn.taken(), recbole_warnings_ignored(), memory_as_user_error():
            run = _build(config, folder)
        run.turn = turn
        return run
    except BaseException:
        folder.unlock()
        raise


def _build(config: RunConfig, folder: RunFolder) -> Run:
    config.tell_what_has_no_effect()
    tell_of_compilation()
    rank_0_folder = _folder_of_rank_0(folder)
    checkpoint = find_checkpoint(config["resume"], rank_0_folder)
    start = perf_counter()
    dataset, train_data, valid_data, test_data = load_data(config)
    valid_data, test_data = present(valid_data), present(test_data)
    loaders = {"train": train_data, "valid": valid_data, "test": test_data}
    if checkpoint is not None:
        check_resumable(checkpoint, config, dataset, loaders)
    data_seconds = perf_counter() - start

    init_seed(config["seed"], config["reproducibility"])
    start = perf_counter()
    with missing_package_as_user_error(config["model"]):
        model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
        model_seconds = perf_counter() - start
        if checkpoint is None or not checkpoint.lies_in(folder.checkpoints):
            folder.start(config.final_config_dict)
        trainer = recorded(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    trainer.record = record = Record(folder)
    trainer.saved_model_file = str(rank_0_folder.recbole_checkpoint)
    if isinstance(trainer, Trainer) and not isinstance(trainer, TraditionalTrainer):
        trainer.saver = Saver(trainer, folder, record.epochs, dataset, loaders, rank_0_folder.model)
    if checkpoint is not None:
        trainer.saver.resume(checkpoint)
        record.written = len(record.epochs)
    return Run(config, folder, dataset, train_data, valid_data, test_data, model, trainer, data_seconds, model_seconds)


def present(loader: Any) -> Any:
    """The loader of a part; None if the part is empty."""
    part = loader._dataset
    shard = getattr(part, "shard", None)  # of one process among several
    return loader if (len(part) if shard is None else shard.n_pairs) else None


def _folder_of_rank_0(folder: RunFolder) -> RunFolder:
    """Rank 0's run folder, which only rank 0 writes and all ranks read."""
    ranks = current()
    if not ranks.is_distributed:
        return folder
    path = Path(ranks.broadcast_text(str(folder.path.resolve())))
    if not path.is_dir():
        raise UserError(f"output_dir: {path} does not exist on this host; all hosts must share its storage")
    return RunFolder(path)
