"""Several processes of one command on this host: RecBole's ``--nproc``, ``--world_size``, ``--ip``, ..."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tqdm import tqdm

from recbole_onebp.distributed import MEETING_FILE
from recbole_onebp.util.errors import LostRankError
from recbole_onebp.util.processes import Call, Ending, supervise, thread_limits

__all__ = ["free_port", "launch"]

_LOOPBACK = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo0" if sys.platform == "darwin" else "lo")
"""The network interface of gloo and NCCL for processes of one host."""


def launch(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    nproc: int,
    world_size: int,
    group_offset: int,
    ip: str,
    port: int,
) -> int:
    """Run a command in several processes, and stop all of them when one fails.

    Args:
        main: the command; returns an exit code.
        arguments: its arguments.
        nproc: number of processes on this host.
        world_size: number of processes on all hosts.
        group_offset: rank of this host's first process.
        ip: address of the host of rank 0.
        port: a port of that host.  Processes of a single host need neither: they meet in a file, see
            :data:`~recbole_onebp.distributed.MEETING_FILE`, and listen on the loopback interface alone.

    Returns:
        0, or the exit code of the first process that failed.

    Raises:
        LostRankError: if a process was killed.
    """
    shared = {**thread_limits(nproc), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(nproc)}

    def done(call: Call, ending: Ending) -> None:
        if ending.exit_code < 0:
            raise LostRankError(
                f"{call.name} of {world_size} {ending}; the other processes were stopped; the last checkpoint is intact"
            )
        if not ending.ok:
            raise _FailedError(ending.exit_code)

    with TemporaryDirectory(prefix="recbole-onebp-", ignore_cleanup_errors=True) as folder:  # of mode 700
        if nproc == world_size:
            shared |= {MEETING_FILE: str(Path(folder) / "ranks"), **_LOOPBACK}
        else:
            shared |= {"MASTER_ADDR": ip, "MASTER_PORT": str(port)}
        calls = [
            Call(
                f"rank {group_offset + number}",
                _run,
                (main, list(arguments)),
                {**shared, "RANK": str(group_offset + number), "LOCAL_RANK": str(number)},
            )
            for number in range(nproc)
        ]
        try:
            supervise(calls, nproc, done)
        except _FailedError as failed:
            return failed.exit_code
    return 0


class _FailedError(Exception):
    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


def _run(main: Callable[[Sequence[str]], int], arguments: list[str]) -> None:
    # tqdm's own lock is a semaphore, which Python reports as leaked when this process is killed.
    tqdm.set_lock(threading.RLock())
    sys.exit(main(arguments))


def free_port() -> int:
    """A port of this host that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
