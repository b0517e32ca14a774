"""Approximate search: a faiss index proposes candidates, exact scores decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from recbole_onebp.serving.bundle import Bundle
from recbole_onebp.serving.index_file import check_index
from recbole_onebp.serving.scorer import Scorer
from recbole_onebp.serving.search import DEFAULT_MEMORY_MB, Excluded, Ranked, best_items, best_of_pairs
from recbole_onebp.serving.tables import Embeddings, Float32Array, Float64Array, ItemTable
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import BundleRows

__all__ = ["INDEX_FILE", "Index", "open_index", "quality"]

INDEX_FILE = "index.faiss"

_LINKS = 32
"""Neighbours of a node of the graph (M)."""
_BUILD_EFFORT = 200
"""efConstruction."""
_LEAST_EFFORT = 256
"""Smallest efSearch: candidates that a search keeps."""


class Index:
    """An HNSW graph in which the nearest items are those with the best scores.

    Search by inner product becomes search by distance once all items have the same length.  So an item becomes
    ``[e, bias, rest]``, where rest makes up for what its length lacks to the longest, and a user becomes ``[e, 1, 0]``
    (Bachrach et al., RecSys 2014).  The same index serves inner products and cosines, with or without a bias.
    """

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    @classmethod
    def build(cls, table: ItemTable) -> Index:
        """Index all items of a table.

        Raises:
            UserError: if faiss is missing.
        """
        points = np.concatenate(list(_points(table)))
        graph = _faiss().IndexHNSWFlat(points.shape[1], _LINKS)
        graph.hnsw.efConstruction = _BUILD_EFFORT
        graph.add(points)
        return cls(graph)

    def save(self, path: Path) -> None:
        _faiss().write_index(self._graph, str(path))

    @classmethod
    def load(cls, path: Path, size: int, n_items: int, table: ItemTable | None = None) -> Index:
        """Open the index of ``n_items`` items of dimension ``size``.

        Args:
            path: the file.
            size: dimension of the items.
            n_items: number of items.
            table: the items, to compare with those of the index.

        Raises:
            UserError: if faiss is missing, or the file cannot be read or belongs to other items.
        """
        faiss = _faiss()
        check_index(path, size + 2, n_items, None if table is None else _points(table))
        try:
            return cls(faiss.read_index(str(path)))
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"{path}: damaged: {error}") from None

    def nearest(self, user_e: Float32Array, count: int) -> BundleRows:
        """About the ``count`` best items of users ``(B, d)``; ``(B, count)``, -1 where fewer were found."""
        points = np.column_stack((user_e, np.ones(len(user_e)), np.zeros(len(user_e)))).astype(np.float32)
        parameters = _faiss().SearchParametersHNSW(efSearch=max(_LEAST_EFFORT, 2 * count))
        return self._graph.search(points, count, params=parameters)[1]

    def best_items(self, scorer: Scorer, k: int, excluded: Excluded, n_indexed: int) -> Ranked:
        """About the k best items of each user, with exact scores.  A user's list does not depend on the other users.

        Candidates are the nearest items of the index, all items with a local score, and those that were added or have
        changed since the index was made.

        Args:
            scorer: the users and the items.
            k: length of the lists.
            excluded: the items to leave out.
            n_indexed: number of items in the index.
        """
        # Excluded items are among the nearest, so as many more are searched for.  Rounding up to powers of two lets
        # users share a call.
        wanted = k + len(excluded.for_all) + np.diff(excluded.start)
        rounded = np.minimum(2 ** np.ceil(np.log2(wanted)).astype(np.int64), n_indexed)
        rows, items = [], []
        for count in np.unique(rounded):
            row = np.flatnonzero(rounded == count)
            found = self.nearest(scorer.user_e[row], int(count))
            rows.append(np.repeat(row, count))
            items.append(found.reshape(-1))
        n_users, n_items = len(scorer), len(scorer.items)
        added, _ = scorer.items.embeddings.changed
        rows.append(np.repeat(np.arange(n_users), len(added)))
        items.append(np.tile(added, n_users))
        if scorer.local_scores is not None:
            row, item = np.nonzero(scorer.local_scores)
            rows.append(row)
            items.append(item)
        row, item = np.concatenate(rows), np.concatenate(items)
        kept = (item >= 0) & ~np.isin(item, excluded.for_all)
        excluded_row, excluded_item = excluded.pairs(0, n_users)
        row, item = np.divmod(
            np.setdiff1d(row[kept] * n_items + item[kept], excluded_row * n_items + excluded_item), n_items
        )
        count, item, score = best_of_pairs(n_users, k, row, item, scorer.pairs(row, item))
        return Ranked(np.concatenate(([0], np.cumsum(count))), item, score)


def open_index(bundle: Bundle, kind: str) -> Index:
    """The index of a bundle.

    Raises:
        UserError: for a kind other than ``faiss``, or if the bundle has no such index.
    """
    files = bundle.manifest["files"]
    if "index.hnswlib" in files and INDEX_FILE not in files:
        raise UserError(
            f"{bundle.path}: its index is of hnswlib, which is no longer supported; export it again with --ann=faiss, "
            "or search exactly, without an index"
        )
    if kind != "faiss":
        raise UserError(f"index: {kind!r} is not allowed; expected faiss")
    if INDEX_FILE not in files:
        raise UserError(f"{bundle.path}: has no index of faiss; export it with --ann=faiss")
    table = ItemTable(Embeddings(bundle.item_encodings), bundle.item_bias)
    return Index.load(bundle.path / INDEX_FILE, bundle.manifest["embedding_size"], len(table), table)


def _points(table: ItemTable) -> Iterator[Float32Array]:
    """The points that stand for items, ``(n, d + 2)``, in blocks."""

    def blocks() -> Iterator[tuple[Float32Array, Float32Array, Float64Array]]:
        for start, rows in table.embeddings.blocks():
            bias = np.zeros(len(rows), np.float32) if table.bias is None else table.bias[start : start + len(rows)]
            squared = np.square(rows, dtype=np.float64).sum(axis=1) + np.square(bias, dtype=np.float64)
            yield rows, bias, squared

    longest = max((squared.max(initial=0) for _, _, squared in blocks()), default=0.0)
    for rows, bias, squared in blocks():
        yield np.column_stack((rows, bias, np.sqrt(longest - squared))).astype(np.float32)


def _faiss() -> Any:
    try:
        import faiss
    except ModuleNotFoundError:
        raise UserError("index: faiss is missing: pip install 'recbole-onebp[ann]'") from None
    return faiss


def quality(index: Index, scorer: Scorer, excluded: Excluded, k: int) -> dict[str, float]:
    """Recall of the index against exact search, and the speed of both, one user at a time.

    Args:
        index: the index of the items.
        scorer: the users and the items.
        excluded: the items to leave out.
        k: length of the lists.

    Returns:
        ``recall``, 0 to 1; ``queries_a_second`` and ``exact_queries_a_second``.
    """

    def timed(search: Callable[[Scorer, Excluded], Ranked]) -> tuple[list[set[int]], float]:
        lists = []
        start = perf_counter()
        for place in range(len(scorer)):
            part = excluded.item[excluded.start[place] : excluded.start[place + 1]]
            own = Excluded.of([part], excluded.for_all)
            lists.append(set(search(scorer.part(slice(place, place + 1)), own).item.tolist()))
        return lists, len(scorer) / (perf_counter() - start)

    exact, exact_rate = timed(lambda one, own: best_items(one, k, own, DEFAULT_MEMORY_MB, threads=1))
    found, rate = timed(lambda one, own: index.best_items(one, k, own, len(scorer.items)))
    hits = sum(len(a & b) for a, b in zip(exact, found, strict=True))
    recall = hits / max(sum(map(len, exact)), 1)
    return {"recall": recall, "queries_a_second": round(rate), "exact_queries_a_second": round(exact_rate)}
