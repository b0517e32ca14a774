"""Approximate search: an index names candidates, exact scores decide among them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.search import DEFAULT_MEMORY_MB, Hidden, ItemTable, Ranked, best_items, best_of_pairs
from recbole_onebp.util.errors import UserError

__all__ = ["KINDS", "Index", "quality"]

_Floats = npt.NDArray[np.float32]
_Index = npt.NDArray[np.int64]

KINDS = {"faiss": "faiss-cpu", "hnswlib": "hnswlib"}
"""Kinds of index, and what pip calls the package."""

_LINKS = 32
_BUILD_EFFORT = 200
_LEAST_EFFORT = 256
"""Candidates that a search keeps at least."""


class Index:
    """A graph of near items (HNSW) in which the nearest are the best scored.

    The best by inner product are the nearest by distance once all items are equally long: an item becomes
    ``[e, bias, rest]``, with the rest that its length lacks to the longest, a user ``[e, 1, 0]`` (Bachrach et al.,
    RecSys 2014).  So one index serves inner products, cosines, and a bias beside either.
    """

    def __init__(self, kind: str, graph: Any) -> None:
        self.kind = kind
        self._graph = graph

    @classmethod
    def build(cls, kind: str, table: ItemTable) -> Index:
        """Index all items of a table.

        Raises:
            UserError: for an unknown kind, or if its package is missing.
        """
        module = _package(kind)
        rows = np.concatenate([block for _, block in table.encodings.blocks()])
        bias = np.zeros(len(rows), np.float32) if table.bias is None else table.bias
        squared = np.square(rows, dtype=np.float64).sum(axis=1) + np.square(bias, dtype=np.float64)
        points = np.column_stack((rows, bias, np.sqrt(squared.max(initial=0) - squared))).astype(np.float32)
        if kind == "faiss":
            graph = module.IndexHNSWFlat(points.shape[1], _LINKS)
            graph.hnsw.efConstruction = _BUILD_EFFORT
            graph.add(points)
        else:
            graph = module.Index("l2", points.shape[1])
            graph.init_index(len(points), M=_LINKS, ef_construction=_BUILD_EFFORT, random_seed=0)
            graph.add_items(points, num_threads=1)
        return cls(kind, graph)

    def save(self, path: Path) -> None:
        if self.kind == "faiss":
            _package(self.kind).write_index(self._graph, str(path))
        else:
            self._graph.save_index(str(path))

    @classmethod
    def load(cls, kind: str, path: Path, size: int, n_items: int) -> Index:
        """Open the index of ``n_items`` items of dimension ``size``.

        Raises:
            UserError: for an unknown kind, if its package is missing, or for a file that it cannot read.
        """
        module = _package(kind)
        try:
            if kind == "faiss":
                graph = module.read_index(str(path))
                found = graph.ntotal, graph.d
            else:
                graph = module.Index("l2", size + 2)
                graph.load_index(str(path))
                found = graph.get_current_count(), graph.dim
        except RuntimeError as error:
            raise UserError(f"{path}: damaged: {error}") from None
        if found != (n_items, size + 2):
            raise UserError(f"{path}: indexes {found[0]} items of {found[1] - 2} dimensions, not {n_items} of {size}")
        return cls(kind, graph)

    def nearest(self, user_e: _Floats, count: int) -> _Index:
        """About the ``count`` best items of users ``(B, d)``; ``(B, count)``, -1 where fewer were found."""
        points = np.column_stack((user_e, np.ones(len(user_e)), np.zeros(len(user_e)))).astype(np.float32)
        effort = max(_LEAST_EFFORT, 2 * count)
        if self.kind == "faiss":
            parameters = _package(self.kind).SearchParametersHNSW(efSearch=effort)
            return self._graph.search(points, count, params=parameters)[1]
        self._graph.set_ef(effort)
        return self._graph.knn_query(points, count)[0].astype(np.int64)

    def best_items(self, user_e: _Floats, table: ItemTable, k: int, hidden: Hidden, n_indexed: int) -> Ranked:
        """About the k best items of each user, with exact scores; a user's do not depend on the others'.

        Args:
            user_e: encodings of users, ``(B, d)``, as they are scored.
            table: the items; those from ``n_indexed`` on are not in the index, and always candidates.
            k: how many.
            hidden: what not to find.
            n_indexed: items that the index has.
        """
        # Hidden items are near, and take up places: who hides more is asked for more, in powers of two so that many
        # are asked for at a time.
        wanted = k + len(hidden.for_all) + np.diff(hidden.start)
        rounded = np.minimum(2 ** np.ceil(np.log2(wanted)).astype(np.int64), n_indexed)
        rows, items = [], []
        for count in np.unique(rounded):
            row = np.flatnonzero(rounded == count)
            found = self.nearest(user_e[row], int(count))
            rows.append(np.repeat(row, count))
            items.append(found.reshape(-1))
        added = np.arange(n_indexed, len(table))
        rows.append(np.repeat(np.arange(len(user_e)), len(added)))
        items.append(np.tile(added, len(user_e)))
        row, item = np.concatenate(rows), np.concatenate(items)
        hidden_row, hidden_item = hidden.pairs(0, len(user_e))
        left = (
            (item >= 0)
            & ~np.isin(item, hidden.for_all)
            & ~np.isin(row * len(table) + item, hidden_row * len(table) + hidden_item)
        )
        count, item, score = best_of_pairs(user_e, table, k, row[left], item[left])
        return Ranked(np.concatenate(([0], np.cumsum(count))), item, score)


def _package(kind: str) -> Any:
    if kind not in KINDS:
        raise UserError(f"index: {kind!r} is not allowed; expected {' or '.join(KINDS)}")
    try:
        return import_module(kind)
    except ModuleNotFoundError:
        raise UserError(f"index: {kind} is missing: pip install {KINDS[kind]}") from None


def quality(index: Index, table: ItemTable, user_e: _Floats, hidden: Hidden, k: int) -> dict[str, float]:
    """How much of the exact lists the index finds, and how fast, one user after the other.

    Args:
        index: of the table.
        table: the items.
        user_e: encodings of users, as they are scored.
        hidden: what not to find.
        k: length of the lists.

    Returns:
        ``recall``, 0 to 1; ``queries_a_second`` and, for comparison, ``exact_queries_a_second``.
    """

    def timed(search: Callable[[_Floats, Hidden], Ranked]) -> tuple[list[set[int]], float]:
        lists = []
        start = perf_counter()
        for place in range(len(user_e)):
            part = hidden.item[hidden.start[place] : hidden.start[place + 1]]
            own = Hidden.of([part], hidden.for_all)
            lists.append(set(search(user_e[place : place + 1], own).item.tolist()))
        return lists, len(user_e) / (perf_counter() - start)

    exact, exact_rate = timed(lambda one, own: best_items(one, table, k, own, DEFAULT_MEMORY_MB, threads=1))
    found, rate = timed(lambda one, own: index.best_items(one, table, k, own, len(table)))
    hits = sum(len(a & b) for a, b in zip(exact, found, strict=True))
    recall = hits / max(sum(map(len, exact)), 1)
    return {"recall": recall, "queries_a_second": round(rate), "exact_queries_a_second": round(exact_rate)}
