"""Series: a file of dates and columns of numbers, of one series or of many, cut by time (ETT)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.errors import ConfigError
from models.describe import listed
from models.features import Clock, SeriesFeature
from models.preparing.dates import Micros
from models.preparing.gaps import Bools, Floats, Gaps, fill, find_gaps, spread_out, usual_count, usual_step
from models.preparing.steps import TimeStep
from orchestrator.data.manifest import Change, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.delimited.notations import asked_notation
from orchestrator.data.sources.delimited.table import named_columns
from orchestrator.data.sources.located import ALL, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.prepared import Prepared, columns_left_out
from orchestrator.data.sources.rows import Delimited, distinct, read_delimited, require_rows
from orchestrator.data.sources.series.cutting import assembled, gap_change, split_edges
from orchestrator.data.sources.series.table import (
    Columns,
    choose_columns,
    missing_of,
    read_times,
    read_values,
    without_name_of_dates,
)

SUFFIXES = (".csv", ".tsv", ".txt")
OPTIONS = ("split_sizes", "date", "date_order", "item", "ignore", "decimal", "thousands", "gaps", "missing")
_LEAST_ROWS = 10


def read_series(source: str, options: SourceOptions) -> Prepared:
    """Read a file of dates and numbers, and cut it by time into train, validation and test."""
    only(options, "series", *OPTIONS, *DELIMITED)
    files = split_files(source, suffixes=SUFFIXES)
    if ALL not in files:
        raise ConfigError(
            f"source must be one file for format series, which is cut by time, got {' and '.join(files)}."
        )
    rows, notes = named_columns(
        without_name_of_dates(read_delimited(files, options=options, may_lack_names=True)), options
    )
    columns = choose_columns(rows, options)
    left = [name for name in rows.names if name not in columns.all]
    values_TC, written = read_values(rows, columns, options)
    series, dropped = _dropped(_series_of(rows, columns, options, values_TC), options)
    for one in series:
        require_rows(len(one.times), one.place, least=_LEAST_ROWS)
    clock = _clock(series, columns, options)
    gaps = [find_gaps(one.times, clock.step) for one in series]
    changes = [*_item_changes(series, columns), *dropped, *_gap_changes(series, gaps, clock)]
    filled = [_filled(one, found, columns, clock, options) for one, found in zip(series, gaps, strict=True)]
    changes += _interpolated(series, columns, options)
    prepared = assembled(
        [one.rows_TC for one in filled],
        [one.edges for one in filled],
        [one.breaks for one in filled],
        SeriesFeature(channels=columns.values, mean=(), std=(), missing=missing_of(options), clock=clock),
        name=source_name(files),
        source=Source(format=in_encoding("series", rows.encoding), uri=source, changes=tuple(changes)),
    )
    return replace(prepared, notes=(*notes, *columns_left_out(left), *written))


@dataclass(frozen=True, eq=False)
class _Series:
    place: str
    """As a message names it."""
    times: Micros
    texts: Sequence[str]
    """The dates as they were written."""
    values_TC: Floats
    is_counted: bool = False
    """Whether the rows are counted, and not dated."""


@dataclass(frozen=True, eq=False)
class _Filled:
    rows_TC: np.ndarray
    edges: list[int]
    breaks: Ints


def _series_of(rows: Delimited, columns: Columns, options: SourceOptions, values_TC: Floats) -> list[_Series]:
    """Return the rows of each series, in time."""
    read = read_times(rows, columns, options)
    times, texts = read.ticks, read.texts
    if columns.item is None:
        _check_order(rows, columns, times, texts, np.arange(len(rows)))
        return [_Series(rows.place, times, texts, values_TC, read.is_counted)]
    codes, words = distinct(rows.column(columns.item))
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(len(words) + 1))
    found = []
    for code, word in enumerate(words):
        mine = order[edges[code] : edges[code + 1]]
        _check_order(rows, columns, times, texts, mine)
        place = f"{columns.item} {word!r} in {rows.place}"
        own = [texts[row] for row in mine.tolist()]
        found.append(_Series(place, times[mine], own, values_TC[mine], read.is_counted))
    return found


def _check_order(rows: Delimited, columns: Columns, times: Micros, texts: Sequence[str], mine: Ints) -> None:
    wrong = np.flatnonzero(np.diff(times[mine]) <= 0)
    if len(wrong):
        before, index = mine[wrong[0]], mine[wrong[0] + 1]
        file, row = rows.where(int(index))
        cure = "" if columns.item else " If the file holds many series, name their column with --option item=NAME."
        raise ConfigError(
            f"{columns.date_text} in {file} must increase, got {texts[index]} in row {row} after "
            f"{texts[before]}. Sort the rows by time and remove copies.{cure}"
        )


def _dropped(series: list[_Series], options: SourceOptions) -> tuple[list[_Series], list[Change]]:
    """Leave out rows in which a value is missing, where the person says so."""
    if missing_of(options) != "drop":
        return series, []
    kept: list[Bools] = [np.isfinite(one.values_TC).min(axis=1) for one in series]
    total, left = sum(len(keep) for keep in kept), sum(int(keep.sum()) for keep in kept)
    text = f"{total - left:,} of {total:,} rows had a field without a value and were left out."
    rest = [
        replace(
            one,
            times=one.times[keep],
            texts=[one.texts[i] for i in np.flatnonzero(keep).tolist()],
            values_TC=one.values_TC[keep],
        )
        for one, keep in zip(series, kept, strict=True)
    ]
    return rest, [Change(option="missing=drop", text=text, numbers={"dropped": float(total - left)})]


def _item_changes(series: Sequence[_Series], columns: Columns) -> list[Change]:
    """Say how many series there are, where a column tells them apart."""
    if columns.item is None:
        return []
    rows = [len(one.times) for one in series]
    counts = f"{min(rows):,}" if min(rows) == max(rows) else f"{min(rows):,} to {max(rows):,}"
    text = f"{len(series):,} series of {counts} rows; each is cut by time."
    return [Change(option=f"item={columns.item}", text=text, numbers={"series": float(len(series))})]


def _clock(series: Sequence[_Series], columns: Columns, options: SourceOptions) -> Clock:
    step = _usual_count(series, columns) if series[0].is_counted else usual_step([one.times for one in series])
    gaps = options.gaps or "refuse"
    return Clock(
        dates=columns.dates,
        order=options.date_order,
        item=columns.item,
        step=step,
        gaps=gaps,
        decimal="comma" if asked_notation(options).decimal == "," else "point",
        thousands=options.thousands or "",
    )


def _usual_count(series: Sequence[_Series], columns: Columns) -> TimeStep:
    """Return the step of a column that counts, of which every distance is a multiple."""
    step = usual_count([one.times for one in series])
    for one in series:
        wrong = np.flatnonzero(np.diff(one.times) % step.size)
        if len(wrong):
            before, after = one.texts[int(wrong[0])], one.texts[int(wrong[0]) + 1]
            raise ConfigError(
                f"{columns.dates[0]} of {one.place} must count in equal steps, of {step.size} as in most rows, got "
                f"{after} after {before}. Correct it, or name a column of dates with --option date=NAME."
            )
    return step


def _gap_changes(series: Sequence[_Series], gaps: Sequence[Gaps], clock: Clock) -> list[Change]:
    """Refuse gaps unless the person says what to do with them, and say what is known of them."""
    missing, rows = sum(int(found.missing.sum()) for found in gaps), sum(len(one.times) for one in series)
    if clock.gaps == "refuse" and missing:
        raise _gap_error(series, gaps, clock, share=missing / (missing + rows))
    if clock.gaps == "refuse":
        return []
    if clock.gaps == "interpolate" and missing > rows:
        raise ConfigError(
            f"gaps must be fewer steps than there are rows to be interpolated, got {missing:,} missing beside {rows:,} "
            f"rows in {series[0].place}. Let no window cross them with --option gaps=split."
        )
    numbers = {
        "missing": float(missing),
        "gaps": float(sum(found.places for found in gaps)),
        "missing_share": missing / (missing + rows),
    }
    return [gap_change(clock, numbers, _widest(gaps).largest)]


def _widest(gaps: Sequence[Gaps]) -> Gaps:
    return max(gaps, key=lambda found: int(found.missing.max(initial=0)))


def _gap_error(series: Sequence[_Series], gaps: Sequence[Gaps], clock: Clock, *, share: float) -> ConfigError:
    widest = _widest(gaps)
    one = series[next(number for number, found in enumerate(gaps) if found is widest)]
    at = int(widest.missing.argmax())
    return ConfigError(
        f"{one.place} must have a row every {clock.step}, its usual step, got {_counted(gaps)} in "
        f"which {share:.2%} of the steps are missing, the largest of {widest.largest} from {one.texts[at]} to "
        f"{one.texts[at + 1]}. Say with --option gaps=… what to do: split (no window crosses one), interpolate (a "
        "straight line), or keep (nothing is missing, as of trading days)."
    )


def _counted(gaps: Sequence[Gaps]) -> str:
    places = sum(found.places for found in gaps)
    return f"{places:,} gap{'s' * (places > 1)}"


def _filled(one: _Series, gaps: Gaps, columns: Columns, clock: Clock, options: SourceOptions) -> _Filled:
    """Return the rows as they are stored, where they are cut, and where windows end."""
    rows_TC, breaks = one.values_TC, np.empty(0, np.int64)
    if clock.gaps == "interpolate":
        rows_TC, _ = spread_out(rows_TC, gaps.missing)
    elif clock.gaps == "split":
        breaks = np.flatnonzero(gaps.missing) + 1
    edges = split_edges(len(rows_TC), options.split_sizes, one.place)
    try:
        return _Filled(fill(rows_TC, edges[1:]).astype(np.float32), edges, breaks)
    except ValueError as error:
        raise ConfigError(
            f"{columns.values[error.args[0]]} in {one.place} must have a value in training to be interpolated, got "
            "none. Leave the column out with --option ignore=NAME."
        ) from None


def _interpolated(series: Sequence[_Series], columns: Columns, options: SourceOptions) -> list[Change]:
    if missing_of(options) != "interpolate":
        return []
    counts = sum((np.isnan(one.values_TC).sum(0) for one in series), np.zeros(len(columns.values), np.int64))
    total = sum(len(one.times) for one in series)
    found = {name: int(count) for name, count in zip(columns.values, counts, strict=True) if count}
    filled = listed([f"{count:,} of {name}" for name, count in found.items()]) or "none"
    text = f"Fields without a value were filled with straight lines, in {total:,} rows: {filled}."
    numbers = {name: float(count) for name, count in found.items()}
    return [Change(option="missing=interpolate", text=text, numbers=numbers)]
