"""File formats of recommendation lists: CSV, JSON lines and Parquet.  A file is written in parts, then joined."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole_onebp.serving.answers import Answers
from recbole_onebp.util.errors import UserError
from recbole_onebp.util.ids import Token
from recbole_onebp.util.untrusted import open_plain

__all__ = ["ListFormat", "PartWriter", "format_of"]

PartWriter = Callable[[Path, list[Token], Answers], None]
"""Writes the lists of some users to a file."""

_COLUMNS = ("user", "item", "rank", "score")
_HEAD = (",".join(_COLUMNS) + "\n").encode()
_JSON_HEAD = b'{"user": "'


class ListFormat(NamedTuple):
    """How a part is written, how parts are joined to one file, and how such a file is told from others."""

    write_part: PartWriter
    join: Callable[[Sequence[Path], Path], None]
    is_lists: Callable[[Path], bool]


def format_of(out: Path) -> ListFormat:
    """The format of a file, by its suffix.

    Raises:
        UserError: for another suffix, or if pyarrow is missing.
    """
    formats = {
        ".csv": ListFormat(_write_csv, _join_csv, _begins_as_csv),
        ".jsonl": ListFormat(_write_jsonl, _join, _begins_as_jsonl),
        ".parquet": ListFormat(_write_parquet, _join_parquet, _is_parquet),
    }
    if out.suffix not in formats:
        raise UserError(f"{out}: its suffix is {out.suffix or 'missing'}; expected {', '.join(formats)}")
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise UserError(f"{out}: Parquet needs pyarrow: pip install 'recbole-onebp[parquet]'") from None
    return formats[out.suffix]


def _rows(users: Sequence[Token], answers: Answers) -> Iterator[tuple[Token, Token, int, float]]:
    for user, answer in zip(users, answers, strict=True):
        for rank, (item, score) in enumerate(answer, start=1):
            yield user, item, rank, score


def _write_csv(file: Path, users: Sequence[Token], answers: Answers) -> None:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened, lineterminator="\n").writerows(_rows(users, answers))


def _write_jsonl(file: Path, users: Sequence[Token], answers: Answers) -> None:
    with open(file, "w", encoding="utf-8") as opened:
        for user, answer in zip(users, answers, strict=True):
            items, scores = [item for item, _ in answer], [score for _, score in answer]
            opened.write(json.dumps({"user": user, "items": items, "scores": scores}, ensure_ascii=False) + "\n")


def _write_parquet(file: Path, users: Sequence[Token], answers: Answers) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*_rows(users, answers), strict=True)) or [()] * len(_COLUMNS)
    pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_parquet_schema()), file)


def _parquet_schema() -> Any:
    import pyarrow as pa

    return pa.schema(dict(zip(_COLUMNS, (pa.string(), pa.string(), pa.int32(), pa.float64()), strict=True)))


def _begins_as_csv(file: Path) -> bool:
    return _beginning(file, len(_HEAD)) == _HEAD


def _begins_as_jsonl(file: Path) -> bool:
    return _beginning(file, len(_JSON_HEAD)) in (b"", _JSON_HEAD)  # without users the file is empty


def _beginning(file: Path, size: int) -> bytes | None:
    """The first bytes; None if it is not a plain file."""
    try:
        with open_plain(file) as opened:
            return opened.read(size)
    except UserError:
        return None


def _is_parquet(file: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open_plain(file) as opened:
            return bool(pq.read_schema(opened).names == list(_COLUMNS))
    except (UserError, pa.ArrowException, OSError, ValueError):
        return False


def _join(parts: Sequence[Path], file: Path, head: bytes = b"") -> None:
    with open(file, "wb") as joined:
        joined.write(head)
        for part in parts:
            with open(part, "rb") as opened:
                shutil.copyfileobj(opened, joined)


def _join_csv(parts: Sequence[Path], file: Path) -> None:
    _join(parts, file, _HEAD)


def _join_parquet(parts: Sequence[Path], file: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(file, _parquet_schema()) as joined:
        for part in parts:
            joined.write_table(pq.read_table(part))
