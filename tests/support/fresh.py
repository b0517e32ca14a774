"""Python processes without our package and RecBole, started by a fork of one that has loaded the heavy libraries.

Importing torch, scikit-learn and pandas takes most of a new process's time. Tests that do not measure the import itself
share one such process (multiprocessing's fork server).
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from subprocess import CompletedProcess

START_METHOD = "forkserver"
# None of them imports RecBole, ray or distutils, whose absence tests check.  torch imports _dynamo with the first
# step of an optimizer.
_LARGE = ["torch", "torch._dynamo", "pandas", "scipy.stats", "sklearn.metrics", "numba", "matplotlib.figure"]
multiprocessing.set_forkserver_preload(_LARGE)


def python(code: str) -> CompletedProcess[str]:
    """What ``subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)`` returns, but sooner."""
    with tempfile.TemporaryDirectory() as folder:
        process = Started(code, Path(folder))
        process.join()
        return CompletedProcess([code], process.exitcode or 0, process.out.read_text(), process.err.read_text())


class Started(multiprocessing.get_context(START_METHOD).Process):  # type: ignore[misc]
    """A started process whose output goes to two files in ``folder``."""

    def __init__(self, code: str, folder: Path) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        super().__init__(target=_execute, args=(code, self.out, self.err))
        self.start()


def check(code: str) -> None:
    """Run code that must not fail."""
    done = python(code)
    assert done.returncode == 0, done.stderr


def _execute(code: str, out: Path, err: Path) -> None:
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        with path.open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["-c"]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
