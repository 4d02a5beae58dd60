"""Files as `predict` takes them, one row each: pictures, sounds, texts, and the series that forecasts go on from."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from models.features import AudioFeature, ForecastTarget, ImageFeature, SeriesFeature, Signature, TextFeature
from models.text import tokens
from orchestrator.data.columns import Column, Columns, Ragged
from orchestrator.data.sources.files import SCHEME, Bucket, Files, Folder, open_source
from orchestrator.data.sources.located import SourceFile, plain_name
from orchestrator.data.sources.picture_files import SUFFIXES as PICTURES
from orchestrator.data.sources.picture_files import list_files, path_of
from orchestrator.data.sources.text import read_files
from orchestrator.predicting.parts import BatchSource, Place, SourcePart, in_memory, runs
from serving.requests.series import parse_series
from serving.requests.values import decode_picture, decode_sound

READ_THREADS = 8  # files of a bucket are waited for
PART_FILES = 2048
SCALE = 2**15  # of samples, which are stored in 16 bits

KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "image": ("pictures", PICTURES),
    "audio": ("sounds", (".wav",)),
    "text": ("texts", (".txt",)),
    "series": ("a CSV of each series", (".csv", ".tsv", ".txt")),
}
"""What files hold for each kind of feature, and how their names end."""


@dataclass(frozen=True)
class FileRows:
    """A piece: some files, each of which is a row."""

    files: Files
    names: tuple[str, ...]
    source_bytes: int
    signature: Signature

    @property
    def rows(self) -> int:
        """Number of files."""
        return len(self.names)

    def read(self) -> Columns:
        """Read and decode the files as a request with each of them is.

        Raises:
            ConfigError: naming the file that is not what the model reads.
        """
        ((name, feature),) = self.signature.features.items()
        places = [path_of(self.files, file) for file in self.names]
        if isinstance(feature, TextFeature):
            texts, _ = read_files([SourceFile(self.files, file) for file in self.names])
            return {name: token_rows(texts, feature)}
        with ThreadPoolExecutor(READ_THREADS) as pool:
            found = list(pool.map(self._decoded, self.names, places))
        if isinstance(feature, AudioFeature):
            return {name: Ragged.of(found, dtype=np.int16)}
        return {name: np.stack(found)}

    def _decoded(self, file: str, place: str) -> Any:
        (feature,) = self.signature.features.values()
        content = self.files.read(file)
        try:
            match feature:
                case ImageFeature():
                    return decode_picture(content, feature, field=place).numpy()
                case AudioFeature():
                    return (decode_sound(content, feature, field=place).numpy() * SCALE).astype(np.int16)
                case SeriesFeature():
                    assert isinstance(self.signature.target, ForecastTarget)
                    text = content.decode("utf-8", "replace")
                    rows = parse_series(text, feature, lookback=self.signature.target.lookback)
                    return np.array(rows, np.float32)
        except ConfigError as error:  # a request's error does not travel between processes
            words = str(error)
            raise ConfigError(words if place in words else f"{place}: {words}") from None
        raise AssertionError(feature.kind)


def file_source(source: str, signature: Signature, *, model: str) -> BatchSource:
    """Return files of which each is a row, or a file of texts with one in each line.

    Raises:
        ConfigError: if there is no file of that kind.
    """
    ((name, feature),) = signature.features.items()
    what, suffixes = KINDS[feature.kind]
    files, names = located(source, suffixes, what=what, model=model)
    if isinstance(feature, TextFeature) and is_one_file(source):
        (text,), _ = read_files([SourceFile(files, names[0])])
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"{source} must hold a text in a line, got none.")
        return BatchSource(source, tuple(in_memory({name: token_rows(lines, feature)})), stamps_of(files, names))
    sizes = files.sizes() if len(names) > 1 else {names[0]: 0}
    parts = tuple(_parts(files, names, [sizes[name] for name in names], signature))
    return BatchSource(source, parts, stamps_of(files, names), is_everywhere=files.is_everywhere)


def _parts(files: Files, names: Sequence[str], sizes: Sequence[int], signature: Signature) -> Iterator[SourcePart]:
    for run in runs(sizes, most_rows=PART_FILES):
        chosen = tuple(names[i] for i in run)
        piece = FileRows(files, chosen, source_bytes=sum(sizes[i] for i in run), signature=signature)
        yield SourcePart(piece, Place(names=chosen))


def token_rows(texts: Sequence[str], feature: TextFeature) -> Column:
    """Return the tokens of texts."""
    return Ragged.of([np.array(tokens(text, feature), np.int32) for text in texts], dtype=np.int32)


def is_one_file(source: str) -> bool:
    """Whether a source is a file, and not a folder or prefix: in a bucket, what has a suffix is one."""
    if source.startswith(SCHEME):
        return bool(PurePosixPath(source).suffix) and not source.endswith("/")
    return Path(source).is_file()


def located(source: str, suffixes: Sequence[str], *, what: str, model: str) -> tuple[Files, list[str]]:
    """Return where the files of a source are, and their names in order.

    Args:
        source: a file; or a folder or prefix, however deep, whose files have one of these suffixes.
        suffixes: in lower case; the files may be gzipped where they are text.
        what: what the files hold, for messages.
        model: name and version of the model, for messages.

    Raises:
        ConfigError: if there are none.
    """
    if is_one_file(source):
        place, _, name = source.rpartition("/")
        if source.startswith(SCHEME):
            bucket = Bucket(open_source(place).settings)
            if not bucket.exists(name):
                raise ConfigError(f"source must be an object or a prefix of some, got {source}, which is not there.")
            return bucket, [name]
        path = Path(source).absolute()
        return Folder(path.parent), [path.name]
    files, sizes = list_files(source)
    names = sorted(name for name in sizes if plain_name(name).endswith(tuple(suffixes)))
    if not names:
        raise ConfigError(f"{source} must hold {what} ({', '.join(suffixes)}) for {model}, got no such file.")
    return files, names


def stamps_of(files: Files, names: Sequence[str]) -> tuple[str, ...]:
    """Return names of files, and what changes when their content does."""
    return tuple(f"{name} {stamp}" for name, stamp in zip(names, files.stamps(names), strict=True))
