"""All formats, and which one a source is in.

    format              source                                                          task
    huggingface-images  folder of train-*.parquet, test-*.parquet with pictures         classes
    image-folder        train/CLASS/*.jpg and test/CLASS/*.jpg, or CLASS/*.jpg          classes
    cifar               CIFAR-10's or CIFAR-100's batches, binary or pickled            classes
    idx                 train-images-idx3-ubyte, ... (MNIST), gzipped or not            classes
    voc                 JPEGImages, Annotations and ImageSets of Pascal VOC             boxes
    table               CSV or TSV with a header, or train.csv and test.csv             classes or a number
    text                CLASS/*.txt, *.pos and *.neg, or a CSV with a column of texts   classes or a number
    wav                 CLASS/*.wav or CLASS_*.wav                                      classes
    svmlight            lines of `label column:value ...` (libsvm, libFM)               classes or a number
    ratings             user, item, rating, timestamp (MovieLens)                       a number
    series              CSV of a date and numeric columns (ETT)                         a forecast
    bundle              sklearn:digits · sklearn:china · statsmodels:elnino             each its own

`sklearn:china` is the pixels of a photo, half of them missing: a factorization machine restores them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from cluster.errors import ConfigError
from cluster.s3.stored_json import first_fault
from models.preparing.dates import is_date
from models.preparing.rows import Notation, number_of
from orchestrator.data.manifest import SeriesTarget
from orchestrator.data.sources.bundles import BUNDLES, read_bundle
from orchestrator.data.sources.cifar import read_cifar
from orchestrator.data.sources.delimited.blocks import refuse_empty
from orchestrator.data.sources.delimited.dialect import DELIMITERS
from orchestrator.data.sources.delimited.ratings import FILES as RATING_FILES
from orchestrator.data.sources.delimited.ratings import SUFFIXES as RATING_SUFFIXES
from orchestrator.data.sources.delimited.ratings import rating_columns, read_ratings
from orchestrator.data.sources.delimited.table import SUFFIXES as TABLE_SUFFIXES
from orchestrator.data.sources.delimited.table import read_table
from orchestrator.data.sources.files import SCHEME, Files, Folder
from orchestrator.data.sources.huggingface import read_huggingface_images
from orchestrator.data.sources.idx import read_idx
from orchestrator.data.sources.image_folder import read_image_folder
from orchestrator.data.sources.located import SourceFile, plain_name, tables_of
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.picture_files import SPLIT_NAMES, detect_pictures, left_out, list_files
from orchestrator.data.sources.picture_files import SUFFIXES as PICTURE_SUFFIXES
from orchestrator.data.sources.prepared import Prepared
from orchestrator.data.sources.rows import first_rows
from orchestrator.data.sources.series.reading import SUFFIXES as SERIES_SUFFIXES
from orchestrator.data.sources.series.reading import read_series
from orchestrator.data.sources.series.table import DATE_NAMES
from orchestrator.data.sources.sound import read_wav
from orchestrator.data.sources.svmlight import ROW as SVMLIGHT_ROW
from orchestrator.data.sources.svmlight import SUFFIXES as SVMLIGHT_SUFFIXES
from orchestrator.data.sources.svmlight import read_svmlight
from orchestrator.data.sources.targets import TARGET_NAMES
from orchestrator.data.sources.text import read_text, text_column, text_files
from orchestrator.data.sources.voc import read_voc

FORMATS: Mapping[str, Callable[[str, SourceOptions], Prepared]] = {
    "huggingface-images": read_huggingface_images,
    "image-folder": read_image_folder,
    "cifar": read_cifar,
    "idx": read_idx,
    "voc": read_voc,
    "table": read_table,
    "text": read_text,
    "wav": read_wav,
    "svmlight": read_svmlight,
    "ratings": read_ratings,
    "series": read_series,
    "bundle": read_bundle,
}

_SUFFIXES: Mapping[str, str] = {
    ".parquet": "huggingface-images",
    ".wav": "wav",
    ".pos": "text",
    ".neg": "text",
    **dict.fromkeys(PICTURE_SUFFIXES, "image-folder"),
}
"""Files whose name says enough; most of these formats then ask for the folder."""

_OF_SERIES = ("date", "date_order", "gaps", "split_sizes")  # options that no other format has
_MOST_WITHOUT_RATING = 3  # columns of a file that says who has what, and perhaps when
_FIRST_UNIX_TIME = 1e8  # in 1973; what is less counts from elsewhere
_NAMED = 5  # files that are named of those left out


def prepare(source: str, *, format: str | None = None, options: SourceOptions | None = None) -> Prepared:
    """Read and check a source.

    Args:
        source: a file, a folder, an `s3://` prefix, or the name of a bundled dataset.
        format: one of `FORMATS`; found out from the source when left out.
        options: what the person says about it.

    Raises:
        ConfigError: if there is no such file, or the source is malformed (names the file and the row), fits no format
            or several, or an option does not belong to it.
    """
    options = options or SourceOptions()
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if format != "bundle":
        require_source(source)
    try:
        format = format or detect(source, options)
        prepared = FORMATS[format](source, options)
    except ValidationError as error:  # a feature or a target that is larger than a model can read
        raise ConfigError(f"{source} must hold what a model can read, got {first_fault(error)}.") from None
    if options.order and isinstance(prepared.target, SeriesTarget):
        raise ConfigError(f"order must be left out for {source}, a series, whose rows stay in time. Remove it.")
    notes = with_left_out(source, format, prepared.notes)
    return replace(prepared, keeps_order=options.order == "keep", notes=notes)


def require_source(source: str) -> None:
    """Refuse a source that is not there."""
    if not (source in BUNDLES or source.startswith(SCHEME) or Path(source).exists()):
        raise ConfigError(
            f"source must be a file, a folder or one of {', '.join(BUNDLES)}, got {source!r}, which does not exist."
        )


def with_left_out(source: str, format: str, notes: Sequence[str]) -> tuple[str, ...]:
    """Return notes about a source behind one about the files of it that were not read."""
    return (*_left_out(source, format), *notes)


def _left_out(source: str, format: str) -> tuple[str, ...]:
    """Say which files of a folder or prefix were not read."""
    if source in BUNDLES or (not source.startswith(SCHEME) and not Path(source).is_dir()):
        return ()
    files, sizes = list_files(source)
    used = _used(format, [*sizes])
    names = sorted([*left_out(files, sizes), *(name for name in sizes if name not in used)])
    if not names:
        return ()
    more = ", …" if len(names) > _NAMED else ""
    return (f"left out {len(names):,} file{'s' * (len(names) > 1)}: {', '.join(names[:_NAMED])}{more}",)


def _used(format: str, names: Sequence[str]) -> set[str]:
    """Return the files that a format reads; of formats that refuse what they do not know, all."""
    suffixes: Mapping[str, Sequence[str]] = {
        "table": TABLE_SUFFIXES,
        "ratings": RATING_SUFFIXES,
        "svmlight": SVMLIGHT_SUFFIXES,
        "series": SERIES_SUFFIXES,
    }
    if format in suffixes or (format == "text" and tables_of(names, suffixes=TABLE_SUFFIXES)):
        known = RATING_FILES if format == "ratings" else ()
        chosen = tables_of(names, suffixes=suffixes.get(format, TABLE_SUFFIXES), known=known)
        return set(chosen)
    if format == "text":
        return set(text_files(names))
    ends = {"wav": ".wav", "huggingface-images": ".parquet"}.get(format, "")
    return {name for name in names if name.lower().endswith(ends)}


def detect(source: str, options: SourceOptions) -> str:
    """Return the format of a source, by the names of its files or the first rows of one.

    Raises:
        ConfigError: if it fits none, or more than one.
    """
    if source in BUNDLES:
        return "bundle"
    path = Path(source)
    if not source.startswith(SCHEME) and path.is_file():
        fits = _formats_of_file(SourceFile(Folder(path.parent), path.name), options)
    else:
        files, sizes = list_files(source)
        fits = _formats_of_folder(files, list(sizes), options)
    if len(fits) != 1:
        ways = " or ".join(f"--format {name}" for name in fits) or f"--format, one of {', '.join(FORMATS)}"
        raise ConfigError(
            f"source must fit one format, got {source}, which fits {' and '.join(fits) or 'none'}. Name it with {ways}."
        )
    return fits[0]


def _formats_of_folder(files: Files, names: Sequence[str], options: SourceOptions) -> list[str]:
    pictures = detect_pictures(names)
    if pictures not in (None, "image-folder"):
        return [str(pictures)]  # such names mean nothing else
    fits = [pictures] if pictures else []
    if any(name.lower().endswith(".wav") for name in names):
        fits.append("wav")
    texts = text_files(names)
    if any("/" in name or not name.lower().endswith(".txt") for name in texts):
        fits.append("text")
    fits += _formats_of_tables(files, names, options)
    return fits or (["text"] if len(texts) > 1 else [])  # beside other files, loose ones are notes and lists


def _formats_of_tables(files: Files, names: Sequence[str], options: SourceOptions) -> list[str]:
    if set(RATING_FILES) & set(names):
        return ["ratings"]
    suffixes = (*TABLE_SUFFIXES, *SVMLIGHT_SUFFIXES)
    tables = [name for name in names if "/" not in name and plain_name(name).endswith(suffixes)]
    first = sorted(tables, key=lambda name: SPLIT_NAMES.get(PurePosixPath(plain_name(name)).stem) != "train")[:1]
    return [format for name in first for format in _formats_of_file(SourceFile(files, name), options)]


def _formats_of_file(file: SourceFile, options: SourceOptions) -> list[str]:
    suffix = PurePosixPath(plain_name(file.name)).suffix
    if "-ubyte" in file.name:
        return ["idx"]
    return [_SUFFIXES[suffix]] if suffix in _SUFFIXES else _formats_of_rows(file, options)


def _formats_of_rows(file: SourceFile, options: SourceOptions) -> list[str]:
    """Return what the first two rows of a text file look like."""
    content = file.head()
    refuse_empty(content, file)
    line = next((line for line in content.splitlines() if line.strip() and not line.startswith(b"#")), b"")
    if SVMLIGHT_ROW.match(line):
        return ["svmlight"]
    rows_of = {delimiter: first_rows(content, delimiter=delimiter) for delimiter in DELIMITERS}
    delimiter: str = options.delimiter or max(DELIMITERS, key=lambda delimiter: len(rows_of[delimiter][0]))
    header, row = rows_of[delimiter]
    is_rating = _is_rating(header, delimiter, options)
    checks = {
        "ratings": is_rating,
        "text": text_column(header, options) is not None,
        "series": not (options.dates or options.target or is_rating) and _is_series(header, row, options),
    }
    fits = [format for format, does_fit in checks.items() if does_fit]
    if any(getattr(options, name) is not None for name in _OF_SERIES):
        return ["series"]
    names_target = any(name.lower() in TARGET_NAMES or name == options.target for name in header)
    if len(header) > 1 and (not fits or (names_target and "text" not in fits)):
        fits.append("table")
    return fits


def _is_rating(fields: Sequence[str], delimiter: str, options: SourceOptions) -> bool:
    """Whether a first row names user and item, and a rating or nothing more, or is a row of a file without a header."""
    names = rating_columns(fields, options)
    if names or options.user or options.rating:
        return not names or "rating" in names or len(fields) <= _MOST_WITHOUT_RATING
    return delimiter in ("\t", "::") and len(fields) in (3, 4) and _number(fields[2]) is not None


def _is_series(header: Sequence[str], row: Sequence[str], options: SourceOptions) -> bool:
    """Whether a column of dates is there; beside a target only the first one counts, others belong to a table."""
    if options.date is not None or options.item is not None:
        return True
    if header[0].lower() in DATE_NAMES and len(row) > 1 and _is_elapsed(row[0]):
        return False
    has_target = options.target is not None or any(name.lower() in TARGET_NAMES for name in header)
    seen = 1 if has_target else len(header)
    named = any(name.lower() in DATE_NAMES for name in header[:seen])
    return len(header) > 1 and (named or is_date(header[0]) or any(map(is_date, row[:seen])))


def _is_elapsed(text: str) -> bool:
    """Whether it is a number such as of the seconds since the first row: no year or month, and no Unix time."""
    number = _number(text)
    return number is not None and not is_date(text) and number < _FIRST_UNIX_TIME and not _is_year(number)


def _number(text: str) -> float | None:
    return number_of(text, Notation())


def _is_year(number: float) -> bool:
    return number.is_integer() and (1 <= number <= 12 or 1000 <= number < 3000)
