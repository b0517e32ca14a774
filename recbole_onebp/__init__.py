"""One-backpropagation two-tower recommendation (OneBP) for RecBole.

Importing this package is cheap: neither torch nor RecBole is loaded.  It leaves a hook behind, and when RecBole is
first imported, in whichever module, RecBole is patched for today's Python stack and OneBP is registered with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_onebp.plugin import import_hook

if TYPE_CHECKING:
    from recbole_onebp.model import OneBP
    from recbole_onebp.run.build import Result, Run, build
    from recbole_onebp.serving import Recommender
    from recbole_onebp.trainer import OneBPTrainer

__version__ = "0.1.0"
__all__ = ["OneBP", "OneBPTrainer", "Recommender", "Result", "Run", "__version__", "build"]

_HOME = {
    "OneBP": "recbole_onebp.model",
    "OneBPTrainer": "recbole_onebp.trainer",
    "Recommender": "recbole_onebp.serving",
    "Result": "recbole_onebp.run.build",
    "Run": "recbole_onebp.run.build",
    "build": "recbole_onebp.run.build",
}

import_hook.install()


def __getattr__(name: str) -> Any:
    """Load what needs more than this only when it is asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "Recommender":
        import_hook.require_recbole()
    return getattr(import_module(_HOME[name]), name)
