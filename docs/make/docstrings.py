"""Read the docstrings as they are written here: ``Example:`` is a section, and roles of Sphinx are links."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class Docstrings(Extension):
    """Changes docstrings when a module is loaded."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Write sections and roles as the Google style of griffe and Markdown have them."""
        if obj.docstring is not None:
            text = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", obj.docstring.value)
            obj.docstring.value = re.sub(r":(?:class|func|meth|mod):`~?([\w.]+)`", r"`\1`", text)
