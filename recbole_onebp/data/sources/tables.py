"""Read the user's own files of interactions (CSV, TSV, JSON lines, Parquet, GroupLens archives), report bad rows."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.data.sources.forms import FAULT, MORE, TableFormat, Text
from recbole_onebp.data.sources.parquet import read_parquet
from recbole_onebp.data.sources.texts import read_json_lines, read_text
from recbole_onebp.data.sources.times import seconds
from recbole_onebp.data.sources.unpack import DAMAGED, base_suffix, bound, read_bytes
from recbole_onebp.util.errors import UserError
from recbole_onebp.weights import ALLOWED, are_allowed

__all__ = ["BadRow", "BadRows", "Table", "TableFormat", "misread", "read", "read_table", "sift", "with_sums"]

_POSITIONS = {"user_id": "1", "item_id": "2", "rating": "3", "timestamp": "4"}
_GROUPLENS = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}
_BREAKS = frozenset("\r\n\0")
_LONGEST_ID = 1000
"""Characters; RecBole keeps all ids in one array as wide as the longest."""


@dataclass(frozen=True)
class BadRow:
    """A row that is left out, and why."""

    where: str
    reason: str
    text: str


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


class BadRows(Sequence[BadRow]):
    """Rows that are left out, without an object for each."""

    def __init__(self, raw: pd.DataFrame, where: str, reasons: Sequence[str], codes: npt.NDArray[np.int16]) -> None:
        self._raw, self._where, self._reasons, self._codes = raw, where, reasons, codes

    def __len__(self) -> int:
        return len(self._raw)

    @overload
    def __getitem__(self, row: int) -> BadRow: ...
    @overload
    def __getitem__(self, row: slice) -> list[BadRow]: ...
    def __getitem__(self, row: int | slice) -> BadRow | list[BadRow]:
        if isinstance(row, slice):
            return [self[number] for number in range(len(self))[row]]
        number = range(len(self))[row]
        values = (_text(self._raw[key].iat[number]) for key in self._raw)
        text = " | ".join(values).rstrip(" |")
        return BadRow(f"{self._where} {self._raw.index[number]}", self._reasons[self._codes[number]], text)

    def __eq__(self, other: object) -> bool:
        return [*self] == other

    __hash__ = None  # type: ignore[assignment]

    def counts(self) -> Counter[str]:
        """How many rows there are for each reason."""
        numbers = np.bincount(self._codes, minlength=len(self._reasons))
        return Counter({reason: int(n) for reason, n in zip(self._reasons, numbers, strict=True) if n})


@dataclass(frozen=True)
class Table:
    """A file as it was read."""

    frame: pd.DataFrame
    """(n, 2 to 4): ``user_id`` and ``item_id`` (categories of str) and optionally ``rating`` and ``timestamp`` (float;
    dates as seconds since 1970), in the order of the file."""
    bad: BadRows
    remarks: Sequence[str]
    """What the user should know about how it was read."""


def read_table(path: Path, form: TableFormat) -> tuple[pd.DataFrame, BadRows]:
    """The interactions of a file, and the rows that are left out, each with its reason; see :class:`Table`.

    Raises:
        UserError: for a file that cannot be read, or a missing column.
    """
    table = read(path, form)
    return table.frame, table.bad


def read(path: Path, form: TableFormat) -> Table:
    """The same, with remarks."""
    try:
        suffix = base_suffix(path).lower()
        remarks: list[str] = []
        if suffix == ".zip":
            raw, unit, remarks = _read_grouplens(path, form)
        elif suffix in (".parquet", ".pq"):
            content = read_bytes(path, form.max_mb) if suffix != path.suffix.lower() else None
            if not path.is_file() and path.exists():
                raise UserError(f"{path}: cannot be read: not a plain file")
            raw, unit = read_parquet(path, content, form), "row"
        else:
            content, unit = read_bytes(path, form.max_mb), "line"
            is_json = suffix in (".json", ".jsonl", ".ndjson")
            raw, remarks = (
                read_json_lines(content, str(path), form) if is_json else read_text(content, str(path), suffix, form)
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return sift(raw, f"{path}, {unit}", str(path), form, remarks)


def _read_grouplens(path: Path, form: TableFormat) -> tuple[pd.DataFrame, str, list[str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if PurePosixPath(name).name in _GROUPLENS]
            if len(members) != 1:
                raise UserError(
                    f"{path}: expected a GroupLens archive with one of {', '.join(_GROUPLENS)}; it has "
                    f"{', '.join(archive.namelist()[:5])}; unpack it and name the file"
                )
            # zipfile unpacks no more than this size, even if the archive declares a wrong one.
            bound(f"{path}: {members[0]}", archive.getinfo(members[0]).file_size, form.max_mb, path.stat().st_size)
            content = archive.read(members[0])
    except DAMAGED as error:
        raise UserError(f"{path}: not a zip file that can be read: {error}") from None
    name = PurePosixPath(members[0]).name
    header = name == "ratings.csv"
    known = TableFormat({} if header else _POSITIONS, _GROUPLENS[name], header)
    raw, remarks = read_text(content, f"{path}/{members[0]}", "", known)
    return raw, f"line of {name}", remarks


# ----------------------------------------------------------------------------------------------------------------- rows


def sift(raw: pd.DataFrame, where: str, path: str, form: TableFormat, remarks: Sequence[str] = ()) -> Table:
    """Divide rows into good and bad ones.

    Args:
        raw: (n, 1 to 6) ``user_id`` and ``item_id`` or one of them (categories of str), perhaps ``rating``,
            ``timestamp``, :data:`~recbole_onebp.data.sources.forms.MORE` and
            :data:`~recbole_onebp.data.sources.forms.FAULT`, by the number of the row.  ``attrs`` say whether
            ``ids_are_typed`` and ``times_are_seconds``.
        where: what comes before the number of a row in messages.
        path: the source, for messages.
        form: how it is read.
        remarks: on how it was read so far.
    """
    frame = raw.drop(columns=[MORE, FAULT], errors="ignore")
    reasons, codes, remarks = [""], np.zeros(len(raw), np.int16), [*remarks]
    for wrong, said in _faults(raw, frame, path, form, remarks):
        chosen = wrong & (codes == 0)
        if chosen.any():
            codes[chosen] = len(reasons)
            reasons.append(form.in_its_words(said))
    bad = codes > 0
    left_out = BadRows(raw.drop(columns=FAULT, errors="ignore")[bad], where, reasons, codes[bad])
    good = frame[~bad] if bad.any() else frame
    return Table(good.reset_index(drop=True), left_out, remarks)


def _faults(
    raw: pd.DataFrame, frame: pd.DataFrame, path: str, form: TableFormat, remarks: list[str]
) -> Iterator[tuple[npt.NDArray[np.bool_], str]]:
    """Masks of bad rows with their reason; converts the columns of ``frame`` and adds to ``remarks``."""
    if FAULT in raw:
        for said in sorted(raw[FAULT].dropna().unique()):
            yield (raw[FAULT] == said).to_numpy(), said
    if MORE in raw:
        yield raw[MORE].notna().to_numpy(), "more fields than columns"
    for key in frame:
        yield frame[key].isna().to_numpy(), f"no {key}"
    for key in frame.columns.intersection(["rating", "timestamp"]):
        if pd.api.types.is_numeric_dtype(frame[key]) and (key == "rating" or raw.attrs.get("times_are_seconds")):
            numbers = frame[key].to_numpy()
        else:
            fit = ~raw.reindex(columns=[FAULT, MORE]).notna().any(axis=1)
            places, values = pd.factorize(frame[key].where(fit))
            numbers = np.append(_numbers(pd.Index(np.asarray(values)), key, path, form, remarks), np.nan)[places]
        frame[key] = numbers
        kind = "time" if key == "timestamp" else "number"
        yield ~(np.abs(numbers.astype(np.float64)) < np.inf), f"{key} is no {kind}"
        if key == "rating" and form.weights:
            yield ~are_allowed(numbers), f"{key} is no weight: expected {ALLOWED}"
    for key in frame.columns.intersection(["user_id", "item_id"]):
        column = frame[key].array
        if raw.attrs.get("ids_are_typed") is None:
            column = _whole(column, key, form, remarks)
            frame[key] = column
        ids = column.categories
        for wrong, said in (
            (ids.str.len() > _LONGEST_ID, f"{key} is longer than {_LONGEST_ID:,} characters"),
            (misread([*ids]), f"RecBole would not read this {key} back"),
        ):
            yield np.append(np.asarray(wrong, bool), False)[column.codes], said


def _numbers(values: pd.Index, key: str, path: str, form: TableFormat, remarks: list[str]) -> npt.NDArray[np.float64]:
    if key == "rating":
        return pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
    found, remark = seconds(values, form.time_format, path, form.in_python)
    if remark:
        remarks.append(remark)
    return found


def _whole(column: pd.Categorical, key: str, form: TableFormat, remarks: list[str]) -> pd.Categorical:
    """Ids of the form ``17850.0`` as ``17850``, or a remark that they are there."""
    is_float = np.asarray(column.categories.str.fullmatch(r"[0-9]+\.0+"), bool)
    if not is_float.any():
        return column
    if form.whole_ids:
        texts = [
            text.partition(".")[0] if whole else text for text, whole in zip(column.categories, is_float, strict=True)
        ]
        whole = Text()
        whole.append_coded(column.codes, texts)
        return whole.column()
    example = column.categories[is_float][0]
    rows = int(np.append(is_float, False)[column.codes].sum())
    remarks.append(
        f"{rows:,} rows whose {key} is a whole number with decimals, such as {example}: kept as it stands; --whole_ids "
        f"reads it as {example.partition('.')[0]}"
    )
    return column


def misread(ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which ids RecBole would read differently from an atomic file: NA, null and other words for missing values, line
    breaks, and what its parser splits."""
    wrong = np.array([not _BREAKS.isdisjoint(text) or len(text) > _LONGEST_ID for text in ids], bool)
    fit = np.flatnonzero(~wrong)
    wrong[fit] = _not_the_same([ids[place] for place in fit.tolist()])
    return wrong


def _not_the_same(ids: Sequence[str]) -> npt.NDArray[np.bool_]:
    written = pd.DataFrame({"id": pd.Series(ids, dtype=object), "beside": "x"}).to_csv(
        sep="\t", index=False, lineterminator="\n"
    )
    try:
        written.encode()
        read = pd.read_csv(io.StringIO(written), delimiter="\t", dtype=str, engine="python")["id"].tolist()
    except ValueError:  # a half of a surrogate pair, or what the parser refuses
        read = []
    if len(read) == len(ids):
        return np.array([one != other for one, other in zip(ids, read, strict=True)], bool)
    if len(ids) == 1:
        return np.ones(1, bool)
    return np.concatenate([_not_the_same(ids[: len(ids) // 2]), _not_the_same(ids[len(ids) // 2 :])])


def with_sums(rows: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The rows, each with the sum of the ratings of all rows that have the same ``keys``."""
    return rows.assign(rating=rows.groupby(list(keys), observed=True, sort=False)["rating"].transform("sum"))
