"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["nearest"]


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` with the known name most similar to ``word``, or nothing if none is similar.

    Example:
        >>> nearest("betta", ["beta", "score"])
        '; did you mean beta?'
    """
    by_lower = {name.lower(): name for name in sorted(known)}
    # With difflib's own cutoff, 0.6, "sep" is like "use_gpu".
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.65)
    return f"; did you mean {by_lower[match[0]]}?" if match else ""
