"""What the benchmarks share: alternating timings, ratios with their spread, the machine, the result file."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import recbole_onebp
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.files import write_atomically

RESULTS = Path(__file__).parent / "results"


class CheckFailedError(Exception):
    """What was going to be timed, or has been, is wrong: its time says nothing."""


def claim(condition: bool, message: str) -> None:
    """Raise :class:`CheckFailedError` unless the condition holds; unlike ``assert`` it also does so under ``-O``."""
    if not condition:
        raise CheckFailedError(message)


def check_alike(path: Path, earlier: Mapping[str, Any], about: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Raise :class:`UserError` if a results file has rows that were not measured as they would be now."""
    if different := [key for key in keys if earlier[key] != about[key]]:
        raise UserError(f"{path}: its rows have another {', '.join(different)}; name another file")


def timed(function: Callable[[], object]) -> Callable[[], float]:
    """``function`` as one that returns the seconds it took."""

    def run() -> float:
        gc.collect()
        start = perf_counter()
        function()
        return perf_counter() - start

    return run


def alternate(repeats: int, *contestants: Callable[[], float]) -> list[list[float]]:
    """Call them A B A B ..., so that what disturbs the machine disturbs all; what each returned, round by round."""
    rounds = [[contestant() for contestant in contestants] for _ in range(repeats)]
    return [list(values) for values in zip(*rounds, strict=True)]


@dataclass(frozen=True)
class Row:
    """A line of a results table: a quantity measured ``repeats`` times, and what it should reach."""

    title: str
    values: list[float]
    """One a round: our time over theirs, or what the title says."""
    parts: dict[str, list[float]]
    """What the values are made of, each with its unit."""
    checked: str
    """What was asserted before, during or after the timing."""
    target: float | None = None
    at_least: bool = False
    """The target is a lower bound; otherwise an upper one."""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.target is None:
            return "reported"
        median = statistics.median(self.values)
        return "pass" if (median >= self.target if self.at_least else median <= self.target) else "miss"

    def as_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "target": self.target,
            "at_least": self.at_least,
            "verdict": self.verdict,
            **_spread(self.values),
            "parts": {name: _spread(values) for name, values in self.parts.items()},
            "checked": self.checked,
            "note": self.note,
        }


def ratios(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Round by round, for both were timed side by side."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def measure_all(rows: Mapping[str, Callable[[], list[Row]]]) -> tuple[dict[str, Any], bool]:
    """Measure and print row after row; their JSON forms, and whether every check held.

    A row that cannot be measured has no numbers, and a verdict that says why; the others are measured all the same.
    """
    done: dict[str, Any] = {}
    sound = True
    for name, function in rows.items():
        start = perf_counter()
        try:
            found = [row.as_json() for row in function()]
        except UserError as error:
            found = [{"title": name, "verdict": f"not run: {error}"}]
        except CheckFailedError as error:
            found, sound = [{"title": name, "verdict": f"check failed: {error}"}], False
        except Exception as error:
            traceback.print_exc()
            found, sound = [{"title": name, "verdict": f"failed: {error!r}"}], False
        for number, row in enumerate(found, start=1):
            done[name if len(found) == 1 else f"{name}-{number}"] = row
            print(shown(row), flush=True)
        print(f"    [{name}: {perf_counter() - start:.0f} s]", flush=True)
    return done, sound


def _spread(values: list[float]) -> dict[str, Any]:
    rounded = [float(f"{value:.5g}") for value in values]
    return {"median": statistics.median(rounded), "min": min(rounded), "max": max(rounded), "values": rounded}


@dataclass(frozen=True)
class Machine:
    """Where the numbers come from."""

    cpu: str
    cores: int
    slug: str
    memory_gb: int
    system: str
    load_before: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    """Processes that wanted a core in the minute before; above 0.5 the numbers are not to be trusted."""

    @classmethod
    def here(cls) -> Machine:
        info = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE))
        name = re.sub(r"\(R\)|\(TM\)|\bCPU\b|@.*", "", info.get("model name", platform.machine()))
        cores = os.cpu_count() or 1
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(
            cpu=f"{' '.join(name.split())} (family {info.get('cpu family', '?')}, model {info.get('model', '?')})",
            cores=cores,
            slug=f"{slug(name)}-{cores}-cores",
            memory_gb=round(memory / 2**30),
            system=f"{platform.system()} {platform.machine()}",
        )


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions(*more: str) -> dict[str, str]:
    packages = ("recbole", "torch", "numpy", "scipy", *more)
    return {
        "recbole_onebp": recbole_onebp.__version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def use_threads(threads: int) -> None:
    """Keep this process and its children on that many cores and threads; call it before torch or numba is imported."""
    if {"torch", "numba"} & set(sys.modules):
        raise RuntimeError("torch or numba is imported already: they have read the number of threads")
    if threads > len(os.sched_getaffinity(0)):
        raise UserError(f"--threads {threads}: {len(os.sched_getaffinity(0))} cores are free to use")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)


def earlier_rows(path: Path, here: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a results file, none if there is no file; refused if they were not measured as they would be here."""
    if not path.is_file():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    varying = {"load_before", "run_seconds"}
    for part, expected in here.items():
        different = [key for key in expected if key not in varying and earlier[part].get(key) != expected[key]]
        if different:
            raise UserError(f"{path}: its rows have another {part} ({', '.join(different)}); name another file")
    return dict(earlier["rows"])


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2) + "\n"
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    print(f"wrote {path}")


@contextmanager
def picture(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches to draw on, written as PNG at the end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: figure.savefig(file, dpi=130, format="png"))
    print(f"wrote {path}")


def add_common_flags(parser: argparse.ArgumentParser, repeats: int) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="where to write the results")
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of every timing (default {repeats})")
    parser.add_argument("--seed", type=int, default=2024)


def shown(row: Mapping[str, Any]) -> str:
    """A row in one line for the terminal."""
    if "median" not in row:
        return f"{row['title']}: {row['verdict']}"
    bound = "" if row["target"] is None else f", {'at least' if row['at_least'] else 'at most'} {row['target']:g}"
    parts = "; ".join(f"{name} {part['median']:.4g}" for name, part in row["parts"].items())
    spread = f"{row['median']:.3g} ({row['min']:.3g}..{row['max']:.3g}){bound}"
    return f"{row['title']}: {spread}: {row['verdict']}\n    {parts}\n    checked: {row['checked']}"
