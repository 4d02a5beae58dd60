"""The model card: what a version is, for people."""

import json

from models.describe import describe_feature, describe_target
from serving.version import Lineage, Version


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
{_left_out(lineage)}
## Reads

{reads}

## Answers

The model answers with {describe_target(version.signature.target)}.

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


def _left_out(lineage: Lineage) -> str:
    """What it was not trained on, in a line of its own."""
    rows = sum(one.count for one in lineage.left_out or ())
    return f"Without {rows:,} rows of it that were damaged in the store.\n" if rows else ""
