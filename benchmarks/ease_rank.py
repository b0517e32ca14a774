"""How many dimensions EASE needs: its weights reduced to their strongest directions, on validation.

    python benchmarks/ease_rank.py --dataset onebp-ml-1m [--json benchmarks/results/ease-rank-onebp-ml-1m.json]

With P = (X'X + l I)^-1, EASE scores an unseen item j of a user by the sum, over the user's items i, of
(I / l - P)_ij / P_jj. The matrix I / l - P is positive semidefinite, F F'. So a user is the sum of its items'
embeddings F_i and is scored by products, with one factor an item: OneBP's form, in as many dimensions as X has rank.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import numpy as np
from numpy.typing import NDArray
from quality import shown

from recbole_onebp import build


def weights(
    value: NDArray[np.float64], vector: NDArray[np.float64], reg_weight: float, rank: int
) -> NDArray[np.float32]:
    """EASE's weights ``(n_items, n_items)`` by their strongest directions; the diagonal is meaningless.

    ``value`` are all eigenvalues of X'X, descending, ``vector`` its eigenvectors, in columns, and ``reg_weight`` is l.
    """
    diagonal = (vector**2 / (value + reg_weight)).sum(axis=1)
    kept = vector[:, :rank] * (value[:rank] / (reg_weight * (value[:rank] + reg_weight))) ** 0.5
    scaled: NDArray[np.float32] = (kept @ kept.T / diagonal).astype("float32")
    return scaled


def validate(dataset: str, data_path: Path, reg_weights: list[float], ranks: list[int]) -> list[dict[str, Any]]:
    """Validation for every regularisation and rank; the last rank is that of X, the whole model, equal to RecBole's."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"data_path": str(data_path), "show_progress": False, "output_dir": scratch}
        built = build("EASE", dataset, config_dict={**settings, "reg_weight": reg_weights[0]})
        model: Any = built.model

        def valid() -> dict[str, float]:
            return dict(built.trainer.evaluate(built.valid_data, load_best_model=False))

        recboles, interactions = valid(), model.interaction_matrix
        value, vector = np.linalg.eigh((interactions.T @ interactions).toarray().astype(float))
        value, vector = np.maximum(value[::-1], 0), vector[:, ::-1]
        whole = int((value > 1e-9 * value[0]).sum())
        for reg_weight in reg_weights:
            for rank in [*(rank for rank in ranks if rank < whole), whole]:
                model.item_similarity = weights(value, vector, reg_weight, rank)
                metrics = valid()
                rows.append({"reg_weight": reg_weight, "rank": rank, **metrics})
                print(f"reg_weight {reg_weight:g}, {rank} directions: {shown(metrics)}", flush=True)
            same = reg_weight != reg_weights[0] or all(abs(metrics[name] - recboles[name]) <= 2e-4 for name in metrics)
            measure.claim(same, f"all directions give {metrics}, RecBole's EASE {recboles}")
    return rows


def main() -> None:
    dense = tuple(name for name in measure.DATASETS if name.startswith("onebp-ml"))  # makes matrices of items x items
    args = measure.arguments(
        __doc__, json=Path, dataset=dense, data_path=measure.DATA, reg_weight=[200.0, 500.0, 1000.0, 2000.0, 5000.0],
        ranks=[64, 128, 256, 512, 1024], threads=2,
    )  # fmt: skip
    measure.begin(args, [args.dataset])
    rows = validate(args.dataset, args.data_path, args.reg_weight, args.ranks)
    if args.json:
        measure.write_json(args.json, {**measure.here(), "dataset": args.dataset, "rows": rows})


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
