"""Writes one HTML page about a dataset: samples, checks, class balance and statistics."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from cluster.errors import ConfigError
from cluster.machine.disk import naming_disk
from models.describe import describe_feature, listed
from orchestrator.data.dataset import TRAIN, Dataset, open_dataset
from orchestrator.data.manifest import Addition, Change, Manifest
from orchestrator.reporting.dataset.checks import checks_of
from orchestrator.reporting.dataset.sample import percent_text, sample
from orchestrator.reporting.dataset.samples import sample_groups, table_of_samples
from orchestrator.reporting.dataset.sections import (
    balance_table,
    charts_of,
    feature_section,
    target_section,
)
from orchestrator.reporting.words import number, size

_MOST_ADDITIONS = 10  # that the card tells

if TYPE_CHECKING:
    from cluster.s3.store import Store


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
    splits = {name: sample(dataset, name) for name in dataset.manifest.splits}
    environment = Environment(
        loader=PackageLoader("orchestrator", "reporting/dataset"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent_text}
    features = dataset.manifest.features
    return environment.get_template("page.html").render(
        manifest=dataset.manifest,
        card=_card(dataset),
        splits=splits,
        checks=checks_of(dataset, splits),
        charts=charts_of(dataset, splits),
        groups=sample_groups(dataset, splits[TRAIN]),
        sample_table=table_of_samples(dataset, splits[TRAIN]),
        balance=balance_table(dataset, splits),
        target=target_section(dataset, splits),
        features=[feature_section(name, feature, splits) for name, feature in features.items()],
        hues=[_hue(i) for i in range(len(getattr(dataset.manifest.target, "classes", ())))],
    )


# ---- card and checks


def _card(dataset: Dataset) -> list[tuple[str, str]]:
    manifest = dataset.manifest
    return [
        ("Version", manifest.version),
        ("Created", manifest.created.partition(".")[0].replace("T", " ") + " UTC"),
        ("Source", manifest.source.uri),
        ("Format", manifest.source.format),
        ("Licence", manifest.source.licence or "not stated"),
        ("Target", manifest.target_text),
        *_changes(manifest.source.changes),
        *((f"Feature {name}", describe_feature(feature)) for name, feature in manifest.features.items()),
        *_earlier(manifest),
        *(_appended(addition) for addition in manifest.additions[-_MOST_ADDITIONS:]),
        *(("Order of the rows", manifest.order) for _ in [0] if manifest.order),
        ("Size in the store", size(sum(s.bytes for split in manifest.splits.values() for s in split.shards))),
    ]


def _earlier(manifest: Manifest) -> list[tuple[str, str]]:
    """Return how many additions the card does not tell."""
    count = len(manifest.additions) - _MOST_ADDITIONS
    return [("Appended earlier", f"{count:,} times; the manifest has all of them")] if count > 0 else []


def _appended(addition: Addition) -> tuple[str, str]:
    """Return what the card says about rows that were appended."""
    rows = ", ".join(f"{number(rows)} {split}" for split, rows in addition.rows.items())
    said = " ".join(" ".join((change.text, listed(change.names))).strip() for change in addition.source.changes)
    text = f"{rows} rows of {addition.source.uri}, appended to version {addition.appended_to}. {said}"
    return f"Version {addition.version}", text.strip()


def _changes(changes: Sequence[Change]) -> list[tuple[str, str]]:
    """Return what was changed, each behind its option; of several without one, the first is labelled."""
    labels = [change.option or "Prepared" for change in changes]
    texts = [" ".join(filter(None, (change.text, listed(change.names)))) for change in changes]
    firsts = ["" if label == before else label for before, label in pairwise(["", *labels])]
    return list(zip(firsts, texts, strict=True))


def _hue(index: int) -> int:
    return round(222 + 137.5 * index) % 360  # the golden angle: neighbours differ
