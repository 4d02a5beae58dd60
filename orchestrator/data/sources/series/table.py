"""What the columns of a series' file are: dates, numbers, and perhaps which of many series a row belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ConfigError
from models.preparing.dates import DateError, Micros, is_count, is_date, joined, parse_counts, parse_dates
from models.preparing.gaps import MISSING
from models.preparing.rows import SIGNS, Notation
from orchestrator.data.columns import Array
from orchestrator.data.sources.delimited.fields import in_brackets
from orchestrator.data.sources.delimited.notations import (
    asked_notation,
    notation_notes,
    notation_of,
    numbers_in,
    other_notations,
)
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
    """An empty text is the column without a name, see `without_name_of_dates`."""
    item: str | None
    values: tuple[str, ...]

    @property
    def all(self) -> set[str | None]:
        """Every column that is read."""
        return {*self.dates, self.item, *self.values}

    @property
    def date_text(self) -> str:
        """The columns of the date, as a message names them."""
        return " and ".join(self.dates) or "the column without a name"


def without_name_of_dates(rows: Delimited) -> Delimited:
    """Return the rows with an empty name for a column of dates that has none: pandas writes its index so."""
    first = _first_row(rows)
    found = [name for name in rows.unnamed if is_date(first[name])][:1]
    if not found or any(name.lower() in DATE_NAMES for name in rows.names):
        return rows
    rows.columns.rename(found[0], "")
    return replace(rows, all_names=tuple("" if name in found else name for name in rows.all_names))


def _first_row(rows: Delimited) -> dict[str, str]:
    (found,) = rows.first(1).to_pylist()
    return dict(found)


def choose_columns(rows: Delimited, options: SourceOptions) -> Columns:
    """Return what each column is for.

    Raises:
        ConfigError: if there is no date or no number, or an option names a column that is not there.
    """
    names, place = rows.names, rows.place
    by_place = dict(enumerate(rows.all_names, start=1))
    ignored = [by_place.get(word, word) if isinstance(word, int) else word for word in options.ignore or ()]
    asked = (*(options.date or ()), *ignored, *([options.item] if options.item else []))
    unknown = [name for name in asked if name not in rows.all_names]
    if unknown:
        raise ConfigError(f"{unknown[0]} must be a column of {place}, got none of that name among {', '.join(names)}.")
    left = [name for name in names if name not in ignored]
    item = options.item or next((name for name in left if name.lower() in ITEM_NAMES), None)
    left = [name for name in left if name != item]
    dates = options.date or _date_column(left, _first_row(rows), place)
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
    if {"year", "quarter"} <= lower.keys() and lower.keys().isdisjoint(_WHOLE):
        return lower["year"], lower["quarter"]
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
    texts = fields[0] if len(fields) == 1 else [joined(parts, columns.dates) for parts in zip(*fields, strict=True)]
    try:
        return _times(texts, options)
    except DateError as error:
        file, row = rows.where(error.index)
        name, text = columns.date_text, texts[error.index]
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


def read_values(rows: Delimited, columns: Columns, options: SourceOptions) -> tuple[Array, list[str]]:
    """Return the numbers of every row, [T, C] float64, NaN where there is none; and how those for people are written.

    Raises:
        ConfigError: naming a field that is no number, or one without a value where that is refused.
    """
    read = [_column(rows, name, options) for name in columns.values]
    return np.stack([numbers for numbers, _ in read], 1), [note for _, notes in read for note in notes]


def _column(rows: Delimited, name: str, options: SourceOptions) -> tuple[Array, tuple[str, ...]]:
    texts = rows.trimmed(name)
    missing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(MISSING))
    is_missing: Array = missing.to_numpy()
    present = pc.filter(texts, pa.array(~is_missing))
    notation = _notation_of(present, options)
    notes: tuple[str, ...] = ()
    if notation in (None, Notation()):
        numbers, _ = as_numbers(pc.if_else(missing, "nan", texts))
    else:
        numbers = np.full(len(texts), np.nan)
        numbers[~is_missing] = numbers_in(present, notation)
        notes = notation_notes(present, name, notation)
    wrong = ~is_missing & ~(np.abs(numbers) <= LARGEST)
    if wrong.any():
        raise _no_number(rows, name, texts, present, wrong)
    if is_missing.any() and missing_of(options) == "refuse":
        index = int(is_missing.argmax())
        file, row = rows.where(index)
        raise ConfigError(
            f"{name} in {file} must have a value in every row, got {texts[index].as_py()!r} in row {row}, the first of "
            f"{is_missing.sum():,} of {len(numbers):,}. Fill it in, leave such rows out with --option missing=drop, or "
            "put a straight line there with --option missing=interpolate."
        )
    return np.where(is_missing, np.nan, numbers), notes


def _notation_of(present: pa.ChunkedArray, options: SourceOptions) -> Notation | None:
    """Return how all numbers are written; a sign is one that requests are known to have too, and no unit."""
    if asked_notation(options) == Notation() and as_numbers(present)[1].all():
        return Notation()
    notation = notation_of(present, options) if len(present) else Notation()
    return notation if notation is None or notation.sign in SIGNS else None


def _no_number(
    rows: Delimited, name: str, texts: pa.ChunkedArray, present: pa.ChunkedArray, wrong: Array
) -> ConfigError:
    index = int(wrong.argmax())
    file, row = rows.where(index)
    word = in_brackets([name])[1:-1]
    cure = "Correct it."
    if ways := other_notations(present):
        cure = f"Read its numbers, which are written in another way, with {ways}, or leave it out with --option "
        cure += f"'ignore={word}'."
    elif wrong.sum() > len(wrong) / 2:
        cure = f"Leave the column out with --option 'ignore={word}', or, if it says which of many series a row "
        cure += f"belongs to, name it with --option 'item={word}'."
    return ConfigError(
        f"{name} in {file} must be a finite number in 32 bits, got {texts[index].as_py()!r} in row {row}. {cure}"
    )
