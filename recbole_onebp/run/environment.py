"""The environment of a run: versions, device and peak memory."""

from __future__ import annotations

import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from recbole_onebp import __version__

__all__ = ["device_name", "peak_rss_mb", "versions"]


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the libraries that results depend on."""
    packages = ("recbole", "torch", "numpy", "scipy", "pandas")
    return {
        "recbole_onebp": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def device_name(device: torch.device) -> str:
    """The name of a CUDA device, or ``cpu`` with the number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def peak_rss_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    if sys.platform == "linux":  # ru_maxrss of a new process starts at its parent's peak: read VmHWM
        peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if peak:  # some container kernels do not report it
            return int(peak[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
