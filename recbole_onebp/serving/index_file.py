"""A check of ``index.faiss`` before the C++ library reads it: a graph of these items, whose links lead to its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recbole_onebp.serving.tables import Float32Array
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import open_plain

__all__ = ["check_index"]

_HEADER = np.dtype([("kind", "S4"), ("size", "<i4"), ("count", "<i8"), ("unused", "V17"), ("metric", "<i4")])
_GRAPH, _FLAT, _L2 = b"IHNf", b"IxF2", 1
_MOST_LEVELS = 100


class _Graph(NamedTuple):
    """The arrays of an HNSW graph, see ``HNSW.h`` of faiss."""

    first: npt.NDArray[Any]
    """Where the links of a level begin among those of a node, ``(n_levels + 1,)``."""
    levels: npt.NDArray[Any]
    """Number of levels of each node, ``(n,)``."""
    offsets: npt.NDArray[Any]
    """Where the links of each node begin, ``(n + 1,)``."""
    links: npt.NDArray[Any]
    """Nodes, or -1 where there is none."""
    entry: int
    top: int


class _Reader:
    """Takes one array after the other from the mapped bytes of a file."""

    def __init__(self, content: npt.NDArray[np.uint8]) -> None:
        self._content, self._place = content, 0

    def take(self, dtype: Any, count: int = 1) -> npt.NDArray[Any]:
        end = self._place + count * np.dtype(dtype).itemsize
        if count < 0 or end > len(self._content):
            raise ValueError("it ends too early")
        part = self._content[self._place : end].view(dtype)
        self._place = end
        return part

    def vector(self, dtype: Any) -> npt.NDArray[Any]:
        return self.take(dtype, int(self.take("<i8")[0]))

    def ends(self) -> bool:
        return self._place == len(self._content)


def check_index(path: Path, size: int, count: int, points: Iterable[Float32Array] | None) -> None:
    """Refuse a file that is not the index of ``count`` points of dimension ``size``.

    Args:
        path: the file.
        size: the dimension.
        count: number of points.
        points: the points in blocks; None to leave them out.

    Raises:
        UserError: if the file is of another kind, damaged, or of other points.
    """
    with open_plain(path) as file:
        length = os.fstat(file.fileno()).st_size
        if not length:
            raise UserError(f"{path}: damaged: it is empty")
        try:
            reader = _Reader(np.memmap(file, np.uint8, "r", shape=(length,)).view(np.ndarray))
            found = _check_header(reader, _GRAPH)
            if found != (count, size):
                raise UserError(
                    f"{path}: indexes {found[0]} items of {found[1] - 2} dimensions; expected {count} of {size - 2}"
                )
            reader.vector("<f8")  # probabilities of the levels, for building
            arrays = [reader.vector(dtype) for dtype in ("<i4", "<i4", "<i8", "<i4")]
            entry, top, *_ = (int(number) for number in reader.take("<i4", 5))
            first, levels, offsets, links = arrays
            _check_graph(_Graph(first, levels, offsets, links, entry, top), count)
            if _check_header(reader, _FLAT) != (count, size):
                raise ValueError("its points are of another number or dimension")
            stored = reader.vector("<f4")
            if len(stored) != count * size or not reader.ends():
                raise ValueError("its points are of another number or dimension")
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: damaged: {error}; export the bundle again") from None
    stored = stored.reshape(count, size)
    start = 0
    for block in points or ():
        part = stored[start : start + len(block)]
        # The last column is a small difference of large sums: its last bits depend on the machine.
        near = np.abs(np.square(part[:, -1]) - np.square(block[:, -1])) <= 1e-3 * (1 + np.square(block).sum(axis=1))
        if not ((part[:, :-1] == block[:, :-1]).all() and near.all()):
            raise UserError(f"{path}: is the index of other items; export the bundle again")
        start += len(block)


def _check_header(reader: _Reader, kind: bytes) -> tuple[int, int]:
    """Number and dimension of the points."""
    header = reader.take(_HEADER)[0]
    if header["kind"] != kind or header["metric"] != _L2:
        raise ValueError("not an index of the kind that export writes")
    return int(header["count"]), int(header["size"])


def _check_graph(graph: _Graph, count: int) -> None:
    """Refuse a graph whose search would leave its arrays."""
    first, levels, offsets, links, entry, top = graph
    if not 1 < len(first) <= _MOST_LEVELS or first[0] != 0 or (np.diff(first) <= 0).any():
        raise ValueError("its levels are not in order")
    if len(levels) != count or (count and not (levels.min() >= 1 and levels.max() < len(first))):
        raise ValueError("the levels of its nodes are wrong")
    if len(offsets) != count + 1 or offsets[0] != 0 or (np.diff(offsets) != first[levels]).any():
        raise ValueError("its links do not fit its nodes")
    if len(links) != offsets[-1] or (len(links) and not (links.min() >= -1 and links.max() < count)):
        raise ValueError("it has links to nodes that do not exist")
    if count and not (0 <= entry < count and top == levels[entry] - 1 == levels.max() - 1):
        raise ValueError("its entry is wrong")
    for level in range(1, int(levels.max(initial=0))):
        nodes = np.flatnonzero(levels > level)
        places = offsets[nodes, None] + np.arange(first[level], first[level + 1])
        targets = links[places]
        if (levels[targets[targets >= 0]] <= level).any():
            raise ValueError("it has links to nodes that are not on their level")
