"""``recbole-onebp doctor``: versions, patches of RecBole with their reasons, and missing packages."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from recbole_onebp import __version__
from recbole_onebp.cli.overrides import refuse_unknown
from recbole_onebp.plugin import import_hook

__all__ = ["add", "report", "run"]

_PACKAGES = ("recbole", "torch", "numpy", "scipy", "pandas", "scikit-learn", "ray")
_OPTIONAL = {
    "faiss": "NCL: pip install faiss-cpu",
    "kmeans_pytorch": "LDiffRec: pip install kmeans-pytorch",
    "lightgbm": "LightGBM: pip install lightgbm",
    "xgboost": "XGBoost: pip install xgboost",
    "optuna": "recbole-onebp tune: pip install 'recbole-onebp[tune]'",
    "pyarrow": "Parquet files, polars and pyarrow tables: pip install 'recbole-onebp[parquet]'",
    "uvicorn": "recbole-onebp serve: pip install 'recbole-onebp[serve]'",
    "onnxruntime": "recbole-onebp export --onnx: pip install 'recbole-onebp[onnx]'",
    "wandb": "log_wandb: pip install wandb",
}


def add(commands: Any) -> None:
    """Add the command to an ``argparse`` parser."""
    doctor = commands.add_parser("doctor", help="show versions, device, patches of RecBole and missing packages")
    doctor.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Run the command; any argument in ``rest`` is an error."""
    refuse_unknown(rest, arguments)
    return 0 if report() else 2


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def report() -> bool:
    """Print the report.

    Returns:
        Whether training works: RecBole is installed and no patch failed.
    """
    print(f"recbole_onebp   {__version__}")
    print(f"python          {platform.python_version()} on {platform.platform()}")
    for package in _PACKAGES:
        print(f"{package:<15} {_version(package)}{' (not needed)' if package == 'ray' else ''}")
    if find_spec("recbole") is None:
        print(f"\n{import_hook.missing_recbole()}")
        return False

    import recbole.quick_start  # noqa: F401  applies the patches
    import torch

    from recbole_onebp.plugin import patches
    from recbole_onebp.util.compiled import cache_folder

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    print(f"device          cpu, {torch.get_num_threads()} threads; CUDA device: {cuda}")
    folder, reason = cache_folder()
    print(f"numba's cache   {folder or 'none'} ({reason})")
    print("\npatches of RecBole")
    for patch in patches.PATCHES.values():
        print(f"  {patch.name}: {patches.STATUS[patch.name]}\n    {patch.why} [{patch.issue}]")
    print("\noptional packages")
    for package, use in _OPTIONAL.items():
        print(f"  {package}: {'installed' if find_spec(package) else 'missing'} ({use})")
    return not any(status.startswith("failed") for status in patches.STATUS.values())
