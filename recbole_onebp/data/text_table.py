"""A table in a text file, RecBole's atomic file or CSV: its header, its checks and its columns, read once.

A file of up to 64 MiB is read from the disk once, and everything works on these bytes.  A larger one is read in
chunks: once to check it, once to load it.  From then on the cache has it, see :mod:`~recbole_onebp.data.cache`.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from recbole_onebp.data.categories import categorical
from recbole_onebp.data.quotes import quoted_rows
from recbole_onebp.util.errors import UserError

__all__ = ["SMALL_BYTES", "TextTable", "columnar_titles", "progress_bar"]

SMALL_BYTES = 64 << 20
"""Files up to this size are read into memory as a whole."""
_CHUNK = 1 << 16
"""Rows that are parsed at a time."""
_ODD = re.compile(rb'["\0]|\r(?!\n)')


class TextTable:
    """A text file with a header.

    Args:
        path: the file.
        separator: between columns.
        encoding: of the text; None: UTF-8.
        is_csv: with quotes, an optional byte order mark, and only empty fields missing; else RecBole's atomic file.
    """

    def __init__(self, path: Path, separator: str, encoding: str | None, is_csv: bool = False) -> None:
        self.path, self.separator, self.is_csv = path, separator, is_csv
        self.encoding = encoding or ("utf-8-sig" if is_csv else "utf-8")
        self._checked: pd.DataFrame | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What was read stays out of copies and pickles."""
        return {**vars(self), "content": None, "_checked": None}

    @cached_property
    def content(self) -> bytes | None:
        """The file, if it is small."""
        if self.path.is_file() and self.path.stat().st_size <= SMALL_BYTES:
            return self.path.read_bytes()
        return None

    def _open(self) -> BinaryIO:
        return open(self.path, "rb") if self.content is None else io.BytesIO(self.content)

    # -------------------------------------------------------------------------------------------------------- header

    @contextmanager
    def _lines(self) -> Iterator[io.TextIOWrapper]:
        try:
            with io.TextIOWrapper(self._open(), encoding=self.encoding, newline="" if self.is_csv else None) as lines:
                yield lines
        except (OSError, csv.Error) as error:
            raise UserError(f"{self.path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
        except LookupError:
            raise UserError(f"encoding: Python does not know {self.encoding!r}") from None
        except UnicodeDecodeError:
            raise self._not_text() from None

    @cached_property
    def first_lines(self) -> tuple[str, str]:
        """The header and the line below it, without line ends.

        Raises:
            UserError: for a file that cannot be read, or is not in this encoding.
        """
        with self._lines() as lines:
            return lines.readline().rstrip("\r\n"), lines.readline().rstrip("\r\n")

    def _not_text(self) -> UserError:
        return UserError(
            f"{self.path}: not text in {self.encoding.removesuffix('-sig')}; set the key encoding to the file's own"
        )

    def titles(self, ids: Sequence[str]) -> dict[str, str]:
        """The columns by their titles in an atomic file.

        Args:
            ids: names of the columns of user and item ids, which are tokens; other columns of a CSV file are numbers,
                unless they are named as in an atomic file (``shop:token``); those without a name are left out.

        Returns:
            Title, such as ``user_id:token``, -> the column's name in the file.
        """
        if not self.is_csv:
            return {title: title for title in self.first_lines[0].split(self.separator)}
        return columnar_titles(dict.fromkeys(filter(None, self._csv_names), "float"), ids)

    @cached_property
    def _csv_names(self) -> list[str]:
        with self._lines() as lines:
            return next(csv.reader(lines), [])

    def has_rows(self) -> bool:
        """Whether there is anything below the header."""
        with self._lines() as lines:
            next(lines, "")
            return any(line.strip() for line in lines)

    # ------------------------------------------------------------------------------------------------------- columns

    def read(self, columns: Mapping[str, str], show_progress: bool = False) -> pd.DataFrame | None:
        """The columns: tokens as ``pd.Categorical``, in order of first appearance, and numbers as float64.

        Args:
            columns: some of what :meth:`titles` returns.
            show_progress: show a bar if it takes seconds.

        Returns:
            A frame with the titles as its columns; None where RecBole would read an atomic file in another way (quotes,
            missing tokens, sequences, a wrong number, ...).

        Raises:
            UserError: for a CSV file with a missing token or a wrong value.
        """
        checked, self._checked = self._checked, None
        if checked is not None and set(columns) <= set(checked):
            return checked[list(columns)]
        if not self.is_csv:
            return self._read_if_plain(columns, show_progress)
        try:
            frame = self._parse(columns, show_progress)
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from None
        if frame is None:
            raise UserError(f"{self.path}: a row without an id or token; leave such rows out by recbole-onebp convert")
        return frame

    def check(self, columns: Mapping[str, str], ids: Sequence[str]) -> None:
        """Check that every id is there, and that numbers are numbers.

        A small file is parsed for :meth:`read`, which succeeds only if all of this holds.  Where it does not, and in
        large files, the rows are checked one by one, for the number of the line.

        Args:
            columns: the columns that :meth:`read` will be asked for, title -> name in the file.
            ids: titles of those that are ids.

        Raises:
            UserError: names the line, the column and its value.
        """
        self.check_quotes()
        with suppress(ValueError):
            if self.content is not None:
                self._checked = self._parse(columns) if self.is_csv else self._read_if_plain(columns)
                if self._checked is not None and self._has_header_again(self._checked, columns, ids):
                    self._checked = None
        if self._checked is None:
            self.check_rows(columns, ids)
        else:
            self.content = None  # no longer needed

    def check_quotes(self) -> None:
        """Check that no quote swallows rows: that none is left open, or closed rows later.

        Raises:
            UserError: names the line of the quote.
        """
        if not self._contains(b'"'):
            return
        try:
            with io.TextIOWrapper(self._open(), encoding=self.encoding) as lines:
                for row in quoted_rows(lines, self.separator):
                    if row.swallows:
                        raise UserError(
                            f"{self.path}, line {row.line}: a quote that is not closed in this line would swallow the "
                            "next ones; take it out, or use recbole-onebp convert"
                        )
        except UnicodeError:
            raise self._not_text() from None
        except LookupError:
            raise UserError(f"encoding: Python does not know {self.encoding!r}") from None

    def _contains(self, byte: bytes) -> bool:
        with self._open() as file:
            return any(byte in block for block in iter(lambda: file.read(1 << 20), b""))

    def _has_header_again(self, frame: pd.DataFrame, columns: Mapping[str, str], ids: Sequence[str]) -> bool:
        """Whether ids may be the names of their columns, as in files that were joined."""
        found = [columns[title] in frame[title].array.categories for title in ids if title in frame]
        return bool(found) and all(found)

    def _read_if_plain(self, columns: Mapping[str, str], show_progress: bool = False) -> pd.DataFrame | None:
        if not all(title.endswith((":token", ":float")) for title in columns) or not self._is_plain():
            return None
        with suppress(ValueError):  # RecBole's reader says what is wrong
            return self._parse(columns, show_progress)
        return None

    def _is_plain(self) -> bool:
        """Whether pandas' C engine reads this atomic file as its Python engine does, which RecBole uses."""
        if len(self.separator) > 1:  # a regular expression
            return False
        with io.TextIOWrapper(self._open(), encoding=self.encoding) as lines:
            titles, first = next(lines), next((line for line in lines if line.strip()), "")
        if first.count(self.separator) > titles.count(self.separator):
            return False
        with self._open() as file:
            while block := file.read(1 << 20):
                if _ODD.search(block + file.read(1) if block.endswith(b"\r") else block):
                    return False
        return True

    def _options(self, columns: Mapping[str, str], all_columns: bool) -> dict[str, Any]:
        """Of ``pd.read_csv``.  Only where it reads all columns does pandas report a row with too many fields."""
        options: dict[str, Any] = {"sep": self.separator, "encoding": self.encoding, "chunksize": _CHUNK}
        if self.is_csv:
            options |= {"keep_default_na": False, "na_values": [""]}
        return options if self.is_csv and all_columns else {**options, "usecols": list(columns.values())}

    def _parse(self, columns: Mapping[str, str], show_progress: bool = False) -> pd.DataFrame | None:
        """The columns; None if a token is missing.  Raises ValueError for what pandas cannot read."""
        ids: dict[str, defaultdict[str, int]] = {
            title: defaultdict(count().__next__) for title in columns if title.endswith(":token")
        }
        pieces: dict[str, list[npt.NDArray[Any]]] = {title: [] for title in columns}
        dtypes = {name: object if title in ids else np.float64 for title, name in columns.items()}
        options = self._options(columns, all_columns=self.content is not None)
        with (
            self._open() as file,
            progress_bar(self.path.stat().st_size, show_progress, unit="B") as bar,
            pd.read_csv(file, dtype=dtypes, **options) as chunks,
        ):
            for chunk in chunks:
                if not isinstance(chunk.index, pd.RangeIndex):
                    raise ValueError("more fields than columns")
                if chunk[[columns[title] for title in ids]].isna().to_numpy().any():
                    return None
                for title, name in columns.items():
                    column = chunk[name].to_numpy()
                    if title in ids:
                        column = np.fromiter(map(ids[title].__getitem__, column), np.int32, len(column))
                    pieces[title].append(column)
                bar.update(file.tell() - bar.n)
        empty = {title: np.empty(0, np.int32 if title in ids else np.float64) for title in columns}
        frame = pd.DataFrame(
            {title: np.concatenate(parts) if parts else empty[title] for title, parts in pieces.items()}, copy=False
        )
        for title, tokens in ids.items():
            frame[title] = categorical(frame[title].to_numpy(), pd.Index([*tokens], dtype=object))
        return frame

    # ---------------------------------------------------------------------------------------------------------- rows

    def check_rows(self, columns: Mapping[str, str], ids: Sequence[str]) -> None:
        """Check ids and numbers row by row, whether or not :meth:`read` can read the file; see :meth:`check`."""
        self.check_quotes()
        columns = {title: name for title, name in columns.items() if title in ids or title.endswith(":float")}
        if not columns:
            return
        names = {name: title.rpartition(":")[0] for title, name in columns.items()}
        try:
            with self._open() as file, pd.read_csv(file, dtype=object, **self._options(columns, True)) as chunks:
                for chunk in chunks:
                    if not isinstance(chunk.index, pd.RangeIndex):  # pandas takes the first column for row names
                        raise UserError(f"{self.path}, line 2: more fields than columns")
                    self._check_no_header(chunk[[columns[title] for title in columns if title in ids]])
                    for title, name in columns.items():
                        self._check_values(chunk[name], names[name], title in ids)
        except pd.errors.ParserError as error:
            raise UserError(f"{self.path}: {error}") from None
        except UnicodeDecodeError:
            raise self._not_text() from None

    def _check_no_header(self, ids: pd.DataFrame) -> None:
        again = (ids == [*ids]).all(axis=1) if len(ids.columns) else pd.Series(dtype=bool)
        if again.any():
            line = again.index[again.to_numpy()][0] + 2
            raise UserError(f"{self.path}, line {line}: the header once more: were files joined? take it out")

    def _check_values(self, values: pd.Series, column: str, is_id: bool) -> None:
        if is_id:
            wrong, expected = values.isna(), "an id"
        else:
            wrong, expected = pd.to_numeric(values, errors="coerce").isna() & values.notna(), "a number"
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            line = values.index[row] + 2  # rows are numbered through the file, from 0 below the header
            raise UserError(f"{self.path}, line {line}: {column} is {values.iloc[row]!r}, expected {expected}")


def columnar_titles(kinds: Mapping[str, str | None], ids: Sequence[str]) -> dict[str, str]:
    """Titles in an atomic file of the columns of a CSV, Parquet or Arrow file.

    Args:
        kinds: column -> ``token``, ``float``, or None for one that is neither and is left out.
        ids: names of the columns of user and item ids, which are tokens.

    Returns:
        Title -> column.
    """
    titles = {}
    for name, kind in kinds.items():
        if name.endswith((":token", ":float")):
            titles[name] = name
        elif kind is not None or name in ids:
            titles[f"{name}:{'token' if name in ids else kind}"] = name
    return titles


def progress_bar(total: int, shown: bool, unit: str) -> tqdm[Any]:
    """A bar that appears after two seconds, so that small files show none."""
    return tqdm(total=total, unit=unit, unit_scale=True, ncols=100, desc="Read", delay=2, disable=not shown)
