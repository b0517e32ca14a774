"""Memory, traffic and time of a run that is too large for one machine: arithmetic with measured constants.

``docs/scaling.md`` explains each line; ``render.py`` writes the tables there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from measure import table

from recbole_onebp.engine.adam import MOST_MISSED

FLOAT = INT = 4
LONG = 8  # bytes
ROWS = (40_000, 4_000_000)
"""Of the tables on which Adam's step is timed: 31 MB with the moments, which may fit a cache, and 3 GB."""


@dataclass(frozen=True)
class World:
    """A data set, and the machines that train on it.

    A host has so many ``cores``, memory of so many bytes a second (``bandwidth``), and a ``link`` of so many bits a
    second each way, with a ``latency`` of so many seconds for each exchange.
    """

    users: float = 1e9
    items: float = 1e8
    pairs: float = 1e11
    dimension: int = 64
    negatives: int = 5
    pairs_a_step: float = 1e6
    cores: int = 64
    bandwidth: float = 200e9
    link: float = 25e9
    latency: float = 50e-6


@dataclass(frozen=True)
class Constants:
    """Seconds on one core, from ``benchmarks/scaling.py``.

    ``row_of_dense_adam`` is one row after the other in a table larger than any cache; ``pair`` has 5 negatives,
    ``sparse_adam``, everything in the cache, and spends ``items_share`` on the items' rows; ``far_row`` is added for a
    random row and its moments that are not in the cache.
    """

    row_of_dense_adam: float
    pair: float
    items_share: float
    far_row: float

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Constants:
        """From a result file."""
        median = {row["title"]: row["median"] for row in result["rows"].values() if "median" in row}
        in_order, near, far = (
            median[f"Adam's step on a row {order}, table of {n_rows:,} rows, ns"] / 1e9
            for order, n_rows in (("in order", ROWS[1]), ("at random", ROWS[0]), ("at random", ROWS[1]))
        )
        pair = median["sparse_adam: a pair with 5 negatives, ns"] / 1e9
        return cls(in_order, pair, median["of that the items' gradients and steps, part"], max(0.0, far - near))


def memory(world: World, hosts: int) -> dict[str, float]:
    """Bytes of a host, with one rank a host."""
    w, own = world, world.pairs / hosts
    return {
        "user rows": w.users * w.dimension * FLOAT / hosts,
        "own pairs and the sampler": own * (4 * INT + LONG) + w.users / hosts * 2 * LONG,
        "order of all pairs": w.pairs * 2 * LONG,
        "items and Adam's moments": 3 * w.items * w.dimension * FLOAT,
    }


def traffic(world: World, hosts: int) -> dict[str, float]:
    """Bytes that a host receives for each pair of a step, the pairs of all hosts counted."""
    w, others, row = world, (hosts - 1) / hosts, world.dimension * FLOAT
    return {
        "embeddings, coefficients and ids": others * (row + 2 * (1 + w.negatives) * FLOAT),
        "dense all-reduce of gradients": 2 * others * w.items * row / w.pairs_a_step,
    }


def epoch_seconds(world: World, hosts: int, constants: Constants) -> dict[str, float]:
    """Seconds of an epoch for each resource alone; at best they overlap."""
    w, c, steps = world, constants, world.pairs / world.pairs_a_step
    scores, row = 1 + w.negatives, world.dimension * FLOAT

    def on_host(seconds: float, n_bytes: float) -> float:
        return max(seconds / w.cores, n_bytes / w.bandwidth)

    # An updated row is read and written with its two moments. A scored row is read: a third of the tables at most.
    own = w.pairs / hosts
    scored = own * (c.pair * (1 - c.items_share) + (1 + scores) * c.far_row / 3), own * (1 + scores) * row
    updated = w.pairs * (c.pair * c.items_share + scores * c.far_row), w.pairs * scores * 6 * row
    received = w.pairs * traffic(world, hosts)["embeddings, coefficients and ids"]
    return {
        "item rows of all pairs, on each host": on_host(*updated),
        "scores of its own pairs": on_host(*scored),
        "link": received * 8 / w.link + (steps * w.latency if hosts > 1 else 0),
        f"Adam over all items, every {MOST_MISSED} steps": on_host(
            steps / MOST_MISSED * w.items * c.row_of_dense_adam, steps / MOST_MISSED * w.items * 6 * row
        ),
    }


HOSTS = (1, 4, 16, 64, 256)


def tables(result: Mapping[str, Any]) -> str:
    """Markdown: memory, traffic and time for several numbers of hosts."""
    world, constants = World(), Constants.of(result)
    a_pair = traffic(world, 2)["embeddings, coefficients and ids"] * 2  # with two hosts half of the pairs are remote

    def table_of(values: Callable[[int], dict[str, float]], unit: float, form: str) -> str:
        columns = [values(hosts) for hosts in HOSTS]
        rows = ([name, *(format(of[name] / unit, form) for of in columns)] for name in columns[0])
        return table(["hosts", *HOSTS], rows)

    return f"""Constants, one core of {result["machine"]["cpu"]}: {constants.pair * 1e9:,.0f} ns a pair, \
{constants.items_share:.0%} of it for the items' rows; {constants.far_row * 1e9:,.0f} ns more for each \
random row that is not in the cache; {constants.row_of_dense_adam * 1e9:,.0f} ns a row of dense Adam.

A host receives {a_pair:.0f} bytes for each pair of the other hosts, so a link of {world.link / 1e9:.0f} \
Gbit/s carries at most {world.link / 8 / a_pair / 1e6:.1f} million pairs a second.

Memory of a host, GB:

{table_of(partial(memory, world), 1e9, ",.1f")}

Received by a host for each pair, bytes:

{table_of(partial(traffic, world), 1, ",.0f")}

Hours of an epoch, each resource alone:

{table_of(partial(epoch_seconds, world, constants=constants), 3600, ",.2f")}"""
