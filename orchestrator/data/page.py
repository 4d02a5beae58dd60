"""One HTML file about a dataset: card, samples, class balance, statistics, and what is worth knowing before training.

The file needs no network and no other file. It is made from some row groups of each split, spread over it, and says
from how many rows.
"""

import base64
import io
import math
import wave
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cluster.disk import naming_disk
from cluster.errors import ConfigError
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
from orchestrator.data.columns import Array, Columns, Ragged, join, take
from orchestrator.data.dataset import TRAIN, Dataset, open_dataset
from orchestrator.data.manifest import SeriesTarget, Shard, Split
from orchestrator.data.order import Ints
from orchestrator.display import number, size

if TYPE_CHECKING:
    from cluster.storage import Store

SPLIT_BYTES = 16 * 2**20
"""Read of each split, about: two row groups of pictures, all of most tables."""

_MOST_BYTES = 64 * 2**20  # of a split whose rows lie sorted by class
_BINS = 40
_PLOT_COLUMNS = 700  # of a series: one per pixel or so
_THUMBNAIL_SIDE = 160
_MOST_CLASSES = 100  # shown with samples
_MOST_ROWS = 24  # of a table of samples
_MOST_NAMES = 60  # columns that are described one by one
_MOST_WORDS = 60  # of a text, shown
_COUNTED = 1000  # raw pictures whose values are counted
_CHANNEL_NAMES: Mapping[int, tuple[str, ...]] = {1: ("grey",), 3: ("red", "green", "blue")}
_DECODED = 64  # encoded pictures that statistics come from
_IMBALANCE = 10.0  # largest class to smallest: from here on accuracy says little
_BALANCED = 1.05
_SORTED = 0.95  # share of neighbours of one class
_UNSEEN = 0.05  # share of rows whose answer rests on less than it seems
_UNKNOWN_WORDS = 0.1
_SHIFT = 1.0  # means that differ by more training standard deviations


def write_page(store: "Store", name: str, *, version: str | None = None, path: Path) -> Path:
    """Write the page about one version of a dataset, the newest by default, and return its path.

    Raises:
        NotFoundError: if there is no such dataset or version.
        IntegrityError: if what is read is damaged in the store.
        ConfigError: if the file cannot be written.
    """
    html = render_page(open_dataset(store, name, version))
    try:
        with naming_disk(path):
            path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html must be a file that can be written, got {path}: {error.strerror}.") from error
    return path


def render_page(dataset: Dataset) -> str:
    """Return the page as HTML."""
    splits = {name: _sample(dataset, name) for name in dataset.manifest.splits}
    environment = Environment(
        loader=PackageLoader("orchestrator", "data"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "percent": _percent}
    features = dataset.manifest.features
    return environment.get_template("page.html").render(
        manifest=dataset.manifest,
        card=_card(dataset),
        splits=splits,
        checks=_checks(dataset, splits),
        charts=_charts(dataset, splits),
        groups=_sample_groups(dataset, splits[TRAIN]),
        sample_table=_sample_table(dataset, splits[TRAIN]),
        balance=_balance(dataset, splits),
        target=_target_section(dataset, splits),
        features=[_feature_section(name, feature, splits) for name, feature in features.items()],
        hues=[_hue(i) for i in range(len(getattr(dataset.manifest.target, "classes", ())))],
    )


@dataclass(frozen=True)
class Sampled:
    """The rows of a split that were read."""

    columns: Columns
    row_numbers: Ints
    """Of each row in the split, without those that belong to the split before."""
    total_rows: int

    @property
    def rows(self) -> int:
        """How many were read."""
        return len(self.row_numbers)

    @property
    def is_all(self) -> bool:
        """Whether that is the whole split."""
        return self.rows == self.total_rows


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
class Table:
    """Cells are texts, histograms, or (count, share, length of a bar)."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    named: bool = True
    """Whether the first column names the row."""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """What there is to know about one feature or the target."""

    title: str
    facts: tuple[str, ...]
    histograms: tuple[Histogram, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Tile:
    """One sample, shown: some of picture, sound and text."""

    caption: str = ""
    picture: str | None = None
    """As a data URI."""
    pixelated: bool = False
    boxes: tuple[dict[str, Any], ...] = ()
    sound: str | None = None
    """As a data URI."""
    waveform: str | None = None
    """Path in a box of 100 x 2, the middle at 0."""
    words: tuple[tuple[str, bool], ...] = ()
    """Each with whether the vocabulary has it."""


@dataclass(frozen=True)
class Group:
    """Samples of one class, or of all rows if the title is empty."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Chart:
    """One channel of a series over time, in a box of 1000 x 100."""

    title: str
    low: str
    high: str
    path: str
    edges: tuple[tuple[str, float, float], ...] = field(default=())
    """Of each split: name, where it begins and how wide it is."""


# ---- what is read


def _sample(dataset: Dataset, name: str) -> Sampled:
    """Read row groups that are spread over the split: `SPLIT_BYTES`, or more until every class has been seen."""
    split = dataset.split(name)
    groups = list(_groups(split))
    read: dict[int, Columns] = {}
    read_bytes = 0
    for place in _spread_first(len(groups)):
        shard, index, _ = groups[place]
        enough = SPLIT_BYTES if _all_classes_seen(dataset, read.values()) else _MOST_BYTES
        if read and read_bytes + shard.row_groups[index].bytes > enough:
            break
        read[place] = dataset.read_row_group(shard, index)
        read_bytes += shard.row_groups[index].bytes
    parts, numbers = [], []
    for place, columns in sorted(read.items()):
        shard, index, first = groups[place]
        rows = np.arange(first, first + shard.row_groups[index].rows) - split.context_rows
        kept = np.flatnonzero(rows >= 0)
        parts.append({column: take(values, kept) for column, values in columns.items()})
        numbers.append(rows[kept])
    columns = {column: join([part[column] for part in parts]) for column in parts[0]}
    return Sampled(columns, np.concatenate(numbers), split.rows - split.context_rows)


def _spread_first(count: int) -> list[int]:
    """Return all places so that those of every beginning of the list are spread: the bits of 0, 1, 2 ... reversed."""
    bits = max(1, (count - 1).bit_length())
    places = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [place for place in places if place < count]


def _all_classes_seen(dataset: Dataset, parts: Iterable[Columns]) -> bool:
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget):
        return True
    labels = [columns[TARGET] for columns in parts]
    return bool(labels) and len(np.unique(join(labels))) == len(target.classes)  # type: ignore[arg-type]


def _groups(split: Split) -> Iterator[tuple[Shard, int, int]]:
    """Yield every row group: its shard, its place in it, and its first row in the split."""
    first = 0
    for shard in split.shards:
        for index, group in enumerate(shard.row_groups):
            yield shard, index, first
            first += group.rows


# ---- card and checks


def _card(dataset: Dataset) -> list[tuple[str, str]]:
    manifest = dataset.manifest
    return [
        ("Version", manifest.version),
        ("Created", manifest.created.partition(".")[0].replace("T", " ") + " UTC"),
        ("Source", manifest.source.uri),
        ("Format", manifest.source.format),
        ("Licence", manifest.source.licence or "not stated"),
        ("Target", _describe_target(manifest.target)),
        *((f"Feature {name}", _describe(feature)) for name, feature in manifest.features.items()),
        ("Size in the store", size(sum(s.bytes for split in manifest.splits.values() for s in split.shards))),
    ]


def _describe(feature: Feature) -> str:
    match feature:
        case ImageFeature():
            channels, height, width = feature.shape
            stored = "raw" if feature.encoding == "raw" else "JPEG or PNG, scaled when it is read"
            return f"picture of {width} × {height} with {channels} channel{'s' * (channels > 1)}, {stored}"
        case VectorFeature():
            return f"{len(feature.names)} numbers"
        case CategoricalFeature():
            return f"one of {len(feature.vocabulary):,} values"
        case SeriesFeature():
            return f"series of {len(feature.channels)} channel{'s' * (len(feature.channels) > 1)}"
        case TextFeature():
            return f"text of at most {feature.max_tokens:,} words from {len(feature.vocabulary):,}"
        case AudioFeature():
            longest = number(feature.max_samples / feature.sample_rate)
            return f"sound of at most {longest} s, {feature.sample_rate:,} samples a second"
        case SparseFeature():
            return f"{feature.columns:,} numbers, most of them 0"


def _describe_target(target: Any) -> str:
    match target:
        case ClassTarget():
            return f"one of {len(target.classes)} classes"
        case NumberTarget():
            return f"a number from {number(target.minimum)} to {number(target.maximum)}"
        case BoxesTarget():
            return f"boxes around objects of {len(target.classes)} classes"
    return "the series itself, some steps ahead"


@dataclass(frozen=True)
class Check:
    """One thing worth knowing."""

    fine: bool
    text: str


def _checks(dataset: Dataset, splits: Mapping[str, Sampled]) -> list[Check]:
    features = dataset.manifest.features
    found = [*_class_checks(dataset, splits), *_unseen_checks(features, splits)]
    for name, feature in features.items():
        found += _feature_checks(name, feature, splits)
    if isinstance(dataset.manifest.target, NumberTarget):
        numbers = {split: sampled.columns[TARGET] for split, sampled in splits.items()}
        found += _shift_checks({split: values[:, None] for split, values in numbers.items()}, ["target"])  # type: ignore[call-overload]
    return sorted(found, key=lambda check: check.fine)


def _class_checks(dataset: Dataset, splits: Mapping[str, Sampled]) -> Iterator[Check]:
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget | BoxesTarget):
        return
    for split, sampled in splits.items():
        missing = [target.classes[i] for i in np.flatnonzero(_class_counts(sampled, target) == 0)]
        if missing:
            where = split if sampled.is_all else f"the {sampled.rows:,} rows of {split} that were read"
            yield Check(not sampled.is_all, f"Not in {where}: {_listed(missing)}.")
    if isinstance(target, ClassTarget) and _is_sorted(_array(splits[TRAIN], TARGET)):
        text = f"The rows of {TRAIN} lie sorted by class: data.shuffle_mb must span many classes, or batches hold few."
        yield Check(False, text)
        if not splits[TRAIN].is_all:
            return  # what was read says nothing about the balance
    yield from _balance_checks(_class_counts(splits[TRAIN], target), target.classes, splits[TRAIN])


def _is_sorted(labels: Array) -> bool:
    """Whether neighbours are nearly always of one class, of those that there are."""
    return len(np.unique(labels)) > 1 and float((labels[1:] == labels[:-1]).mean()) > _SORTED


def _balance_checks(counts: Ints, classes: Sequence[str], train: Sampled) -> Iterator[Check]:
    present = counts[counts > 0]
    if len(present) < 2:
        return
    ratio = present.max() / present.min()
    most, least = classes[int(counts.argmax())], classes[int(np.flatnonzero(counts == present.min())[0])]
    where = "" if train.is_all else f", in the {train.rows:,} rows that were read"
    if ratio >= _IMBALANCE:
        yield Check(False, f"Classes are not balanced: {most} is {ratio:.0f} times as frequent as {least}{where}.")
    elif ratio >= _BALANCED:
        yield Check(True, f"The most frequent class is {ratio:.2g} times as frequent as the rarest{where}.")
    else:
        yield Check(True, f"All classes are about equally frequent{where}.")


def _feature_checks(name: str, feature: Feature, splits: Mapping[str, Sampled]) -> Iterator[Check]:
    match feature:
        case TextFeature():
            yield from _unknown_word_checks(name, splits)
        case VectorFeature() | SeriesFeature():
            names = list(feature.names if isinstance(feature, VectorFeature) else feature.channels)
            rows = {split: _array(sampled, name) for split, sampled in splits.items()}
            constant = [names[i] for i in np.flatnonzero(np.ptp(rows[TRAIN], axis=0) == 0)]
            if constant:
                yield Check(False, f"The same in every row of {TRAIN} that was read: {_listed(constant)}.")
            else:
                yield Check(True, f"No column of {name} is constant.")
            yield from _shift_checks(rows, names)


def _unseen_checks(features: Mapping[str, Feature], splits: Mapping[str, Sampled]) -> Iterator[Check]:
    names = [name for name, feature in features.items() if isinstance(feature, CategoricalFeature)]
    for split, sampled in splits.items():
        if names and split != TRAIN:
            shares = {name: float((_array(sampled, name) == 0).mean()) for name in names}
            listed = ", ".join(f"{name} in {_percent(share)}" for name, share in shares.items())
            yield Check(
                max(shares.values()) < _UNSEEN, f"Values that training never saw, in rows of {split}: {listed}."
            )


def _unknown_word_checks(name: str, splits: Mapping[str, Sampled]) -> Iterator[Check]:
    for split, sampled in splits.items():
        share = float((_ragged(sampled, name).values == UNKNOWN).mean())
        yield Check(
            share < _UNKNOWN_WORDS, f"{_percent(share)} of the words in {name} of {split} are not in the vocabulary."
        )


def _shift_checks(rows: Mapping[str, Array], names: Sequence[str]) -> Iterator[Check]:
    train = rows[TRAIN].astype(np.float64)
    spread = np.where(train.std(0) > 0, train.std(0), np.inf)
    for split, values in rows.items():
        shifts = np.abs(values.mean(0, dtype=np.float64) - train.mean(0)) / spread
        shifted = [f"{name} ({shift:.1f})" for name, shift in zip(names, shifts, strict=True) if shift > _SHIFT]
        if shifted:
            text = f"In {split} the mean is more than a standard deviation from that of {TRAIN}: {_listed(shifted)}."
            yield Check(False, text)
        elif split != TRAIN:
            yield Check(True, f"In {split} every mean is within a standard deviation of that of {TRAIN}.")


# ---- samples


def _sample_groups(dataset: Dataset, train: Sampled) -> list[Group]:
    """Return pictures, sounds or texts: of each class some, or some of all."""
    features, target = dataset.manifest.features, dataset.manifest.target
    kinds = {feature.kind for feature in features.values()}
    if not kinds & {"image", "audio", "text"}:
        return []
    if not isinstance(target, ClassTarget):
        return [Group("", tuple(_tile(dataset, train, row) for row in _spread(train.rows, 12)))]
    few = len(target.classes) <= 10
    count = (3 if few else 1) if "audio" in kinds else (10 if few else 5) if "image" in kinds else 2
    labels = _array(train, TARGET)
    groups = []
    for label, title in enumerate(target.classes[:_MOST_CLASSES]):
        rows = np.flatnonzero(labels == label)
        groups.append(Group(title, tuple(_tile(dataset, train, rows[i]) for i in _spread(len(rows), count))))
    return groups


def _tile(dataset: Dataset, train: Sampled, row: int) -> Tile:
    target = dataset.manifest.target
    shown: dict[str, Any] = {}
    captions = []
    for name, feature in dataset.manifest.features.items():
        column = train.columns[name]
        match feature:
            case ImageFeature():
                picture = _picture(column, row)
                shown |= {"picture": _picture_uri(picture), "pixelated": max(picture.size) < _THUMBNAIL_SIDE // 2}
            case AudioFeature():
                samples = _ragged(train, name)[row]
                shown |= {"sound": _sound_uri(samples, feature.sample_rate), "waveform": _waveform(samples)}
                captions.append(f"{len(samples) / feature.sample_rate:.2f} s")
            case TextFeature():
                shown["words"] = _words(_ragged(train, name)[row], feature)
            case _:
                captions.append(f"{name}: {_cell(column[row], feature)}")
    if isinstance(target, NumberTarget):
        captions.append(number(float(train.columns[TARGET][row])))
    if isinstance(target, BoxesTarget):
        shown["boxes"] = tuple(_boxes(_ragged(train, TARGET)[row], target))
    return Tile(caption=" · ".join(captions), **shown)


def _picture(column: Any, row: int) -> Image.Image:
    if isinstance(column, Ragged):
        picture = Image.open(io.BytesIO(column[row].tobytes()))
        picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
        return picture.convert("RGB")
    pixels_CHW = column[row]
    if len(pixels_CHW) == 3:
        return Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
    return Image.fromarray(pixels_CHW[0])


def _picture_uri(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return _data_uri("image/png", data.getvalue())


def _sound_uri(samples: Array, sample_rate: int) -> str:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return _data_uri("audio/wav", data.getvalue())


def _waveform(samples: Array) -> str:
    """Return the outline of a sound, its loudest sample as high as the box: the extremes of each hundredth."""
    if len(samples) == 0:
        return "M0 0H100"
    heights = -samples / max(1, int(np.abs(samples.astype(np.int32)).max()))  # up is negative in SVG
    parts = np.array_split(heights, min(100, len(samples)))
    step = 100 / len(parts)
    return "".join(f"M{(i + 0.5) * step:.2f} {part.min():.3f}V{part.max() + 0.01:.3f}" for i, part in enumerate(parts))


def _words(tokens: Array, feature: TextFeature) -> tuple[tuple[str, bool], ...]:
    words = [(feature.vocabulary[t - 2], True) if t > UNKNOWN else ("?", False) for t in tokens[:_MOST_WORDS].tolist()]
    return (*words, ("…", True)) if len(tokens) > _MOST_WORDS else tuple(words)


def _boxes(boxes_N5: Array, target: BoxesTarget) -> Iterator[dict[str, Any]]:
    for label, left, top, right, bottom in boxes_N5.tolist():
        yield {
            "label": int(label),
            "name": target.classes[int(label)],
            "x": left,
            "y": top,
            "width": right - left,
            "height": bottom - top,
        }


def _sample_table(dataset: Dataset, train: Sampled) -> Table | None:
    """Return some rows of what is numbers and categories."""
    features, target = dataset.manifest.features, dataset.manifest.target
    if any(f.kind in ("image", "audio", "text") for f in features.values()) or isinstance(target, SeriesTarget):
        return None
    header = [*(column for name, f in features.items() for column in _column_names(name, f)), "target"]
    rows = []
    for row in _spread(train.rows, _MOST_ROWS):
        cells = [cell for name, f in features.items() for cell in _cells(train.columns[name][row], f)]
        answer = train.columns[TARGET][row]
        rows.append((*cells, target.classes[int(answer)] if isinstance(target, ClassTarget) else number(float(answer))))
    return Table(tuple(header), tuple(rows), named=False)


def _column_names(name: str, feature: Feature) -> tuple[str, ...]:
    return feature.names[:_MOST_NAMES] if isinstance(feature, VectorFeature) else (name,)


def _cells(value: Any, feature: Feature) -> tuple[str, ...]:
    if isinstance(feature, VectorFeature):
        return tuple(number(float(x)) for x in value[:_MOST_NAMES])
    return (_cell(value, feature),)


def _cell(value: Any, feature: Feature) -> str:
    match feature:
        case CategoricalFeature():
            return feature.vocabulary[int(value) - 1] if value > 0 else "unseen"
        case SparseFeature():
            pairs = [f"{column}: {number(float(x))}" for column, x in value[:8].tolist()]
            return ", ".join(pairs) + (", …" if len(value) > 8 else "")
    return ", ".join(number(float(x)) for x in np.atleast_1d(value)[:8])


# ---- series


def _charts(dataset: Dataset, splits: Mapping[str, Sampled]) -> list[Chart]:
    for name, feature in dataset.manifest.features.items():
        if isinstance(feature, SeriesFeature):
            return [_chart(i, title, name, splits) for i, title in enumerate(feature.channels[:_MOST_NAMES])]
    return []


def _chart(channel: int, title: str, name: str, splits: Mapping[str, Sampled]) -> Chart:
    total = sum(sampled.total_rows for sampled in splits.values())
    places, values, edges, start = [], [], [], 0
    for split, sampled in splits.items():
        places.append(start + sampled.row_numbers)
        values.append(_array(sampled, name)[:, channel])
        edges.append((split, 1000 * start / total, 1000 * sampled.total_rows / total))
        start += sampled.total_rows
    values_T = np.concatenate(values)
    low, high = float(values_T.min()), float(values_T.max())
    heights_T = 98 - 96 * (values_T - low) / ((high - low) or 1.0)
    path = _line(np.concatenate(places) / total, heights_T)
    return Chart(title=title, low=number(low), high=number(high), path=path, edges=tuple(edges))


def _line(places_T: Array, heights_T: Array) -> str:
    """Return a path through the smallest and largest value of each pixel column, broken where nothing was read."""
    columns_T = np.minimum((places_T * _PLOT_COLUMNS).astype(int), _PLOT_COLUMNS - 1)
    parts, before = [], -2
    for column in np.unique(columns_T):
        here = heights_T[columns_T == column]
        x = (column + 0.5) * 1000 / _PLOT_COLUMNS
        gap = max(1, math.ceil(_PLOT_COLUMNS / len(places_T)))
        parts.append(f"{'L' if column - before <= gap else 'M'}{x:.1f} {here[0]:.1f}")
        if len(here) > 1:
            parts.append(f"L{x:.1f} {here.min():.1f}L{x:.1f} {here.max():.1f}L{x:.1f} {here[-1]:.1f}")
        before = column
    return "".join(parts)


# ---- class balance


def _balance(dataset: Dataset, splits: Mapping[str, Sampled]) -> Table | None:
    """Return each class's name, and its count and share (with a bar) in each split."""
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget | BoxesTarget):
        return None
    counts = {split: _class_counts(sampled, target) for split, sampled in splits.items()}
    rows = []
    for i, name in enumerate(target.classes):
        bars = ((int(c[i]), c[i] / max(1, c.sum()), c[i] / max(1, c.max())) for c in counts.values())
        rows.append((name, *bars))
    partly = [f"{s.rows:,} of {s.total_rows:,} rows of {name}" for name, s in splits.items() if not s.is_all]
    note = f"Counted in {' and '.join(partly)}: shares of the whole differ a little." if partly else ""
    return Table(("class", *splits), tuple(rows), note=note)


def _class_counts(sampled: Sampled, target: ClassTarget | BoxesTarget) -> Ints:
    column = sampled.columns[TARGET]
    labels = column.values[:, 0].astype(np.int64) if isinstance(column, Ragged) else column
    return np.bincount(labels, minlength=len(target.classes))


# ---- statistics


def _target_section(dataset: Dataset, splits: Mapping[str, Sampled]) -> Section | None:
    target = dataset.manifest.target
    if isinstance(target, NumberTarget):
        numbers = {split: _array(sampled, TARGET) for split, sampled in splits.items()}
        table = _number_table(numbers, target.minimum, target.maximum)
        return Section("Target", (), table=table)
    if isinstance(target, BoxesTarget):
        counts = _ragged(splits[TRAIN], TARGET).lengths
        areas = _areas(_ragged(splits[TRAIN], TARGET).values)
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


def _feature_section(name: str, feature: Feature, splits: Mapping[str, Sampled]) -> Section:
    train = splits[TRAIN]
    title = f"{name}: {_describe(feature)}"
    match feature:
        case ImageFeature():
            return _image_section(title, feature, train.columns[name])
        case VectorFeature():
            return _columns_section(title, feature.names, _array(train, name))
        case SeriesFeature():
            return _columns_section(title, feature.channels, _array(train, name))
        case CategoricalFeature():
            return _categorical_section(title, feature, _array(train, name))
        case TextFeature():
            return _text_section(title, feature, _ragged(train, name))
        case AudioFeature():
            return _audio_section(title, feature, _ragged(train, name))
        case SparseFeature():
            return _sparse_section(title, feature, _ragged(train, name))


def _image_section(title: str, feature: ImageFeature, column: Any) -> Section:
    names = _CHANNEL_NAMES.get(feature.shape[0]) or tuple(f"channel {i}" for i in range(feature.shape[0]))
    facts: tuple[str, ...] = ("mean and std of the whole training split",)
    histograms: tuple[Histogram, ...] = ()
    if isinstance(column, Ragged):
        chosen = _spread(len(column), _DECODED)
        sizes = [Image.open(io.BytesIO(column[row].tobytes())).size for row in chosen]
        pixels = [np.asarray(_picture(column, row)).reshape(-1, 3) for row in chosen]
        values_PC = np.concatenate(pixels)[:, : len(names)]
        widths, heights = np.array(sizes).T
        histograms = (_histogram("KiB of a file", column.lengths / 1024),)
        if len(set(sizes)) > 1:
            sides = (_histogram("width in pixels", widths), _histogram("height in pixels", heights))
            histograms = (*sides, *histograms)
        size_range = f"{widths.min()} to {widths.max()} × {heights.min()} to {heights.max()}"
        facts = (*facts, f"values from {len(sizes)} pictures, their sizes {size_range}")
    else:
        values_PC = column[_spread(len(column), _COUNTED)].transpose(0, 2, 3, 1).reshape(-1, len(names))
    statistics = zip(feature.mean, feature.std, strict=True)
    rows = tuple(
        (channel, number(mean), number(std), _histogram(channel, values_PC[:, i], low=0, high=255))
        for i, (channel, (mean, std)) in enumerate(zip(names, statistics, strict=True))
    )
    return Section(title, facts, histograms, Table(("channel", "mean", "std", "values"), rows))


def _columns_section(title: str, names: Sequence[str], rows_ND: Array) -> Section:
    shown = names[:_MOST_NAMES]
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
        f"{texts.lengths.mean():.1f} words on average, {texts.lengths.max():,} at most",
        f"most frequent: {frequent}",
    )
    return Section(title, facts, (_histogram("words in a text", texts.lengths),))


def _audio_section(title: str, feature: AudioFeature, sounds: Ragged) -> Section:
    seconds = sounds.lengths / feature.sample_rate
    peaks = [np.abs(sounds[row].astype(np.int32)).max(initial=0) / 32768 for row in _spread(len(sounds), 1000)]
    facts = (f"{seconds.mean():.2f} s on average, {seconds.max():.2f} s at most",)
    histograms = (_histogram("seconds", seconds), _histogram("loudest sample, 1 is full scale", np.array(peaks)))
    return Section(title, facts, histograms)


def _sparse_section(title: str, feature: SparseFeature, rows: Ragged) -> Section:
    filled = rows.lengths.mean()
    facts = (f"{filled:.1f} numbers that are not 0 in a row, {_percent(filled / feature.columns)} of the columns",)
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
    return Histogram(title, number(low), number(high), heights, tuple(counts.tolist()))


def _moments(values: Array) -> tuple[str, str, str, str]:
    values = values.astype(np.float64)
    return number(values.mean()), number(values.std()), number(values.min()), number(values.max())


def _areas(boxes_N5: Array) -> Array:
    areas: Array = (boxes_N5[:, 3] - boxes_N5[:, 1]) * (boxes_N5[:, 4] - boxes_N5[:, 2])
    return areas


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` places, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _array(sampled: Sampled, name: str) -> Array:
    column = sampled.columns[name]
    assert not isinstance(column, Ragged), name
    return column


def _ragged(sampled: Sampled, name: str) -> Ragged:
    column = sampled.columns[name]
    assert isinstance(column, Ragged), name
    return column


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %" if share else "0 %"


def _hue(index: int) -> int:
    return round(222 + 137.5 * index) % 360  # the golden angle: neighbours differ


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
