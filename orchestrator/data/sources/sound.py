"""Sounds: folders of WAV files, one sample rate, mixed down to one channel of 16 bits."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, AudioFeature, ClassTarget
from models.preparing.sounds import SoundError, decode_wav, resample
from orchestrator.data.columns import Array, Columns, Ragged
from orchestrator.data.manifest import Change, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.classes import check_class_names
from orchestrator.data.sources.damaged import Damage, refuse_or_skip
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import SPLIT_NAMES, default_name, list_files, mixed
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import in_order
from orchestrator.data.sources.splitting import drawn, numbered, refuse_draw, require_classes

SUFFIX = ".wav"
_OTHER_SUFFIXES = (".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".au", ".webm")

_PIECE_FILES = 256
_READ_THREADS = 8  # a bucket answers each after some milliseconds


@dataclass(frozen=True)
class SoundPiece:
    """Some WAV files of a split."""

    files: Files
    names: tuple[str, ...]
    labels: tuple[int, ...]
    source_bytes: int
    rate: int
    most: int | None = None
    """The longest sound in samples; what is longer is cut. None: all of every sound."""

    @property
    def rows(self) -> int:
        """Number of sounds."""
        return len(self.names)

    def read(self) -> Columns:
        """Return the sounds, decoded."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            sounds = list(pool.map(lambda name: _decode(self.files, name, self.rate)[0][: self.most], self.names))
        return {"audio": Ragged.of(sounds, dtype=np.int16), TARGET: np.array(self.labels, np.int64)}


def read_wav(source: str, options: SourceOptions) -> Prepared:
    """Read the WAV files of a folder, whose classes are its sub-folders or the beginnings of the files' names."""
    only(options, "wav", "label", "rate", "damaged", "test", "seed", "test_share")
    files, sizes, names = list_sounds(source)
    found = look_at_all(files, names, options)
    names, looks, skipped = refuse_or_skip(names, found, options, place=files.uri, what="sounds")
    rate = options.rate or _one_rate(names, looks, files.uri)
    of_split = given_split(names)
    words = class_names(names, options, files.uri, has_splits=of_split is not None)
    classes = tuple(sorted(set(words), key=in_order))
    check_class_names(classes, files.uri)
    labels = np.array([classes.index(word) for word in words], np.int64)
    splits = _splits(names, labels, looks, of_split, options, files.uri)
    require_classes(labels, classes, splits, files.uri)
    return Prepared(
        name=default_name(files),
        features={"audio": _feature(looks, rate, options)},
        target=ClassTarget(classes=classes),
        splits={
            split: Part(sound_pieces(files, sizes, names, labels, rate, rows[mixed(len(rows), options)]), is_mixed=True)
            for split, rows in splits.items()
        },
        source=Source(format="wav", uri=source, changes=(*skipped, *_resampled(looks, rate, options))),
    )


def list_sounds(source: str) -> tuple[Files, dict[str, int], list[str]]:
    """Return the files of a source, the bytes of each by its name, and the names of the sounds.

    Raises:
        ConfigError: if there are none, or others than WAV files.
    """
    files, sizes = list_files(source)
    names = [name for name in sizes if name.lower().endswith(SUFFIX)]
    others = [name for name in sizes if name.lower().endswith(_OTHER_SUFFIXES)]
    if others or not names:
        raise ConfigError(
            f"{source} must hold sounds as {SUFFIX} files, got {others[0] if others else 'none'}. Convert others: "
            "`ffmpeg -i IN -c:a pcm_s16le OUT.wav`."
        )
    return files, sizes, names


def given_split(names: Sequence[str]) -> list[str] | None:
    """Return the split of each file if all lie in folders `train`, `test` and perhaps `validation`."""
    splits = [SPLIT_NAMES.get(name.split("/")[0].lower()) if "/" in name else None for name in names]
    known = [split for split in splits if split is not None]
    return known if len(known) == len(names) and {"train", "test"} <= set(known) else None


@dataclass(frozen=True)
class _Look:
    rate: int
    """Of the file."""
    samples: int
    """At the rate that is stored."""
    digest: bytes


def class_names(names: Sequence[str], options: SourceOptions, place: str, *, has_splits: bool) -> list[str]:
    """Return the name of each file's class."""
    folders = [PurePosixPath(name).parts[has_splits:-1] for name in names]
    if (options.label or ("folder" if len(set(folders)) > 1 else "name")) == "folder":
        loose = [name for name, folder in zip(names, folders, strict=True) if not folder]
        if loose:
            raise ConfigError(
                f"{place} must hold sounds in folders named after their classes, got {loose[0]} in none. Move it, or "
                "take the classes from the names with --option label=name."
            )
        return [folder[-1] for folder in folders]
    words = [PurePosixPath(name).stem.partition("_") for name in names]
    for name, (word, underscore, _) in zip(names, words, strict=True):
        if not (word and underscore):
            raise ConfigError(
                f"{place} must hold sounds named CLASS_….wav, or in folders named after their classes, got {name}. "
                "Rename it."
            )
    return [word for word, _, _ in words]


def look_at_all(files: Files, names: Sequence[str], options: SourceOptions) -> list[_Look | Damage]:
    """Read every file once, for what must be known of all: rate, length, copies; and which of them are damaged."""

    def look(name: str) -> _Look | Damage:
        try:
            samples, rate = _decode(files, name, options.rate)
        except ConfigError as error:
            return Damage(error)
        return _Look(rate, len(samples), hashlib.sha256(samples.tobytes()).digest())

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return list(pool.map(look, names))


def _one_rate(names: Sequence[str], looks: Sequence[_Look], place: str) -> int:
    rates = Counter(look.rate for look in looks).most_common()
    if len(rates) > 1:
        first = {look.rate: name for name, look in reversed(list(zip(names, looks, strict=True)))}
        found = ", ".join(f"{rate} ({count}, such as {first[rate]})" for rate, count in rates[:4])
        raise ConfigError(
            f"{place} must hold sounds of one sample rate, got {found}. Resample them, here and when the model is "
            f"asked, with --option rate={rates[0][0]}."
        )
    return rates[0][0]


def _feature(looks: Sequence[_Look], rate: int, options: SourceOptions) -> AudioFeature:
    longest = max(look.samples for look in looks)
    return AudioFeature(sample_rate=rate, max_samples=longest, resampled=options.rate is not None)


def _resampled(looks: Sequence[_Look], rate: int, options: SourceOptions) -> list[Change]:
    if options.rate is None:
        return []
    others = Counter(look.rate for look in looks if look.rate != rate)
    counts = ", ".join(f"{count:,} of {found:,}" for found, count in sorted(others.items()))
    text = f"{others.total():,} of {len(looks):,} sounds were resampled to {rate:,} samples a second"
    numbers = {"resampled": float(others.total()), "sounds": float(len(looks))}
    return [Change(option=f"rate={rate}", text=text + (f": {counts}." if counts else "."), numbers=numbers)]


def _splits(
    names: Sequence[str],
    labels: Array,
    looks: Sequence[_Look],
    of_split: Sequence[str] | None,
    options: SourceOptions,
    place: str,
) -> dict[str, Ints]:
    if of_split is not None:
        refuse_draw(options, place)
        found = np.array(of_split)
        return {split: np.flatnonzero(found == split) for split in ("train", "validation", "test") if split in of_split}
    if options.test is None:
        return drawn(labels, groups=numbered(look.digest for look in looks), options=options, place=place)
    refuse_draw(options.model_copy(update={"test": None}), f"{place} with option test")
    in_test = np.array([PurePosixPath(name).match(options.test) for name in names])
    if in_test.all() or not in_test.any():
        raise ConfigError(
            f"test must match some files of {place}, got {options.test!r}, which matches "
            f"{in_test.sum()} of {len(names)}."
        )
    return {"train": np.flatnonzero(~in_test), "test": np.flatnonzero(in_test)}


def sound_pieces(
    files: Files,
    sizes: Mapping[str, int],
    names: Sequence[str],
    labels: Array,
    rate: int,
    rows: Ints,
    *,
    most: int | None = None,
) -> tuple[SoundPiece, ...]:
    """Cut some rows into pieces, in their order; see `SoundPiece`."""
    cut = [rows[start : start + _PIECE_FILES] for start in range(0, len(rows), _PIECE_FILES)]
    return tuple(
        SoundPiece(
            files,
            tuple(names[row] for row in chosen),
            tuple(labels[chosen].tolist()),
            sum(sizes[names[row]] for row in chosen),
            rate,
            most,
        )
        for chosen in cut
    )


def _decode(files: Files, name: str, rate: int | None) -> tuple[Array, int]:
    """Return the samples of a file, at a rate if one is asked for, and its own rate."""
    place = f"{files.uri.rstrip('/')}/{name}"
    try:
        samples, own_rate = decode_wav(files.read(name))
        samples = resample(samples, own_rate, rate or own_rate)
    except SoundError as error:
        raise ConfigError(
            f"{place} must be a whole WAV file of integers of 8 to 32 bits, floats, A-law or mu-law, got {error}. "
            f"Replace it, convert it (`ffmpeg -i IN -c:a pcm_s16le OUT.wav`), or remove it."
        ) from error
    if not len(samples):
        raise ConfigError(f"{place} must hold a sound, got no samples. Remove it.")
    return samples, own_rate
