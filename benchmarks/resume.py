"""Reliability: stopped and resumed runs against uninterrupted ones, and what a process holds after an hour of runs.

    python benchmarks/resume.py [--trials 30] [--data_path dataset --dataset NAME] [--out DIR]
    python benchmarks/resume.py --soak 60 [--out DIR]

A trial starts ``run_recbole_onebp.py``, sends SIGTERM, SIGINT (Ctrl-C) or SIGKILL (kill -9) at a random moment between
the first epoch and the end, and starts it again with ``--resume=auto``. The newest checkpoint (tables, optimizer,
generators, early stopping), the best model, ``metrics.jsonl`` and ``result.json`` must be equal, except for seconds and
memory. Trials in the result file are not repeated.

``--soak MINUTES`` repeats rounds: this process trains OneBP on ml-100k, tests it, resumes from its checkpoint and tests
again; a process of its own is stopped with SIGTERM and resumed. After each round it counts this process's memory,
descriptors, threads, children and temporary files. None of them may grow. Linux only.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
from measure import RESULTS, THREAD_VARIABLES, CheckFailedError, claim, exit_code, here, write_json, write_text
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


# --------------------------------------------------------------------------------------------- stopped and resumed runs


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


class Straight:
    """An uninterrupted run: its results, and the seconds of its training."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        finish(start({**settings, "epochs": 1}, folder.with_name("warm")))  # compiles
        process = start(settings, folder)
        wait_for_training(process, folder)
        begun = monotonic()
        finish(process)
        self.seconds, self.contents = monotonic() - begun, contents(folder)


def trial(settings: Mapping[str, Any], straight: Straight, number: int, seed: int, folder: Path) -> dict[str, Any]:
    """Stop a run, resume it and compare its results."""
    rng, which = random.Random(f"{seed} {number}"), SIGNALS[number % len(SIGNALS)]
    for attempt in range(20):
        moment, place = rng.uniform(0, straight.seconds), folder / str(attempt)
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
    return {**row, "different": [name for name, expected in straight.contents.items() if now[name] != expected]}


def table(trials: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = ["| run | signal | trials | equal | went on inside an epoch | from the start | slowest exit, s |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in trials:
        kinds.setdefault((row["run"], row["signal"]), []).append(row)
    for (run, name), group in sorted(kinds.items()):
        equal = sum(not row["different"] for row in group)
        inside = sum(not str(row["checkpoint"] or "-step-000000000").endswith("-step-000000000") for row in group)
        restarted = sum(row["checkpoint"] is None for row in group)
        slowest = max(row["exit_seconds"] for row in group)
        rows.append(f"| {run} | {name} | {len(group)} | {equal} | {inside} | {restarted} | {slowest:.2f} |")
    return rows


def page(found: Mapping[str, Any]) -> str:
    trials = found["trials"]
    equal = sum(not row["different"] for row in trials)
    parts = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    what = "tables, optimizer, generators, early stopping, record and metrics"
    return "\n".join([
        f"# Stopped and resumed runs against straight ones, {found['dataset']}",
        "",
        f"`python benchmarks/resume.py --trials {len(trials)}`: {found['machine']['cpu']}, one thread; {parts}; "
        f"seed {found['seed']}.",
        "",
        f"**{equal} of {len(trials)} are equal, bit for bit**, in {what}.",
        "",
        *table(trials),
        "",
    ])  # fmt: skip


def run_trials(args: argparse.Namespace) -> bool:
    """Whether all trials are equal."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    data = {"dataset": args.dataset, **({"data_path": args.data_path} if args.data_path else {})}
    results, about = args.out / f"resume-{args.dataset}.json", here("numba", "safetensors")
    found: dict[str, Any] = {"dataset": args.dataset, "seed": args.seed, "machine": {"cpu": about["machine"]["cpu"]},
                             "versions": about["versions"], "trials": []}  # fmt: skip
    if results.is_file():
        before = json.loads(results.read_text())
        if len(before["trials"]) < args.trials and {**before, "trials": []} == found:
            found = before
    straight: dict[str, Straight] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(len(found["trials"]), args.trials):
            name = list(RUNS)[number % len(RUNS)]
            settings = {**data, **RUNS[name]}
            if name not in straight:
                straight[name] = Straight(settings, Path(scratch) / name)
            row = {"run": name, **trial(settings, straight[name], number, args.seed, Path(scratch) / str(number))}
            print(f"{number + 1}: {row}", flush=True)
            found["trials"].append(row)
            write_json(results, found)
    write_text(results.with_suffix(".md"), page(found))
    print(page(found))
    return not any(row["different"] for row in found["trials"])


# ----------------------------------------------------------------------------------------------------------------- soak

SOAKED: dict[str, Any] = {"model": "OneBP", "dataset": "ml-100k", "epochs": 4, "show_progress": False}
ENDS_WITHIN = 30.0
"""Seconds that a process may take to end after SIGTERM."""
GROWTH_MB = 16.0
"""Memory may grow by so much over the measured rounds: allocators settle late."""
WARM_UP = 1 / 4
"""Share of the rounds that is ignored: the first ones compile loops and load modules."""


@dataclass(frozen=True)
class Held:
    """What a process holds after a round."""

    seconds: float
    """Since the start."""
    rss_mb: float
    descriptors: int
    threads: int
    children: int
    temporary_files: int

    @classmethod
    def now(cls, start: float, temporary: Path) -> Held:
        gc.collect()
        process = psutil.Process()
        return cls(
            round(monotonic() - start, 1),
            round(process.memory_info().rss / 2**20, 1),
            process.num_fds(),
            process.num_threads(),
            len(process.children(recursive=True)),
            sum(1 for _ in temporary.rglob("*")),
        )


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


def grows(held: list[Held]) -> list[str]:
    """What grows, in words."""
    measured = held[int(len(held) * WARM_UP) :]
    half = len(measured) // 2
    claim(half >= 2, f"{len(held)} rounds are too few to judge; soak for more minutes")
    found = []
    for name in ("descriptors", "threads", "children", "temporary_files"):
        before, after = (max(getattr(one, name) for one in part) for part in (measured[:half], measured[half:]))
        if after > before:
            found.append(f"{name}: at most {before} in the first half, {after} in the second")
    rss = [one.rss_mb for one in measured]
    growth = float(theilslopes(rss)[0]) * (len(rss) - 1)
    if growth > GROWTH_MB:
        found.append(f"memory: {growth:.1f} MiB over {len(rss)} rounds, at most {GROWTH_MB:g} are allowed")
    return found


def soak(args: argparse.Namespace) -> bool:
    """Whether nothing grows."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    rng, begun, held, about = np.random.default_rng(args.seed), monotonic(), list[Held](), here()
    with tempfile.TemporaryDirectory() as kept:
        runs, temporary = Path(kept) / "runs", Path(kept) / "temporary"
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)  # for this process and its children
        while monotonic() - begun < 60 * args.soak:
            ndcg = in_process(runs / "here")
            claim(ndcg > 0.1, f"round {len(held)}: NDCG@10 is {ndcg}")
            command_line(runs / "there", rng)
            shutil.rmtree(runs)
            held.append(Held.now(begun, temporary))
            print(f"{len(held):4d}  {asdict(held[-1])}", flush=True)
        tempfile.tempdir = None
    found = grows(held)
    values = {**about, "minutes": args.soak, "grows": found, "rounds": [asdict(one) for one in held]}
    write_json(args.out / f"{about['machine']['slug']}-soak.json", values)
    print("\n".join(found) or f"nothing grows over {len(held)} rounds")
    return not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="repeat runs for so long, and watch memory")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", type=Path, help="RecBole's data folder")
    parser.add_argument("--seed", type=int, default=2024, help="of the moments of the signals")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    args = parser.parse_args()
    return 0 if (run_trials(args) if args.soak is None else soak(args)) else 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
