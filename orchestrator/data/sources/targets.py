"""What the target column of a table or of sparse rows is: classes or a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError
from models.features import ClassTarget, NumberTarget
from models.preparing.rows import Notation
from orchestrator.data.columns import Array, number_target
from orchestrator.data.order import Ints
from orchestrator.data.precision import merged
from orchestrator.data.sources.delimited.fields import in_brackets
from orchestrator.data.sources.delimited.notations import notation_notes, notation_of, numbers_in, other_notations
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import Delimited, as_numbers, distinct, in_order
from orchestrator.data.sources.splitting import require_classes

TARGET_NAMES = ("label", "target", "class")
MOST_WHOLE_CLASSES = 20
"""So many different whole numbers are classes, more are a number to predict."""

_MOST_CLASSES = 10_000
_FIRST = 1000  # values that are looked at before all are


@dataclass(frozen=True, eq=False)
class Labels:
    """The target of every row."""

    values: Array
    """[N]; int64 for classes, float32 for numbers."""
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    """In which way other than usual they were read."""

    @property
    def strata(self) -> Array:
        """[N], what a split keeps the shares of: the classes, nothing for numbers."""
        return np.zeros(len(self.values), np.int64) if self.classes is None else self.values

    def target(self, rows: Mapping[str, Ints], place: str) -> ClassTarget | NumberTarget:
        """Return the target that the training rows describe.

        Raises:
            ConfigError: if there is one class only, or training does not have all.
        """
        if self.classes is None:
            return number_target(self.values[rows["train"]])
        require_classes(self.values, self.classes, rows, place)
        return ClassTarget(classes=self.classes)


def target_column(names: Sequence[str], options: SourceOptions, place: str) -> str:
    """Return the column to predict.

    Raises:
        ConfigError: if it is not named, or named and not there.
    """
    found = [name for name in names if name.lower() in TARGET_NAMES]
    if options.target is not None:
        found = [name for name in names if name == options.target]
    if len(found) != 1:
        raise ConfigError(
            f"{place} must have one column to predict, called {options.target or ' or '.join(TARGET_NAMES)}, got "
            f"{', '.join(names)}. Name it with --option {_target(names) if options.target is None else 'target=NAME'}."
        )
    return found[0]


def _target(names: Sequence[str]) -> str:
    return f"'target={in_brackets(names)[1:-1]}'" if len(names) == 1 else "target=NAME"


def read_labels(rows: Delimited, name: str, options: SourceOptions, *, kept: Ints | None = None) -> Labels:
    """Return the target of every row: classes if it is text or `MOST_WHOLE_CLASSES` whole numbers at most.

    Args:
        rows: of the files.
        name: of the column.
        options: what the person says about it.
        kept: the rows that are read; default: all.

    Raises:
        ConfigError: if a field is empty, or a number where the others are text or the other way round.
    """
    values = rows.column(name) if kept is None else rows.trimmed(name).take(pa.array(kept))
    notation = notation_of(values, options)
    if notation is not None and notation != Notation():
        labels = number_labels(numbers_in(values, notation), options, f"{name} in {rows.place}")
        return replace(labels, notes=notation_notes(values, name, notation))
    ways = other_notations(values) if notation is None and options.task != "class" else ""
    if ways:
        raise ConfigError(
            f"{name} in {rows.place} must be classes or numbers, got {values[0].as_py()!r} and the like, numbers that "
            f"are written in another way. Read them with {ways}, or as classes with --option task=class."
        )
    numbers, is_number = as_numbers(values)
    if options.task == "number" or (options.task is None and 2 * is_number.sum() >= len(values)):
        numbers = rows.numbers(name) if kept is None or not is_number.all() else numbers
        return number_labels(numbers, options, f"{name} in {rows.place}")
    if is_number.all():
        return number_labels(numbers, options, f"{name} in {rows.place}")
    codes, words = distinct(values)
    _check_count(len(words), len(values), f"{name} in {rows.place}")
    order = sorted(range(len(words)), key=lambda code: in_order(words[code]))
    label = np.empty(len(words), np.int64)
    label[order] = np.arange(len(words))
    return Labels(label[codes], tuple(words[code] for code in order))


def number_labels(numbers: Array, options: SourceOptions, place: str) -> Labels:
    """Return finite numbers as classes or as numbers; see `read_labels`."""
    whole = bool((numbers == np.rint(numbers)).all())
    if options.task == "class" and not whole:
        raise ConfigError(f"{place} must be text or whole numbers for classes, got {numbers[numbers % 1 != 0].min()}.")
    if options.task == "number" or (options.task is None and not (whole and _are_few(numbers))):
        lost = merged(numbers)
        if lost:
            raise ConfigError(
                f"{place} must be numbers that 32 bits can tell apart, got {lost[0]:.17g} and {lost[1]:.17g}. Subtract "
                "a number from all of them."
            )
        return Labels(numbers.astype(np.float32), None)
    present, labels = np.unique(numbers, return_inverse=True)
    _check_count(len(present), len(numbers), place)
    return Labels(labels.astype(np.int64), tuple(f"{value:.0f}" for value in present))


def _are_few(numbers: Array) -> bool:
    """Whether so many different numbers are classes; most columns that are not show it in their first rows."""
    return all(len(np.unique(some)) <= MOST_WHOLE_CLASSES for some in (numbers[:_FIRST], numbers))


def _check_count(classes: int, rows: int, place: str) -> None:
    if classes > _MOST_CLASSES or (classes > MOST_WHOLE_CLASSES and 2 * classes > rows):
        raise ConfigError(
            f"{place} must take few different values to be a class, got {classes} in {rows} rows. Name another column."
        )
