"""YAML from untrusted files: only plain values, with limits on their size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from recbole_onebp.util.errors import UserError
from recbole_onebp.util.untrusted import read_text

__all__ = ["load", "read", "read_plain"]

_MAX_BYTES = 1 << 20
"""Maximum size of a file; the largest configurations have some thousand bytes."""
_MAX_NODES = 100_000
"""Maximum number of values after expanding aliases: with aliases, a few lines can stand for millions of values."""
_MAX_DEPTH = 64
"""Maximum number of lists and mappings inside one another."""
_MAX_DIGITS = 100
"""Maximum number of digits of an integer; Python refuses to print integers of some thousand digits."""


class _Loader(yaml.SafeLoader):
    """Refuses tags of Python objects, and reads ``1e-3`` as a number, as RecBole does.

    Size and depth are checked while the text is read, aliases before any of them is expanded.
    """

    _depth = _nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES:,} values")
        if self._depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested too deeply: more than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

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
    """The content of a YAML file, see :func:`load`.

    Args:
        path: the file.
        where: names the file in error messages.

    Raises:
        UserError: as for :func:`load`, and for a file that is unreadable, too large or not UTF-8.
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


def read_plain(path: Path) -> Any:
    """The content of a YAML file that somebody else may have made: a plain file, no link or device.

    Raises:
        UserError: as for :func:`read`.
    """
    return load(read_text(path, _MAX_BYTES), str(path))


def load(text: str, where: str) -> Any:
    """The content of a YAML text.

    Args:
        text: YAML or JSON.
        where: names the text in error messages.

    Raises:
        UserError: for invalid YAML, tags of Python objects, or more values than a configuration can have.

    Example:
        >>> load("topk: [10, 20]", "example")
        {'topk': [10, 20]}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: not YAML: nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # dates such as 2024-99-99, lists as keys, !!bool before other text
        raise UserError(f"{where}: not YAML: {error}") from None


def _count(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of nodes in a tree, including its root.  A node that aliases refer to counts every time."""
    if not isinstance(node, yaml.CollectionNode):
        if node is not None and node.tag.endswith(":int") and len(node.value) > _MAX_DIGITS:
            raise yaml.YAMLError(f"a whole number of {len(node.value):,} digits")
        return 1
    if id(node) not in known:
        known[id(node)] = _MAX_NODES  # until it is counted: a node that contains itself exceeds the limit
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in below)
    if known[id(node)] > _MAX_NODES:
        raise yaml.YAMLError(f"more than {_MAX_NODES:,} values")
    return known[id(node)]
