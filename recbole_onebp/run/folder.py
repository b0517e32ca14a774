"""The folder of a run and its files.  Each file is written completely or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from recbole_onebp.util import safe_yaml
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import TemporaryFolder, claim_folder, write_atomically

__all__ = ["RunFolder", "checkpoints_of", "plain"]


_REPLACED = (
    "config.yaml", "metrics.jsonl", "result.json", "curves.png", "model.safetensors", "checkpoint.pth", "checkpoint",
    "tensorboard",
)  # fmt: skip
_OPENED = ("run.log", ".lock")


def _is_earlier_run(folder: Path) -> bool:
    """Whether a folder without a marker holds the configuration of a run, as earlier versions left it."""
    try:
        config = safe_yaml.read_plain(folder / "config.yaml")
    except UserError:
        return False
    return (
        isinstance(config, dict) and {"model", "dataset", "MODEL_TYPE", "checkpoint_dir", "output_dir"} <= config.keys()
    )


def checkpoints_of(path: Path) -> Path:
    """The folder of the checkpoints in a run's folder."""
    return path / "checkpoint"


class RunFolder:
    """The folder of one run.

    It holds ``config.yaml``, ``metrics.jsonl``, ``result.json``, ``curves.png``, ``model.safetensors``,
    ``checkpoint/``, ``run.log``, ``tensorboard/`` and ``.lock``; with ``recbole_checkpoint: true`` also RecBole's
    ``checkpoint.pth``.
    """

    _holder: TemporaryFolder | None = None
    _locks = 0

    def __init__(self, path: str | Path) -> None:
        """Create the folder.  Files of an earlier run stay until :meth:`start`.

        Raises:
            UserError: if it cannot be created or written, or holds files of somebody else that a run would replace.
        """
        self.path: Path = Path(path)
        with self._writing():
            claim_folder(self.path, "run", _REPLACED, _is_earlier_run, _OPENED)
            # A singleton per folder: a second run in the same process, as in a notebook, may use the folder too.
            self._lock = FileLock(self.path.resolve() / ".lock", timeout=0, thread_local=False, is_singleton=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            if self.log.exists():
                self.log.open("a").close()

    def lock(self) -> None:
        """Lock the folder while the run uses it.  Other processes cannot run in a locked folder.

        Each call needs one call of :meth:`unlock`; a folder that is garbage-collected unlocks itself.

        Raises:
            UserError: if another process has locked it.
        """
        with self._writing():
            try:
                self._lock.acquire()
            except Timeout:
                raise UserError(f"output_dir: another run is using {self.path}; choose another folder") from None
        self._locks += 1

    def unlock(self) -> None:
        """Undo one :meth:`lock`."""
        self._locks -= 1
        self._lock.release()

    def __del__(self) -> None:
        while self._locks:  # of a run that was built but not trained
            self.unlock()

    def start(self, config: Mapping[str, Any]) -> None:
        """Remove the files of an earlier run and write the effective configuration.

        Args:
            config: all keys; see :func:`plain` for values such as a device.
        """
        if (self.path / "result.json").exists():
            getLogger().warning("output_dir: %s holds a finished run, which this one replaces", self.path)
        with self._writing():
            for file in (self.model, self.recbole_checkpoint):
                file.unlink(missing_ok=True)
            for folder in (self.checkpoints, self.path / "tensorboard"):
                shutil.rmtree(folder, ignore_errors=True)
        self.resume(config, ())

    def resume(self, config: Mapping[str, Any], epochs: Iterable[Mapping[str, Any]]) -> None:
        """Like :meth:`start` for a run that resumes after ``epochs``: removes only what came after them."""
        text = yaml.safe_dump(plain(config), allow_unicode=True, sort_keys=True)
        lines = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
        with self._writing():
            for name in ("result.json", "curves.png"):
                (self.path / name).unlink(missing_ok=True)
            write_atomically(self.path / "config.yaml", lambda file: file.write_text(text, encoding="utf-8"))
            write_atomically(self.path / "metrics.jsonl", lambda file: file.write_text(lines, encoding="utf-8"))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"output_dir: {self.path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def fresh(cls, dataset: str, model: str) -> RunFolder:
        """A new folder below ``runs/``, named after the data set, the model and the time."""
        stem = f"{dataset}-{model}-{datetime.now():%Y%m%d-%H%M%S}"
        for number in count(1):
            path = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                continue
            except OSError:
                break  # the constructor reports it
        return cls(path)

    @classmethod
    def temporary(cls) -> RunFolder:
        """A folder that is removed with the object, for a run that nobody keeps: of a rank other than 0, which writes
        nothing, or of :func:`recbole_onebp.fit`."""
        holder = TemporaryFolder()
        folder = cls(holder.path)
        folder._holder = holder
        return folder

    @property
    def is_temporary(self) -> bool:
        """Whether the folder goes with the object."""
        return self._holder is not None

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def checkpoints(self) -> Path:
        return checkpoints_of(self.path)

    @property
    def recbole_checkpoint(self) -> Path:
        return self.path / "checkpoint.pth"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    def write_result(self, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=2) + "\n"
        with self._writing():
            write_atomically(self.path / "result.json", lambda file: file.write_text(text, encoding="utf-8"))

    def add_epoch(self, values: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``; the file can be read while the run trains."""
        with self._writing(), open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def draw_curves(self, epochs: Iterable[Mapping[str, Any]], valid_metric: str, title: str) -> None:
        """Draw the train loss and the validation metric over the epochs, unless the folder is temporary."""
        if self.is_temporary:
            return
        # Imported here, because matplotlib is slow to import and a run that fails early does not need it.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        epochs, key = list(epochs), valid_metric.lower()
        losses = [(e["epoch"], e["train_loss"]) for e in epochs if e["train_loss"] is not None]
        scores = [(e["epoch"], e["valid"][key]) for e in epochs if key in e["valid"]]
        panels = [("train loss, summed over steps", losses), (f"validation {key}", scores)]
        panels = [(label, points) for label, points in panels if points]
        if not panels:
            return
        figure = Figure(figsize=(4.8 * len(panels), 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title)
        for number, (label, points) in enumerate(panels, start=1):
            axes = figure.add_subplot(1, len(panels), number)
            axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3)
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        with self._writing():
            write_atomically(self.path / "curves.png", lambda file: figure.savefig(file, dpi=150, format="png"))


def plain(value: Any) -> Any:
    """``value`` with only types that YAML and JSON have; others, such as a device or an enum, become their names."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
