"""The classes of pictures: their names, and the labels that stand for them."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from cluster.errors import ConfigError
from models.features import MOST_CLASSES
from orchestrator.data.columns import Array
from orchestrator.data.order import Ints


def is_plain(text: str) -> bool:
    """Whether a terminal shows a text as it is: no control characters, line ends or bytes that are no UTF-8."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def check_class_names(classes: Sequence[str], place: str) -> None:
    """Refuse names of classes that are missing, empty, equal, or not plain text."""
    if not classes:
        raise ConfigError(f"{place} must name the classes, got none. Name them in option classes.")
    if len(classes) > MOST_CLASSES:
        raise ConfigError(f"{place} must have at most {MOST_CLASSES:,} classes, got {len(classes):,}.")
    name, count = Counter(classes).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{place} must give every class a name of its own, got {name!r} {count} times. Rename one.")
    for name in classes:
        if not name.strip() or not is_plain(name):
            raise ConfigError(f"{place} must give every class a plain name, got {name!r}. Rename it.")


def check_labels(labels: Array, num_classes: int, where: Callable[[int], str]) -> None:
    """Refuse a label that stands for no class."""
    wrong = wrong_labels(labels, num_classes)
    if len(wrong):
        raise wrong_label(int(labels[wrong[0]]), num_classes, where(int(wrong[0])))


def wrong_labels(labels: Array, num_classes: int) -> Ints:
    """Return the rows whose label stands for no class."""
    return np.flatnonzero((labels < 0) | (labels >= num_classes))


def wrong_label(label: int, num_classes: int, where: str) -> ConfigError:
    """Return the error for a label that stands for no class."""
    return ConfigError(
        f"the label in {where} must be in 0..{num_classes - 1}, got {label}. Correct it, or name all classes."
    )


def numbered_classes(labels: Array, place: str) -> tuple[str, ...]:
    """Return "0", "1", ... for classes that have no names."""
    present = np.unique(labels[labels >= 0])
    missing = np.flatnonzero(present != np.arange(len(present)))
    if len(missing):
        raise ConfigError(
            f"the labels in {place} must take every value from 0 to {present[-1]} if the classes have no names, got "
            f"none of {missing[0]}. Correct the labels, or name all classes."
        )
    return tuple(str(i) for i in range(len(present)))
