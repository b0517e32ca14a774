"""Functions for the tests of child processes to call.

Imports nothing heavy: every child imports the module again.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_onebp.util.errors import UserError

if TYPE_CHECKING:
    from recbole_onebp.experiments.tune.search_spec import Budget, Search


def succeed(folder: Path, value: int) -> None:
    (folder / "outcome.json").write_text(json.dumps({"status": "done", "value": value, "pid": os.getpid()}))


def environment(folder: Path, names: list[str]) -> None:
    values = {name: os.environ.get(name) for name in names}
    (folder / "outcome.json").write_text(json.dumps({"status": "done", "values": values}))


def crash(_folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed(_folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(_folder: Path) -> None:
    os._exit(3)


def refuse(_folder: Path) -> None:
    raise UserError("the disk is full")


def sleep(folder: Path) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)


def await_file(path: Path) -> None:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)


def rank(arguments: Sequence[str]) -> int:
    """A rank's command: leaves its environment; rank 2 fails as asked, and rank 1 waits for that."""
    (what,) = arguments
    if what == "write":
        Path(f"{os.environ['RANK']}.json").write_text(json.dumps(dict(os.environ)))
    elif os.environ["RANK"] == "1":
        time.sleep(600)
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 if what == "refuse" else 0


def listen(arguments: Sequence[str]) -> int:
    """A rank's command: leaves the addresses other than loopback on which it listens."""
    import psutil

    from recbole_onebp.distributed.ranks import join, leave

    rank = join(gpu=False, timeout=60).rank
    process = psutil.Process()
    connections = getattr(process, "net_connections", None) or process.connections  # before psutil 6
    sockets = connections("inet")
    addresses = {some.laddr.ip for some in sockets if some.status == psutil.CONN_LISTEN}
    text = "" if addresses <= {"127.0.0.1", "::1"} else " ".join(sorted(addresses))
    (Path(arguments[0]) / f"{rank}").write_text(text)
    leave()
    return 0


def die_once(folder: Path, search: Search, budget: Budget) -> None:
    """A search's process that is killed during its first trial, and works when it is started again."""
    from recbole_onebp.experiments.tune import trials

    study = trials.open_study(folder, search, budget)
    if not study.trials:
        study.ask()
        os.kill(os.getpid(), signal.SIGKILL)
    trials.run_trials(study, folder, search, budget)


def die_always(_folder: Path, _search: Search, _budget: Budget) -> None:
    os._exit(3)
