"""Memory, traffic and time of a training run that is larger than any machine here: arithmetic on measured constants.

``docs/scaling.md`` says what each line stands for; ``render.py`` writes the tables there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FLOAT = INT = 4
"""Bytes."""


@dataclass(frozen=True)
class World:
    """A data set, and what trains on it."""

    users: float = 1e9
    items: float = 1e8
    pairs: float = 1e11
    dimension: int = 64
    negatives: int = 5
    pairs_a_step: float = 1e6
    cores: int = 64
    """A host."""
    link: float = 25e9
    """Bits a second, each way."""
    latency: float = 50e-6
    """Seconds of an exchange, before its bytes."""


@dataclass(frozen=True)
class Constants:
    """Seconds on one core, from ``benchmarks/scaling.py``."""

    row_of_dense_adam: float
    pair: float
    """With 5 negatives, under ``sparse_adam``: sampling, scores, touched item rows, the user moved."""

    @classmethod
    def of(cls, result: Mapping[str, Any], items: float) -> Constants:
        """From a results file of a data set with so many items."""
        median = {row["title"]: row["median"] for row in result["rows"].values() if "median" in row}
        dense = (median["adam: a step, us"] - median["sparse_adam: a step, us"]) / 1e6 / items
        return cls(dense, median["sparse_adam: a pair with 5 negatives, ns"] / 1e9)


def memory(world: World, hosts: int) -> dict[str, float]:
    """Bytes a host, one rank a host."""
    w, own = world, world.pairs / hosts
    return {
        "user rows": w.users * w.dimension * FLOAT / hosts,
        "own pairs, and what the sampler knows of them": own * 5 * INT + w.users / hosts * 16,
        "order of all pairs": w.pairs * 2 * INT,
        "items and Adam's moments": 3 * w.items * w.dimension * FLOAT,
    }


def traffic(world: World, hosts: int) -> dict[str, float]:
    """Bytes that a host receives for each pair of a step, all hosts' pairs counted."""
    w, others, row = world, (hosts - 1) / hosts, world.dimension * FLOAT
    scores = 1 + w.negatives
    return {
        "encodings, coefficients and ids": others * (row + 2 * scores * FLOAT + INT),
        "rows of sharded items, fetched, and their gradients": others / hosts * 2 * scores * (row + INT),
        "dense all-reduce of gradients": 2 * others * w.items * row / w.pairs_a_step,
    }


def epoch_seconds(world: World, hosts: int, constants: Constants) -> dict[str, float]:
    """Seconds of one epoch, by what bounds it: each alone, since a step may overlap them at best."""
    w, steps, sent = world, world.pairs / world.pairs_a_step, traffic(world, hosts)
    # Of a pair's work one part in 1 + N + 1 rows is the user's; the touched item rows of all pairs are each host's.
    user_side = constants.pair / (2 + w.negatives)
    return {
        "item rows of all pairs, on each host": w.pairs * (constants.pair - user_side) / w.cores,
        "scores of its own pairs": w.pairs * user_side / w.cores / hosts,
        "link, encodings and coefficients": w.pairs * sent["encodings, coefficients and ids"] * 8 / w.link
        + (steps * w.latency if hosts > 1 else 0),
        "link, sharded items": w.pairs * sent["rows of sharded items, fetched, and their gradients"] * 8 / w.link
        + (2 * steps * w.latency if hosts > 1 else 0),
        "dense Adam over all items": steps * w.items * constants.row_of_dense_adam / w.cores,
    }


GOWALLA_ITEMS = 40_981
HOSTS = (1, 4, 16, 64, 256)


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: memory, traffic and time for several numbers of hosts."""
    world, constants = World(), Constants.of(result, GOWALLA_ITEMS)
    head = [f"| hosts | {' | '.join(map(str, HOSTS))} |", f"|---|{'---|' * len(HOSTS)}"]

    def table(of_hosts: list[dict[str, float]], unit: float, form: str) -> list[str]:
        rows = [[name, *(format(values[name] / unit, form) for values in of_hosts)] for name in of_hosts[0]]
        return [*head, *(f"| {' | '.join(row)} |" for row in rows)]

    return "\n".join(
        [
            f"Constants: {constants.row_of_dense_adam * 1e9:.3g} ns a row of dense Adam, {constants.pair * 1e9:.3g} ns "
            f"a pair, one core of {result['machine']['cpu']}.",
            "",
            "Memory a host, GB:",
            "",
            *table([memory(world, hosts) for hosts in HOSTS], 1e9, ",.1f"),
            "",
            "Received by a host for each pair, bytes:",
            "",
            *table([traffic(world, hosts) for hosts in HOSTS], 1, ",.0f"),
            "",
            "Hours an epoch, each alone:",
            "",
            *table([epoch_seconds(world, hosts, constants) for hosts in HOSTS], 3600, ",.2f"),
        ]
    )
