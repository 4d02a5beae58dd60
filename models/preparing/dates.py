"""Reads dates as people write them, of one column at a time, so that all are read in the same way.

2016-07-01 13:00   2016-07-01T13:00:00Z   20160701   ISO 8601
2016   2016-07   201607   2016Q3   Jul 2016          a year, a month, a quarter: its first day
1467378000   1467378000.5   1467378000000            Unix time, in seconds, milliseconds and less
2016/7/1   2016.7.1 1:05 PM   1-Jul-2016             other separators, names of months
31/12/2016 13:00   12.31.2016 18.00.00               only where the person says what comes first
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

DateOrder = Literal["day-first", "month-first"]
Micros = npt.NDArray[np.int64]
"""Microseconds since 1970, in UTC where the dates have a time zone."""

_WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?")
_EPOCH = datetime(1970, 1, 1)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_UNIX_S, _UNIX = re.compile(r"\d{9,11}([.,]\d+)?"), re.compile(r"\d{12,14}|\d{15,17}|\d{18,19}")
_YEAR_MONTH = re.compile(r"(\d{4})(?:[-/. ]?[mM]?(\d{2})|[-/. ][mM]?(\d{1,2}))?")
_QUARTER = re.compile(r"(\d{4})[-/. ]?[qQ]([1-4])")
_NAMED = re.compile(r"(?:(\d{1,2})[-/. ]+)?([A-Za-z]{3,9})\.?[-/., ]+(\d{4})\b(.*)")  # 1-Jul-2016, July 2016
_YEAR_NAMED = re.compile(r"(\d{4})[-/. ]+([A-Za-z]{3,9})()(.*)")  # 2016 July
_PARTS = re.compile(r"(\d{1,4})([-/.])(\d{1,2})\2(\d{1,4})(?:[ T]+(.*))?")
_TIME = re.compile(r"(\d{1,2})(?:[:.](\d{2}))?(?:[:.](\d{2})(?:[.,](\d{1,6})\d*)?)?\s*([AaPp][Mm])?")
_QUARTERS = ("quarter", "qtr")


class DateError(ValueError):
    """A text is no date; ``index`` is its place, and ``is_ambiguous`` says that only the order of its parts lacks."""

    def __init__(self, index: int, rule: str, *, is_ambiguous: bool = False) -> None:
        super().__init__(rule)
        self.index = index
        self.rule = rule
        self.is_ambiguous = is_ambiguous


def parse_dates(texts: Sequence[str], order: DateOrder | None = None) -> Micros:
    """Return the time of every text.

    Args:
        texts: of one column.
        order: what comes first in a date such as 1/2/2016.

    Raises:
        DateError: naming the first text that is no date, or of which nobody can tell which part is the month, or that
            has a time zone where others have none.
    """
    found = np.empty(len(texts), np.int64)
    is_aware: bool | None = None
    for index, text in enumerate(texts):
        date = _parsed(text.strip(), order, index)
        if (date.tzinfo is not None) is not (date.tzinfo is not None if is_aware is None else is_aware):
            raise DateError(index, "have a time zone as all others, or none as all others")
        is_aware = date.tzinfo is not None
        found[index] = _micros(date)
    return found


def parse_counts(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the numbers of a column that counts the rows in place of dating them.

    Raises:
        DateError: naming the first text that is no whole number.
    """
    wrong = next((index for index, text in enumerate(texts) if not is_count(text)), None)
    if wrong is not None:
        raise DateError(wrong, "be a whole number as in other rows")
    return np.array([int(text.strip().partition(".")[0]) for text in texts], np.int64)


def is_count(text: str) -> bool:
    """Whether a text is a whole number."""
    return _WHOLE.fullmatch(text.strip()) is not None


def is_date(text: str) -> bool:
    """Whether a text is a date that is no bare number."""
    if re.fullmatch(r"\d*[.,]?\d*", text.strip()):
        return False
    try:
        parse_dates([text])
    except DateError as error:
        return error.is_ambiguous
    return True


def joined(parts: Sequence[str], names: Sequence[str] = ()) -> str:
    """Return one date made of the fields of several columns: day and time, or year, month, day and hour.

    Args:
        parts: the fields.
        names: of their columns; one that is called `quarter` holds 1 to 4.
    """
    parts = [re.sub(r"\.0$", "", part.strip()) for part in parts]
    quarters = [name.lower() in _QUARTERS for name in names] or [False] * len(parts)
    parts = [
        f"Q{part}" if is_quarter and part.isdigit() else part for part, is_quarter in zip(parts, quarters, strict=True)
    ]
    dated = [part for part in parts if ":" not in part][:3]
    rest = parts[len(dated) :]
    whole = all(re.fullmatch(r"\d{1,4}|[A-Za-z]{3,9}|[qQ]\d", part) for part in dated)
    return " ".join(["-".join(dated) if whole else " ".join(dated), *rest])


def _micros(date: datetime) -> int:
    plain = date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo is not None else date
    return (plain - _EPOCH) // timedelta(microseconds=1)


def _parsed(text: str, order: DateOrder | None, index: int) -> datetime:
    try:
        if text[4:5] == text[7:8] == "-":  # most dates of most files, and the fastest
            with suppress(ValueError):
                return _iso(text)
        return _short(text) or _long(_plain(text), order, index) or _iso(text)
    except DateError:
        raise
    except (ValueError, OverflowError):
        raise DateError(index, "be a date such as 2016-07-01 13:00, 2016-07, 2016, or Unix time in seconds") from None


def _short(text: str) -> datetime | None:
    """A year, a month, a quarter, or Unix time."""
    if found := _YEAR_MONTH.fullmatch(text):
        return datetime(int(found[1]), int(found[2] or found[3] or 1), 1)
    if found := _QUARTER.fullmatch(text):
        return datetime(int(found[1]), 3 * int(found[2]) - 2, 1)
    if _UNIX_S.fullmatch(text):
        return _EPOCH + timedelta(microseconds=round(float(text.replace(",", ".")) * 10**6))
    if _UNIX.fullmatch(text):  # milliseconds, microseconds, nanoseconds
        return _EPOCH + timedelta(microseconds=int(text) * 1000 // 1000 ** ((len(text) - 12) // 3))
    return None


def _plain(text: str) -> str:
    """Put a number in the place of a month's name, and the year first."""
    if found := _NAMED.fullmatch(text):
        return f"{found[3]}-{_month(found[2])}-{found[1] or 1}{found[4]}"
    if found := _YEAR_NAMED.fullmatch(text):
        return f"{found[1]}-{_month(found[2])}-1{found[4]}"
    return text


def _month(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1


def _long(text: str, order: DateOrder | None, index: int) -> datetime | None:
    """Three numbers, and perhaps a time."""
    found = _PARTS.fullmatch(text)
    if not found:
        return None
    first, middle, last = int(found[1]), int(found[3]), int(found[4])
    if len(found[1]) == 4:
        year, month, day = first, middle, last
    elif len(found[4]) != 4:
        raise DateError(index, "have a year of four digits")
    elif order is None:
        raise DateError(index, "say whether the day or the month comes first", is_ambiguous=True)
    else:
        day, month, year = (first, middle, last) if order == "day-first" else (middle, first, last)
    if found[5] and not _TIME.fullmatch(found[5]):
        return _iso(f"{year:04}-{month:02}-{day:02}T{found[5]}")  # with a time zone
    return datetime(year, month, day) + _time(found[5])


def _time(text: str | None) -> timedelta:
    if not text:
        return timedelta()
    found = _TIME.fullmatch(text)
    assert found is not None
    hour, minute, second = int(found[1]), int(found[2] or 0), int(found[3] or 0)
    if found[5]:
        hour = datetime.strptime(f"{hour} {found[5]}", "%I %p").hour
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and minute + second):
        raise ValueError(text)
    return timedelta(hours=hour, minutes=minute, seconds=second, microseconds=int((found[4] or "0").ljust(6, "0")))


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text)
