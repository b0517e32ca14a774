"""Train, test, go on from the checkpoint, over and over: what a process holds must not grow.

    python benchmarks/soak.py --minutes=60

Each round trains OneBP on ml-100k in this process, tests it, builds it anew, goes on from its checkpoint and tests
again; and has the command line do the same in a process of its own, which is told to end in the middle (SIGTERM) and
started again with ``--resume=auto``.  After each round this process's memory, descriptors, threads and children are
noted, and the files left in the folder for temporary ones.  Linux only.

Exit codes: 0 nothing grows; 1 something does, or a round went wrong.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import psutil
from measure import RESULTS, CheckFailedError, Machine, claim, versions, write_json
from scipy.stats import theilslopes

CONFIG: dict[str, Any] = {"model": "OneBP", "dataset": "ml-100k", "epochs": 4, "show_progress": False}
_ENDS_WITHIN = 30.0
"""Seconds that a process may take to end once it is told to."""
_GROWTH_MB = 16.0
"""What memory may grow by over the measured rounds: an allocator settles late."""
_WARM_UP = 1 / 4
"""Rounds that are not looked at, of all: in the first ones loops are compiled and modules loaded."""


@dataclass(frozen=True)
class Held:
    """What is held after a round."""

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
    """A run, and another that goes on from its checkpoint; the latter's NDCG@10 on the test part."""
    import recbole_onebp

    given = {**CONFIG, "output_dir": str(folder)}
    recbole_onebp.build("OneBP", "ml-100k", config_dict=given).fit()
    longer = {**given, "epochs": 2 * CONFIG["epochs"], "resume": "auto"}
    second = recbole_onebp.build("OneBP", "ml-100k", config_dict=longer)
    return second.fit().test["ndcg@10"]


def command_line(folder: Path, rng: np.random.Generator) -> None:
    """A run that is told to end at some moment, and gone on with."""
    script = Path(__file__).parent.parent / "run_recbole_onebp.py"
    flags = [f"--{key}={value}" for key, value in {**CONFIG, "output_dir": folder, "resume": "auto"}.items()]
    command = [sys.executable, str(script), *flags]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(3, 12))
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            raise CheckFailedError(f"still there {_ENDS_WITHIN:g} seconds after SIGTERM") from None
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    claim(done.returncode == 0, f"the command line ended with {done.returncode}: {done.stderr[-500:]}")
    claim((folder / "result.json").is_file(), "the command line wrote no result.json")


def grows(held: list[Held]) -> list[str]:
    """What is held more and more, in words."""
    measured = held[int(len(held) * _WARM_UP) :]
    half = len(measured) // 2
    claim(half >= 2, f"{len(held)} rounds are too few to tell; give it more --minutes")
    found = []
    for name in ("descriptors", "threads", "children", "temporary_files"):
        before, after = (max(getattr(one, name) for one in part) for part in (measured[:half], measured[half:]))
        if after > before:
            found.append(f"{name}: at most {before} in the first half, {after} in the second")
    rss = [one.rss_mb for one in measured]
    growth = float(theilslopes(rss)[0]) * (len(rss) - 1)
    if growth > _GROWTH_MB:
        found.append(f"memory: {growth:.1f} MiB over {len(rss)} rounds, at most {_GROWTH_MB:g} are allowed")
    return found


def soak(minutes: float, seed: int) -> list[Held]:
    """What is held after each round."""
    rng, start, held = np.random.default_rng(seed), monotonic(), list[Held]()
    with tempfile.TemporaryDirectory() as kept:
        runs, temporary = Path(kept) / "runs", Path(kept) / "temporary"
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)  # ours and that of the processes
        while monotonic() - start < 60 * minutes:
            ndcg = in_process(runs / "here")
            claim(ndcg > 0.1, f"round {len(held)}: NDCG@10 is {ndcg}")
            command_line(runs / "there", rng)
            shutil.rmtree(runs)
            held.append(Held.now(start, temporary))
            print(f"{len(held):4d}  {asdict(held[-1])}", flush=True)
        tempfile.tempdir = None
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=2024, help="of the moments of SIGTERM")
    parser.add_argument("--json", type=Path, metavar="OUT", help="default: results/<machine>-soak.json")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    machine = Machine.here()
    held = soak(arguments.minutes, arguments.seed)
    found = grows(held)
    values = {
        "machine": asdict(machine),
        "versions": versions(),
        "minutes": arguments.minutes,
        "grows": found,
        "rounds": [asdict(one) for one in held],
    }
    write_json(arguments.json or RESULTS / f"{machine.slug}-soak.json", values)
    print("\n".join(found) or f"flat over {len(held)} rounds")
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CheckFailedError as error:
        sys.exit(f"failed: {error}")
