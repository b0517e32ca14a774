"""Epochs of the authors' code (studentcej/OneBP), in a process of its own, on the pairs of the caller."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_onebp.util.errors import UserError

MODULES = ("main", "model", "data", "parse", "evaluation", "cuda")
_theirs: dict[str, Any] = {}  # in the process: the authors' module `main`, and the numbers of the epochs


class ReferenceCode(ProcessPoolExecutor):
    """The process. ``with ReferenceCode(...) as reference: seconds, loss = reference.epoch()``.

    ``clone`` is the folder with the authors' code, ``pairs`` are users and items from 0, shape ``(n, 2)``, and
    ``settings`` the authors' flags without dashes, ``{"lr": 5e-4, ...}``. Refuses a folder without the code.
    """

    def __init__(
        self, clone: Path, pairs: NDArray[np.int64], n_users: int, n_items: int, settings: Mapping[str, object],
        device: str = "cpu",
    ) -> None:  # fmt: skip
        missing = [name for name in MODULES if not (clone / f"{name}.py").is_file()]
        if missing:
            raise UserError(f"--reference {clone}: no {missing[0]}.py there; a clone of studentcej/OneBP is needed")
        self._scratch = tempfile.TemporaryDirectory()  # the authors' code makes a folder where it runs
        flags = [flag for key, value in settings.items() for flag in (f"--{key}", str(value))]
        arguments = str(clone.resolve()), self._scratch.name, device, pairs.tolist(), n_users, n_items, flags
        super().__init__(1, get_context("spawn"), _start, arguments)

    def epoch(self) -> tuple[float, float]:
        """Train an epoch; its seconds and its mean loss."""
        return self.submit(_epoch).result()


def _start(
    clone: str, folder: str, device: str, pairs: list[list[int]], n_users: int, n_items: int, flags: list[str]
) -> None:
    import torch

    os.chdir(folder)
    if device == "cpu":
        torch.cuda.is_available = lambda: False
    sys.path.insert(0, clone)
    for name in MODULES:
        sys.modules.pop(name, None)  # torch imports NVIDIA's package cuda, if there is one
    sys.argv = ["main.py", *flags]
    warnings.simplefilter("ignore")  # pin_memory without a GPU
    main: Any = __import__("main")
    os.environ.pop("CUDA_LAUNCH_BLOCKING")  # set by main.py; it would wait for every kernel and slow their code down
    main.arg = main.parse_args()
    main.init_seed(2022)
    main.num_users, main.num_items = n_users, n_items
    data = main.Data(pairs, main.arg, n_users, n_items)
    loader = {"batch_size": main.arg.batch_size, "num_workers": main.arg.num_workers, "collate_fn": data.collate_fn}
    main.train_loader = main.DataLoader(data, shuffle=True, drop_last=True, pin_memory=True, **loader)
    main.model, main.optimizer, main.scheduler, _ = main.model_init()
    _theirs.update(main=main, epochs=count())


def _epoch() -> tuple[float, float]:
    main = _theirs["main"]
    main.f = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        start = perf_counter()
        main.model_train(next(_theirs["epochs"]))
        seconds = perf_counter() - start
    loss = re.search(r"Loss:\s*([\d.]+|nan|inf)", main.f.getvalue())
    return seconds, float(loss[1]) if loss else float("nan")
