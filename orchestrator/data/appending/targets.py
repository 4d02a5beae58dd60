"""The target of rows that are appended: a class of the version, or a number."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError
from models.features import BoxesTarget, ClassTarget
from models.preparing.rows import Notation
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.notations import asked_notation, notation_of, numbers_in
from orchestrator.data.sources.rows import LARGEST, Delimited, as_numbers, distinct
from orchestrator.data.sources.targets import target_column

_SHOWN = 10  # classes that a message names


def class_labels(words: Sequence[str], rules: Rules, where: Callable[[int], str]) -> Array:
    """Return the number of each row's class.

    Args:
        words: the class of each row.
        rules: with the classes.
        where: returns what to call a row in a message.

    Raises:
        ConfigError: if one is no class of the version; names the first.
    """
    codes, found = distinct(pa.array(words, pa.string()))
    classes = classes_of(rules)
    labels_of = np.array([_label(word, classes) for word in found], np.int64)
    labels: Array = labels_of[codes] if len(codes) else np.empty(0, np.int64)
    if (labels < 0).any():
        row = int((labels < 0).argmax())
        raise ConfigError(
            f"the class of {where(row)} must be one of the {len(classes)} of {rules}, {shown(classes)}, got "
            f"{words[row]!r}. {CURE}"
        )
    return labels


def classes_of(rules: Rules) -> tuple[str, ...]:
    """Return the classes of a version whose target is one."""
    assert isinstance(rules.target, ClassTarget | BoxesTarget)
    return rules.target.classes


def shown(names: Sequence[str]) -> str:
    """Return the first of many names."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def named_target(names: Sequence[str], rules: Rules, place: str) -> str:
    """Return the column of the target in a table with these columns.

    Raises:
        ConfigError: if it cannot be told.
    """
    read = rules.schema.columns
    return target_column([name for name in names if name not in read], rules.options, place)


def read_targets(rows: Delimited, name: str, rules: Rules, kept: Ints) -> Array:
    """Return the target of the rows of a table: int64 for classes, float32 for numbers.

    Args:
        rows: of the files.
        name: of the column.
        rules: of the version.
        kept: the rows that are read.

    Raises:
        ConfigError: if it is no class of the version, or no number; names the row.
    """
    values = rows.trimmed(name).take(pa.array(kept))

    def where(row: int) -> str:
        file, number = rows.where(int(kept[row]))
        return f"row {number} of {file}"

    if isinstance(rules.target, ClassTarget):
        return class_labels(_as_classes(values, rules), rules, where)
    notation = notation_of(values, rules.options) or asked_notation(rules.options)
    numbers = numbers_in(values, notation) if notation_of(values, rules.options) else as_numbers(values)[0]
    return number_labels(numbers, values, f"{name} in", where)


def number_labels(numbers: Array, values: Sequence[object], what: str, where: Callable[[int], str]) -> Array:
    """Return numbers as they are stored; see `read_targets`."""
    wrong = ~(np.abs(numbers) <= LARGEST)
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"{what} {where(row)} must be a finite number in 32 bits, as the target is, got {str(values[row])!r}. "
            f"{CURE}"
        )
    return numbers.astype(np.float32) + np.float32(0)


def _as_classes(values: pa.ChunkedArray, rules: Rules) -> list[str]:
    """Return the words of a column; numbers that are written for people as the whole numbers that they are."""
    notation = notation_of(values, rules.options) if len(values) else None
    if notation is None or notation == Notation():
        words: list[str] = values.to_pylist()
        return words
    return [f"{number:.17g}" for number in numbers_in(values, notation).tolist()]


def _label(word: str, classes: Sequence[str]) -> int:
    """Return the place of a class; one that is a whole number may be written as another number is, such as 1.0."""
    if word in classes:
        return classes.index(word)
    if all(name.lstrip("-").isdecimal() for name in classes):
        numbers, is_number = as_numbers(pa.chunked_array([pa.array([word])]))
        plain = f"{numbers[0]:.0f}" if is_number[0] and numbers[0] == np.rint(numbers[0]) else ""
        return classes.index(plain) if plain in classes else -1
    return -1
