"""Reliability: stopped and resumed runs against uninterrupted ones, and what a process holds after an hour of runs.

    python benchmarks/resume.py [--trials 30] [--data_path dataset --dataset NAME] [--out DIR]
    python benchmarks/resume.py --soak 60 [--out DIR]

A trial stops ``run_recbole_onebp.py`` by a signal at a random moment and starts it again with ``--resume=auto``. All
that it writes must be equal, except for seconds and memory. Trials in the result file are not repeated.

``--soak MINUTES`` repeats rounds: this process trains OneBP on ml-100k, tests it, resumes from its checkpoint and tests
again; a process of its own is stopped with SIGTERM and resumed. Nothing that this process holds may grow.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import measure
import numpy as np
import psutil
from measure import CheckFailedError, claim
from safetensors.numpy import load_file
from scipy.stats import theilslopes

ROOT = Path(__file__).parent.parent
RUNS: dict[str, dict[str, Any]] = {
    "OneBP": {"model": "OneBP", "epochs": 25},
    "OneBP, the paper's form": {"model": "OneBP", "preset": "paper", "epochs": 100},
    "OneBP, reference engine": {"model": "OneBP", "engine": "reference", "epochs": 8},
    "BPR": {"model": "BPR", "epochs": 12},
    "LightGCN": {"model": "LightGCN", "n_layers": 2, "epochs": 4},
}
"""Some seconds each on ml-100k."""
CODES = {signal.SIGTERM: (143, -15), signal.SIGINT: (130, -2), signal.SIGKILL: (-9,)}
"""Exit codes of a stopped run. Before and after training a signal ends the process as it ends any other."""


def start(settings: Mapping[str, Any], folder: Path, resume: bool = False) -> subprocess.Popen[str]:
    keys = {"show_progress": False, **settings, "output_dir": folder, **({"resume": "auto"} if resume else {})}
    # A shell starts background jobs with Ctrl-C ignored.
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    flags = [f"--{key}={value}" for key, value in keys.items()]
    command = [sys.executable, "-c", code, str(ROOT / "run_recbole_onebp.py"), *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    claim(process.returncode == 0, f"exit code {process.returncode}: {output[-2000:]}")


def wait_for_training(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the first epoch starts, when the run begins its record."""
    while not (folder / "metrics.jsonl").exists():
        claim(process.poll() is None, "the run ended before its first epoch")
        sleep(0.01)


def contents(folder: Path) -> dict[str, Any]:
    """All results of a run that must not depend on whether it was stopped."""
    newest = max((folder / "checkpoint").iterdir())
    tables = newest / "state.safetensors", newest / "best.safetensors", folder / "model.safetensors"
    optimizer, best, model = ({name: table.tobytes() for name, table in load_file(file).items()} for file in tables)
    return {
        "checkpoint": (newest.name, optimizer, timeless(json.loads((newest / "state.json").read_text())["state"])),
        "best model in it": best,
        "model": model,
        "metrics.jsonl": [timeless(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()],
        "result.json": timeless(json.loads((folder / "result.json").read_text())),
    }


def timeless(value: Any) -> Any:
    """``value`` without its entries of time and memory."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if "seconds" not in key and key != "peak_rss_mb"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def straight(settings: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], float]:
    """The results of an uninterrupted run, and the seconds of its training."""
    finish(start({**settings, "epochs": 1}, folder.with_name("warm")))  # compiles
    process = start(settings, folder)
    wait_for_training(process, folder)
    begun = monotonic()
    finish(process)
    return contents(folder), monotonic() - begun


def trial(
    settings: Mapping[str, Any], expected: Mapping[str, Any], seconds: float, number: int, seed: int, folder: Path
) -> dict[str, Any]:
    """Stop a run that trains for so many seconds, resume it and compare its results."""
    rng, which = random.Random(f"{seed} {number}"), list(CODES)[number % len(CODES)]
    for attempt in range(20):
        moment, place = rng.uniform(0, seconds), folder / str(attempt)
        process = start(settings, place)
        wait_for_training(process, place)
        sleep(moment)
        process.send_signal(which)
        sent = monotonic()
        output, _ = process.communicate()
        took = monotonic() - sent
        if not (place / "result.json").exists():  # otherwise the signal came too late
            break
    else:
        raise RuntimeError("20 runs ended before the signal")
    claim(process.returncode in CODES[which], f"exit code {process.returncode}: {output[-2000:]}")
    claim("Traceback" not in output, output[-2000:])
    found = sorted(path.name for path in (place / "checkpoint").glob("[!.]*"))
    epochs_done = len((place / "metrics.jsonl").read_text().splitlines())
    row = {"signal": which.name, "after_seconds": round(moment, 3), "epochs_done": epochs_done}
    row |= {"checkpoint": found[-1] if found else None, "exit_seconds": round(took, 3)}
    finish(start(settings, place, resume=True))
    now = contents(place)
    return {**row, "different": [name for name in expected if now[name] != expected[name]]}


def rows(trials: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """For each kind of run and signal: trials, equal ones, went on inside an epoch, from the start, slowest exit."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in trials:
        kinds.setdefault((row["run"], row["signal"]), []).append(row)
    found = []
    for kind, group in sorted(kinds.items()):
        names = [row["checkpoint"] for row in group if row["checkpoint"]]
        inside = sum(not name.endswith("-step-000000000") for name in names)
        slowest = max(row["exit_seconds"] for row in group)
        equal = sum(not row["different"] for row in group)
        found.append([*kind, len(group), equal, inside, len(group) - len(names), f"{slowest:.2f}"])
    return found


def page(found: Mapping[str, Any]) -> str:
    trials = found["trials"]
    head = ("run", "signal", "trials", "equal", "went on inside an epoch", "from the start", "slowest exit, s")
    return f"""# Stopped and resumed runs against straight ones, {found["dataset"]}

`python benchmarks/resume.py --trials {len(trials)}`: {found["machine"]["cpu"]}, one thread; \
{", ".join(f"{name} {number}" for name, number in found["versions"].items())}; seed {found["seed"]}.

**{sum(not row["different"] for row in trials)} of {len(trials)} are equal, bit for bit**, in tables, optimizer, \
generators, early stopping, record and metrics.

{measure.table(head, rows(trials))}
"""


def run_trials(args: argparse.Namespace) -> bool:
    os.environ.update(dict.fromkeys(measure.THREAD_VARIABLES, "1"))
    data = {"dataset": args.dataset, "data_path": args.data_path.resolve()}
    results, about = args.out / f"resume-{args.dataset}.json", measure.here("numba", "safetensors")
    found: dict[str, Any] = {"dataset": args.dataset, "seed": args.seed, "machine": {"cpu": about["machine"]["cpu"]}}
    found |= {"versions": about["versions"], "trials": []}
    if results.is_file():
        before = json.loads(results.read_text())
        if len(before["trials"]) < args.trials and {**before, "trials": []} == found:
            found = before
    uninterrupted = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(len(found["trials"]), args.trials):
            name = list(RUNS)[number % len(RUNS)]
            settings = {**data, **RUNS[name]}
            if name not in uninterrupted:
                uninterrupted[name] = straight(settings, Path(scratch) / name)
            place = Path(scratch) / str(number)
            row = {"run": name, **trial(settings, *uninterrupted[name], number, args.seed, place)}
            print(f"{number + 1}: {row}", flush=True)
            found["trials"].append(row)
            measure.write_json(results, found)
    measure.write_text(results.with_suffix(".md"), page(found))
    print(page(found))
    return not any(row["different"] for row in found["trials"])


SOAKED: dict[str, Any] = {"model": "OneBP", "dataset": "ml-100k", "epochs": 4, "show_progress": False}
GROWTH_MB = 16.0  # memory may grow by so much over the measured rounds: allocators settle late


COUNTED: dict[str, Callable[[psutil.Process, Path], int]] = {
    "descriptors": lambda process, _: process.num_fds(),
    "threads": lambda process, _: process.num_threads(),
    "children": lambda process, _: len(process.children(recursive=True)),
    "temporary_files": lambda _, temporary: sum(1 for _ in temporary.rglob("*")),
}
"""What this process holds after a round, apart from memory."""


def in_process(folder: Path) -> None:
    """Train, then resume for as many epochs again."""
    import recbole_onebp

    for more in ({}, {"epochs": 2 * SOAKED["epochs"], "resume": "auto"}):
        given = {**SOAKED, "output_dir": str(folder), **more}
        test = recbole_onebp.build("OneBP", "ml-100k", config_dict=given).fit().test
    claim(test["ndcg@10"] > 0.1, f"NDCG@10 is {test['ndcg@10']}")


def command_line(folder: Path, rng: np.random.Generator) -> None:
    """Stop a run of the command line at a random moment, and resume it."""
    process = start(SOAKED, folder, resume=True)
    sleep(rng.uniform(3, 12))
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        raise CheckFailedError("the run is still alive 30 seconds after SIGTERM") from None
    finish(start(SOAKED, folder, resume=True))
    claim((folder / "result.json").is_file(), "the command line wrote no result.json")


def grows(rounds: list[dict[str, float]]) -> list[str]:
    """What grows, in words."""
    measured = rounds[len(rounds) // 4 :]  # the first ones compile loops and load modules
    half = len(measured) // 2
    claim(half >= 2, f"{len(rounds)} rounds are too few to judge; soak for more minutes")
    found = []
    for name in COUNTED:
        before, after = (max(one[name] for one in part) for part in (measured[:half], measured[half:]))
        if after > before:
            found.append(f"{name}: at most {before} in the first half, {after} in the second")
    growth = float(theilslopes([one["rss_mb"] for one in measured])[0]) * (len(measured) - 1)
    if growth > GROWTH_MB:
        found.append(f"memory: {growth:.1f} MiB over {len(measured)} rounds, at most {GROWTH_MB:g} are allowed")
    return found


def soak(args: argparse.Namespace) -> bool:
    """Whether nothing grows."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    rng, begun, rounds, about = np.random.default_rng(args.seed), monotonic(), list[dict[str, float]](), measure.here()
    with tempfile.TemporaryDirectory() as kept:
        runs, temporary = Path(kept) / "runs", Path(kept) / "temporary"
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)  # for this process and its children
        while monotonic() - begun < 60 * args.soak:
            in_process(runs / "here")
            command_line(runs / "there", rng)
            shutil.rmtree(runs)
            gc.collect()
            process = psutil.Process()
            memory = {"rss_mb": round(process.memory_info().rss / 2**20, 1)}
            held = {name: count(process, temporary) for name, count in COUNTED.items()}
            rounds.append({"seconds": round(monotonic() - begun, 1), **memory, **held})
            print(f"{len(rounds):4d}  {rounds[-1]}", flush=True)
        tempfile.tempdir = None
    found = grows(rounds)
    values = {**about, "minutes": args.soak, "grows": found, "rounds": rounds}
    measure.write_json(args.out / f"{about['machine']['slug']}-soak.json", values)
    print("\n".join(found) or f"nothing grows over {len(rounds)} rounds")
    return not found


def main() -> int:
    options: dict[str, Any] = {"data_path": measure.DATA, "seed": 2024, "out": measure.RESULTS}
    args = measure.arguments(__doc__, trials=30, soak=float, dataset="ml-100k", **options)
    return 0 if (run_trials(args) if args.soak is None else soak(args)) else 1


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
