"""Several processes of one command on this host, as RecBole's ``--nproc``, ``--world_size``, ``--ip``, ... ask for."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence

from torch.multiprocessing.spawn import ProcessExitedException, spawn
from tqdm import tqdm

from recbole_onebp.util.errors import LostRankError

__all__ = ["free_port", "launch"]


def launch(
    main: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    nproc: int,
    world_size: int,
    group_offset: int,
    ip: str,
    port: int | None,
) -> int:
    """Run a command in several processes, and end all of them when one ends badly.

    Args:
        main: what each process runs; returns an exit code.
        arguments: of it.
        nproc: processes on this host.
        world_size: processes on all hosts.
        group_offset: the rank of this host's first process.
        ip: of the host of rank 0.
        port: of the same; on one host a free one if None.

    Returns:
        0, or the exit code of the first process that failed.

    Raises:
        LostRankError: if one was ended from outside.
    """
    port = free_port() if port is None else port
    environment = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": nproc, "MASTER_ADDR": ip, "MASTER_PORT": port}
    if "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = max(1, (os.cpu_count() or 1) // nproc)
    try:
        spawn(_run, (main, list(arguments), environment, group_offset), nprocs=nproc)  # type: ignore[no-untyped-call]
    except ProcessExitedException as error:
        if error.exit_code < 0:
            raise LostRankError(
                f"rank {group_offset + error.error_index} of {world_size} was ended by {error.signal_name}, and the "
                "others with it; the last checkpoint is intact"
            ) from None
        return error.exit_code
    return 0


def _run(
    number: int, main: Callable[[Sequence[str]], int], arguments: list[str], environment: dict[str, int], offset: int
) -> None:
    os.environ.update({key: str(value) for key, value in environment.items()})
    os.environ.update(RANK=str(offset + number), LOCAL_RANK=str(number))
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which is told as leaked when this process is killed
    sys.exit(main(arguments))


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
