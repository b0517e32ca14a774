"""The processes of a run and their collective operations, on torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from recbole_onebp.config.schema import default_of
from recbole_onebp.distributed import MEETING_FILE
from recbole_onebp.util.errors import LostRankError, UserError

__all__ = ["DEFAULT_TIMEOUT", "Ranks", "current", "join", "launched_rank", "leave"]

DEFAULT_TIMEOUT: float = default_of("dist_timeout")
"""Seconds."""


@dataclass(frozen=True)
class Ranks:
    """Position of this process among the processes of its run; the default is a run in one process.

    In a run of several processes, all ranks must call the same methods in the same order.  In a run of one process
    every method returns its argument.
    """

    rank: int = 0
    world_size: int = 1
    """Number of processes."""
    local_rank: int = 0
    local_world_size: int = 1
    """Number of processes on each host."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds after which a process that does not answer counts as lost.  One that has ended is noticed at once."""

    @property
    def is_distributed(self) -> bool:
        return self.world_size > 1

    @property
    def host(self) -> int:
        return self.rank // self.local_world_size

    @property
    def n_hosts(self) -> int:
        return self.world_size // self.local_world_size

    def lost_rank_error(self, reason: object) -> LostRankError:
        """The error to raise when another process is lost."""
        detail = " ".join(str(reason).split())
        return LostRankError(
            f"rank {self.rank} of {self.world_size}: another process has ended or has not answered for "
            f"{self.timeout:g} s; the last checkpoint is intact ({detail[:200]})"
        )

    @contextmanager
    def collective(self) -> Iterator[None]:
        """Raise :class:`LostRankError` when a collective operation of torch.distributed fails."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost_rank_error(error) from error

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.all_reduce(torch.zeros(1))

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.is_distributed:
            with self.collective():
                dist.all_reduce(value)
        return value

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """Weighted mean over all ranks."""
        if not self.is_distributed:
            return value
        sums = self.all_reduce(
            torch.cat([value.reshape(-1).double() * weight, torch.tensor([weight]).to(value).double()])
        )
        return (sums[:-1] / sums[-1]).reshape(value.shape).to(value.dtype)

    def broadcast_int(self, number: int) -> int:
        """Rank 0's number."""
        return int(self.broadcast(torch.tensor([int(number)])))

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text."""
        code = torch.tensor(list(text.encode()), dtype=torch.uint8)
        size = self.broadcast_int(len(code))
        return bytes(self.broadcast(code if self.rank == 0 else code.new_zeros(size)).tolist()).decode()

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's tensor, written over this rank's, which has its shape and type."""
        if self.is_distributed:
            with self.collective():
                dist.broadcast(value, src=0)
        return value

    def gather(self, rows: Tensor, everywhere: bool = True) -> list[Tensor]:
        """The rows of every rank, in order of rank.

        Args:
            rows: rows of this rank, ``(n, ...)``.  n may differ between ranks; the other dimensions and the type
                must not.
            everywhere: return the rows on all ranks; otherwise on rank 0 only, and an empty list on the others.
        """
        if not self.is_distributed:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.world_size)]
        with self.collective():
            dist.all_gather(counts, torch.tensor([len(rows)]))
            most = int(torch.stack(counts).max())
            padded = rows.new_zeros((most, *rows.shape[1:]))
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in range(self.world_size if everywhere or self.rank == 0 else 0)]
            if everywhere:
                dist.all_gather(parts, padded)
            else:
                dist.gather(padded, parts or None, dst=0)
        if not parts:
            return []
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]

    def group_across_hosts(self) -> Any:
        """A new process group of the ranks with this local rank, one on each host; None on a single host."""
        if self.n_hosts == 1:
            return None
        if self.local_world_size == 1:
            return dist.group.WORLD
        firsts = range(self.local_world_size)
        with self.collective():
            return [dist.new_group(range(first, self.world_size, len(firsts))) for first in firsts][self.local_rank]


def current() -> Ranks:
    """The ranks of this process's run; those of a single process before :func:`join` and after :func:`leave`.

    The state is torch.distributed's, and the environment that ``torchrun`` sets.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    store: Any = dist.distributed_c10d._get_default_store()  # older versions of torch have no public accessor
    timeout = store.timeout.total_seconds()
    return _of_environment(dist.get_rank(), dist.get_world_size(), timeout)


def _of_environment(rank: int, world_size: int, timeout: float) -> Ranks:
    local_rank, local_world_size = (
        int(os.environ.get(f"LOCAL_{name}", n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    return Ranks(rank, world_size, local_rank, local_world_size, timeout)


def launched_rank() -> int | None:
    """The rank that ``torchrun`` or ``--nproc`` gave this process; None in a run of one process."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ["RANK"]) if world_size > 1 and "RANK" in os.environ else None


def join(gpu: bool, timeout: float = DEFAULT_TIMEOUT) -> Ranks:
    """Join the other processes, if this one was started as one of several and has not joined yet.

    The environment is ``torchrun``'s: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT; or a
    file in place of the last two.

    Args:
        gpu: tensors lie on CUDA devices, one per process.  NCCL then carries those tensors and gloo all others.
        timeout: see :class:`Ranks`.

    Raises:
        UserError: if hosts have different numbers of processes.
        LostRankError: if a process does not join in time.
    """
    rank = launched_rank()
    if rank is None or current().is_distributed:
        return current()
    ranks = _of_environment(rank, int(os.environ["WORLD_SIZE"]), timeout)
    size = ranks.local_world_size
    with ranks.collective():
        backend, limit = "cpu:gloo,cuda:nccl" if gpu else "gloo", timedelta(seconds=timeout)
        if meeting := os.environ.get(MEETING_FILE):
            dist.init_process_group(backend, f"file://{meeting}", limit, ranks.world_size, rank)
        else:
            dist.init_process_group(backend, timeout=limit)
        found = torch.stack(ranks.gather(torch.tensor([size, ranks.local_rank]))).tolist()
    if found != [[size, other % size] for other in range(ranks.world_size)]:
        raise UserError("nproc: every host needs the same number of processes, and ranks must count up host by host")
    return ranks


def leave() -> None:
    """Leave the other processes at the end of a run."""
    ranks = current()
    if ranks.is_distributed:
        ranks.barrier()
        dist.destroy_process_group()
