"""Says in a few words what a model reads and answers. Imports pydantic only."""

from collections.abc import Sequence

from models.features import (
    AudioFeature,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    ForecastTarget,
    ImageFeature,
    NumberTarget,
    SeriesFeature,
    SparseFeature,
    Target,
    TextFeature,
    VectorFeature,
)

MOST_NAMES = 12


def describe_feature(feature: Feature) -> str:
    """Return what a feature is, such as ``one of 3 values: north, south, west``."""
    match feature:
        case ImageFeature(shape=(channels, height, width), encoding=encoding):
            scaled = "" if encoding == "raw" else ", scaled from files"
            return f"a picture of {width} × {height}, {'grey' if channels == 1 else f'{channels} channels'}{scaled}"
        case VectorFeature(names=names):
            return _counted(names, "number")
        case CategoricalFeature(vocabulary=vocabulary):
            return f"one of {_counted(vocabulary, 'value')}"
        case SeriesFeature(channels=names, clock=clock):
            every = f", a row every {clock.step}" if clock else ""
            return f"a series of {_counted(names, 'channel')}{every}"
        case TextFeature(vocabulary=vocabulary, max_tokens=max_tokens, tokens=tokens):
            return (
                f"a text, of which the first {max_tokens:,} {tokens} are read; {len(vocabulary):,} {tokens} are known"
            )
        case AudioFeature(sample_rate=rate, max_samples=max_samples, resampled=resampled):
            others = " (others are resampled)" if resampled else ""
            return f"a sound, {rate:,} samples a second{others}, of which the first {max_samples / rate:.3g} s are read"
        case SparseFeature(columns=columns):
            return f"a row of {columns:,} numbers, nearly all of them 0"


def describe_target(target: Target) -> str:
    """Return what a model is to answer, such as ``a number from 1 to 5``."""
    match target:
        case ClassTarget(classes=classes):
            return f"one of {_counted(classes, 'class', 'classes')}"
        case NumberTarget(minimum=minimum, maximum=maximum):
            return f"a number from {minimum:g} to {maximum:g}"
        case ForecastTarget(lookback=lookback, horizon=horizon):
            return f"the next {horizon:,} steps of the series, from its last {lookback:,}"
        case BoxesTarget(classes=classes):
            return f"a box around each object of {_counted(classes, 'class', 'classes')}"


def listed(names: Sequence[str]) -> str:
    """Return the first names of many, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _counted(names: Sequence[str], one: str, several: str | None = None) -> str:
    """Such as ``3 values: north, south, west``."""
    kind = one if len(names) == 1 else several or f"{one}s"
    shown = ", ".join([*names[:MOST_NAMES], *(["…"] if len(names) > MOST_NAMES else [])])
    return f"{len(names):,} {kind}: {shown}"
