"""Arguments of the form ``--key=value``, which set configuration keys."""

from __future__ import annotations

import argparse
import ast
import re
import warnings
from collections.abc import Sequence
from typing import Any

from recbole_onebp.config.suggest import nearest
from recbole_onebp.util.errors import UserError

__all__ = ["parse_overrides", "refuse_unknown"]


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """``--key=value`` arguments as a dictionary.

    A value in the form of a Python literal is read as one, as in RecBole (``0.01``, ``[10, 20]``, ``None``), but
    nothing is evaluated.  ``true`` and ``false`` are booleans, and a list or mapping may be written as in YAML, without
    quotation marks.  Everything else is a string.

    Raises:
        UserError: for an argument of another form, or a key given twice with different values.

    Example:
        >>> parse_overrides(["--beta=0.9", "--topk=[10, 20]", "--metrics=[Recall, NDCG]", "--preset=paper"])
        {'beta': 0.9, 'topk': [10, 20], 'metrics': ['Recall', 'NDCG'], 'preset': 'paper'}
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        match = re.fullmatch(r"--([A-Za-z_]\w*)=(.*)", argument, flags=re.DOTALL)
        if match is None:
            raise UserError(f"argument {argument!r}: expected --key=value")
        key, value = match[1], _literal(match[2])
        if key in values and values[key] != value:
            raise UserError(f"--{key} is given twice: {values[key]!r} and {value!r}")
        values[key] = value
    return values


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about text that was never meant as Python
            value = ast.literal_eval(text)
            repr(value)  # raises ValueError for an integer of thousands of digits, which cannot be shown
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _in_yaml(text) if text[:1] in ("[", "{") else text
    return value if value is None or isinstance(value, (str, int, float, list, tuple, dict)) else text


def _in_yaml(text: str) -> Any:
    from recbole_onebp.util import safe_yaml  # here, because a machine that serves may have no PyYAML

    try:
        return safe_yaml.load(text, "a value")
    except UserError:  # the check of the key then refuses the text
        return text


def refuse_unknown(rest: Sequence[str], arguments: argparse.Namespace) -> None:
    """Raise :class:`UserError` if a command that takes no configuration keys has arguments left over in ``rest``."""
    if rest:
        hint = nearest(rest[0].partition("=")[0], re.findall(r"--\w+", arguments.usage()))
        more = hint or f"; see recbole-onebp {arguments.command} --help"
        raise UserError(f"unrecognized arguments: {' '.join(rest)}{more}")
