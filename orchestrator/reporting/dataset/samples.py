"""Rows of a dataset as people look at them: pictures, sounds, texts and tables."""

import base64
import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

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
    SparseFeature,
    TextFeature,
    VectorFeature,
)
from orchestrator.data.columns import Array, Ragged
from orchestrator.data.dataset import Dataset
from orchestrator.data.manifest import SeriesTarget
from orchestrator.reporting.dataset.sample import Sampled, array_of, ragged_of
from orchestrator.reporting.words import data_value

_THUMBNAIL_SIDE = 160
_MOST_CLASSES = 100  # shown with samples
_MOST_ROWS = 24  # of a table of samples
MOST_NAMES = 60  # columns that are described one by one
_MOST_WORDS = 60  # of a text, shown


@dataclass(frozen=True)
class Table:
    """Cells are texts, histograms, or (count, share, length of a bar)."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    named: bool = True
    """Whether the first column names the row."""
    note: str = ""


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
class SampleGroup:
    """Samples of one class, or of all rows if the title is empty."""

    title: str
    tiles: tuple[Tile, ...]


# ---- samples


def sample_groups(dataset: Dataset, train: Sampled) -> list[SampleGroup]:
    """Return pictures, sounds or texts: of each class some, or some of all."""
    features, target = dataset.manifest.features, dataset.manifest.target
    kinds = {feature.kind for feature in features.values()}
    if not kinds & {"image", "audio", "text"}:
        return []
    if not isinstance(target, ClassTarget):
        return [SampleGroup("", tuple(_tile(dataset, train, row) for row in spread(train.rows, 12)))]
    few = len(target.classes) <= 10
    count = (3 if few else 1) if "audio" in kinds else (10 if few else 5) if "image" in kinds else 2
    labels = array_of(train, TARGET)
    groups = []
    for label, title in enumerate(target.classes[:_MOST_CLASSES]):
        rows = np.flatnonzero(labels == label)
        groups.append(SampleGroup(title, tuple(_tile(dataset, train, rows[i]) for i in spread(len(rows), count))))
    return groups


def _tile(dataset: Dataset, train: Sampled, row: int) -> Tile:
    target = dataset.manifest.target
    shown: dict[str, Any] = {}
    captions = []
    for name, feature in dataset.manifest.features.items():
        column = train.columns[name]
        match feature:
            case ImageFeature():
                picture = as_picture(column, row)
                shown |= {"picture": _picture_uri(picture), "pixelated": max(picture.size) < _THUMBNAIL_SIDE // 2}
            case AudioFeature():
                samples = ragged_of(train, name)[row]
                shown |= {"sound": _sound_uri(samples, feature.sample_rate), "waveform": _waveform(samples)}
                captions.append(f"{len(samples) / feature.sample_rate:.2f} s")
            case TextFeature():
                shown["words"] = _words(ragged_of(train, name)[row], feature)
            case _:
                captions.append(f"{name}: {_cell(column[row], feature)}")
    if isinstance(target, NumberTarget):
        captions.append(data_value(float(train.columns[TARGET][row])))
    if isinstance(target, BoxesTarget):
        shown["boxes"] = tuple(_boxes(ragged_of(train, TARGET)[row], target))
    return Tile(caption=" · ".join(captions), **shown)


def as_picture(column: Any, row: int) -> Image.Image:
    """Return the picture of one row, as a thumbnail where it is stored as a file."""
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


def table_of_samples(dataset: Dataset, train: Sampled) -> Table | None:
    """Return some rows of what is numbers and categories."""
    features, target = dataset.manifest.features, dataset.manifest.target
    if any(f.kind in ("image", "audio", "text") for f in features.values()) or isinstance(target, SeriesTarget):
        return None
    header = [*(column for name, f in features.items() for column in _column_names(name, f)), "target"]
    rows = []
    for row in spread(train.rows, _MOST_ROWS):
        cells = [cell for name, f in features.items() for cell in _cells(train.columns[name][row], f)]
        answer = train.columns[TARGET][row]
        shown = target.classes[int(answer)] if isinstance(target, ClassTarget) else data_value(float(answer))
        rows.append((*cells, shown))
    return Table(tuple(header), tuple(rows), named=False)


def _column_names(name: str, feature: Feature) -> tuple[str, ...]:
    return feature.names[:MOST_NAMES] if isinstance(feature, VectorFeature) else (name,)


def _cells(value: Any, feature: Feature) -> tuple[str, ...]:
    if isinstance(feature, VectorFeature):
        pairs = zip(value[:MOST_NAMES], feature.offsets, strict=False)
        return tuple(data_value(float(x) + offset) for x, offset in pairs)
    return (_cell(value, feature),)


def _cell(value: Any, feature: Feature) -> str:
    match feature:
        case CategoricalFeature():
            return feature.vocabulary[int(value) - 1] if value > 0 else "unseen"
        case SparseFeature():
            pairs = [f"{column}: {data_value(float(x))}" for column, x in value[:8].tolist()]
            return ", ".join(pairs) + (", …" if len(value) > 8 else "")
    return ", ".join(data_value(float(x)) for x in np.atleast_1d(value)[:8])


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` places, evenly apart."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist() if count else []


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
