"""Reliability: stopped and resumed runs against uninterrupted ones, and what a process holds after an hour of runs.

    python benchmarks/resume.py [--trials 30] [--data_path dataset --dataset NAME] [--out DIR]
    python benchmarks/resume.py --soak 60 [--out DIR]

A trial starts ``run_recbole_onebp.py``, sends SIGTERM, SIGINT (Ctrl-C) or SIGKILL (kill -9) at a random moment between
the first epoch and the end, and starts it again with ``--resume=auto``. The newest checkpoint (tables, optimizer,
generators, early stopping), the best model, ``metrics.jsonl`` and ``result.json`` must be equal, except for seconds and
memory. Trials in the result file are not repeated.

``--soak MINUTES`` repeats rounds: this process trains OneBP on ml-100k, tests it, resumes from its checkpoint and tests
again; a process of its own is stopped with SIGTERM and resumed. After each round it counts this process's memory,
descriptors, threads, children and temporary files. None of them may grow.

They write ``results/resume-<data>.json`` and ``.md``, and ``results/<machine>-soak.json``.
Exit codes: 0 all is equal, nothing grows; 1 otherwise.
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
from collections.abc import Iterable, Mapping
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
SIGNALS = tuple(CODES)


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
    rng, which = random.Random(f"{seed} {number}"), SIGNALS[number % len(SIGNALS)]
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
    row = {
        "signal": which.name,
        "after_seconds": round(moment, 3),
        "epochs_done": len((place / "metrics.jsonl").read_text().splitlines()),
        "checkpoint": found[-1] if found else None,
        "exit_seconds": round(took, 3),
    }
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
        equal = sum(not row["different"] for row in group)
        inside = sum(not str(row["checkpoint"] or "-step-000000000").endswith("-step-000000000") for row in group)
        restarted = sum(row["checkpoint"] is None for row in group)
        slowest = max(row["exit_seconds"] for row in group)
        found.append([*kind, len(group), equal, inside, restarted, f"{slowest:.2f}"])
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
    """Whether all trials are equal."""
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
ENDS_WITHIN = 30.0
"""Seconds that a process may take to end after SIGTERM."""
GROWTH_MB = 16.0
"""Memory may grow by so much over the measured rounds: allocators settle late."""
WARM_UP = 1 / 4
"""Share of the rounds that is ignored: the first ones compile loops and load modules."""


def held(start: float, temporary: Path) -> dict[str, float]:
    """What this process holds after a round, and the seconds since the start."""
    gc.collect()
    process = psutil.Process()
    return {
        "seconds": round(monotonic() - start, 1),
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
        "temporary_files": sum(1 for _ in temporary.rglob("*")),
    }


def in_process(folder: Path) -> float:
    """Train, then resume for as many epochs again; NDCG@10 on the test part."""
    import recbole_onebp

    given = {**SOAKED, "output_dir": str(folder)}
    recbole_onebp.build("OneBP", "ml-100k", config_dict=given).fit()
    longer = {**given, "epochs": 2 * SOAKED["epochs"], "resume": "auto"}
    return recbole_onebp.build("OneBP", "ml-100k", config_dict=longer).fit().test["ndcg@10"]


def command_line(folder: Path, rng: np.random.Generator) -> None:
    """Stop a run of the command line at a random moment, and resume it."""
    process = start(SOAKED, folder, resume=True)
    sleep(rng.uniform(3, 12))
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        raise CheckFailedError(f"the run is still alive {ENDS_WITHIN:g} seconds after SIGTERM") from None
    finish(start(SOAKED, folder, resume=True))
    claim((folder / "result.json").is_file(), "the command line wrote no result.json")


def grows(rounds: list[dict[str, float]]) -> list[str]:
    """What grows, in words."""
    measured = rounds[int(len(rounds) * WARM_UP) :]
    half = len(measured) // 2
    claim(half >= 2, f"{len(rounds)} rounds are too few to judge; soak for more minutes")
    found = []
    for name in ("descriptors", "threads", "children", "temporary_files"):
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
            ndcg = in_process(runs / "here")
            claim(ndcg > 0.1, f"round {len(rounds)}: NDCG@10 is {ndcg}")
            command_line(runs / "there", rng)
            shutil.rmtree(runs)
            rounds.append(held(begun, temporary))
            print(f"{len(rounds):4d}  {rounds[-1]}", flush=True)
        tempfile.tempdir = None
    found = grows(rounds)
    values = {**about, "minutes": args.soak, "grows": found, "rounds": rounds}
    measure.write_json(args.out / f"{about['machine']['slug']}-soak.json", values)
    print("\n".join(found) or f"nothing grows over {len(rounds)} rounds")
    return not found


def main() -> int:
    args = measure.arguments(
        __doc__, trials=30, soak=float, dataset="ml-100k", data_path=measure.DATA, seed=2024, out=measure.RESULTS
    )
    return 0 if (run_trials(args) if args.soak is None else soak(args)) else 1


if __name__ == "__main__":
    sys.exit(measure.exit_code(main))
