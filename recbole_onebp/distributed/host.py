"""Shared memory and a fast barrier for the processes of one host.

The barrier takes about a microsecond.  A collective operation over the loopback device takes some hundred microseconds,
and a training step about a thousand.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from recbole_onebp.distributed.ranks import Ranks
from recbole_onebp.util.compiled import njit
from recbole_onebp.util.errors import UserError

__all__ = ["Host"]

_SPINS = 20_000
"""Checks in a busy loop before sleeping: some hundred microseconds."""
_LINE = 8
"""int64 numbers in a cache line: each rank has a line of its own, so that writes do not slow down the others."""
_CHECK_SECONDS = 0.1


class Host:
    """Shared memory of the ranks of a host.  All ranks create it at the same time.

    With one rank per host, the memory is ordinary memory and nothing waits.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._made, self._round = ranks, 0, 0
        self._token = ranks.broadcast_int(int.from_bytes(os.urandom(7), "big"))
        self._arrivals = self.tensor((ranks.local_world_size, _LINE), torch.long).numpy()
        pids = torch.cat(ranks.gather(torch.tensor([os.getpid()])))
        first = ranks.host * ranks.local_world_size
        local = pids[first : first + ranks.local_world_size].tolist() if ranks.local_world_size > 1 else []
        self._others = [psutil.Process(pid) for pid in local if pid != os.getpid()]

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros that every rank of the host can read and write; all ranks must call it.

        The memory belongs to a file that is unlinked at once, so the system frees it when the processes end.

        Raises:
            UserError: if there is not enough shared memory.
        """
        size = math.prod(shape)
        if self._ranks.local_world_size == 1 or size == 0:
            return torch.zeros(shape, dtype=dtype)
        self._made += 1
        path = _folder() / f"recbole-onebp-{self._token:x}-{self._ranks.host}-{self._made}"
        leader = self._ranks.local_rank == 0
        try:
            if leader:
                _make(path, size * dtype.itemsize)
            self._ranks.barrier()
            flat = torch.from_file(str(path), shared=True, size=size, dtype=dtype)
            self._ranks.barrier()
        finally:
            if leader:
                path.unlink(missing_ok=True)
        return flat.view(shape)

    def wait(self) -> None:
        """Wait until all ranks of the host have called this method.

        Raises:
            LostRankError: if a rank has ended or does not arrive in time.
        """
        if self._ranks.local_world_size == 1:
            return
        self._round += 1
        if _arrive(self._arrivals, self._ranks.local_rank, self._round, _SPINS):
            return
        start = checked = time.monotonic()
        while not _arrive(self._arrivals, self._ranks.local_rank, self._round, 1):
            time.sleep(5e-5)
            now = time.monotonic()
            if now - checked > _CHECK_SECONDS:
                checked = now
                gone = [other.pid for other in self._others if not _runs(other)]
                if gone or now - start > self._ranks.timeout:
                    raise self._ranks.lost_rank_error(
                        f"process {gone[0]} of this host has ended" if gone else "timed out"
                    )


def _folder() -> Path:
    """The folder for files in memory if the system has one, else that for temporary files."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def _make(path: Path, size: int) -> None:
    with open(path, "xb") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # in a file with holes, a full disk kills the writer by SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            path.unlink()
            raise UserError(
                f"{path.parent}: cannot allocate {size / 2**20:.0f} MiB of shared memory: {error.strerror}; make it "
                "larger (docker: --shm-size), or start one process per host"
            ) from None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@intrinsic
def _fence(_context):  # type: ignore[no-untyped-def]
    """A full memory fence: earlier reads and writes of this thread are completed before later ones."""

    def build(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _arrive(arrivals: Any, rank: int, number: int, checks: int) -> bool:
    """Mark this rank as arrived in barrier ``number``; return whether all ranks arrive within so many checks."""
    _fence()
    arrivals[rank, 0] = number
    for _ in range(checks):
        _fence()
        arrived = np.int64(0)
        for other in range(len(arrivals)):
            arrived += arrivals[other, 0] >= number
        if arrived == len(arrivals):
            _fence()
            return True
    return False
