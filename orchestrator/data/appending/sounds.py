"""Reads sounds by the rules of a version: its rate, its longest sound and its classes."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.features import AudioFeature
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.targets import class_labels
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.damaged import refuse_or_skip
from orchestrator.data.sources.located import ALL
from orchestrator.data.sources.picture_files import mixed, path_of
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.sound import class_names, given_split, list_sounds, look_at_all, sound_pieces

SPLITS = ("train", "validation", "test")


def read_more_sounds(source: str, rules: Rules) -> Prepared:
    """Read WAV files by the rules of a version; what is longer than its longest sound is cut, as of a request.

    Raises:
        ConfigError: if a sound has another rate and those of the version were not resampled, or a class is unknown.
    """
    feature = rules.features["audio"]
    assert isinstance(feature, AudioFeature)
    files, sizes, names = list_sounds(source)
    options = rules.options.model_copy(update={"rate": feature.sample_rate if feature.resampled else None})
    found = look_at_all(files, names, options)
    names, looks, skipped = refuse_or_skip(names, found, options, place=files.uri, what="sounds")
    for name, look in zip(names, looks, strict=True):
        if look.rate != feature.sample_rate and not feature.resampled:
            raise ConfigError(
                f"{path_of(files, name)} must have {feature.sample_rate} samples per second, as {rules} has, got "
                f"{look.rate}. Convert it (`ffmpeg -i IN.wav -ar {feature.sample_rate} OUT.wav`). {CURE}"
            )
    of_split = given_split(names)
    words = class_names(names, options, files.uri, has_splits=of_split is not None)
    labels = class_labels(words, rules, lambda row: path_of(files, names[row]))
    splits = {}
    for split, rows in given_rows(names, of_split, rules).items():
        in_order = rows[mixed(len(rows), options)]
        pieces = sound_pieces(files, sizes, names, labels, feature.sample_rate, in_order, most=feature.max_samples)
        splits[split] = Part(pieces, is_mixed=True)
    cut = sum(look.samples > feature.max_samples for look in looks)
    notes = (f"cut {cut:,} sounds after {feature.max_samples:,} samples, the longest of {rules}",) if cut else ()
    return rules.read(splits, Source(format="wav", uri=source, changes=tuple(skipped)), notes)


def given_rows(names: Sequence[str], of_split: Sequence[str] | None, rules: Rules) -> dict[str, Ints]:
    """Return the rows of each split where the folders or the version's pattern say it, or all under `ALL`."""
    if of_split is not None:
        found = np.array(of_split)
        return {split: np.flatnonzero(found == split) for split in SPLITS if split in of_split}
    if rules.options.test is None:
        return {ALL: np.arange(len(names))}
    in_test = np.array([PurePosixPath(name).match(rules.options.test) for name in names])
    rows = {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}
    return {split: chosen for split, chosen in rows.items() if len(chosen)}
