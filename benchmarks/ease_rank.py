"""How many dimensions EASE needs: its weights cut to their strongest directions, on validation.

    python benchmarks/ease_rank.py --dataset onebp-ml-1m [--json benchmarks/results/ease-rank-onebp-ml-1m.json]

With P = (X'X + l I)^-1 EASE scores an item j that a user has not taken by the sum, over the items i that it has, of
(I / l - P)_ij / P_jj.  I / l - P is positive semidefinite, F F': so a user is the sum of its items' encodings F_i, and
is scored by products, with one factor an item.  That is OneBP's form, in as many dimensions as X has rank.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import Machine, use_threads, versions, write_json
from quality import DATASETS, shown
from speed import check_data

from recbole_onebp.util.errors import UserError

if TYPE_CHECKING:  # numpy reads the number of threads when it is imported
    import numpy as np
    import numpy.typing as npt


def weights(
    value: npt.NDArray[np.float64], vector: npt.NDArray[np.float64], reg_weight: float, rank: int
) -> npt.NDArray[np.float32]:
    """EASE's weights ``(n_items, n_items)`` by their strongest directions; those on the diagonal mean nothing.

    Args:
        value: all eigenvalues of X'X, falling, ``(n_items,)``.
        vector: its eigenvectors, in columns, ``(n_items, n_items)``.
        reg_weight: l.
        rank: how many directions are kept.
    """
    diagonal = (vector**2 / (value + reg_weight)).sum(axis=1)
    kept = vector[:, :rank] * (value[:rank] / (reg_weight * (value[:rank] + reg_weight))) ** 0.5
    scaled: npt.NDArray[np.float32] = (kept @ kept.T / diagonal).astype("float32")
    return scaled


def measure(dataset: str, data_path: Path, reg_weights: list[float], ranks: list[int]) -> list[dict[str, Any]]:
    """Validation of every regularisation and rank; the last rank is that of X, the whole model.

    Raises:
        RuntimeError: if the whole model is not RecBole's.
    """
    import numpy as np

    from recbole_onebp import build

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"data_path": str(data_path), "show_progress": False, "output_dir": scratch}
        built = build("EASE", dataset, config_dict={**settings, "reg_weight": reg_weights[0]})
        model: Any = built.model

        def valid() -> dict[str, float]:
            return dict(built.trainer.evaluate(built.valid_data, load_best_model=False))

        recboles, taken = valid(), model.interaction_matrix
        value, vector = np.linalg.eigh((taken.T @ taken).toarray().astype(float))
        value, vector = np.maximum(value[::-1], 0), vector[:, ::-1]
        whole = int((value > 1e-9 * value[0]).sum())
        for reg_weight in reg_weights:
            for rank in [*(rank for rank in ranks if rank < whole), whole]:
                model.item_similarity = weights(value, vector, reg_weight, rank)
                metrics = valid()
                rows.append({"reg_weight": reg_weight, "rank": rank, **metrics})
                print(f"reg_weight {reg_weight:g}, {rank} directions: {shown(metrics)}", flush=True)
            if reg_weight == reg_weights[0] and any(abs(metrics[name] - recboles[name]) > 2e-4 for name in metrics):
                raise RuntimeError(f"all directions give {metrics}, RecBole's EASE {recboles}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    dense = [name for name in DATASETS if name.startswith("onebp-ml")]  # matrices of items x items are made
    parser.add_argument("--dataset", choices=dense, required=True)
    parser.add_argument("--reg_weight", type=float, nargs="+", default=[200, 500, 1000, 2000, 5000])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="RecBole's data folder")
    parser.add_argument("--threads", type=int, default=2, help="cores and threads (default 2)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to write the results")
    args = parser.parse_args()
    try:
        check_data(args.data_path, [args.dataset])
        use_threads(args.threads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.disable(logging.INFO)
    rows = measure(args.dataset, args.data_path.resolve(), args.reg_weight, args.ranks)
    if args.json:
        about = {"machine": asdict(Machine.here()), "versions": versions(), "dataset": args.dataset}
        write_json(args.json, {**about, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
