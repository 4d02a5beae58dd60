"""Cuts series by time into train, validation and test, and into runs that no window leaves."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from cluster.errors import ConfigError
from models.features import Clock, SeriesFeature
from orchestrator.data.columns import Array, row_statistics
from orchestrator.data.manifest import MOST_RUNS, Change, Run, SeriesTarget, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.prepared import Part, Prepared

SPLITS = ("train", "validation", "test")
CONTEXT_ROWS = 720  # the longest lookback of the published ETT experiments


def cut_series(
    rows_TC: Array, names: Sequence[str], *, sizes: tuple[int, ...] | None, name: str, source: Source
) -> Prepared:
    """Cut a series without dates by time; validation and test begin with rows of the split before, to look back on."""
    edges = split_edges(len(rows_TC), sizes, source.uri)
    feature = SeriesFeature(channels=tuple(names), mean=(), std=())
    return assembled([rows_TC], [edges], [np.empty(0, np.int64)], feature, name=name, source=source)


def split_edges(rows: int, sizes: tuple[int, ...] | None, place: str) -> list[int]:
    """Return where train, validation and test begin, and where test ends.

    Raises:
        ConfigError: if the sizes do not fit.
    """
    edges = [0, *np.cumsum(sizes or _shares(rows)).tolist()]
    if len(edges) != 4 or edges[-1] > rows:
        raise ConfigError(
            f"split_sizes must be three numbers that sum to at most the {rows} rows of {place}, got "
            f"{', '.join(map(str, sizes or ()))}."
        )
    return edges


def assembled(
    series: Sequence[Array],
    edges: Sequence[Sequence[int]],
    breaks: Sequence[Ints],
    feature: SeriesFeature,
    *,
    name: str,
    source: Source,
) -> Prepared:
    """Put the splits of one or many series together.

    Args:
        series: the rows [T, C] of each.
        edges: of each, see `split_edges`.
        breaks: the rows of each before which windows end.
        feature: without its statistics, which are those of the training rows.
        name: of the dataset.
        source: where it is from.

    Raises:
        ConfigError: if there are more than `MOST_RUNS` runs.
    """
    splits, runs = {}, {}
    for number, split in enumerate(SPLITS):
        cuts = [(found[number], found[number + 1]) for found in edges]
        begins = [max(0, start - CONTEXT_ROWS) for start, _ in cuts]
        spans = [slice(begin, stop) for begin, (_, stop) in zip(begins, cuts, strict=True)]
        rows_TC = np.concatenate([rows[span] for rows, span in zip(series, spans, strict=True)])
        runs[split] = tuple(
            run
            for begin, (start, stop), found in zip(begins, cuts, breaks, strict=True)
            for run in _runs(begin, start, stop, found)
        )
        is_one = len(series) == 1
        splits[split] = Part.of({"series": rows_TC}, context_rows=cuts[0][0] - begins[0] if is_one else 0)
    most = max(map(len, runs.values()))
    if most > MOST_RUNS:
        raise ConfigError(f"{source.uri} must have at most {MOST_RUNS:,} series or gaps, got {most:,} parts.")
    train_TC = np.concatenate([rows[: found[1]] for rows, found in zip(series, edges, strict=True)])
    mean, std = row_statistics(train_TC)
    is_whole = most == 1
    return Prepared(
        name=name,
        features={"series": feature.model_copy(update={"mean": mean, "std": std})},
        target=SeriesTarget(runs=None if is_whole else runs),
        splits=splits,
        source=source,
    )


def gap_change(clock: Clock, numbers: Mapping[str, float], largest: str) -> Change:
    """Say what is known of the gaps, and what became of them."""
    done = {"keep": "they were left as they are", "interpolate": "they were filled with straight lines"}.get(
        clock.gaps, "no window crosses them"
    )
    text = (
        f"The usual step is {clock.step}, the largest distance {largest}; {_percent(numbers['missing_share'])} of the "
        f"steps are missing ({numbers['missing']:,.0f} in {_places(numbers['gaps'])}): {done}."
    )
    return Change(option=f"gaps={clock.gaps}", text=text, numbers=dict(numbers))


def _places(count: float) -> str:
    return f"{count:,.0f} place{'s' * (count > 1)}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _runs(begin: int, start: int, stop: int, breaks: Ints) -> list[Run]:
    """Return the runs of the rows from ``begin`` to ``stop``; those before ``start`` belong to the split before."""
    edges = [begin, *breaks[(breaks > begin) & (breaks < stop)].tolist(), stop]
    return [Run(last - first, min(max(0, start - first), last - first)) for first, last in pairwise(edges)]


def _shares(count: int) -> tuple[int, int, int]:
    train, test = count * 7 // 10, count * 2 // 10
    return train, count - train - test, test
