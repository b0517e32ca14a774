"""How far ahead a validation part must look: which recency it prefers, beside what the test part prefers.

Users are made of their items by powers of the age, as in prediction, and on validation also by a moving average in
order of time, in which an item weighs beta ^ age.

    python benchmarks/horizon.py --dataset gowalla --data_path dataset-0.2 [--part valid | test] [--json OUT]

``fetch --valid_share=0.2`` makes a validation part that looks further ahead. This looks at the test part, so nothing
may be chosen from its result: it is about the split. Adds a row to ``results/horizon/<data set>.json``, or makes
it anew.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import measure
from torch import Tensor

from recbole_onebp import build
from recbole_onebp.history import History
from recbole_onebp.model import OneBP
from recbole_onebp.util.errors import UserError

SETTINGS = {"epochs": 8, "learning_rate_decay": 0.8, "local": "none", "eval_step": 100}
RECENCIES = (0.0, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
BETAS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


def main() -> None:
    args = measure.arguments(
        __doc__, json=Path, dataset=measure.DATASETS, data_path=measure.DATA, part=("valid", "test"), seed=1, threads=2
    )
    measure.begin(args, [args.dataset])
    if args.dataset.startswith("onebp-"):
        raise UserError(f"{args.dataset}: is split at random; expected data in order of time")
    fixed = {"seed": args.seed, "data_path": str(args.data_path), "show_progress": False, "refit": args.part == "test"}
    with tempfile.TemporaryDirectory() as scratch:
        run = build("OneBP", args.dataset, config_dict={**SETTINGS, **fixed, "output_dir": scratch})
        run.train(saved=False)
        model, train = cast(OneBP, run.model), run.train_data._dataset
        data = run.test_data if args.part == "test" else run.valid_data
        user, item, times = (train.inter_feat[name] for name in (train.uid_field, train.iid_field, train.time_field))

        def evaluated(recency: float, strength: Tensor | None = None) -> dict[str, float]:
            model.history = History(user, item, model.n_users, model.n_items, times, recency, strength=strength)
            model.move_all_users()
            metrics = run.trainer.evaluate(data, load_best_model=False)
            return {name: float(value) for name, value in metrics.items()}

        found = {f"{recency:g}": evaluated(recency) for recency in RECENCIES}
        age = model.history.start[user + 1] - 1 - model.history.place(user, item)
        betas = BETAS if args.part == "valid" else ()
        averaged = {f"{beta:g}": evaluated(0.0, beta**age) for beta in betas}
    share = len(data.dataset) / (len(train) + len(data.dataset))
    row: dict[str, Any] = {"part": args.part, "share": share, "settings": SETTINGS, "seed": args.seed}
    row |= {"recency": found, "moving average": averaged}
    path = args.json or measure.RESULTS / "horizon" / f"{args.dataset}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    of = ("part", "share", "settings", "seed")
    rows = [earlier for earlier in rows if any(earlier[key] != row[key] for key in of)]
    about = {**measure.here("numba"), "dataset": args.dataset}
    measure.write_json(path, {**about, "rows": [*rows, row]})
    for family in ("recency", "moving average"):
        for name, values in row[family].items():
            print(f"{args.part} ({100 * share:.0f} % of the pairs), {family} {name}: {values}")


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
