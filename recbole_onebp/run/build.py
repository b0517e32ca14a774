"""From names to a trained model, the same way for OneBP and for any recommender of RecBole."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import pandas as pd
import psutil
import torch
from recbole.data import create_dataset, data_preparation
from recbole.trainer import TraditionalTrainer, Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_onebp import __version__
from recbole_onebp.config.schema import OneBPConfig, RunConfig
from recbole_onebp.data.checks import check_dataset, check_files
from recbole_onebp.data.parts import add_validation_to_train
from recbole_onebp.data.sources.fetch import provide
from recbole_onebp.distributed.ranks import DEFAULT_TIMEOUT, Ranks, current, join, launched_rank
from recbole_onebp.distributed.sharding import share_users
from recbole_onebp.run.checkpoint.state import summary_of
from recbole_onebp.run.folder import RunFolder
from recbole_onebp.run.saver import Saver, find, refuse_another_run, run_of
from recbole_onebp.util.errors import UserError

__all__ = [
    "Result",
    "Run",
    "build",
    "build_from",
    "load_config",
    "load_data",
    "parse_config",
    "read_config",
    "versions",
]


@dataclass(frozen=True)
class Result:
    """What ``result.json`` holds.  Counts are without RecBole's padding row; epochs are numbered from 0, as it does."""

    model: str
    dataset: str
    seed: int
    epochs_run: int
    best_epoch: int
    """The epoch whose model was tested: the best on validation, or the last one without validation."""
    valid: dict[str, float]
    test: dict[str, float]
    seconds: dict[str, float]
    """Wall-clock time of ``data``, ``train``, ``valid`` and ``test``; making the model, where some do all their work,
    is training."""
    epoch_seconds: list[float]
    """Training alone, validation not included."""
    peak_rss_mb: float
    n_users: int
    n_items: int
    n_train: int
    parameters: int
    """Trained by gradient; a user table that is moved is not among them."""
    versions: dict[str, str]
    device: str


@dataclass
class Record:
    """What a trainer did, epoch by epoch."""

    folder: RunFolder
    epochs: list[dict[str, Any]] = field(default_factory=list)
    written: int = 0

    def train(self, epoch: int, seconds: float, loss: Any, extra: Mapping[str, float]) -> None:
        losses = loss if isinstance(loss, tuple) else (loss,)
        total = None if None in losses else float(sum(losses))
        self.epochs.append(
            {"epoch": epoch, "train_loss": total, "train_seconds": seconds, "valid": {}, "valid_seconds": 0.0, **extra}
        )

    def validate(self, seconds: float, result: Mapping[str, float]) -> None:
        self.epochs[-1].update(valid=_floats(result), valid_seconds=seconds)

    def write(self) -> None:
        """What has not been written yet; an epoch is over when the next one begins."""
        for epoch in self.epochs[self.written :]:
            self.folder.add_epoch(epoch)
        self.written = len(self.epochs)

    def total(self, key: str) -> float:
        return float(sum(epoch[key] for epoch in self.epochs))


class _Recorded:
    """Mixed into a trainer class: notes the time, the loss and the validation of each epoch, and has the run saved."""

    config: RunConfig
    record: Record
    saver: Saver | None = None

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.record.write()
        before = 0.0 if self.saver is None else self.saver.epoch_begins(epoch_idx)
        start = perf_counter()
        loss = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)  # type: ignore[misc]
        self.record.train(epoch_idx, before + perf_counter() - start, loss, getattr(self, "encoding_stats", {}))
        return loss

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        score, result = super()._valid_epoch(*args, **kwargs)  # type: ignore[misc]
        self.record.validate(perf_counter() - start, result)
        return score, result

    def _save_checkpoint(self, epoch: int, *args: Any, **kwargs: Any) -> None:
        """RecBole's trainers do this when the model is the best so far, or nothing is validated."""
        if epoch < 0:  # there was none left to train: the best stays the best
            return
        if self.saver is not None:
            self.saver.best_is(epoch)
        if self.config["recbole_checkpoint"]:
            super()._save_checkpoint(epoch, *args, **kwargs)  # type: ignore[misc]

    def evaluate(self, eval_data: Any, load_best_model: bool = True, model_file: Any = None, **kwargs: Any) -> Any:
        if load_best_model and model_file is None and isinstance(self, Trainer):
            load_best_model = False
            if self.saver is not None:  # else there has been one epoch
                self.saver.load_best()
        return super().evaluate(eval_data, load_best_model, model_file, **kwargs)  # type: ignore[misc]


def _recorded(trainer_class: type[Trainer]) -> type[Trainer]:
    return type(trainer_class.__name__, (_Recorded, trainer_class), {"__module__": trainer_class.__module__})


@dataclass
class Run:
    """A model, its data and its trainer, ready to :meth:`fit`."""

    config: RunConfig
    folder: RunFolder
    dataset: Any
    train_data: Any
    valid_data: Any
    test_data: Any
    model: torch.nn.Module
    trainer: Any
    data_seconds: float
    model_seconds: float
    _trained: bool = field(default=False, init=False)

    def per_user_metrics(self, part: Literal["valid", "test"] = "test") -> pd.DataFrame:
        """The metrics of every user of a part, by the model as it stands: after :meth:`fit`, that of the best epoch.

        See :func:`recbole_onebp.evaluation.full_sort.per_user_metrics`; ``.to_parquet(path)`` writes the table.

        Raises:
            UserError: for another part, or an evaluation that is not by user.
        """
        from recbole_onebp.evaluation.full_sort import per_user_metrics

        if part not in ("valid", "test"):
            raise UserError(f"per-user metrics: there is no part {part!r}; parts: valid, test")
        self.trainer.eval_collector.data_collect(self.train_data)  # as fit does, for metrics that know the popularity
        return per_user_metrics(self.trainer, self.valid_data if part == "valid" else self.test_data)

    def train(
        self, saved: bool = True, on_validation: Callable[[int, float], None] | None = None
    ) -> tuple[int, dict[str, float]]:
        """Train and choose the epoch on validation; the test part is not looked at.

        Args:
            saved: keep the model of the best epoch, and checkpoints.
            on_validation: called after each validation with the epoch and its ``valid_metric``; what it raises ends the
                training.

        Returns:
            Number and validation metrics of the best epoch.
        """
        if self._trained:
            raise RuntimeError("this run has been trained already; build another one")
        self._trained = True
        try:
            return self._train(saved, on_validation)
        finally:
            self.folder.let_go()

    def _train(self, saved: bool, on_validation: Callable[[int, float], None] | None) -> tuple[int, dict[str, float]]:
        trainer, show_progress = self.trainer, self.config["show_progress"]
        # The trainers of RecBole's decision trees know no callback.
        callback = {} if on_validation is None else {"callback_fn": on_validation}
        saving = trainer.saver.running() if saved and trainer.saver is not None else nullcontext()
        try:
            with _missing_package(self.config["model"]), saving:
                trainer.fit(self.train_data, self.valid_data, saved=saved, show_progress=show_progress, **callback)
        except BaseException:
            with suppress(OSError, UserError):  # the first error is the one to tell
                self._close()
            raise
        self._close()
        return _best(trainer.record.epochs, trainer.best_valid_score, trainer.valid_metric)

    def _close(self) -> None:
        self.trainer.record.write()
        self.trainer.tensorboard.close()  # which has a thread

    def fit(self) -> Result:
        """Train, choose the epoch on validation, test that one once, and write the run folder."""
        self.folder.hold()
        try:
            return self._fit()
        finally:
            self.folder.let_go()

    def _fit(self) -> Result:
        config, trainer, record = self.config, self.trainer, self.trainer.record
        start = perf_counter()
        best_epoch, best_valid = self.train()
        fit_seconds = perf_counter() - start if trainer.saver is None else trainer.saver.seconds
        start = perf_counter()
        test = trainer.evaluate(self.test_data, load_best_model=True, show_progress=config["show_progress"])
        test_seconds = perf_counter() - start

        valid_seconds, shard = record.total("valid_seconds"), getattr(self.model, "shard", None)
        result = Result(
            model=config["model"],
            dataset=config["dataset"],
            seed=config["seed"],
            epochs_run=len(record.epochs),
            best_epoch=best_epoch,
            valid=best_valid,
            test=_floats(test),
            seconds={
                "data": self.data_seconds,
                "train": self.model_seconds + fit_seconds - valid_seconds,
                "valid": valid_seconds,
                "test": test_seconds,
            },
            epoch_seconds=[epoch["train_seconds"] for epoch in record.epochs],
            peak_rss_mb=_peak_rss_mb(),
            n_users=self.dataset.user_num - 1,
            n_items=self.dataset.item_num - 1,
            n_train=len(self.train_data.dataset) if shard is None else shard.n_pairs,
            parameters=_parameters(self.model),
            versions=versions(),
            device=_device_name(config["device"]),
        )
        self.folder.draw_curves(record.epochs, trainer.valid_metric, f"{result.model} on {result.dataset}")
        self.folder.write_result(asdict(result))
        return result


def build(
    model: str,
    dataset: str,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Run:
    """Load the data and make the model and its trainer; reads no ``sys.argv``.

    Args:
        model: ``OneBP`` or any of RecBole's models.
        dataset: name of a folder below ``data_path``, or ``ml-100k``, which RecBole carries; where there is no such
            folder and the name is one that ``recbole-onebp fetch`` knows, it is fetched.
        config_file_list: YAML files, later ones override earlier ones.
        config_dict: overrides them.

    Raises:
        UserError: for whatever the caller can mend, in one line.
    """
    return build_from(*load_config(config_file_list, {**(config_dict or {}), "model": model, "dataset": dataset}))


def load_config(config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any]) -> tuple[RunConfig, RunFolder]:
    """The checked configuration and the run's folder, which is held until the run is over.

    Raises:
        UserError: for a key or value that is wrong, or a folder that cannot be written or has a run at work in it.
    """
    config = read_config(config_file_list, config_dict)
    given, resume = config["output_dir"], config["resume"]
    if resume == "auto" and not given:
        raise UserError("resume: auto needs output_dir: that is where it looks for a checkpoint")
    if resume not in (None, "auto") and not given:
        given = run_of(resume)
    if _join(config).rank > 0:
        folder = RunFolder.temporary()
    else:
        folder = RunFolder(given) if given else RunFolder.fresh(config["dataset"], config["model"])
    folder.hold()
    config["output_dir"] = config["checkpoint_dir"] = str(folder.path)
    return config, folder


def _join(config: RunConfig) -> Ranks:
    """Join the other processes of the run, if it has more than one."""
    if launched_rank() is None:
        return current()
    if config["model"] != "OneBP":
        raise UserError(f"nproc: {config['model']} trains in one process; of all models OneBP trains in several")
    gpu = config["device"].type == "cuda"
    ranks = join(gpu, config["dist_timeout"] or DEFAULT_TIMEOUT)
    if gpu:
        if torch.cuda.device_count() < ranks.local_world_size:
            raise UserError(
                f"gpu_id: {config['gpu_id']} names {torch.cuda.device_count()} devices for {ranks.local_world_size} "
                "processes a host; name as many, such as --gpu_id=0,1"
            )
        torch.cuda.set_device(ranks.local_rank)
        config["device"] = torch.device("cuda", ranks.local_rank)
    if ranks.rank > 0:
        config["state"], config["show_progress"] = "ERROR", False
    return ranks


def read_config(config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any]) -> RunConfig:
    """The checked configuration; its data set is there, fetched if need be.

    Raises:
        UserError: for a key or value that is wrong, or a data set that is.
    """
    config = parse_config(config_file_list, config_dict)
    provide(config["dataset"], Path(config["data_path"]).parent)
    check_files(config)
    return config


def parse_config(config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any]) -> RunConfig:
    """The checked configuration, whether or not its data set is there.

    Raises:
        UserError: for a key or value that is wrong.
    """
    with _as_user_error("configuration"), _missing_package(str(config_dict.get("model"))):
        config = RunConfig(config_file_list=list(config_file_list or []), config_dict=dict(config_dict))
        if config["model"] == "OneBP":
            OneBPConfig.from_recbole(config)  # before anything is loaded or written
    return config


def load_data(config: RunConfig) -> tuple[Any, Any, Any, Any]:
    """The data set and the loaders of its train, validation and test part.

    Raises:
        UserError: for what is wrong in the files or cannot be split.
    """
    split_seed = config["split_seed"]
    init_seed(config["seed"] if split_seed is None else split_seed, config["reproducibility"])
    with _as_user_error(f"data set {config['dataset']}"):
        dataset = create_dataset(config)
        check_dataset(config, dataset)
        if config["refit"]:
            add_validation_to_train(dataset)
        if current().is_distributed:
            share_users(dataset, current(), summary_of)
        return dataset, *data_preparation(config, dataset)


def build_from(config: RunConfig, folder: RunFolder) -> Run:
    """The second half of :func:`build`; seeds are set where RecBole's ``run_recbole`` sets them."""
    try:
        return _build(config, folder)
    except BaseException:
        folder.let_go()
        raise


def _build(config: RunConfig, folder: RunFolder) -> Run:
    first = _folder_of_first(folder)
    checkpoint = find(config["resume"], first)
    start = perf_counter()
    dataset, train_data, valid_data, test_data = load_data(config)
    valid_data = None if config["refit"] else valid_data
    loaders = {"train": train_data, "valid": valid_data, "test": test_data}
    if checkpoint is not None:
        refuse_another_run(checkpoint, config, dataset, loaders)
    data_seconds = perf_counter() - start

    init_seed(config["seed"], config["reproducibility"])
    start = perf_counter()
    with _missing_package(config["model"]):
        model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
        model_seconds = perf_counter() - start
        if checkpoint is None or not checkpoint.lies_in(folder.checkpoints):
            folder.start(config.final_config_dict)
        trainer = _recorded(get_trainer(config["MODEL_TYPE"], config["model"]))(config, model)
    trainer.record = record = Record(folder)
    trainer.saved_model_file = str(first.recbole_checkpoint)
    if isinstance(trainer, Trainer) and not isinstance(trainer, TraditionalTrainer):
        trainer.saver = Saver(trainer, folder, record.epochs, dataset, loaders, first.model)
    if checkpoint is not None:
        trainer.saver.go_on(checkpoint)
        record.written = len(record.epochs)
    return Run(config, folder, dataset, train_data, valid_data, test_data, model, trainer, data_seconds, model_seconds)


def _folder_of_first(folder: RunFolder) -> RunFolder:
    """That of rank 0, which it alone writes and all read."""
    ranks = current()
    if not ranks.is_distributed:
        return folder
    path = Path(ranks.broadcast_text(str(folder.path.resolve())))
    if not path.is_dir():
        raise UserError(f"output_dir: {path} is not seen on this host; all hosts read it, from storage they share")
    return RunFolder(path)


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """RecBole answers a wrong value or a wrong file with one of these, after our own checks; a bug is none of them."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"{what}: {error}") from error


def _parameters(model: torch.nn.Module) -> int:
    """Trained by gradient, those of all ranks' users included."""
    shard, own = getattr(model, "shard", None), sum(p.numel() for p in model.parameters() if p.requires_grad)
    users = getattr(model, "user_table", None)
    if shard is None or not isinstance(users, torch.nn.Parameter):
        return own
    return own + (shard.n_users - len(users)) * users.shape[1]


_PIP_NAMES = {"faiss": "faiss-cpu", "kmeans_pytorch": "kmeans-pytorch"}


@contextmanager
def _missing_package(model: str) -> Iterator[None]:
    """Some of RecBole's models import packages that RecBole does not ask for, when they are made or trained."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        raise UserError(f"{model} needs the package {name}: pip install {_PIP_NAMES.get(name, name)}") from None
    except ImportError as error:  # RecBole's own words, for wandb
        raise UserError(str(error)) from None


def _best(epochs: list[dict[str, Any]], score: float, metric: str) -> tuple[int, dict[str, float]]:
    """Number and validation result of the last epoch with the best score; the last epoch without validation."""
    best = [epoch for epoch in epochs if epoch["valid"].get(metric) == score] or epochs[-1:]
    return (best[-1]["epoch"], best[-1]["valid"]) if best else (-1, {})


def _floats(result: Mapping[str, Any] | None) -> dict[str, float]:
    return {key: float(value) for key, value in (result or {}).items()}


def _peak_rss_mb() -> float:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # where ru_maxrss of a new process starts at what its parent had
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if peak:  # not on every container's kernel
            return int(peak[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def versions() -> dict[str, str]:
    """Of this package, Python, and what results depend on."""
    packages = ("recbole", "torch", "numpy", "scipy", "pandas")
    return {
        "recbole_onebp": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
