"""Epochs of the authors' code (studentcej/OneBP), in a process of its own that trains one whenever it is asked to.

The code is used as it is in the clone: its arguments, data set, loader, model and epoch function. Only the pairs come
from the caller, so that both sides train on the same ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from measure import claim
from numpy.typing import NDArray

from recbole_onebp.util.errors import UserError

MODULES = ("main", "model", "data", "parse", "evaluation", "cuda")


class ReferenceCode:
    """The process. ``with ReferenceCode(...) as reference: seconds, loss = reference.epoch()``."""

    def __init__(
        self,
        clone: Path,
        pairs: NDArray[np.int64],
        n_users: int,
        n_items: int,
        settings: Mapping[str, object],
        device: str = "cpu",
    ) -> None:
        """Start the process.

        Args:
            clone: folder with the authors' code.
            pairs: users and items from 0, shape ``(n, 2)``.
            n_users: size of the user table.
            n_items: size of the item table.
            settings: the authors' flags without dashes, ``{"lr": 5e-4, ...}``.
            device: ``cpu`` or ``cuda``.

        Raises:
            UserError: if the folder does not hold the code.
        """
        missing = [name for name in MODULES if not (clone / f"{name}.py").is_file()]
        if missing:
            raise UserError(f"--reference {clone}: no {missing[0]}.py there; a clone of studentcej/OneBP is needed")
        self._scratch = tempfile.TemporaryDirectory()  # the authors' code makes a folder where it runs
        np.save(Path(self._scratch.name) / "pairs.npy", pairs)
        flags = [flag for key, value in settings.items() for flag in (f"--{key}", str(value))]
        arguments = [str(clone.resolve()), device, str(n_users), str(n_items), *flags]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            cwd=self._scratch.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def epoch(self) -> tuple[float, float]:
        """Train an epoch; its seconds and its mean loss."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("epoch\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        claim(bool(answer), "the authors' code ended with an error, see above")
        result = json.loads(answer)
        return result["seconds"], result["loss"]

    def __enter__(self) -> ReferenceCode:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._scratch.cleanup()


def serve(clone: str, device: str, n_users: int, n_items: int, flags: list[str]) -> None:
    """Answer every line of stdin with the seconds and the loss of an epoch."""
    import torch

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
    data = main.Data(np.load("pairs.npy").tolist(), main.arg, n_users, n_items)
    loader = {"batch_size": main.arg.batch_size, "num_workers": main.arg.num_workers, "collate_fn": data.collate_fn}
    main.train_loader = main.DataLoader(data, shuffle=True, drop_last=True, pin_memory=True, **loader)
    main.model, main.optimizer, main.scheduler, _ = main.model_init()
    for epoch, _ in enumerate(sys.stdin):
        main.f = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            start = perf_counter()
            main.model_train(epoch)
            seconds = perf_counter() - start
        loss = re.search(r"Loss:\s*([\d.]+|nan|inf)", main.f.getvalue())
        print(json.dumps({"seconds": seconds, "loss": float(loss[1]) if loss else None}), flush=True)


if __name__ == "__main__":
    _clone, _device, _n_users, _n_items, *_flags = sys.argv[1:]
    serve(_clone, _device, int(_n_users), int(_n_items), _flags)
