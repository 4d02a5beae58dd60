"""Sounds: folders of WAV files, one sample rate, mixed down to one channel of 16 bits."""

import hashlib
import io
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, AudioFeature, ClassTarget
from orchestrator.data.columns import Array, Columns, Ragged
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.classes import check_class_names
from orchestrator.data.sources.files import Files
from orchestrator.data.sources.options import SourceOptions, only
from orchestrator.data.sources.picture_files import SPLIT_NAMES, default_name, list_files, mixed
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import in_order
from orchestrator.data.sources.splitting import drawn, numbered, refuse_draw, require_classes

SUFFIX = ".wav"

_PIECE_FILES = 256
_READ_THREADS = 8  # a bucket answers each after some milliseconds


@dataclass(frozen=True)
class SoundPiece:
    """Some WAV files of a split."""

    files: Files
    names: tuple[str, ...]
    labels: tuple[int, ...]
    source_bytes: int

    @property
    def rows(self) -> int:
        """Number of sounds."""
        return len(self.names)

    def read(self) -> Columns:
        """Return the sounds, decoded."""
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            sounds = list(pool.map(lambda name: _decode(self.files, name)[0], self.names))
        return {"audio": Ragged.of(sounds, dtype=np.int16), TARGET: np.array(self.labels, np.int64)}


def read_wav(source: str, options: SourceOptions) -> Prepared:
    """Read the WAV files of a folder, whose classes are its sub-folders or the beginnings of the files' names."""
    only(options, "wav", "label", "test", "seed", "test_share")
    files, sizes = list_files(source)
    names = [name for name in sizes if name.lower().endswith(SUFFIX)]
    if not names:
        raise ConfigError(f"{source} must hold {SUFFIX} files, got none.")
    of_split = given_split(names)
    words = _class_names(names, options, files.uri, has_splits=of_split is not None)
    classes = tuple(sorted(set(words), key=in_order))
    check_class_names(classes, files.uri)
    labels = np.array([classes.index(word) for word in words], np.int64)
    looks = _look_at_all(files, names)
    splits = _splits(names, labels, looks, of_split, options, files.uri)
    require_classes(labels, classes, splits, files.uri)
    return Prepared(
        name=default_name(files),
        features={"audio": AudioFeature(sample_rate=looks[0].rate, max_samples=max(look.samples for look in looks))},
        target=ClassTarget(classes=classes),
        splits={
            split: Part(_pieces(files, sizes, names, labels, rows[mixed(len(rows), options)]), is_mixed=True)
            for split, rows in splits.items()
        },
        source=Source(format="wav", uri=source),
    )


def given_split(names: Sequence[str]) -> list[str] | None:
    """Return the split of each file if all lie in folders `train`, `test` and perhaps `validation`."""
    splits = [SPLIT_NAMES.get(name.split("/")[0].lower()) if "/" in name else None for name in names]
    known = [split for split in splits if split is not None]
    return known if len(known) == len(names) and {"train", "test"} <= set(known) else None


def decode_wav(data: bytes, place: str) -> tuple[Array, int]:
    """Return the samples of a WAV file, [T] int16, the mean of its channels, and its sample rate.

    Integers of 8, 16, 24 and 32 bits are read; more than 16 are cut. Other encodings need the extra `audio`.

    Raises:
        ConfigError: if it is no WAV file, or does not hold all of what it says it does.
    """
    try:
        with wave.open(io.BytesIO(data)) as file:
            width, channels, rate, count = (
                file.getsampwidth(),
                file.getnchannels(),
                file.getframerate(),
                file.getnframes(),
            )
            frames = file.readframes(count)
    except wave.Error as error:
        if str(error).startswith("unknown format"):
            return _decode_with_soundfile(data, place)
        raise ConfigError(f"{place} must be a WAV file, got {error}. Remove it.") from error
    except EOFError as error:
        raise ConfigError(
            f"{place} must be a WAV file, got {len(data)} bytes that end too early. Remove it."
        ) from error
    if len(frames) != count * width * channels:
        raise ConfigError(
            f"{place} must be a whole WAV file, got {len(frames)} of {count * width * channels} bytes. Copy it again."
        )
    return _mono(_to_int16(frames, width).reshape(-1, channels)), rate


@dataclass(frozen=True)
class _Look:
    rate: int
    samples: int
    digest: bytes


def _class_names(names: Sequence[str], options: SourceOptions, place: str, *, has_splits: bool) -> list[str]:
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


def _look_at_all(files: Files, names: Sequence[str]) -> list[_Look]:
    """Read every file once, for what must be known of all: rate, length, copies."""

    def look(name: str) -> _Look:
        samples, rate = _decode(files, name)
        return _Look(rate, len(samples), hashlib.sha256(samples.tobytes()).digest())

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        looks = list(pool.map(look, names))
    for name, found in zip(names, looks, strict=True):
        if found.rate != looks[0].rate:
            raise ConfigError(
                f"{files.uri} must hold sounds of one sample rate, got {found.rate} in {name} and {looks[0].rate} in "
                f"{names[0]}. Resample them."
            )
    return looks


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


def _pieces(
    files: Files, sizes: Mapping[str, int], names: Sequence[str], labels: Array, rows: Ints
) -> tuple[SoundPiece, ...]:
    cut = [rows[start : start + _PIECE_FILES] for start in range(0, len(rows), _PIECE_FILES)]
    return tuple(
        SoundPiece(
            files,
            tuple(names[row] for row in chosen),
            tuple(labels[chosen].tolist()),
            sum(sizes[names[row]] for row in chosen),
        )
        for chosen in cut
    )


def _decode(files: Files, name: str) -> tuple[Array, int]:
    place = f"{files.uri.rstrip('/')}/{name}"
    samples, rate = decode_wav(files.read(name), place)
    if not len(samples):
        raise ConfigError(f"{place} must hold a sound, got no samples. Remove it.")
    return samples, rate


def _to_int16(frames: bytes, width: int) -> Array:
    """Return integers of ``width`` bytes as their highest 16 bits; those of 8 bits are unsigned."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.int16) - 128) * 256
    highest = np.frombuffer(frames, np.uint8).reshape(-1, width)[:, -2:]
    samples: Array = np.ascontiguousarray(highest).view("<i2")[:, 0]
    return samples


def _mono(samples_TC: Array) -> Array:
    return samples_TC[:, 0] if samples_TC.shape[1] == 1 else np.rint(samples_TC.mean(1)).astype(np.int16)


def _decode_with_soundfile(data: bytes, place: str) -> tuple[Array, int]:
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{place} must hold integers of 8, 16, 24 or 32 bits, got another encoding. Install the extra "
            "orchestrator[audio] to read it, or convert it."
        ) from error
    try:
        samples_TC, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ConfigError(f"{place} must be a WAV file, got {error}. Remove it.") from error
    if not np.isfinite(samples_TC).all():
        raise ConfigError(f"{place} must hold finite samples, got NaN or infinity. Remove it.")
    return np.rint(np.clip(samples_TC.mean(1) * 2**15, -(2**15), 2**15 - 1)).astype(np.int16), int(rate)
