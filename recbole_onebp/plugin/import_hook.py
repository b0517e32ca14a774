"""Makes RecBole 1.2.1 work with current numpy, pandas, scipy, torch and Python, and registers OneBP with it.

:func:`install` registers an import hook.  When RecBole is first imported (or at once if it already is), the hook
applies :mod:`recbole_onebp.plugin.patches` and registers OneBP.  Only RecBole's own modules are changed.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib.util import find_spec
from types import ModuleType

__all__ = ["RECBOLE_VERSION", "install", "install_command", "missing_recbole", "require_recbole"]

RECBOLE_VERSION = "1.2.1"


def install_command() -> str:
    """The command that installs RecBole for this Python version."""
    # RecBole requires ray <= 2.6.3, which has no release for Python 3.12 and later, so pip cannot resolve it there.
    no_deps = "--no-deps " if sys.version_info >= (3, 12) else ""
    return f"pip install {no_deps}recbole=={RECBOLE_VERSION}"


def missing_recbole() -> str:
    """Error message when RecBole is missing."""
    return f"recbole_onebp needs RecBole to train and evaluate, and it is not installed; run: {install_command()}"


def require_recbole() -> None:
    """Raise ``ImportError`` with the command to run if RecBole is not installed."""
    if find_spec("recbole") is None:
        raise ImportError(missing_recbole(), name="recbole")


def install() -> None:
    """Patch RecBole and register OneBP when RecBole is imported, or now if it already is."""
    if find_spec("wrapt") is None and find_spec("recbole") is None:
        return  # installed without dependencies, to serve a bundle: that needs only numpy
    import wrapt

    wrapt.register_post_import_hook(_on_recbole, "recbole")
    # With torch installed the user probably wants to train: warn at once.  A serving machine has neither.
    if find_spec("recbole") is None and find_spec("torch") is not None:
        warnings.warn(missing_recbole(), stacklevel=3)


@cache  # once, however often install() is called: a function wrapped twice would run our part twice
def _on_recbole(_recbole: ModuleType) -> None:
    # Imported here, because these modules load torch and most of RecBole.
    from recbole_onebp.plugin import patches, registration

    patches.apply_all()
    registration.register()
