"""One-backpropagation two-tower recommendation (OneBP) for RecBole.

Importing this package is fast, because it loads neither torch nor RecBole.  It installs an import hook: when RecBole is
first imported, by any module, RecBole is patched for current versions of its dependencies and OneBP is registered.

Example:
    >>> import recbole_onebp
    >>> run = recbole_onebp.build("OneBP", "ml-100k", config_dict={"epochs": 1})
    >>> sorted(run.fit().test)
    ['hit@10', 'mrr@10', 'ndcg@10', 'precision@10', 'recall@10']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from recbole_onebp.plugin import import_hook
from recbole_onebp.util.processes import share_cores

if TYPE_CHECKING:
    from recbole_onebp.dataframe import OneBPRecommender, fit
    from recbole_onebp.model import OneBP
    from recbole_onebp.run.build import build
    from recbole_onebp.run.result import Result
    from recbole_onebp.run.run import Run
    from recbole_onebp.serving import Recommender
    from recbole_onebp.trainer import OneBPTrainer
    from recbole_onebp.util.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "OneBP",
    "OneBPRecommender",
    "OneBPTrainer",
    "Recommender",
    "Result",
    "Run",
    "UserError",
    "__version__",
    "build",
    "fit",
]

_HOME = {
    "OneBP": "recbole_onebp.model",
    "OneBPRecommender": "recbole_onebp.dataframe",
    "OneBPTrainer": "recbole_onebp.trainer",
    "Recommender": "recbole_onebp.serving",
    "Result": "recbole_onebp.run.result",
    "Run": "recbole_onebp.run.run",
    "UserError": "recbole_onebp.util.errors",
    "build": "recbole_onebp.run.build",
    "fit": "recbole_onebp.dataframe",
}

import_hook.install()


def __getattr__(name: str) -> Any:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in ("Recommender", "UserError"):
        import_hook.require_recbole()
        share_cores()
    return getattr(import_module(_HOME[name]), name)
