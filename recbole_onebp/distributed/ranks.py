"""The processes of a run: who they are, and what they do together, on torch.distributed."""

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
from recbole_onebp.util.errors import LostRankError, UserError

__all__ = ["DEFAULT_TIMEOUT", "Ranks", "current", "join", "launched_rank", "leave"]

DEFAULT_TIMEOUT: float = default_of("dist_timeout")
"""Seconds."""


@dataclass(frozen=True)
class Ranks:
    """A process among those of its run.

    Every method but :meth:`mean` of a run in one process is called by all ranks, in the same order.
    """

    rank: int = 0
    world: int = 1
    """Processes in all."""
    local_rank: int = 0
    local_world: int = 1
    """Processes of this one's launcher: those of a host."""
    timeout: float = DEFAULT_TIMEOUT
    """Seconds until a process that does not answer counts as lost; one that has ended is noticed at once."""
    peers: Any = None
    """The group of the processes with this local rank, one a host; None for one host."""

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def host(self) -> int:
        return self.rank // self.local_world

    @property
    def n_hosts(self) -> int:
        return self.world // self.local_world

    def lost(self, reason: object) -> LostRankError:
        """The error for a process that has gone."""
        detail = " ".join(str(reason).split())
        return LostRankError(
            f"rank {self.rank} of {self.world}: another process has ended or has not answered for {self.timeout:g} s; "
            f"the last checkpoint is intact ({detail[:200]})"
        )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell a lost process from other errors of a collective operation."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost(error) from error

    def wait(self) -> None:
        """Until all ranks are here."""
        self.total(torch.zeros(1))

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if not self.alone:
            with self.together():
                dist.all_reduce(value)
        return value

    def mean(self, value: Tensor, weight: float) -> Tensor:
        """The mean of the ranks' values, by weight."""
        if self.alone:
            return value
        sums = self.total(torch.cat([value.reshape(-1).double() * weight, torch.tensor([weight]).to(value).double()]))
        return (sums[:-1] / sums[-1]).reshape(value.shape).to(value.dtype)

    def broadcast_int(self, number: int) -> int:
        """Rank 0's number."""
        said = torch.tensor([int(number)])
        if not self.alone:
            with self.together():
                dist.broadcast(said, src=0)
        return int(said)

    def broadcast_text(self, text: str) -> str:
        """Rank 0's text."""
        encoded = text.encode()
        said = torch.zeros(self.broadcast_int(len(encoded)), dtype=torch.uint8)
        if self.rank == 0:
            said = torch.tensor(list(encoded), dtype=torch.uint8)
        if not self.alone:
            with self.together():
                dist.broadcast(said, src=0)
        return bytes(said.tolist()).decode()

    def gather(self, rows: Tensor, everywhere: bool = True) -> list[Tensor]:
        """The rows of every rank, in their order.

        Args:
            rows: of this rank, ``(n, ...)``; n may differ from rank to rank, the rest and the type may not.
            everywhere: on all ranks; or on rank 0, and nothing on the others.
        """
        if self.alone:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(self.world)]
        with self.together():
            dist.all_gather(counts, torch.tensor([len(rows)]))
            most = int(torch.stack(counts).max())
            padded = rows.new_zeros((most, *rows.shape[1:]))
            padded[: len(rows)] = rows
            parts = [torch.empty_like(padded) for _ in range(self.world if everywhere or self.rank == 0 else 0)]
            if everywhere:
                dist.all_gather(parts, padded)
            else:
                dist.gather(padded, parts or None, dst=0)
        if not parts:
            return []
        return [part[: int(count)] for part, count in zip(parts, counts, strict=True)]


_current = Ranks()


def current() -> Ranks:
    """The ranks that this process has joined; alone, if it has not."""
    return _current


def launched_rank() -> int | None:
    """The rank that ``torchrun`` or ``--nproc`` gave this process; None in a run of one process."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    return int(os.environ["RANK"]) if world > 1 and "RANK" in os.environ else None


def join(gpu: bool, timeout: float = DEFAULT_TIMEOUT) -> Ranks:
    """Join the other processes, if this one was started as one of several.

    The environment is ``torchrun``'s: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Args:
        gpu: whether tensors lie on CUDA devices, one a process; NCCL then carries them, and gloo all others.
        timeout: see :class:`Ranks`.

    Raises:
        UserError: for hosts with different numbers of processes.
        LostRankError: if not all come.
    """
    global _current
    rank = launched_rank()
    if rank is None or not _current.alone:
        return _current
    world, here = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    ranks = Ranks(rank, world, int(os.environ.get("LOCAL_RANK", 0)), here, timeout)
    with ranks.together():
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout))
        sizes = [torch.zeros(2, dtype=torch.long) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([here, ranks.local_rank]))
        expected = [[here, other % here] for other in range(world)]
        if [size.tolist() for size in sizes] != expected:
            raise UserError(
                "nproc: every host needs the same number of processes, and ranks must count up host by host"
            )
        peers = None
        if 1 < here < world:
            columns = [dist.new_group(range(first, world, here)) for first in range(here)]
            peers = columns[ranks.local_rank]
        elif here == 1:
            peers = dist.group.WORLD
    _current = Ranks(rank, world, ranks.local_rank, here, timeout, peers)
    return _current


def leave() -> None:
    """Part from the others, at the end of a run."""
    global _current
    if not _current.alone:
        _current.wait()
        dist.destroy_process_group()
        _current = Ranks()
