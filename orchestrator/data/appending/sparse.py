"""Reads sparse rows by the rules of a version: its number of columns, and where they begin to count."""

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, ClassTarget, SparseFeature
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.targets import class_labels, number_labels
from orchestrator.data.columns import Array, Ragged
from orchestrator.data.manifest import Manifest, Source
from orchestrator.data.sources.located import SourceFile, split_files
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.svmlight import FIRST_COLUMN, SUFFIXES, parse_rows


def read_more_svmlight(source: str, rules: Rules) -> Prepared:
    """Read sparse rows by the rules of a version.

    Raises:
        ConfigError: if a column is beyond those of the version, or nobody knows where its columns begin to count.
    """
    first_column = _first_column(rules)
    files = split_files(source, suffixes=SUFFIXES)
    splits = {split: _part(file, rules, first_column) for split, file in files.items()}
    return rules.read(splits, Source(format="svmlight", uri=source))


def first_column_of(manifest: Manifest) -> int | None:
    """Return where the columns of a version's source begin to count, if its manifest says it."""
    numbers = [change.numbers[FIRST_COLUMN] for change in manifest.source.changes if FIRST_COLUMN in change.numbers]
    return int(numbers[0]) if numbers else None


def _first_column(rules: Rules) -> int:
    found = first_column_of(rules.manifest)
    if found is None:
        raise ConfigError(
            f"{rules} must say whether its columns count from 0 or from 1, to append rows, got a manifest without it: "
            "an earlier version of this program wrote it. Push all rows together as a new version, without --append."
        )
    return found


def _part(file: SourceFile, rules: Rules, first_column: int) -> Part:
    values, rows = parse_rows(file)
    feature = rules.features["sparse"]
    assert isinstance(feature, SparseFeature)
    rows.values["column"] -= first_column
    wrong = (rows.values["column"] < 0) | (rows.values["column"] >= feature.columns)
    if wrong.any():
        place = int(wrong.argmax())
        row = int(np.searchsorted(rows.offsets, place, side="right"))
        raise ConfigError(
            f"{file} must have columns {first_column} to {feature.columns - 1 + first_column}, as {rules} has, got "
            f"column {rows.values['column'][place] + first_column} in row {row}, comments and empty ones not counted. "
            f"{CURE}"
        )
    return Part.of({"sparse": Ragged(rows.values, rows.offsets), TARGET: _labels(values, rules, file)})


def _labels(values: Array, rules: Rules, file: SourceFile) -> Array:
    def where(row: int) -> str:
        return f"row {row + 1} of {file}, comments and empty ones not counted"

    if isinstance(rules.target, ClassTarget):
        return class_labels([f"{value:.17g}" for value in values.tolist()], rules, where)
    return number_labels(values, values.tolist(), "the label in", where)
