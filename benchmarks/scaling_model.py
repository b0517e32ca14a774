"""Memory, traffic and time of a training run that is larger than any machine here: arithmetic on measured constants.

``docs/scaling.md`` says what each line stands for; ``render.py`` writes the tables there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

FLOAT = INT = 4
LONG = 8
"""Bytes."""
ROWS = (40_000, 4_000_000)
"""Of the tables that Adam's step is timed on: with moments 31 MB, which a cache may hold, and 3 GB."""


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
    bandwidth: float = 200e9
    """Of a host's memory, bytes a second."""
    link: float = 25e9
    """Bits a second, each way."""
    latency: float = 50e-6
    """Seconds of an exchange, before its bytes."""


@dataclass(frozen=True)
class Constants:
    """Seconds on one core, from ``benchmarks/scaling.py``, with tables that no cache holds."""

    row_of_dense_adam: float
    """Row after row."""
    pair: float
    """With 5 negatives, under ``sparse_adam`` and in the cache: sampling, scores, touched item rows, the user moved."""
    items_share: float
    """Of a pair's seconds, those of the touched item rows."""
    far_row: float
    """What a row here and there and its moments take longer out of the cache."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Constants:
        """From a results file."""
        median = {row["title"]: row["median"] for row in result["rows"].values() if "median" in row}

        def nanoseconds(order: str, n_rows: int) -> float:
            return float(median[f"Adam's step on a row {order}, table of {n_rows:,} rows, ns"])

        near, far = (nanoseconds("at random", n_rows) for n_rows in ROWS)
        return cls(
            nanoseconds("in order", ROWS[1]) / 1e9,
            median["sparse_adam: a pair with 5 negatives, ns"] / 1e9,
            median["of that the items' gradients and steps, part"],
            max(0.0, far - near) / 1e9,
        )


def memory(world: World, hosts: int) -> dict[str, float]:
    """Bytes a host, one rank a host."""
    w, own = world, world.pairs / hosts
    return {
        "user rows": w.users * w.dimension * FLOAT / hosts,
        "own pairs, and what the sampler knows of them": own * (4 * INT + LONG) + w.users / hosts * 2 * LONG,
        "order of all pairs": w.pairs * 2 * LONG,
        "items and Adam's moments": 3 * w.items * w.dimension * FLOAT,
    }


def traffic(world: World, hosts: int) -> dict[str, float]:
    """Bytes that a host receives for each pair of a step, all hosts' pairs counted."""
    w, others, row = world, (hosts - 1) / hosts, world.dimension * FLOAT
    scores = 1 + w.negatives
    return {
        "encodings, coefficients and ids": others * (row + 2 * scores * FLOAT),
        "rows of sharded items, fetched, and their gradients": others / hosts * 2 * scores * (row + INT),
        "dense all-reduce of gradients": 2 * others * w.items * row / w.pairs_a_step,
    }


def epoch_seconds(world: World, hosts: int, constants: Constants) -> dict[str, float]:
    """Seconds of one epoch, by what bounds it: each alone, since a step may overlap them at best."""
    w, c, steps, sent = world, constants, world.pairs / world.pairs_a_step, traffic(world, hosts)
    scores, row = 1 + w.negatives, world.dimension * FLOAT

    def on_host(seconds: float, n_bytes: float) -> float:
        return max(seconds / w.cores, n_bytes / w.bandwidth)

    def on_link(bytes_a_pair: float, exchanges: int) -> float:
        return w.pairs * bytes_a_pair * 8 / w.link + (exchanges * steps * w.latency if hosts > 1 else 0)

    # A row stepped is read and written with its two moments. A row scored is read, a third of the tables at the most.
    items = w.pairs * (c.pair * c.items_share + scores * c.far_row), w.pairs * scores * 6 * row
    own = w.pairs / hosts
    scored = own * (c.pair * (1 - c.items_share) + (1 + scores) * c.far_row / 3), own * (1 + scores) * row
    return {
        "item rows of all pairs, on each host": on_host(*items),
        "item rows, shared out": on_host(*(value / hosts for value in items)),
        "scores of its own pairs": on_host(*scored),
        "link, encodings and coefficients": on_link(sent["encodings, coefficients and ids"], 1),
        "link, sharded items": on_link(sent["rows of sharded items, fetched, and their gradients"], 2),
        "dense Adam over all items": on_host(steps * w.items * c.row_of_dense_adam, steps * w.items * 6 * row),
    }


def sharding_pays(world: World) -> int:
    """The number of hosts from which on sharded items are the lesser traffic."""

    def pays(hosts: int) -> bool:
        gathered, sharded, _ = traffic(world, hosts).values()
        return sharded < gathered

    return next(hosts for hosts in count(2) if pays(hosts))


HOSTS = (1, 4, 16, 64, 256)


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: memory, traffic and time for several numbers of hosts."""
    world, constants = World(), Constants.of(result)
    a_pair = traffic(world, 2)["encodings, coefficients and ids"] * 2  # of two hosts' pairs, one half is another's
    head = [f"| hosts | {' | '.join(map(str, HOSTS))} |", f"|---|{'---|' * len(HOSTS)}"]

    def table(of_hosts: list[dict[str, float]], unit: float, form: str) -> list[str]:
        rows = [[name, *(format(values[name] / unit, form) for values in of_hosts)] for name in of_hosts[0]]
        return [*head, *(f"| {' | '.join(row)} |" for row in rows)]

    return "\n".join(
        [
            f"Constants, one core of {result['machine']['cpu']}: {constants.pair * 1e9:,.0f} ns a pair, of which "
            f"{constants.items_share:.0%} for the items' rows; {constants.far_row * 1e9:,.0f} ns more for each row "
            f"here and there that no cache holds; {constants.row_of_dense_adam * 1e9:,.0f} ns a row of dense Adam.",
            "",
            f"Each pair of the other hosts brings a host {a_pair:.0f} bytes, so that a link of {world.link / 1e9:.0f} "
            f"Gbit/s brings {world.link / 8 / a_pair / 1e6:.1f} million pairs a second at the most. Sharded items send "
            f"less from {sharding_pays(world)} hosts on.",
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
