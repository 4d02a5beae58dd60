"""What a person should know before training on a dataset: one line for each danger."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.describe import listed
from models.features import (
    TARGET,
    UNKNOWN,
    BoxesTarget,
    CategoricalFeature,
    ClassTarget,
    Feature,
    NumberTarget,
    SeriesFeature,
    TextFeature,
    VectorFeature,
)
from orchestrator.data.columns import Array
from orchestrator.data.dataset import TRAIN, Dataset
from orchestrator.data.order import Ints
from orchestrator.reporting.dataset.sample import Sampled, array_of, class_counts, percent_text, ragged_of

_IMBALANCE = 10.0  # largest class to smallest: from here on accuracy says little
_BALANCED = 1.05
_SORTED = 0.95  # share of neighbours of one class
_UNSEEN = 0.05  # share of rows whose answer rests on less than it seems
_UNKNOWN_WORDS = 0.1
_SHIFT = 1.0  # means that differ by more training standard deviations


@dataclass(frozen=True)
class DataCheck:
    """One thing worth knowing."""

    fine: bool
    text: str


def checks_of(dataset: Dataset, splits: Mapping[str, Sampled]) -> list[DataCheck]:
    """Return a line for everything that was looked for, what was found first."""
    features = dataset.manifest.features
    found = [*_class_checks(dataset, splits), *_unseen_checks(features, splits)]
    for name, feature in features.items():
        found += _feature_checks(name, feature, splits)
    if isinstance(dataset.manifest.target, NumberTarget):
        numbers = {split: sampled.columns[TARGET] for split, sampled in splits.items()}
        found += _shift_checks({split: values[:, None] for split, values in numbers.items()}, ["target"])  # type: ignore[call-overload]
    return sorted(found, key=lambda check: check.fine)


def _class_checks(dataset: Dataset, splits: Mapping[str, Sampled]) -> Iterator[DataCheck]:
    target = dataset.manifest.target
    if not isinstance(target, ClassTarget | BoxesTarget):
        return
    for split, sampled in splits.items():
        missing = [target.classes[i] for i in np.flatnonzero(class_counts(sampled, target) == 0)]
        if missing:
            where = split if sampled.is_all else f"the {sampled.rows:,} rows of {split} that were read"
            yield DataCheck(not sampled.is_all, f"Not in {where}: {listed(missing)}.")
    if isinstance(target, ClassTarget) and not splits[TRAIN].is_all and _is_sorted(array_of(splits[TRAIN], TARGET)):
        return  # what was read says nothing about the balance
    yield from _balance_checks(class_counts(splits[TRAIN], target), target.classes, splits[TRAIN])


def _is_sorted(labels: Array) -> bool:
    """Whether neighbours are nearly always of one class, of those that there are."""
    return len(np.unique(labels)) > 1 and float((labels[1:] == labels[:-1]).mean()) > _SORTED


def _balance_checks(counts: Ints, classes: Sequence[str], train: Sampled) -> Iterator[DataCheck]:
    present = counts[counts > 0]
    if len(present) < 2:
        return
    ratio = present.max() / present.min()
    most, least = classes[int(counts.argmax())], classes[int(np.flatnonzero(counts == present.min())[0])]
    where = "" if train.is_all else f", in the {train.rows:,} rows that were read"
    if ratio >= _IMBALANCE:
        yield DataCheck(False, f"Classes are not balanced: {most} is {ratio:.0f} times as frequent as {least}{where}.")
    elif ratio >= _BALANCED:
        yield DataCheck(True, f"The most frequent class is {ratio:.2g} times as frequent as the rarest{where}.")
    else:
        yield DataCheck(True, f"All classes are about equally frequent{where}.")


def _feature_checks(name: str, feature: Feature, splits: Mapping[str, Sampled]) -> Iterator[DataCheck]:
    match feature:
        case TextFeature():
            yield from _unknown_word_checks(name, feature, splits)
        case VectorFeature() | SeriesFeature():
            names = list(feature.names if isinstance(feature, VectorFeature) else feature.channels)
            rows = {split: array_of(sampled, name) for split, sampled in splits.items()}
            constant = [names[i] for i in np.flatnonzero(np.ptp(rows[TRAIN], axis=0) == 0)]
            if constant:
                yield DataCheck(False, f"The same in every row of {TRAIN} that was read: {listed(constant)}.")
            else:
                yield DataCheck(True, f"No column of {name} is constant.")
            yield from _shift_checks(rows, names)


def _unseen_checks(features: Mapping[str, Feature], splits: Mapping[str, Sampled]) -> Iterator[DataCheck]:
    names = [name for name, feature in features.items() if isinstance(feature, CategoricalFeature)]
    for split, sampled in splits.items():
        if names and split != TRAIN:
            shares = {name: float((array_of(sampled, name) == 0).mean()) for name in names}
            listed = ", ".join(f"{name} in {percent_text(share)}" for name, share in shares.items())
            yield DataCheck(
                max(shares.values()) < _UNSEEN, f"Values that training never saw, in rows of {split}: {listed}."
            )


def _unknown_word_checks(name: str, feature: TextFeature, splits: Mapping[str, Sampled]) -> Iterator[DataCheck]:
    for split, sampled in splits.items():
        share = float((ragged_of(sampled, name).values == UNKNOWN).mean())
        yield DataCheck(
            share < _UNKNOWN_WORDS,
            f"{percent_text(share)} of the {feature.tokens} in {name} of {split} are not in the vocabulary.",
        )


def _shift_checks(rows: Mapping[str, Array], names: Sequence[str]) -> Iterator[DataCheck]:
    train = rows[TRAIN].astype(np.float64)
    spread = np.where(train.std(0) > 0, train.std(0), np.inf)
    for split, values in rows.items():
        shifts = np.abs(values.mean(0, dtype=np.float64) - train.mean(0)) / spread
        shifted = [f"{name} ({shift:.1f})" for name, shift in zip(names, shifts, strict=True) if shift > _SHIFT]
        if shifted:
            text = f"In {split} the mean is more than a standard deviation from that of {TRAIN}: {listed(shifted)}."
            yield DataCheck(False, text)
        elif split != TRAIN:
            yield DataCheck(True, f"In {split} every mean is within a standard deviation of that of {TRAIN}.")
