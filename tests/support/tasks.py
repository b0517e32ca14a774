"""What the runner's tests have processes do; imports nothing heavy, since each process imports it anew."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path


def succeed(folder: Path, value: int) -> None:
    (folder / "outcome.json").write_text(json.dumps({"status": "done", "value": value, "pid": os.getpid()}))


def threads(folder: Path) -> None:
    (folder / "outcome.json").write_text(json.dumps({"status": "done", "threads": os.environ.get("OMP_NUM_THREADS")}))


def crash(_folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(_folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_folder: Path) -> None:
    os._exit(3)


def sleep(_folder: Path) -> None:
    time.sleep(600)
