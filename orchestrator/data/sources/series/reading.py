"""Series: a CSV of a date and columns of numbers, cut by time (ETT)."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

import numpy as np

from cluster.errors import ConfigError
from models.features import SeriesFeature
from orchestrator.data.columns import Array, row_statistics
from orchestrator.data.manifest import SeriesTarget, Source
from orchestrator.data.sources.located import ALL, SourceFile, source_name, split_files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import Delimited, first_rows, read_delimited, refuse_empty, require_rows

_CONTEXT_ROWS = 720  # the longest lookback of the published ETT experiments


def read_series(source: str, options: SourceOptions) -> Prepared:
    """Read a CSV of a date and numeric columns, and cut it by time into train, validation and test."""
    only(options, "series", "split_sizes")
    files = split_files(source, suffixes=(".csv",))
    if ALL not in files:
        raise ConfigError(
            f"source must be one file for format series, which is cut by time, got {' and '.join(files)}."
        )
    names, rows_TC = _parse_series(files[ALL])
    return cut_series(
        rows_TC,
        names,
        sizes=options.split_sizes,
        name=source_name(files),
        source=Source(format="series", uri=source),
    )


def cut_series(
    rows_TC: Array, names: Sequence[str], *, sizes: tuple[int, ...] | None, name: str, source: Source
) -> Prepared:
    """Cut a series by time; validation and test begin with rows of the split before, to look back on."""
    edges = [0, *np.cumsum(sizes or _shares(len(rows_TC))).tolist()]
    if len(edges) != 4 or edges[-1] > len(rows_TC):
        raise ConfigError(
            f"split_sizes must be three numbers that sum to at most the {len(rows_TC)} rows of {source.uri}, "
            f"got {', '.join(map(str, sizes or ()))}."
        )
    splits = {}
    for split, (start, stop) in zip(("train", "validation", "test"), pairwise(edges), strict=True):
        context = min(start, _CONTEXT_ROWS)
        splits[split] = Part.of({"series": rows_TC[start - context : stop]}, context_rows=context)
    mean, std = row_statistics(rows_TC[: edges[1]])
    return Prepared(
        name=name,
        features={"series": SeriesFeature(channels=tuple(names), mean=mean, std=std)},
        target=SeriesTarget(),
        splits=splits,
        source=source,
    )


def _parse_series(file: SourceFile) -> tuple[list[str], Array]:
    """Return the names of the numeric columns and their values [T, C]."""
    content = file.head()
    refuse_empty(content, file)
    header, _ = first_rows(content, delimiter=",")
    if len(header) < 2 or _date(header[0]) is not None:
        raise ConfigError(
            f"{file} must begin with a header: a date column and at least one numeric one, got {','.join(header)!r}."
        )
    rows = read_delimited({ALL: file}, delimiter=",")
    _check_dates(rows, header[0])
    values_TC = np.stack([rows.numbers(name) for name in header[1:]], 1).astype(np.float32)
    require_rows(len(rows), file, least=10)
    return header[1:], values_TC


def _check_dates(rows: Delimited, name: str) -> None:
    texts = rows.table.column(name).to_pylist()
    dates = [_date(text) for text in texts]
    for index, (date, before) in enumerate(zip(dates, [None, *dates], strict=False)):
        if date is None:
            file, row = rows.where(index)
            raise ConfigError(f"{name} in {file} must be an ISO 8601 date, got {texts[index]!r} in row {row}.")
        if before is not None and not _is_after(date, before):
            file, row = rows.where(index)
            raise ConfigError(
                f"{name} in {file} must increase, got {texts[index]} in row {row} after {before}. Sort the rows by "
                "time and remove copies, and give all of them a time zone or none."
            )


def _is_after(date: datetime, before: datetime) -> bool:
    return (date.tzinfo is None) == (before.tzinfo is None) and date > before


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _shares(count: int) -> tuple[int, int, int]:
    train, test = count * 7 // 10, count * 2 // 10
    return train, count - train - test, test
