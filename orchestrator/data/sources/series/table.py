"""What the columns of a series' file are: dates, numbers, and perhaps which of many series a row belongs to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.preparing.dates import DateError, Micros, is_count, is_date, joined, parse_counts, parse_dates
from models.preparing.gaps import MISSING
from orchestrator.data.columns import Array
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import LARGEST, Delimited, as_numbers

DATE_NAMES = (
    "date",
    "datetime",
    "date_time",
    "timestamp",
    "time",
    "ts",
    "ds",
    "period",
    "quarter",
    "month",
    "week",
    "day",
    "year",
)
"""What columns of dates are called; the first of these that is there counts."""

_WHOLE = ("date", "datetime", "date_time", "timestamp", "ts", "ds")
"""Names of columns that say all of a date; a time may lie beside the first."""

_PARTS = ("year", "month", "day", "hour")

ITEM_NAMES = ("item_id", "unique_id", "series_id", "timeseries_id")


@dataclass(frozen=True)
class Columns:
    """The columns of a file, by what they are for."""

    dates: tuple[str, ...]
    item: str | None
    values: tuple[str, ...]


def choose_columns(names: Sequence[str], first: Sequence[str], options: SourceOptions, place: str) -> Columns:
    """Return what each column is for.

    Args:
        names: of the columns.
        first: the fields of the first row.
        options: what the person says about them.
        place: the file, for messages.

    Raises:
        ConfigError: if there is no date or no number, or an option names a column that is not there.
    """
    ignored = options.ignore or ()
    asked = (*(options.date or ()), *ignored, *([options.item] if options.item else []))
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise ConfigError(f"{unknown[0]} must be a column of {place}, got none of that name among {', '.join(names)}.")
    left = [name for name in names if name not in ignored]
    item = options.item or next((name for name in left if name.lower() in ITEM_NAMES), None)
    left = [name for name in left if name != item]
    dates = options.date or _date_column(left, dict(zip(names, first, strict=False)), place)
    values = tuple(name for name in left if name not in dates)
    if not values:
        raise ConfigError(
            f"{place} must have a date column and at least one numeric one, got {', '.join(names)}. Name the date with "
            "--option date=NAME."
        )
    return Columns(dates, item, values)


def _date_column(names: Sequence[str], first: dict[str, str], place: str) -> tuple[str, ...]:
    lower = {name.lower(): name for name in reversed(names)}
    named = [lower[name] for name in DATE_NAMES if name in lower]
    parts = tuple(lower[name] for name in _PARTS if name in lower)
    if {"year", "month"} <= lower.keys() and lower.keys().isdisjoint(_WHOLE):
        return parts
    if {"date", "time"} <= lower.keys() and lower.keys().isdisjoint(_WHOLE[1:]):
        return lower["date"], lower["time"]
    shaped = [name for name in names if is_date(first.get(name, ""))]
    if not named and not shaped:
        raise ConfigError(
            f"{place} must have a column of dates, called {' or '.join(DATE_NAMES[:5])}, got {', '.join(names)}. Name "
            "it with --option date=NAME, or several with --option date=[year, month]."
        )
    return tuple((named or shaped)[:1])


@dataclass(frozen=True, eq=False)
class Times:
    """When the rows of a file are."""

    ticks: Micros
    """[T], or the numbers of a column that counts."""
    texts: list[str]
    """[T], as they were written."""
    is_counted: bool = False
    """Whether they are counted, and not dated."""


def read_times(rows: Delimited, columns: Columns, options: SourceOptions) -> Times:
    """Return the time of every row; a column that the person names may count them instead.

    Raises:
        ConfigError: naming the first row without a date.
    """
    fields = [rows.trimmed(name).to_pylist() for name in columns.dates]
    texts = fields[0] if len(fields) == 1 else [joined(parts) for parts in zip(*fields, strict=True)]
    try:
        return _times(texts, options)
    except DateError as error:
        file, row = rows.where(error.index)
        name, text = " and ".join(columns.dates), texts[error.index]
        cure = " Give --option date_order=day-first or --option date_order=month-first." if error.is_ambiguous else ""
        if options.date is None and len(columns.dates) == 1 and is_count(text):
            cure = f" If it counts the rows, say so with --option date={name}."
        raise ConfigError(f"{name} in {file} must {error.rule}, got {text!r} in row {row}.{cure}") from None


def _times(texts: list[str], options: SourceOptions) -> Times:
    try:
        return Times(parse_dates(texts, options.date_order), texts)
    except DateError as error:
        if options.date is None or len(options.date) > 1 or not is_count(texts[error.index]):
            raise
    return Times(parse_counts(texts), texts, is_counted=True)


def missing_of(options: SourceOptions) -> Literal["refuse", "drop", "interpolate"]:
    """Return what becomes of fields without a value.

    Raises:
        ConfigError: if that is something for tables only.
    """
    match options.missing or "refuse":
        case ("refuse" | "drop" | "interpolate") as found:
            return found
        case other:
            raise ConfigError(f"missing must be refuse, drop or interpolate for a series, got {other}.")


def read_values(rows: Delimited, columns: Columns, options: SourceOptions) -> Array:
    """Return the numbers of every row, [T, C] float64; NaN where there is none.

    Raises:
        ConfigError: naming a field that is no number, or one without a value where that is refused.
    """
    return np.stack([_column(rows, name, options) for name in columns.values], 1)


def _column(rows: Delimited, name: str, options: SourceOptions) -> Array:
    texts = rows.trimmed(name)
    if options.decimal == ",":
        texts = pc.replace_substring(texts, ",", ".")
    missing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(MISSING))
    numbers, _ = as_numbers(pc.if_else(missing, "nan", texts))
    is_missing = missing.to_numpy()
    wrong = ~is_missing & ~(np.abs(numbers) <= LARGEST)
    if wrong.any():
        index = int(wrong.argmax())
        file, row = rows.where(index)
        cure = "Correct it."
        if re.fullmatch(r"[+-]?\d+,\d+", texts[index].as_py()):
            cure = "If its comma is a decimal point, say so with --option decimal=comma."
        elif wrong.sum() > len(wrong) / 2:
            cure = f"Leave the column out with --option ignore={name}, or, if it says which of many series a row "
            cure += f"belongs to, name it with --option item={name}."
        raise ConfigError(
            f"{name} in {file} must be a finite number in 32 bits, got {texts[index].as_py()!r} in row {row}. {cure}"
        )
    if is_missing.any() and missing_of(options) == "refuse":
        index = int(is_missing.argmax())
        file, row = rows.where(index)
        raise ConfigError(
            f"{name} in {file} must have a value in every row, got {texts[index].as_py()!r} in row {row}, the first of "
            f"{is_missing.sum():,} of {len(numbers):,}. Fill it in, leave such rows out with --option missing=drop, or "
            "put a straight line there with --option missing=interpolate."
        )
    return np.where(is_missing, np.nan, numbers)
