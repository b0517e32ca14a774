"""YAML that anybody may have written: plain values alone, and no more of them than the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from recbole_onebp.util.errors import UserError

__all__ = ["load", "read"]

_MAX_BYTES = 1 << 20
"""Of a text: the largest configurations have some thousand."""
_MAX_NODES = 100_000
"""With what aliases stand for written out: a few lines may stand for millions of values."""
_MAX_DIGITS = 100
"""Of a whole number; Python refuses to print those of some thousand."""


class _Loader(yaml.SafeLoader):
    """Without the tags that name Python's objects; ``1e-3`` is a number, as with RecBole."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        _count(node, {})
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read(path: Path, where: str) -> Any:
    """What a file in YAML holds, as :func:`load` says.

    Raises:
        UserError: also for a file that cannot be read, is no UTF-8 or too large.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{where}: larger than {_MAX_BYTES:,} bytes")
    try:
        return load(content.decode("utf-8"), where)
    except UnicodeDecodeError:
        raise UserError(f"{where}: not text in UTF-8") from None


def load(text: str, where: str) -> Any:
    """What a text in YAML holds.

    Args:
        text: YAML, or JSON, which is a part of it.
        where: names it in messages.

    Raises:
        UserError: for what is no YAML, has tags of Python's, or unfolds to more than a configuration could hold.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: not YAML: nested too deeply") from None
    except (ValueError, TypeError, OverflowError) as error:  # dates such as 2024-99-99, keys that are lists
        raise UserError(f"{where}: not YAML: {error}") from None


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Nodes below one, itself among them; one that stands in several places counts in each."""
    if not isinstance(node, yaml.CollectionNode):
        if node is not None and node.tag.endswith(":int") and len(node.value) > _MAX_DIGITS:
            raise yaml.YAMLError(f"a whole number of {len(node.value):,} digits")
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_NODES  # until it is known: a node within itself has no end
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in below)
    if known[id(node)] > _MAX_NODES:
        raise yaml.YAMLError(f"more than {_MAX_NODES:,} values")
    return known[id(node)]
