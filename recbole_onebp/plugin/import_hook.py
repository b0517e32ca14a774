"""RecBole 1.2.1 on today's numpy, pandas, scipy, torch and Python.

:func:`install` leaves an import hook behind; when RecBole is first imported (at once where it already is), the patches
of :mod:`recbole_onebp.plugin.patches` go in and OneBP is registered.  Nothing outside RecBole changes its behaviour.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from types import ModuleType

RECBOLE_VERSION = "1.2.1"


def install_command() -> str:
    """The command that brings RecBole to this Python."""
    # RecBole asks for ray <= 2.6.3, which has no release for Python 3.12 and later: there pip cannot resolve it.
    no_deps = "--no-deps " if sys.version_info >= (3, 12) else ""
    return f"pip install {no_deps}recbole=={RECBOLE_VERSION}"


def missing_recbole() -> str:
    """The one line that whoever needs RecBole and lacks it is told."""
    return f"recbole_onebp needs RecBole to train and evaluate, and it is not installed; run: {install_command()}"


def require_recbole() -> None:
    """Raise ``ImportError``, with the command to run, where RecBole is not installed."""
    if find_spec("recbole") is None:
        raise ImportError(missing_recbole(), name="recbole")


def install() -> None:
    """Patch RecBole and register OneBP when RecBole is imported, or now if it already is."""
    if find_spec("wrapt") is None and find_spec("recbole") is None:
        return  # installed without dependencies, to serve: numpy is enough for that
    import wrapt

    wrapt.register_post_import_hook(_on_recbole, "recbole")
    # Where torch is, somebody means to train: say at once what is missing.  A serving machine has neither.
    if find_spec("recbole") is None and find_spec("torch") is not None:
        warnings.warn(missing_recbole(), stacklevel=3)


def _on_recbole(_recbole: ModuleType) -> None:
    # Imported here, because these load torch and most of RecBole.
    from recbole_onebp.plugin import patches, registration

    patches.apply_all()
    registration.register()
