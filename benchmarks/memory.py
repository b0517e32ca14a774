"""Peak resident memory of a whole training run, and of its imports alone, each in a process of its own.

    python benchmarks/memory.py run MODEL DATASET CONFIG_AS_JSON
    python benchmarks/memory.py imports < names of modules

Reads ``VmHWM`` of ``/proc/self/status``: the ``ru_maxrss`` of a new process starts at what its parent had.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import claim


def above_imports(model: str, dataset: str, config: Mapping[str, Any]) -> tuple[float, float, dict[str, float]]:
    """MiB of a run's peak above that of importing the modules that it had loaded; MiB of those; the test metrics."""
    run = _in_a_process(["run", model, dataset, json.dumps(config)])
    imports = _in_a_process(["imports"], "\n".join(run["modules"]))
    return run["peak_mb"] - imports["peak_mb"], imports["peak_mb"], run["test"]


def _in_a_process(arguments: list[str], text: str = "") -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], input=text, stdout=subprocess.PIPE, text=True)
    claim(done.returncode == 0, f"memory.py {arguments[:3]} ended with exit code {done.returncode}, see above")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _peak_mb() -> float:
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 1024


def _run(model: str, dataset: str, config: str) -> dict[str, Any]:
    import recbole_onebp

    logging.disable(logging.INFO)
    result = recbole_onebp.build(model, dataset, config_dict=json.loads(config)).fit()
    return {"peak_mb": _peak_mb(), "test": result.test, "modules": list(sys.modules)}


def _imports(names: list[str]) -> dict[str, Any]:
    import recbole_onebp  # noqa: F401  (without its patches RecBole does not import)

    for name in names:
        with contextlib.suppress(Exception):  # some names in sys.modules are no importable modules
            importlib.import_module(name)
    return {"peak_mb": _peak_mb()}


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    print(json.dumps(_run(*rest) if command == "run" else _imports(sys.stdin.read().split())))
