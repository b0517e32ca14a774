"""Rows of a text file with quotes: a quote that is never closed, or closed rows later, swallows no row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

__all__ = ["QuotedRow", "quoted_rows"]

LONGEST = 1 << 17
"""Characters that a field of several lines may have: the limit of Python's csv, which RecBole uses."""
_BLOCK = 1 << 23
_ALIKE = 0.8
"""A quote that spans lines is a stray one if at least this share of the lines have a row's number of fields."""


@dataclass(frozen=True)
class QuotedRow:
    """A row and where it stands."""

    line: int
    """Its first line, from 1."""
    fields: list[str]
    n_lines: int = 1
    """More than one: line breaks inside quotes."""
    stray: bool = False
    """Its quotes make no sense, so that they are ordinary characters here."""
    swallows: bool = False
    """A stray quote that is not closed in its line: a reader of CSV would take the next lines for its text."""


def quoted_rows(file: TextIO, separator: str) -> Iterator[QuotedRow]:
    """The rows of a file, in which lines end with a line feed.

    A quote counts where it begins a field and another one ends it, before a separator or the end of the line; inside,
    two quotes stand for one.  Any other quote is an ordinary character.  Where the text between two quotes spans lines
    that look like rows themselves, the first quote is taken for an ordinary character.
    """
    text, at, line, width, is_whole = "", 0, 1, None, False
    while True:
        while not is_whole and (len(text) - at <= 2 * LONGEST or text.find("\n", at) < 0):
            block = file.read(_BLOCK)
            text, at, is_whole = text[at:] + block, 0, not block
        if at >= len(text):
            return
        row, at = _row(text, at, line, separator, width)
        width = width or len(row.fields)
        line += row.n_lines
        yield row


def _row(text: str, at: int, line: int, separator: str, width: int | None) -> tuple[QuotedRow, int]:
    """The row that begins at ``at``, and where the next one begins."""
    stop = _line_end(text, at)
    plain = text[at:stop]
    if '"' not in plain:
        return QuotedRow(line, plain.split(separator)), stop + 1
    fields, end, closed = _fields(text, at, stop, separator)
    if fields is not None:
        lines = text[at:end].split("\n")
        alike = sum(one.count(separator) + 1 == width for one in lines)
        if len(lines) == 1 or alike < _ALIKE * len(lines):
            return QuotedRow(line, fields, len(lines)), end + 1
        closed = False
    return QuotedRow(line, plain.split(separator), stray=True, swallows=not closed), stop + 1


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _fields(text: str, at: int, stop: int, separator: str) -> tuple[list[str] | None, int, bool]:
    """The fields, None if the quotes make no sense; the end of the row; whether quotes are closed in the first line."""
    fields, end, closed = [], stop, True
    while True:
        if text.startswith('"', at) and at < end:
            quote = _closing(text, at, end)
            if quote < 0:
                closed, quote = False, _closing(text, at, min(len(text), at + LONGEST))
                if quote < 0:
                    return None, stop, closed
                end = _line_end(text, quote)
            fields.append(text[at + 1 : quote].replace('""', '"'))
            at = quote + 1
            if at < end and not text.startswith(separator, at):
                return None, stop, closed
        else:
            found = text.find(separator, at, end)
            found = end if found < 0 else found
            fields.append(text[at:found])
            at = found
        if at >= end:
            return fields, end, closed
        at += len(separator)


def _closing(text: str, at: int, end: int) -> int:
    """Where the quote at ``at`` is closed before ``end``; -1 if it is not."""
    quote = text.find('"', at + 1, end)
    while quote >= 0 and text.startswith('"', quote + 1) and quote + 1 < end:
        quote = text.find('"', quote + 2, end)
    return quote
