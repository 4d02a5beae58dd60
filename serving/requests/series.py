"""The window of a series that a model reads: its gaps and missing values become what they became in training."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from models.features import Clock, SeriesFeature
from models.preparing.dates import DateError, Micros, joined, parse_counts, parse_dates
from models.preparing.gaps import MISSING, Floats, Gaps, fill, find_gaps, spread_out
from models.preparing.rows import SIGNS, Notation, number_of
from serving.requests.values import InputError

DELIMITERS = (",", "\t", ";", "|")

Rows = list[tuple[int, list[str]]]
"""Fields, each row with its number in the file, counted from 1 without the empty rows."""


def parse_series(text: str, feature: SeriesFeature, *, lookback: int) -> list[list[float]]:
    """The last ``lookback`` rows of a delimited text, in the order of the feature's channels.

    With a header line the columns are found by name; without one, there must be as many columns as channels. Where the
    training file's dates are in the header too, gaps become what they became in training.

    Raises:
        ConfigError: naming the column or the row that is wrong.
    """
    notation = _notation(feature)
    rows, header = _rows(text, notation)
    columns = _columns(header, feature.channels)
    rows = [(line, _plain(row, columns, notation)) for line, row in rows]
    if feature.missing == "drop":
        rows = [(line, row) for line, row in rows if not any(_is_missing(row, column) for column in columns)]
    _require_rows(len(rows), lookback)
    clock = feature.clock if feature.clock and header and set(feature.clock.dates) <= set(header) else None
    used = rows if clock or feature.missing == "interpolate" else rows[-lookback:]
    values_TC = np.array([_row(row, columns, feature, line=line) for line, row in used])
    if clock and header:
        values_TC = _without_gaps(values_TC, used, header, clock, lookback)
    return filled(values_TC, feature.channels)[-lookback:].tolist()  # type: ignore[no-any-return]


def filled(values_TC: Floats, channels: Sequence[str]) -> Floats:
    """Put straight lines where values are missing.

    Raises:
        ConfigError: a channel has no value at all.
    """
    try:
        return fill(values_TC)
    except ValueError as error:
        raise ConfigError(f"the series must have a value of {channels[error.args[0]]}, got none.") from None


def with_missing(value: Any, feature: SeriesFeature, *, field: str) -> Any:
    """Put straight lines in the place of each null of a window, where the fields of training were filled so.

    Args:
        value: rows of the channels in order; what is no such list is returned as it is.
        feature: what is read.
        field: what an error calls it.

    Raises:
        InputError: a channel is null in every row.
    """
    if feature.missing != "interpolate" or not _has_null(value, len(feature.channels)):
        return value
    values_TC = np.array([[np.nan if x is None else float(x) for x in row] for row in value])
    try:
        return filled(values_TC, feature.channels).tolist()
    except ConfigError as error:
        raise InputError("missing_field", field, f"{field}: {error}") from None


def _has_null(value: Any, width: int) -> bool:
    """Whether a list of rows of numbers holds null."""
    if not isinstance(value, list) or not all(isinstance(row, list) and len(row) == width for row in value):
        return False
    cells = [cell for row in value for cell in row]
    return None in cells and all(cell is None or type(cell) in (int, float) for cell in cells)


def _notation(feature: SeriesFeature) -> Notation:
    """Return how the training file wrote its numbers."""
    clock = feature.clock
    if clock is None:
        return Notation()
    return Notation(decimal="," if clock.decimal == "comma" else ".", thousands=clock.thousands)


def _plain(row: list[str], columns: Sequence[int], notation: Notation) -> list[str]:
    """Return a row whose numbers are written as Python writes them."""
    plain = list(row)
    for column in columns:
        if column < len(row) and (number := _number(row[column], notation)) is not None:
            plain[column] = repr(number)
    return plain


def _number(cell: str, notation: Notation) -> float | None:
    """Return the number that a field is in the file's notation; ``None`` if it is as Python writes it, or no number."""
    if notation == Notation() and is_number(cell):
        return None
    sign = next((sign for sign in SIGNS if sign in cell), "")
    return number_of(cell, notation.model_copy(update={"sign": sign}))


def _rows(text: str, notation: Notation) -> tuple[Rows, list[str] | None]:
    """Return the rows that are not empty, and the header if there is one."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS[notation.decimal == "," :], key=first.count)
    try:
        found = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise ConfigError(f"the series must be a CSV text, got {error}.") from None
    rows = list(enumerate(found, start=1))
    if not rows or all(
        is_number(cell) or _number(cell, notation) is not None or _is_missing(rows[0][1], i)
        for i, cell in enumerate(rows[0][1])
    ):
        return rows, None
    return rows[1:], [cell.strip().removeprefix("\ufeff") for cell in rows[0][1]]


def _columns(header: list[str] | None, channels: tuple[str, ...]) -> list[int]:
    if header is None:
        return list(range(len(channels)))
    missing = [name for name in channels if name not in header]
    if missing:
        raise ConfigError(f"the series must have the columns {', '.join(channels)}, got none named {missing[0]!r}.")
    return [header.index(name) for name in channels]


def _require_rows(count: int, lookback: int) -> None:
    if count < lookback:
        raise ConfigError(f"the series must have {lookback} rows or more, got {count}. Add earlier ones.")


def _row(row: list[str], columns: list[int], feature: SeriesFeature, *, line: int) -> list[float]:
    fits = len(row) > max(columns)
    may_lack = feature.missing == "interpolate"
    if not fits or not all(is_number(row[c]) or (may_lack and _is_missing(row, c)) for c in columns):
        raise ConfigError(f"row {line} of the series must hold {len(columns)} numbers, got {','.join(row)[:60]!r}.")
    return [math.nan if _is_missing(row, column) else float(row[column]) for column in columns]


def _without_gaps(values_TC: Floats, rows: Rows, header: list[str], clock: Clock, lookback: int) -> Floats:
    """Return the rows with what the gaps between them become."""
    if clock.item in header:
        items = {row[header.index(str(clock.item))].strip() for _, row in rows}
        if len(items) > 1:
            raise ConfigError(f"the series must be one, got {len(items)} in column {clock.item}. Leave the others out.")
    if clock.gaps == "keep":
        return values_TC
    gaps = find_gaps(_times(rows, header, clock), clock.step)
    if clock.gaps == "interpolate":
        missing = int(gaps.missing.sum())
        if missing > len(rows):
            raise ConfigError(f"the series must lack fewer rows than it has, got {missing:,} missing. Fill them in.")
        return spread_out(values_TC, gaps.missing)[0]
    _refuse_gap(gaps, rows, clock, lookback)
    return values_TC


def _times(rows: Rows, header: list[str], clock: Clock) -> Micros:
    places = [header.index(name) for name in clock.dates]
    fields = [[row[place] if place < len(row) else "" for place in places] for _, row in rows]
    texts = [joined(parts, clock.dates) if len(parts) > 1 else parts[0] for parts in fields]
    is_counted = clock.step.unit == "counts"
    try:
        times = parse_counts(texts) if is_counted else parse_dates(texts, clock.order)
    except DateError as error:
        what = clock.dates[0] if is_counted else "the date"
        where = f"row {rows[error.index][0]} of the series"
        raise ConfigError(f"{what} in {where} must {error.rule}, got {texts[error.index]!r}.") from None
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        line = rows[int(wrong[0]) + 1][0]
        raise ConfigError(f"the dates of the series must increase, got {texts[int(wrong[0]) + 1]!r} in row {line}.")
    return times


def _refuse_gap(gaps: Gaps, rows: Rows, clock: Clock, lookback: int) -> None:
    inside = np.flatnonzero(gaps.missing[len(rows) - lookback :])
    if len(inside):
        line = rows[len(rows) - lookback + int(inside[0]) + 1][0]
        raise ConfigError(
            f"the last {lookback} rows of the series must be {clock.step} apart, as in training, got a gap before row "
            f"{line}. Fill it in, or end the file before it."
        )


def _is_missing(row: list[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower() in MISSING


def is_number(cell: str) -> bool:
    """Whether a field is a finite number."""
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
