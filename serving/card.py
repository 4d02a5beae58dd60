"""The model card: what a version is, for people."""

import json

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
from serving.version import Version


def write_card(version: Version) -> str:
    """A version's card in Markdown."""
    lineage = version.lineage
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in sorted(version.metrics.items()))
    techniques = "\n".join(
        f"| {name} | {value if value is not None else 'not applicable'} |"
        for name, value in version.techniques.model_dump().items()
    )
    reads = "\n".join(f"- `{name}`: {describe_feature(f)}" for name, f in version.signature.features.items())
    return f"""# {version.name} {version.version}

A {version.model.type} that run `{lineage.run}` trained on dataset `{lineage.dataset.name}` `{lineage.dataset.version}`.

## Reads

{reads}

## Answers

{describe_target(version.signature.target)}

## Measured

On the split `{version.evaluated_on}`; the metric that decides is `{version.primary_metric}`.

| metric | value |
|---|---|
{metrics}

## Made with

| technique | choice |
|---|---|
{techniques}

```json
{json.dumps(version.model.model_dump(), indent=2)}
```

Code {lineage.code_version}; {", ".join(f"{name} {number}" for name, number in sorted(lineage.versions.items()))}.
Weights: {version.weights_bytes:,} bytes, SHA-256 `{version.weights_sha256}`.

## Limits

The measurements hold for data like that of this split, and for nothing else. Categories that training never
saw share one entry; answers to them are flagged as unseen. Words that are not known share one as well.
"""


def describe_feature(feature: Feature) -> str:
    """What a feature is, in a few words."""
    match feature:
        case ImageFeature(shape=(channels, height, width)):
            return f"a picture, {width} × {height}, {'grey' if channels == 1 else f'{channels} channels'}"
        case VectorFeature(names=names):
            return f"{len(names)} numbers: {_few(names)}"
        case CategoricalFeature(vocabulary=vocabulary):
            return f"one of {len(vocabulary)} values: {_few(vocabulary)}"
        case SeriesFeature(channels=names):
            return f"a series of {len(names)} channels: {_few(names)}"
        case TextFeature(vocabulary=vocabulary, max_tokens=max_tokens):
            return f"a text, of which the first {max_tokens} words are read; {len(vocabulary)} words are known"
        case AudioFeature(sample_rate=rate, max_samples=max_samples):
            return f"a sound, {rate} samples a second, of which the first {max_samples / rate:g} s are read"
        case SparseFeature(columns=columns):
            return f"a row of {columns} numbers, nearly all of them 0"


def describe_target(target: Target) -> str:
    """What a model answers, in a few words."""
    match target:
        case ClassTarget(classes=classes):
            return f"A probability for each of {len(classes)} classes: {_few(classes)}."
        case NumberTarget(minimum=minimum, maximum=maximum):
            return f"A number from {minimum:g} to {maximum:g}."
        case ForecastTarget(lookback=lookback, horizon=horizon):
            return f"The next {horizon} steps of the series, from its last {lookback}."
        case BoxesTarget(classes=classes):
            return f"A box around each object of {len(classes)} classes: {_few(classes)}."


def _few(names: tuple[str, ...], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, …"
