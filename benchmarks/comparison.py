"""OneBP, TwoBP and RecBole's baselines on one data set: tuned on validation, then compared on test.

    python benchmarks/comparison.py {ml-100k,onebp-ml-100k,onebp-ml-1m} [--data_path dataset] [--without LABEL ...]

Every model of ``properties/tune/baselines.yaml`` gets the same number of trials, and its best settings are trained with
every seed of ``properties/compare/baselines.yaml``.  What is finished is not run again, so it may be stopped or done in
parts: ``--only BPR``, and ``--trials 2`` for the first two trials.  Writes ``results/DATASET-comparison``.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
EPOCHS = {"ml-100k": 100, "onebp-ml-100k": 100, "onebp-ml-1m": 40}
"""At most, a trial or a run: what fits into hours of a CPU."""
UNTUNED = {"Pop"}
"""Has nothing to tune."""


def entries_of(kind: str, labels: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The models of ``properties/<kind>/baselines.yaml``, each with a label."""
    from recbole_onebp.config import RunConfig

    found = RunConfig.read_files([str(plan_of(kind))])["models"]
    entries = [{"model": entry, "label": entry} if isinstance(entry, str) else entry for entry in found]
    labelled = [{**entry, "label": entry.get("label", entry["model"])} for entry in entries]
    return [entry for entry in labelled if labels is None or entry["label"] in labels]


def plan_of(kind: str) -> Path:
    return ROOT / "properties" / kind / "baselines.yaml"


def search(shared: Mapping[str, Any], labels: Sequence[str], trials: int | None) -> Path:
    """Tune the models of these labels; returns the folder."""
    from recbole_onebp.experiments.tune.search import tune

    folder = Path("runs") / f"tune-{shared['dataset']}"
    if entries := entries_of("tune", labels):
        tune(plan_of("tune"), {**shared, "models": entries, **({} if trials is None else {"trials": trials})}, folder)
    return folder


def compared(shared: Mapping[str, Any], labels: Sequence[str], tuned: Path) -> Path:
    """Compare the models of these labels; returns the report's folder."""
    from recbole_onebp.experiments.compare import compare

    entries = [
        entry if entry["label"] in UNTUNED else {"model": entry["model"], "label": entry["label"], "tuned": str(tuned)}
        for entry in entries_of("compare", labels)
    ]
    output_dir = str(Path("runs") / f"compare-{shared['dataset']}")
    return compare([str(plan_of("compare"))], {**shared, "models": entries, "output_dir": output_dir})


def write_results(folder: Path, tuned: Path, command: str, left_out: Sequence[str]) -> Path:
    """What is small and worth keeping of a report and its search."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    out = ROOT / "benchmarks" / "results" / f"{report['dataset']}-comparison"
    out.mkdir(parents=True, exist_ok=True)
    title, text = (folder / "report.md").read_text(encoding="utf-8").split("\n\n", 1)
    text = re.sub(r"!\[[^\]]*\]\(figures/(?!cost\.png).*?\)\n*", "", text).replace("figures/cost.png", "cost.png")
    head = [title, f"`{command}`", *([f"Left out: {', '.join(left_out)}."] if left_out else [])]
    kept = {"command": command, "left_out": list(left_out), **report}
    for name, content in {
        "report.md": "\n\n".join([*head, text.rstrip()]) + "\n",
        "results.json": json.dumps(kept, indent=1) + "\n",
    }.items():
        write_atomically(out / name, partial(Path.write_text, data=content, encoding="utf-8"))
    for source in (tuned / "tuning.json", folder / "figures" / "cost.png"):
        write_atomically(out / source.name, partial(shutil.copyfile, source))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("dataset", choices=EPOCHS)
    parser.add_argument("--data_path", default="dataset", help="RecBole's data folder; default: dataset")
    parser.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="these alone; no results are written")
    parser.add_argument("--without", nargs="+", default=[], metavar="LABEL", help="leave these out, and say so")
    parser.add_argument("--trials", type=int, metavar="N", help="search up to N trials a model, and stop there")
    args = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
    known = [entry["label"] for entry in entries_of("compare")]
    if unknown := {*args.only, *args.without} - {*known}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; labels: {', '.join(known)}")

    labels = [label for label in args.only or known if label not in args.without]
    shared = {"dataset": args.dataset, "data_path": args.data_path, "epochs": EPOCHS[args.dataset]}
    try:
        tuned = search(shared, labels, args.trials)
        if args.trials is not None:
            return 0
        folder = compared(shared, labels, tuned)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.only:
        return 0
    command = f"python benchmarks/comparison.py {args.dataset}"
    command += f" --without {' '.join(args.without)}" if args.without else ""
    print(f"wrote {write_results(folder, tuned, command, args.without)}; now python benchmarks/render.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
