"""Charts and numbers of a dataset's target and features."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from models.describe import describe_feature
from models.features import (
    TARGET,
    UNKNOWN,
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from orchestrator.data.columns import Array, Ragged
from orchestrator.data.dataset import TRAIN, Dataset
from orchestrator.reporting.dataset.sample import Sampled, array_of, class_counts, percent_text, ragged_of
from orchestrator.reporting.dataset.samples import MOST_NAMES, Table, as_picture, spread
from orchestrator.reporting.words import data_value

_BINS = 40
_PLOT_COLUMNS = 700  # of a series: one per pixel or so
_COUNTED = 1000  # raw pictures whose values are counted
_CHANNEL_NAMES: Mapping[int, tuple[str, ...]] = {1: ("grey",), 3: ("red", "green", "blue")}
_DECODED = 64  # encoded pictures that statistics come from


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width."""

    title: str
    low: str
    high: str
    heights: tuple[float, ...]
    """Each bin's count, as a share of the fullest one's."""
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Section:
    """What there is to know about one feature or the target."""

    title: str
    facts: tuple[str, ...]
    histograms: tuple[Histogram, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class SeriesChart:
    """One channel of a series over time, in a box of 1000 x 100."""

    title: str
    low: str
    high: str
    path: str
    edges: tuple[tuple[str, float, float], ...] = field(default=())
    """Name, beginning and width of each split."""


# ---- series


def charts_of(dataset: Dataset, splits: Mapping[str, Sampled]) -> list[SeriesChart]:
    """Return a chart for every channel of a series; other datasets have none."""
    for name, feature in dataset.manifest.features.items():
        if isinstance(feature, SeriesFeature):
            return [_chart(i, title, name, splits) for i, title in enumerate(feature.channels[:MOST_NAMES])]
    return []


def _chart(channel: int, title: str, name: str, splits: Mapping[str, Sampled]) -> SeriesChart:
    total = sum(sampled.total_rows for sampled in splits.values())
    places, runs, values, edges, start = [], [], [], [], 0
    for split, sampled in splits.items():
        places.append(start + sampled.row_numbers)
        runs.append(start + sampled.run_starts[np.searchsorted(sampled.run_starts, sampled.row_numbers, "right") - 1])
        values.append(array_of(sampled, name)[:, channel])
        edges.append((split, 1000 * start / total, 1000 * sampled.total_rows / total))
        start += sampled.total_rows
    is_one = all(len(sampled.run_starts) == 1 for sampled in splits.values())
    runs_T = np.zeros(sum(map(len, places)), np.int64) if is_one else np.concatenate(runs)
    values_T = np.concatenate(values)
    low, high = float(values_T.min()), float(values_T.max())
    heights_T = 98 - 96 * (values_T - low) / ((high - low) or 1.0)
    path = _line(np.concatenate(places), runs_T, heights_T, total)
    return SeriesChart(title=title, low=data_value(low), high=data_value(high), path=path, edges=tuple(edges))


def _line(rows_T: Array, runs_T: Array, heights_T: Array, total: int) -> str:
    """Return a path through the smallest and largest value of each pixel column.

    Args:
        rows_T: the number of each row; the path is broken where one was not read.
        runs_T: a number for each run of rows without a gap between them; the path is broken between two.
        heights_T: of each row.
        total: how many rows there are.
    """
    columns_T = rows_T * _PLOT_COLUMNS // total
    is_next_T = np.append(False, (np.diff(rows_T) == 1) & (np.diff(runs_T) == 0))
    parts: list[str] = []
    for column in np.unique(columns_T):
        here = np.flatnonzero(columns_T == column)
        x, heights = (column + 0.5) * 1000 / _PLOT_COLUMNS, heights_T[here]
        parts.append(f"{'L' if is_next_T[here[0]] else 'M'}{x:.1f} {heights[0]:.1f}")
        if len(here) > 1:
            parts.append(f"L{x:.1f} {heights.min():.1f}L{x:.1f} {heights.max():.1f}L{x:.1f} {heights[-1]:.1f}")
    return "".join(parts)


# ---- class balance


def balance_table(dataset: Dataset, splits: Mapping[str, Sampled]) -> Table | None:
    """Return each class's name, and its count and share (with a bar) in each split."""
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget | BoxesTarget):
        return None
    counts = {split: class_counts(sampled, target) for split, sampled in splits.items()}
    rows = []
    for i, name in enumerate(target.classes):
        bars = ((int(c[i]), c[i] / max(1, c.sum()), c[i] / max(1, c.max())) for c in counts.values())
        rows.append((name, *bars))
    partly = [f"{s.rows:,} of {s.total_rows:,} rows of {name}" for name, s in splits.items() if not s.is_all]
    note = f"Counted in {' and '.join(partly)}: shares of the whole differ a little." if partly else ""
    return Table(("class", *splits), tuple(rows), note=note)


# ---- statistics


def target_section(dataset: Dataset, splits: Mapping[str, Sampled]) -> Section | None:
    """Return what is shown of a number or of boxes; other targets need no section."""
    target = dataset.manifest.target
    if isinstance(target, NumberTarget):
        numbers = {split: array_of(sampled, TARGET) for split, sampled in splits.items()}
        table = _number_table(numbers, target.minimum, target.maximum)
        return Section("Target", (), table=table)
    if isinstance(target, BoxesTarget):
        counts = ragged_of(splits[TRAIN], TARGET).lengths
        areas = _areas(ragged_of(splits[TRAIN], TARGET).values)
        facts = (f"{counts.mean():.1f} objects in a picture, {counts.max()} at most",)
        histograms = (_histogram("objects in a picture", counts), _histogram("share of the picture's area", areas))
        return Section("Target", facts, histograms)
    return None


def _number_table(numbers: Mapping[str, Array], low: float, high: float) -> Table:
    rows = (
        (split, *_moments(values), _histogram(split, np.clip(values, low, high), low=low, high=high))
        for split, values in numbers.items()
    )
    return Table(("split", "mean", "std", "min", "max", "values"), tuple(rows))


def feature_section(name: str, feature: Feature, splits: Mapping[str, Sampled]) -> Section:
    """Return what is shown of one feature."""
    train = splits[TRAIN]
    title = f"{name}: {describe_feature(feature)}"
    match feature:
        case ImageFeature():
            return _image_section(title, feature, train.columns[name])
        case VectorFeature():
            return _columns_section(title, feature.names, array_of(train, name) + np.array(feature.offsets))
        case SeriesFeature():
            return _columns_section(title, feature.channels, array_of(train, name))
        case CategoricalFeature():
            return _categorical_section(title, feature, array_of(train, name))
        case TextFeature():
            return _text_section(title, feature, ragged_of(train, name))
        case AudioFeature():
            return _audio_section(title, feature, ragged_of(train, name))
        case SparseFeature():
            return _sparse_section(title, feature, ragged_of(train, name))


def _image_section(title: str, feature: ImageFeature, column: Any) -> Section:
    names = _CHANNEL_NAMES.get(feature.shape[0]) or tuple(f"channel {i}" for i in range(feature.shape[0]))
    facts: tuple[str, ...] = ("mean and std of the whole training split",)
    histograms: tuple[Histogram, ...] = ()
    if isinstance(column, Ragged):
        chosen = spread(len(column), _DECODED)
        sizes = [Image.open(io.BytesIO(column[row].tobytes())).size for row in chosen]
        pixels = [np.asarray(as_picture(column, row)).reshape(-1, 3) for row in chosen]
        values_PC = np.concatenate(pixels)[:, : len(names)]
        widths, heights = np.array(sizes).T
        histograms = (_histogram("KiB of a file", column.lengths / 1024),)
        if len(set(sizes)) > 1:
            sides = (_histogram("width in pixels", widths), _histogram("height in pixels", heights))
            histograms = (*sides, *histograms)
        size_range = f"{widths.min()} to {widths.max()} × {heights.min()} to {heights.max()}"
        facts = (*facts, f"values from {len(sizes)} pictures, their sizes {size_range}")
    else:
        values_PC = column[spread(len(column), _COUNTED)].transpose(0, 2, 3, 1).reshape(-1, len(names))
    statistics = zip(feature.mean, feature.std, strict=True)
    rows = tuple(
        (channel, data_value(mean), data_value(std), _histogram(channel, values_PC[:, i], low=0, high=255))
        for i, (channel, (mean, std)) in enumerate(zip(names, statistics, strict=True))
    )
    return Section(title, facts, histograms, Table(("channel", "mean", "std", "values"), rows))


def _columns_section(title: str, names: Sequence[str], rows_ND: Array) -> Section:
    shown = names[:MOST_NAMES]
    rows = tuple((name, *_moments(rows_ND[:, i]), _histogram(name, rows_ND[:, i])) for i, name in enumerate(shown))
    facts = (f"the first {len(shown)} of {len(names)} columns",) if len(shown) < len(names) else ()
    return Section(title, facts, table=Table(("column", "mean", "std", "min", "max", "values"), rows))


def _categorical_section(title: str, feature: CategoricalFeature, values: Array) -> Section:
    counts = np.bincount(values, minlength=feature.size)[1:]
    top = np.argsort(-counts, kind="stable")[:10]
    rows = tuple(
        (feature.vocabulary[i], (int(counts[i]), counts[i] / len(values), counts[i] / counts.max())) for i in top
    )
    facts = (
        f"the {len(top)} most frequent of {len(counts):,} values; the rarest is in {counts.min():,} of the rows read",
    )
    histograms = (_histogram("rows of a value", counts),) if len(counts) > len(top) else ()
    return Section(title, facts, histograms, Table(("value", "rows"), rows))


def _text_section(title: str, feature: TextFeature, texts: Ragged) -> Section:
    words = Counter(texts.values[texts.values > UNKNOWN].tolist()).most_common(15)
    frequent = " · ".join(feature.vocabulary[token - 2] for token, _ in words)
    facts = (
        f"{texts.lengths.mean():.1f} {feature.tokens} on average, {texts.lengths.max():,} at most",
        f"most frequent: {frequent}",
    )
    return Section(title, facts, (_histogram(f"{feature.tokens} in a text", texts.lengths),))


def _audio_section(title: str, feature: AudioFeature, sounds: Ragged) -> Section:
    seconds = sounds.lengths / feature.sample_rate
    peaks = [np.abs(sounds[row].astype(np.int32)).max(initial=0) / 32768 for row in spread(len(sounds), 1000)]
    facts = (f"{seconds.mean():.2f} s on average, {seconds.max():.2f} s at most",)
    histograms = (_histogram("seconds", seconds), _histogram("loudest sample, 1 is full scale", np.array(peaks)))
    return Section(title, facts, histograms)


def _sparse_section(title: str, feature: SparseFeature, rows: Ragged) -> Section:
    filled = rows.lengths.mean()
    facts = (f"{filled:.1f} numbers that are not 0 in a row, {percent_text(filled / feature.columns)} of the columns",)
    values = _histogram("values that are not 0", rows.values["value"])
    return Section(title, facts, (_histogram("numbers in a row", rows.lengths), values))


# ---- small things


def _histogram(title: str, values: Array, *, low: float | None = None, high: float | None = None) -> Histogram:
    """Count values in bins; of few whole numbers, each has its own bin."""
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    whole = bool(np.equal(np.mod(values, 1), 0).all())
    bins = min(_BINS, int(high - low) + 1) if whole else _BINS
    margin = 0.5 if whole and bins < _BINS else 0.0
    span = (low - margin, high + margin) if high > low or margin else (low - 0.5, high + 0.5)
    counts, _ = np.histogram(values, bins=bins, range=span)
    heights = tuple((counts / max(1, counts.max())).round(4).tolist())
    return Histogram(title, data_value(low), data_value(high), heights, tuple(counts.tolist()))


def _moments(values: Array) -> tuple[str, str, str, str]:
    values = values.astype(np.float64)
    return data_value(values.mean()), data_value(values.std()), data_value(values.min()), data_value(values.max())


def _areas(boxes_N5: Array) -> Array:
    areas: Array = (boxes_N5[:, 3] - boxes_N5[:, 1]) * (boxes_N5[:, 4] - boxes_N5[:, 2])
    return areas
