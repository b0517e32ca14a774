"""Times of interactions as seconds since 1970: numbers, ISO dates, and the common American and European forms."""

from __future__ import annotations

import re
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from recbole_onebp.util.errors import UserError

__all__ = ["UNITS", "seconds", "since_1970"]

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_EPOCHS = {"ms": (1e11, 1e13), "us": (1e14, 1e16), "ns": (1e17, 1e19)}
"""Numbers in these ranges, the years 1973 to 2286, are not seconds, which would be the year 5138 or later."""

_CLOCK = (
    r"(?:[T,\s]+(?P<hour>\d{1,2}):(?P<minute>\d\d)(?::(?P<second>\d\d(?:\.\d+)?))?\s*(?P<half>[AaPp])?(?(half)\.?[Mm]\.?)"
    r"\s*(?P<offset>Z|[+-]\d\d(?::?\d\d)?)?)?"
)
_NUMERIC = re.compile(r"(?P<a>\d{1,2})(?P<sep>[/.\- ])(?P<b>\d{1,2})(?:(?P=sep)|, )(?P<year>\d{4})" + _CLOCK)
_YEAR_FIRST = re.compile(r"(?P<year>\d{4})[/.\-](?P<b>\d{1,2})[/.\-](?P<a>\d{1,2})" + _CLOCK)
_NAMED = re.compile(
    r"(?:(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*,?\s+)?"
    r"(?:(?P<a>\d{1,2})(?:st|nd|rd|th|\.)?[\s-](?P<name>[a-z]{3,9})|(?P<name2>[a-z]{3,9})\.?\s(?P<a2>\d{1,2})(?:st|nd|rd|th)?)"
    r"[.,]?[\s-](?P<year>\d{4})" + _CLOCK,
    re.IGNORECASE,
)
_ZONE = re.compile(r"(?P<time>.*\d[^\s\[]*)(?:\s*\[(?P<inner>[\w/+-]+)\]|\s+(?P<word>[A-Za-z][\w/+-]*))")
_LONGEST = 80
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_MONTH_NAMES = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
    "sept",
]


def seconds(
    values: pd.Index, time_format: str | None, where: str, in_python: bool = False
) -> tuple[npt.NDArray[np.float64], str | None]:
    """Seconds since 1970 of the texts or numbers in a column of times; NaN for what is not understood.

    Args:
        values: the different values (n,).
        time_format: a unit of :data:`UNITS`, a format of ``strptime``, or None to find out.
        where: the file, for messages.
        in_python: see :class:`~recbole_onebp.data.sources.forms.TableFormat`.

    Returns:
        (n,) seconds, and a remark on how they were read.

    Raises:
        UserError: if days and months cannot be told apart, the format is none, or no value is understood.
    """
    if time_format is None or time_format in UNITS:
        numbers = pd.to_numeric(pd.Series(values), errors="coerce").to_numpy(np.float64)
        finite = np.isfinite(numbers)
        if time_format or 2 * finite.sum() >= len(values):
            unit = time_format or _unit(numbers[finite], where, in_python)
            remark = None if unit == "s" else f"times are read as {unit} since 1970"
            found = numbers / UNITS[unit]
        else:
            found, remark = _dates(values.astype(str), where, in_python), None
    else:
        found, remark = _by_format(values.astype(str), time_format), None
    if len(values) and not np.isfinite(found).any():
        given = f"--time_format={time_format} fits none" if time_format else f"none is understood; {_asked(in_python)}"
        leave = 'time=""' if in_python else "--time="
        raise UserError(
            f"{where}: times such as {str(values[0])[:40]!r}: {given}, such as '%d.%m.%Y %H:%M', or leave the column "
            f"out by {leave}"
        )
    return found, remark


def _asked(in_python: bool) -> str:
    """What would help."""
    return "make dates of them by pd.to_datetime with a format" if in_python else "give --time_format"


def _unit(numbers: npt.NDArray[np.float64], where: str, in_python: bool) -> str:
    numbers = numbers[numbers != 0]  # a common sign for a missing time
    for unit, (low, high) in _EPOCHS.items():
        is_of_unit = (numbers >= low) & (numbers < high)
        if is_of_unit.any() and not is_of_unit.all():
            one, other = numbers[is_of_unit][0], numbers[~is_of_unit][0]
            raise UserError(
                f"{where}: times such as {one:.0f} and {other:.0f}: are they in one unit? {_asked(in_python)}, such as "
                f"s or {unit}"
            )
        if is_of_unit.any():
            return unit
    return "s"


def since_1970(dates: pd.Series) -> npt.NDArray[np.float64]:
    """Seconds of dates with a zone; NaN where there is none.

    In the unit of the dates: the year 9999, a common sign for "never", is none that nanoseconds reach.
    """
    past = dates.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
    return (past - np.datetime64(0, "s")) / np.timedelta64(1, "s")


def _by_format(values: pd.Index, time_format: str) -> npt.NDArray[np.float64]:
    texts = pd.Series(values)
    try:
        if "%Z" in time_format or "%z" in time_format:
            return since_1970(pd.to_datetime(texts, format=time_format, utc=True, errors="coerce"))
        times, zones = _without_zones(texts)
        return _in_zones(pd.to_datetime(times, format=time_format, errors="coerce"), zones)
    except (ValueError, TypeError, re.error) as error:
        raise UserError(
            f"--time_format {time_format}: not a format of strptime or one of {', '.join(UNITS)}: {error}"
        ) from None


def _dates(values: pd.Index, where: str, in_python: bool) -> npt.NDArray[np.float64]:
    texts = pd.Series(values)
    dates = pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")
    found = since_1970(dates)
    odd = np.flatnonzero(np.isnan(found))
    if len(odd):
        times, zones = _without_zones(texts.iloc[odd])
        iso = pd.Series(_as_iso(times.tolist(), where, in_python), index=times.index, dtype=object)
        has_offset = iso.str.contains(r"(?:Z|[+-]\d\d:?\d\d|[+-]\d\d)$", na=False) & iso.str.contains(":", na=False)
        with_offset = pd.to_datetime(iso.where(has_offset), utc=True, errors="coerce", format="ISO8601")
        local = pd.to_datetime(iso.where(~has_offset), errors="coerce", format="ISO8601")
        found[odd] = np.where(has_offset, since_1970(with_offset), _in_zones(local, zones))
    return found


def _without_zones(texts: pd.Series) -> tuple[pd.Series, pd.Series]:
    """The texts without a name of a zone at the end, and these names, ``UTC`` where there is none."""
    times, zones = [], []
    for text in texts.str.strip():
        match = _ZONE.fullmatch(text) if len(text) < _LONGEST else None
        word = match and (match["inner"] or match["word"])
        if not match or not word or word.upper() in ("AM", "PM"):
            times.append(text)
            zones.append("UTC")
        else:
            times.append(match["time"])
            zones.append("UTC" if word.upper() in ("UTC", "GMT", "Z") else word)
    return pd.Series(times, index=texts.index, dtype=object), pd.Series(zones, index=texts.index, dtype=object)


def _in_zones(local: pd.Series, zones: pd.Series) -> npt.NDArray[np.float64]:
    found = np.full(len(local), np.nan)
    for zone in zones.unique():
        chosen = (zones == zone).to_numpy()
        try:
            times = local[chosen].dt.tz_localize(ZoneInfo(zone), ambiguous="NaT", nonexistent="shift_forward")
        except (LookupError, ValueError, OSError):  # no such zone
            continue
        found[chosen] = since_1970(times.dt.tz_convert("UTC"))
    return found


def _as_iso(texts: list[str], where: str, in_python: bool) -> list[str | None]:
    numeric = [_NUMERIC.fullmatch(text) for text in texts]
    undecided = [match for match in numeric if match and match["sep"] != "."]
    day_first = any(int(match["a"]) > 12 for match in undecided)
    month_first = any(int(match["b"]) > 12 for match in undecided)
    if undecided and day_first == month_first:
        said = "both occur" if day_first else "each could be"
        raise UserError(
            f"{where}: {undecided[0][0][:40]!r}: is the day or the month first? {said}; {_asked(in_python)}, such as "
            "'%d/%m/%Y' or '%m/%d/%Y %H:%M'"
        )
    return [
        _one(match, day_first or match["sep"] == ".")
        if match
        else _one(_NAMED.fullmatch(text) or _YEAR_FIRST.fullmatch(text), True)
        for match, text in zip(numeric, texts, strict=True)
    ]


def _one(match: re.Match[str] | None, day_first: bool) -> str | None:
    if match is None:
        return None
    part: dict[str, Any] = match.groupdict()
    if name := part.get("name") or part.get("name2"):
        if name.lower() not in (*_MONTHS, *_MONTH_NAMES):
            return None
        day, month = part["a"] or part["a2"], _MONTHS.index(name[:3].lower()) + 1
    else:
        day, month = (part["a"], part["b"]) if day_first else (part["b"], part["a"])
    date = f"{part['year']}-{int(month):02}-{int(day):02}"
    if part["hour"] is None:
        return date
    hour = int(part["hour"])
    if part["half"]:
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if part["half"].lower() == "p" else 0)
    return f"{date}T{hour:02}:{part['minute']}:{part['second'] or '00'}{part['offset'] or ''}"
