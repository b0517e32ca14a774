"""Bundles of given or random arrays, without training.  They need only numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recbole_onebp.serving.bundle import write_bundle
from recbole_onebp.serving.tables import unit_rows

FIELDS = [
    {"field": "genres", "values": ["g0", "g1", "g2", "g3"], "weight": [1.0, 2.0, 0.5, 1.0], "separator": " "},
    {"field": "studio", "values": ["s 0", "s 1"], "weight": [1.0, 1.0], "separator": None},
    {"field": "year", "mean": [1990.0], "weight": [0.1], "separator": None},
]


def made_bundle(
    path: Path,
    n_users: int = 20,
    n_items: int = 60,
    size: int = 8,
    *,
    score: str = "dot",
    bias: bool = False,
    dtype: str = "float32",
    beta: float = 0.9,
    rule: str = "moving",
    alpha: float = 0.0,
    seed: int = 0,
    aggregates: bool = True,
    recency: float = 0.0,
    local: float = 0.0,
    local_recency: float = 0.0,
    weights: str | None = None,
    ordered: bool = False,
    features: bool = False,
    others: Any = None,
    replace: bool = False,
    **arrays: Any,
) -> Path:
    """A bundle at ``path``: users u0, u1, ..., items i0, i1, ... with titles; each user has 1 to 8 items.

    ``local`` is the weight of a local term, in which an item has up to 7 others; 0: there is none.  With ``features``
    new items are made of ``genres`` g0 to g3, of which an item may have several, a ``studio``, s 0 or s 1, and a
    ``year``.  ``weights`` is the transform of the weights of interactions; None: they have none.
    """
    rng = np.random.default_rng(seed)
    item_e = rng.normal(size=(n_items, size)).astype(np.float32)
    histories = [rng.choice(n_items, rng.integers(1, min(9, n_items)), replace=False) for _ in range(n_users)]
    made = {
        "item_encodings": (unit_rows(item_e) if score == "cosine" else item_e).astype(dtype),
        "user_encodings": rng.normal(size=(n_users, size)).astype(dtype),
        "history_start": np.cumsum([0, *map(len, histories)]),
        "history_item": np.concatenate([np.sort(history) for history in histories]).astype(np.int32),
    }
    if bias:
        made["item_bias"] = rng.normal(size=n_items).astype(np.float32)
    if local:
        made |= random_local(n_items, np.random.default_rng(seed))
    if features:
        made["value_encodings"] = rng.normal(size=(7, size)).astype(np.float32)
        if bias:
            made["value_bias"] = rng.normal(size=7).astype(np.float32)
    if weights:
        plays = np.random.default_rng(seed).integers(1, 300, len(made["history_item"]))
        made["history_weight"] = plays.astype(np.float32)
    made |= arrays
    if alpha:
        count = np.bincount(made["history_item"], minlength=n_items)
        made["item_weight"] = ((np.maximum(count, 1) / count[count > 0].mean()) ** -alpha).astype(np.float32)
    manifest = {
        "model": "OneBP",
        "score": score,
        "aggregation": {"rule": rule, "beta": beta, "alpha": alpha, "recency": recency} if aggregates else None,
        "local": {"weight": local, "recency": local_recency, "neighbors": 7, "reg": 1.0} if local else None,
        "weights": {"transform": weights, "default": 20.0} if weights else None,
        "embedding_size": size,
        "ordered": ordered,
        "title_field": "title",
    }
    texts: dict[str, Any] = {
        "item_ids": [f"i{number}" for number in range(n_items)],
        "user_ids": [f"u{number}" for number in range(n_users)],
        "item_fields": {"title": [f"Item {number}" for number in range(n_items)]},
    }
    if features:
        texts["item_values"] = {"bias": 0.25, "fields": FIELDS}
        texts["item_fields"] |= {name: [""] * n_items for name in ("genres", "studio", "year")}
    write_bundle(path, manifest, made, texts, "# Model card\n", replace, others)
    return path


def random_local(n_items: int, rng: np.random.Generator) -> dict[str, Any]:
    """The arrays of a local term: each item has 0 to 7 others, with positive and negative values."""
    count = rng.integers(0, min(8, n_items), n_items)
    others = [np.sort(rng.choice(n_items - 1, n, replace=False)) for n in count]
    items = [row + (row >= item) for item, row in enumerate(others)]
    return {
        "local.indptr": np.concatenate(([0], np.cumsum(count))),
        "local.indices": np.concatenate(items).astype(np.int32),
        "local.values": rng.normal(size=count.sum()).astype(np.float32),
    }
