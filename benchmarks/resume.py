"""Stop runs at random moments, let them go on, and hold them against the runs that nobody stopped, bit for bit.

    python benchmarks/resume.py [--trials 30] [--data_path dataset --dataset NAME] [--out DIR]

A trial starts ``run_recbole_onebp.py``, sends SIGTERM, SIGINT (Ctrl-C) or SIGKILL (kill -9) at a moment drawn uniformly
from the time between the first epoch and the end, and starts it again with ``--resume=auto``.  Compared are the newest
checkpoint (tables, optimizer, generators, early stopping), the best model, ``metrics.jsonl`` and ``result.json``: all
but seconds and memory must be equal.  Stopped and started again, the benchmark goes on with the next trial.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from measure import RESULTS, Machine, claim, versions, write_json
from safetensors.numpy import load_file

ROOT = Path(__file__).parent.parent
RUNS: dict[str, dict[str, Any]] = {
    "OneBP": {"model": "OneBP", "epochs": 25},
    "OneBP, the paper's form": {"model": "OneBP", "preset": "paper", "epochs": 100},
    "OneBP, reference engine": {"model": "OneBP", "engine": "reference", "epochs": 8},
    "BPR": {"model": "BPR", "epochs": 12},
    "LightGCN": {"model": "LightGCN", "n_layers": 2, "epochs": 4},
}
"""Some seconds each on ml-100k."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
"""Of a run that was stopped; before and after training a signal does what it does to any process."""


def start(settings: Mapping[str, Any], folder: Path, resume: bool = False) -> subprocess.Popen[str]:
    keys = {"show_progress": False, **settings, "output_dir": folder, **({"resume": "auto"} if resume else {})}
    # A shell's background job starts with Ctrl-C ignored.
    hear = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]"
    )
    command = [sys.executable, "-c", f"{hear}; runpy.run_path(sys.argv[0], run_name='__main__')"]
    command += [str(ROOT / "run_recbole_onebp.py"), *(f"--{key}={value}" for key, value in keys.items())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    claim(process.returncode == 0, f"exit code {process.returncode}: {said[-2000:]}")
    return said


def wait_for_training(process: subprocess.Popen[str], folder: Path) -> None:
    """Until the folder has been begun, which is when the first epoch starts."""
    while not (folder / "metrics.jsonl").exists():
        claim(process.poll() is None, "it ended before it had begun")
        sleep(0.01)


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves which must not depend on whether it was stopped."""
    newest = max(path for path in (folder / "checkpoint").iterdir())
    state = json.loads((newest / "state.json").read_text())
    return {
        "checkpoint": (newest.name, tables(newest / "state.safetensors"), timeless(state["state"])),
        "best model in it": tables(newest / "best.safetensors"),
        "model": tables(folder / "model.safetensors"),
        "metrics.jsonl": [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "result.json": timeless(json.loads((folder / "result.json").read_text())),
    }


def tables(file: Path) -> dict[str, bytes]:
    return {name: table.tobytes() for name, table in load_file(file).items()}


def timeless(value: Any) -> Any:
    """Without what time and memory were taken."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key and key != "peak_rss_mb"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


class Straight:
    """A run that nobody stops: what it leaves, and how long training takes."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        process = start(settings, folder)
        wait_for_training(process, folder)
        begun = monotonic()
        finish(process)
        self.seconds, self.contents = monotonic() - begun, contents(folder)


def trial(settings: Mapping[str, Any], straight: Straight, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Stop a run, let it go on, compare; how it went."""
    rng, which = random.Random(f"{seed} {number}"), SIGNALS[number % len(SIGNALS)]
    for attempt in range(20):
        moment, place = rng.uniform(0, straight.seconds), folder / str(attempt)
        process = start(settings, place)
        wait_for_training(process, place)
        sleep(moment)
        process.send_signal(which)
        sent = monotonic()
        said, _ = process.communicate()
        took = monotonic() - sent
        if not (place / "result.json").exists():  # else it was over
            break
    else:
        raise RuntimeError("20 runs ended before they were stopped")
    claim(process.returncode in CODES[which], f"exit code {process.returncode}: {said[-2000:]}")
    claim("Traceback" not in said, said[-2000:])
    done = len((place / "metrics.jsonl").read_text().splitlines())
    found = sorted(path.name for path in (place / "checkpoint").glob("[!.]*"))
    finish(start(settings, place, resume=True))
    now, expected = contents(place), straight.contents
    return {
        "signal": which.name,
        "after_seconds": round(moment, 3),
        "epochs_done": done,
        "checkpoint": found[-1] if found else None,
        "exit_seconds": round(took, 3),
        "different": [name for name in expected if now[name] != expected[name]],
    }


def table(trials: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = ["| run | signal | trials | equal | went on inside an epoch | from the start | slowest exit, s |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in trials:
        kinds.setdefault((row["run"], row["signal"]), []).append(row)
    for (run, name), group in sorted(kinds.items()):
        equal = sum(not row["different"] for row in group)
        inside = sum(not str(row["checkpoint"] or "-step-000000000").endswith("-step-000000000") for row in group)
        anew = sum(row["checkpoint"] is None for row in group)
        slowest = max(row["exit_seconds"] for row in group)
        rows.append(f"| {run} | {name} | {len(group)} | {equal} | {inside} | {anew} | {slowest:.2f} |")
    return rows


def page(found: Mapping[str, Any]) -> str:
    trials, told = found["trials"], found["machine"]
    equal = sum(not row["different"] for row in trials)
    parts = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    how = f"{told['cpu']}, one thread; {parts}; seed {found['seed']}"
    what = "tables, optimizer, generators, early stopping, record and metrics"
    lines = [
        f"# Stopped and resumed runs against straight ones, {found['dataset']}",
        "",
        f"`python benchmarks/resume.py --trials {len(trials)}`: {how}.",
        "",
        f"**{equal} of {len(trials)} are equal, bit for bit**, in {what}.",
        "",
        *table(trials),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", type=Path, help="RecBole's data folder")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    data: dict[str, Any] = {"dataset": arguments.dataset}
    if arguments.data_path is not None:
        data["data_path"] = arguments.data_path
    results = arguments.out / f"resume-{arguments.dataset}.json"
    machine = Machine.here()
    found: dict[str, Any] = {"dataset": arguments.dataset, "seed": arguments.seed, "machine": {"cpu": machine.cpu},
                             "versions": versions("numba", "safetensors"), "trials": []}  # fmt: skip
    if results.is_file():
        before = json.loads(results.read_text())
        if len(before["trials"]) < arguments.trials and {**before, "trials": []} == found:
            found = before
    straight: dict[str, Straight] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(len(found["trials"]), arguments.trials):
            name = list(RUNS)[number % len(RUNS)]
            settings = {**data, **RUNS[name]}
            if name not in straight:
                finish(start({**settings, "epochs": 1}, Path(scratch) / "warm"))  # what is compiled is compiled now
                straight[name] = Straight(settings, Path(scratch) / name)
            row = {"run": name, **trial(settings, straight[name], number, arguments.seed, Path(scratch) / str(number))}
            print(f"{number + 1}: {row}", flush=True)
            found["trials"].append(row)
            write_json(results, found)
    results.with_suffix(".md").write_text(page(found), encoding="utf-8")
    print(page(found))
    return int(any(row["different"] for row in found["trials"]))


if __name__ == "__main__":
    sys.exit(main())
