"""The names of configuration files."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from recbole_onebp.util.errors import UserError

__all__ = ["file_names"]


def file_names(files: Sequence[str] | str | PathLike[str] | None) -> list[str]:
    """The names of configuration files as a list.

    Args:
        files: a list; or one text: the name of a file, which may hold blanks, or several names separated by blanks.  A
            name with blanks among several stands in quotes.

    Raises:
        UserError: for a text with blanks that names a file that does not exist.

    Example:
        >>> file_names("a.yaml"), file_names(["a.yaml", "my conf/b.yaml"])
        (['a.yaml'], ['a.yaml', 'my conf/b.yaml'])
    """
    if not isinstance(files, (str, PathLike)):
        return [str(file) for file in files or ()]
    text = str(files)
    if "\0" in text:
        raise UserError(f"config_files: {text!r} holds a null character")
    if not text.split():
        return []
    if _is_file(text) or len(text.split()) == 1:
        return [text.strip() if not _is_file(text) else text]
    names = text.split()
    if not all(map(_is_file, names)) and any(quote in text for quote in "'\""):
        try:
            names = shlex.split(text)
        except ValueError as error:
            raise UserError(f"config_files: {text}: {error}") from None
    for name in names:
        if not _is_file(name):
            raise UserError(
                f"config file {name}: cannot be read: no such file; names are separated by blanks: put a name with "
                "blanks among several in quotes, such as --config_files=\"a.yaml 'my conf/b.yaml'\""
            )
    return names


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long, or with a null byte
        return False
