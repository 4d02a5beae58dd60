"""Delimited text files row by row, and their fields as numbers and categories."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.errors import ConfigError
from models.features import CategoricalFeature
from orchestrator.data.columns import Array


def lines(path: Path, *, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a delimited file that are not empty, with their numbers, counted from 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row, fields in enumerate(csv.reader(file, delimiter=delimiter), start=1):
                if fields:
                    yield row, fields
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} must be a text file in UTF-8, got {error}. Convert it.") from error


def number(text: str, name: str, path: Path, row: int) -> float:
    """Return a finite number, or say in which row there is none."""
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise ConfigError(f"{name} in {path} must be a finite number, got {text!r} in row {row}.")
    return number


def require_rows(count: int, path: Path, *, least: int = 1) -> None:
    """Refuse a file with too few rows."""
    if count < least:
        raise ConfigError(f"{path} must hold at least {least} row{'s' * (least > 1)}, got {count}.")


def categorical(values: npt.NDArray[np.str_]) -> CategoricalFeature:
    """Return the feature whose vocabulary is the values of the training split; numbers in their own order."""
    words = np.unique(values).tolist()
    return CategoricalFeature(
        vocabulary=tuple(sorted(words, key=lambda w: (not w.isdecimal(), int(w) if w.isdecimal() else 0, w)))
    )


def indices(values: Iterable[str], feature: CategoricalFeature) -> Array:
    """Return the index of each value in the vocabulary; 0 where it has none."""
    index = {word: i for i, word in enumerate(feature.vocabulary, start=1)}
    return np.array([index.get(str(value), 0) for value in values], np.int32)


def as_name(text: str) -> str:
    """Return a dataset's name made of any text."""
    cleaned = "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
    return cleaned[:63] or "dataset"
