"""Shared by the benchmarks: timings side by side, rows of results, the machine, flags, result files and exit codes."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil
import yaml

import recbole_onebp
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

DATASETS = ("gowalla", "yelp2018", "amazon-book-part", "onebp-ml-1m", "onebp-ml-100k")
DATA = Path("dataset")  # RecBole's data folder
RESULTS = Path(__file__).parent / "results"
VARYING = {"load_before", "run_seconds"}  # entries of a result file that may differ between runs that belong together
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class CheckFailedError(Exception):
    """What is timed gave a wrong result, so its time is meaningless."""


def claim(condition: bool, message: str) -> None:
    """Raise :class:`CheckFailedError` unless the condition holds. Unlike ``assert`` this also works under ``-O``."""
    if not condition:
        raise CheckFailedError(message)


def exit_code(main: Callable[[], int | None], tasks: Mapping[str, Callable[..., dict[str, Any]]] | None = None) -> int:
    """Call ``main``, or the task that :func:`in_a_process` asks for; 1 if a check failed, 2 if the user can fix it."""
    if tasks and sys.argv[1:2] == ["--task"]:
        task, *arguments = json.loads(sys.argv[2])
        print(json.dumps(tasks[task](*arguments)))
        return 0
    try:
        return main() or 0
    except CheckFailedError as error:
        print(f"check failed: {error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """Wrap ``function`` so that it returns the seconds it took."""

    def run() -> float:
        gc.collect()
        start = perf_counter()
        function()
        return perf_counter() - start

    return run


def alternate(repeats: int, *contestants: Callable[[], float]) -> list[list[float]]:
    """Call them in turns (A B A B ...), so that a disturbance hits all of them; the values of each, round by round."""
    rounds = [[contestant() for contestant in contestants] for _ in range(repeats)]
    return [list(values) for values in zip(*rounds, strict=True)]


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@dataclass(frozen=True)
class Row:
    """One line of a results table: a quantity, measured in several rounds, and its target.

    ``values`` are our time divided by theirs in each round, or what the title says, and ``parts`` the measurements
    behind them. ``checked`` says what was asserted. The target is an upper bound unless ``at_least``.
    """

    title: str
    values: list[float]
    parts: dict[str, list[float]]
    checked: str
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "reported"
        median = statistics.median(self.values)
        return "pass" if (median >= self.target if self.at_least else median <= self.target) else "miss"

    def as_json(self) -> dict[str, Any]:
        about = {"title": self.title, "target": self.target, "at_least": self.at_least, "verdict": self.verdict}
        parts = {name: _spread(values) for name, values in self.parts.items()}
        return {**about, **_spread(self.values), "parts": parts, "checked": self.checked, "note": self.note}


def _spread(values: list[float]) -> dict[str, Any]:
    rounded = [float(f"{value:.5g}") for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "values": rounded}


def shown(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    if "median" not in row:
        return f"{row['title']}: {row['verdict']}"
    parts = "; ".join(f"{name} {part['median']:.4g}" for name, part in row["parts"].items())
    bound = "" if row["target"] is None else f", target {row['target']:g}: {row['verdict']}"
    return f"{row['title']}: {row['median']:.3g} ({row['min']:.3g} to {row['max']:.3g}){bound}\n    {parts}"


Rows = Mapping[str, Callable[[], list[Row]]]


def measure_all(rows: Rows, keep: Callable[[dict[str, Any]], None] = lambda _: None) -> tuple[dict[str, Any], bool]:
    """Measure and print one row after the other: the rows as JSON, and whether every check held.

    A row that cannot be measured has no numbers, and a verdict that says why. ``keep`` is called after each row.
    """
    done: dict[str, Any] = {}
    sound = True
    for name, function in rows.items():
        start = perf_counter()
        try:
            found = [row.as_json() for row in function()]
        except UserError as error:
            found = [{"title": name, "verdict": f"not run: {error}"}]
        except Exception as error:
            traceback.print_exc()
            wrong = f"check failed: {error}" if isinstance(error, CheckFailedError) else f"failed: {error!r}"
            found, sound = [{"title": name, "verdict": wrong}], False
        for number, row in enumerate(found, start=1):
            done[name if len(found) == 1 else f"{name}-{number}"] = row
            print(shown(row), flush=True)
        print(f"    [{name}: {perf_counter() - start:.0f} s]", flush=True)
        keep(done)
    return done, sound


def measure_to_file(rows: Rows, args: argparse.Namespace, name: str, about: dict[str, Any]) -> int:
    """Measure ``args.only`` of the rows and write them; the exit code.

    All rows together go to ``results/<name>.json``, a selection only to ``args.json``, beside that file's other rows.
    """
    every, start = set(args.only) == set(rows), perf_counter()
    out = args.json or (RESULTS / f"{name}.json" if every else None)
    before = {} if every else earlier(out, about, "rows", about) or {}
    if (load := about["machine"]["load_before"]) > 0.5:
        print(f"warning: load average {load}: other programs are running, the timings will be off")

    def keep(done: dict[str, Any]) -> None:
        if out:
            about["settings"]["run_seconds"] = round(perf_counter() - start)
            write_json(out, {**about, "rows": {**before, **done}})

    _, sound = measure_all({row: rows[row] for row in args.only}, keep)
    return 0 if sound else 1


def machine() -> dict[str, Any]:
    """Where the numbers come from. Above a load average of 0.5 (of the minute before) they are not to be trusted."""
    info = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE))
    name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|@.*", "", info.get("model name", platform.machine()))
    cores = os.cpu_count() or 1
    return {
        "cpu": f"{' '.join(name.split())} (family {info.get('cpu family', '?')}, model {info.get('model', '?')})",
        "cores": cores,
        "slug": f"{slug(name)}-{cores}-cores",
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def here(*packages: str) -> dict[str, Any]:
    """The machine and the versions, as every result file begins."""
    return {"machine": machine(), "versions": versions(*packages)}


def versions(*more: str) -> dict[str, str]:
    found = {"recbole_onebp": recbole_onebp.__version__, "python": platform.python_version()}
    return found | {package: version(package) for package in ("recbole", "torch", "numpy", "scipy", *more)}


def use_threads(threads: int) -> None:
    """Keep this process and its children on so many cores and threads: the least busy cores, beside other work.

    Libraries read the number of threads when they are imported, so the program is started anew with the number in its
    environment, unless it is there already. Call this first in ``main``.
    """
    free = sorted(os.sched_getaffinity(0))
    if not 0 < threads <= len(free):
        raise UserError(f"--threads {threads}: {len(free)} cores are free to use")
    wanted = dict.fromkeys(THREAD_VARIABLES, str(threads))
    if threads < len(free):
        busy = dict(enumerate(psutil.cpu_percent(0.5, percpu=True)))
        free.sort(key=lambda core: busy.get(core, 0.0))
    os.sched_setaffinity(0, free[:threads])
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})


def begin(args: argparse.Namespace, datasets: Iterable[str]) -> None:
    """Prepare a script that trains on these data sets, silently and on ``args.threads`` threads."""
    use_threads(args.threads)
    check_data(args.data_path, datasets)
    args.data_path = args.data_path.resolve()
    logging.disable(logging.INFO)


def in_a_process(script: str, task: str, *arguments: Any) -> dict[str, Any]:
    """Have a new process of a script run one of its tasks, see :func:`exit_code`; what the task returns."""
    command = [sys.executable, script, "--task", json.dumps([task, *arguments])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    claim(done.returncode == 0, f"{Path(script).name}, task {task}: exit code {done.returncode}, see above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def memory_mb(key: str, file: str = "/proc/self/status") -> float:
    """MiB of an entry such as ``VmHWM`` (peak) or ``VmRSS``. ``ru_maxrss`` would begin at the parent's peak."""
    match = re.search(rf"{key}:\s*(\d+) kB", Path(file).read_text())
    assert match
    return int(match[1]) / 1024


def arguments(doc: str | None, place: str = "", **options: Any) -> argparse.Namespace:
    """The command line of a script.

    Args:
        doc: its docstring, which ``--help`` prints.
        place: the option that is given without its name.
        options: name and default. A type has no default; of a tuple one value can be chosen, by default the first; of a
            list of names several, by default all; other lists take several values, and a dictionary is given as YAML.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in options.items():
        how: dict[str, Any] = {"type": type(default), "default": default, "help": f"default: {default}"}
        if isinstance(default, type):
            how = {"type": default}
        elif default is False:
            how = {"action": "store_true"}
        elif isinstance(default, dict):
            how["type"] = yaml.safe_load
        elif isinstance(default, tuple):
            how = {"choices": default, "default": default[0], **({"nargs": "?"} if name == place else {})}
        elif isinstance(default, list):
            kind = type(default[0]) if default else str
            how |= {"nargs": "+", "type": kind, "choices": default if default and kind is str else None}
        parser.add_argument(name if name == place else f"--{name}", **how)
    return parser.parse_args()


def check_data(data_path: Path, datasets: Iterable[str]) -> None:
    """Raise :class:`UserError` for the first file that is missing."""
    for dataset, part in product(datasets, ("train", "valid", "test")):
        path = data_path / dataset / f"{dataset}.{part}.inter"
        if not path.is_file():
            raise UserError(f"{path} is missing; recbole-onebp fetch {dataset} --data_path {data_path} gets it")


def earlier(path: Path | None, about: Mapping[str, Any], entry: str, keys: Iterable[str]) -> Any:
    """An entry of a result file, None without a file; refuses a file that was measured under other conditions."""
    if path is None or not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for key in keys:
        before, now, names = found[key], about[key], ""
        if isinstance(now, Mapping):
            different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            names = ", ".join(name for name in different if name not in VARYING)
        if names or (before != now and not isinstance(now, Mapping)):
            raise UserError(f"{path}: its rows have another {key}{names and f' ({names})'}; name another file")
    return found[entry]


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"wrote {path}", flush=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    head = list(head)
    titles = f"| {' | '.join(map(str, head))} |".replace("|  |", "| |")
    return "\n".join([titles, f"|{'---|' * len(head)}", *(f"| {' | '.join(map(str, row))} |" for row in rows)])


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, written as PNG at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))
    print(f"wrote {path}", flush=True)
