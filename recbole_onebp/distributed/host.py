"""What the processes of one host share: memory, and a place to wait for one another that costs a microsecond.

A collective operation over the loopback device takes some hundred microseconds, a step about a thousand.
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
"""Looks before the processor is left to others: some hundred microseconds."""
_LINE = 8
"""Numbers in a cache line."""
_CHECK_SECONDS = 0.1


class Host:
    """Memory that the ranks of a host share; made by all ranks at once.

    With one rank a host all of it is that rank's own, and nobody waits.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._made, self._round = ranks, 0, 0
        self._token = ranks.broadcast_int(int.from_bytes(os.urandom(7), "big"))
        self._arrivals = self.tensor((ranks.local_world_size, _LINE), torch.long).numpy()
        pids = torch.cat(ranks.gather(torch.tensor([os.getpid()])))
        first = ranks.host * ranks.local_world_size
        here = pids[first : first + ranks.local_world_size].tolist() if ranks.local_world_size > 1 else []
        self._others = [psutil.Process(pid) for pid in here if pid != os.getpid()]

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Zeros that every rank of the host reads and writes; all ranks call it.

        The memory is that of a file without a name, so that it goes with the processes, however they end.

        Raises:
            UserError: if there is no room for it.
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
        """Until all ranks of the host are here.

        Raises:
            LostRankError: if one has ended, or does not come in time.
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
    """Where a file lies in memory, if the system has such a place."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def _make(path: Path, size: int) -> None:
    with open(path, "xb") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a file with holes would end the process that fills them, not raise
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            path.unlink()
            raise UserError(
                f"{path.parent}: no room for {size / 2**20:.0f} MiB that processes share: {error.strerror}; make it "
                "larger (docker: --shm-size), or start one process a host"
            ) from None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@intrinsic
def _fence(_context):  # type: ignore[no-untyped-def]
    """All that this thread has written is seen before what it writes next, and nothing is read early."""

    def build(context, builder, _signature, _arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), build


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _arrive(arrivals: Any, rank: int, number: int, looks: int) -> bool:
    """Say that this rank has arrived, and look so often whether all have."""
    _fence()
    arrivals[rank, 0] = number
    for _ in range(looks):
        _fence()
        there = np.int64(0)
        for other in range(len(arrivals)):
            there += arrivals[other, 0] >= number
        if there == len(arrivals):
            _fence()
            return True
    return False
