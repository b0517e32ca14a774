"""A small data set whose items have features, and of which some have no train pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

N_USERS, N_GENRES, N_FILMS = 60, 6, 90
COLD = {"valid": range(70, 80), "test": range(80, 90)}
"""Films with all their pairs in one part."""
GENRES = {film: [f"g{film % N_GENRES}", f"g{film // 15}"] for film in range(N_FILMS)}


def write_films(folder: Path) -> dict[str, Any]:
    """Write the data set ``films``; a user takes films of its own genre.  Returns the settings of a run on it."""
    (folder / "films").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), {"train": [], "valid": [], "test": []}
    for user in range(N_USERS):
        own = [film for film in range(N_FILMS) if film % N_GENRES == user % N_GENRES]
        for film in dict.fromkeys([*own, *rng.integers(0, 70, 4).tolist()]):
            part = next((part for part, cold in COLD.items() if film in cold), None)
            rows[part or rng.choice(["train", "valid", "test"], p=[0.7, 0.15, 0.15])].append((f"u{user}", f"f{film}"))
    for part, pairs in rows.items():
        lines = ["user_id:token\titem_id:token", *map("\t".join, pairs), ""]
        (folder / "films" / f"films.{part}.inter").write_text("\n".join(lines))
    lines = [f"f{film}\t{' '.join(genres)}\t{1950 + film}" for film, genres in GENRES.items()]
    (folder / "films" / "films.item").write_text("\n".join(["item_id:token\tgenres:token_seq\tyear:float", *lines, ""]))
    return {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id"]},
        "benchmark_filename": ["train", "valid", "test"],
        "metrics": ["Recall", "NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
        "show_progress": False,
        "output_dir": str(folder / "run"),
    }
