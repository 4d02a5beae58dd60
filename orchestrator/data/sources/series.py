"""Series: a CSV of a date and columns of numbers, cut by time (ETT)."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import numpy as np

from cluster.errors import ConfigError
from models.features import SeriesFeature
from orchestrator.data.columns import Array, row_statistics
from orchestrator.data.manifest import SeriesTarget, Source
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import as_name, lines, number, require_rows

_CONTEXT_ROWS = 720  # the longest lookback of the published ETT experiments


def read_series(source: str, options: SourceOptions) -> Prepared:
    """Read a CSV of a date and numeric columns, and cut it by time into train, validation and test."""
    only(options, "series", "split_sizes")
    path = Path(source)
    names, rows_TC = _parse_series(path)
    return cut_series(
        rows_TC,
        names,
        sizes=options.split_sizes,
        name=as_name(path.stem),
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


def _parse_series(path: Path) -> tuple[list[str], Array]:
    """Return the names of the numeric columns and their values [T, C]."""
    found = lines(path, delimiter=",")
    _, header = next(found, (0, []))
    require_rows(len(header), path)
    if len(header) < 2 or _date(header[0]) is not None:
        raise ConfigError(
            f"{path} must begin with a header: a date column and at least one numeric one, got {','.join(header)!r}."
        )
    names, rows = header[1:], []
    dates: list[datetime] = []
    if len(set(names)) < len(names):
        raise ConfigError(f"{path} must name each column once, got {','.join(names)!r}.")
    for row, fields in found:
        if len(fields) != len(header):
            raise ConfigError(f"{path} must have {len(header)} fields, got {len(fields)} in row {row}.")
        date = _date(fields[0])
        if date is None:
            raise ConfigError(f"{header[0]} in {path} must be an ISO 8601 date, got {fields[0]!r} in row {row}.")
        if dates and not date > dates[-1]:
            raise ConfigError(
                f"{header[0]} in {path} must increase, got {fields[0]} in row {row} after {dates[-1]}. Sort the rows "
                "by time and remove copies."
            )
        dates.append(date)
        rows.append([number(text, name, path, row) for name, text in zip(names, fields[1:], strict=True)])
    require_rows(len(rows), path, least=10)
    return names, np.array(rows, np.float32)


def _date(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _shares(count: int) -> tuple[int, int, int]:
    train, test = count * 7 // 10, count * 2 // 10
    return train, count - train - test, test
