"""Texts: a file each in folders named after their classes, a line each in a file per class, or a column of a CSV."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import compress
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, TextFeature, Tokens
from models.preparing.rows import RowSchema, TextColumn
from models.text import share_without_blanks, split, tokens, vocabulary, words
from orchestrator.data.columns import Ragged
from orchestrator.data.manifest import Change, Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.classes import check_class_names
from orchestrator.data.sources.delimited.blocks import whole
from orchestrator.data.sources.delimited.encoding import decoded, in_encoding
from orchestrator.data.sources.files import SCHEME, Files
from orchestrator.data.sources.located import SourceFile, plain_name, source_name, split_files
from orchestrator.data.sources.options import DELIMITED, SourceOptions, only
from orchestrator.data.sources.picture_files import default_name, list_files
from orchestrator.data.sources.prepared import Part, Prepared, columns_left_out
from orchestrator.data.sources.rows import Delimited, distinct, in_order, read_delimited
from orchestrator.data.sources.sound import given_split
from orchestrator.data.sources.splitting import drawn, numbered, refuse_draw
from orchestrator.data.sources.targets import Labels, read_labels, target_column

TEXT_NAMES = ("text", "sentence", "review")
LINE_SUFFIXES = (".pos", ".neg")
TABLE_SUFFIXES = (".csv", ".tsv")
VOCABULARY = 20_000
MIN_COUNT = 2
"""A word that training has once is unknown, so that a model learns what to do with unknown ones."""

MOST_TOKENS = 1024
"""Words of a text after it are left out."""

_MOSTLY = 0.5  # of the letters: then words, which blanks divide, would be whole sentences
_READ_THREADS = 8  # a bucket answers each after some milliseconds
_NOTES = ("readme", "license", "licence", "copying")


@dataclass(frozen=True, eq=False)
class _Texts:
    name: str
    place: str
    texts: list[str]
    labels: Labels
    splits: dict[str, Ints] | None
    """The rows of each, if the source says so."""
    encoding: str = "utf-8"
    rows: RowSchema | None = None
    """The columns of a table."""
    notes: tuple[str, ...] = ()


def read_text(source: str, options: SourceOptions) -> Prepared:
    """Read texts with a class each, or in a CSV with a number; see the module for where they may lie."""
    found = _from_table(source, options) if is_table(source) else _from_files(source, options)
    options, changes = _with_tokens(found, options)
    rows, feature, tokens_of = _split_and_tokenized(found, options)
    return Prepared(
        name=found.name,
        features={"text": feature},
        target=found.labels.target(rows, found.place),
        splits={s: _part(tokens_of, found.labels, r) for s, r in rows.items()},
        rows=found.rows,
        source=Source(format=in_encoding("text", found.encoding), uri=source, changes=changes),
        notes=found.notes,
    )


def _with_tokens(found: _Texts, options: SourceOptions) -> tuple[SourceOptions, tuple[Change, ...]]:
    """Return what texts are split into, and why, where that are characters."""
    train = found.splits["train"].tolist() if found.splits else range(len(found.texts))
    share = share_without_blanks(found.texts[row] for row in train)
    tokens = options.tokens or ("characters" if share > _MOSTLY else "words")
    text = f"Texts are split into characters; {share:.0%} of the letters are of scripts without blanks between words."
    change = Change(option=f"tokens={tokens}", text=text, numbers={"share_without_blanks": share})
    return options.model_copy(update={"tokens": tokens}), (change,) if tokens == "characters" else ()


def _split_and_tokenized(found: _Texts, options: SourceOptions) -> tuple[dict[str, Ints], TextFeature, list[list[int]]]:
    """Return the rows of each split, the feature, and the tokens of every text.

    In a split that is drawn here, no test row has the words of a training row. The vocabulary is of training, so that
    two texts may differ only in words that are unknown once the split is drawn: such test rows move to training.
    """
    if found.splits is not None:
        refuse_draw(options, found.place)
        return found.splits, *_tokenized(found.texts, found.splits, options)
    groups = numbered(" ".join(split(text, _tokens(options))) for text in found.texts)
    rows = drawn(found.labels.strata, groups=groups, options=options, place=found.place)
    feature, tokens_of = _tokenized(found.texts, rows, options)
    while len(known := _known_from_training(tokens_of, rows)):
        rows = {"train": np.union1d(rows["train"], known), "test": np.setdiff1d(rows["test"], known)}
        feature, tokens_of = _tokenized(found.texts, rows, options)
    _require_test(rows, found, options)
    return rows, feature, tokens_of


def _part(tokens_of: Sequence[list[int]], labels: Labels, rows: Ints) -> Part:
    texts = Ragged.of([np.array(tokens_of[row]) for row in rows.tolist()], dtype=np.int32)
    return Part.of({"text": texts, TARGET: labels.values[rows]})


def _tokenized(
    texts: Sequence[str], rows: Mapping[str, Ints], options: SourceOptions
) -> tuple[TextFeature, list[list[int]]]:
    """Return the feature with the vocabulary of training, and the tokens of every text."""
    train = [texts[row] for row in rows["train"].tolist()]
    kind = _tokens(options)
    feature = TextFeature(
        vocabulary=vocabulary(train, size=options.vocabulary or VOCABULARY, min_count=MIN_COUNT, tokens=kind),
        max_tokens=min(MOST_TOKENS, max(len(split(text, kind)) for text in train)),
        tokens=kind,
    )
    return feature, [tokens(text, feature) for text in texts]


def _tokens(options: SourceOptions) -> Tokens:
    return options.tokens or "words"


def _known_from_training(tokens_of: Sequence[list[int]], rows: Mapping[str, Ints]) -> Ints:
    """Return the test rows that are the same tokens as a training row: texts that differ in unknown words only."""
    known = {tuple(tokens_of[row]) for row in rows["train"].tolist()}
    return np.array([row for row in rows["test"].tolist() if tuple(tokens_of[row]) in known], np.int64)


def _require_test(rows: Mapping[str, Ints], found: _Texts, options: SourceOptions) -> None:
    if not len(rows["test"]):
        kind = _tokens(options)
        without_blanks = kind == "words" and share_without_blanks(found.texts) > 0
        cure = " Or split them into characters with --option tokens=characters." if without_blanks else ""
        raise ConfigError(
            f"{found.place} must hold texts that differ in {kind} that training has {MIN_COUNT} times or more, got "
            f"none for a test split. Add texts.{cure}"
        )


# ---- a column of a CSV


def is_table(source: str) -> bool:
    """Whether the texts are a column of a table."""
    if PurePosixPath(plain_name(source)).suffix in TABLE_SUFFIXES:
        return True
    if not source.startswith(SCHEME) and PurePosixPath(source).suffix:
        return False
    _, sizes = list_files(source)
    return any(plain_name(name).endswith(TABLE_SUFFIXES) and "/" not in name for name in sizes)


def text_column(names: Sequence[str], options: SourceOptions) -> str | None:
    """Return the column that holds the texts, if one does."""
    if options.text is not None:
        return options.text if options.text in names else None
    return next((name for name in names if name.lower() in TEXT_NAMES), None)


def _from_table(source: str, options: SourceOptions) -> _Texts:
    only(options, "text in a table", "text", "target", "task", "vocabulary", "tokens", "seed", "test_share", *DELIMITED)
    files = split_files(source, suffixes=TABLE_SUFFIXES)
    rows = read_delimited(files, options=options, may_lack_names=True)
    column = text_column(rows.names, options)
    if column is None:
        raise ConfigError(
            f"{rows.place} must have a column of texts, called {options.text or ' or '.join(TEXT_NAMES)}, got "
            f"{', '.join(rows.names)}. Name it with --option text=NAME."
        )
    name = target_column([name for name in rows.names if name != column], options, rows.place)
    labels = read_labels(rows, name, options)
    splits = rows.rows if len(files) > 1 else None
    texts = rows.column(column).to_pylist()
    others = [word for word in rows.all_names if word not in (column, name)]
    notes = (*columns_left_out(others), *labels.notes)
    return _Texts(source_name(files), rows.place, texts, labels, splits, rows.encoding, _schema(rows, column), notes)


def _schema(rows: Delimited, column: str) -> RowSchema:
    others = tuple(name for name in rows.names if name != column)
    return RowSchema(columns={column: TextColumn(feature="text")}, ignored=others)


# ---- files of text


def _from_files(source: str, options: SourceOptions) -> _Texts:
    only(options, "text in files", "ignore", "vocabulary", "tokens", "seed", "test_share")
    found = texts_in_files(source, options)
    codes, present = distinct(found.classes)
    order = sorted(range(len(present)), key=lambda code: in_order(present[code]))
    check_class_names([present[code] for code in order], source)
    labels = Labels(np.argsort(order)[codes][found.origin].astype(np.int64), tuple(present[code] for code in order))
    return _Texts(found.name, source, found.texts, labels, found.splits, found.encoding)


class FileTexts(NamedTuple):
    """The texts of files or of their lines."""

    name: str
    """Of the folder."""
    texts: list[str]
    origin: Ints
    """The number of the file of each text."""
    files: list[str]
    """What to call each file in a message."""
    classes: list[str]
    """The class of each file."""
    splits: dict[str, Ints] | None
    """The texts of each split, if the source says so."""
    encoding: str


def texts_in_files(source: str, options: SourceOptions) -> FileTexts:
    """Read a folder of texts; see the module for where they may lie."""
    files, sizes = list_files(source)
    names = text_files(list(sizes))
    of_split = given_split(names)
    classes = [_class_of(name, has_split=of_split is not None) for name in names]
    _check_ignored(options, classes, source)
    kept = [word not in (options.ignore or ()) for word in classes]
    names, classes = list(compress(names, kept)), list(compress(classes, kept))
    contents, encoding = read_files([SourceFile(files, name) for name in names])
    texts: list[str] = []
    origin: list[int] = []
    for number, (name, content) in enumerate(zip(names, contents, strict=True)):
        found = _texts_of(name, content, files)
        texts += found
        origin += [number] * len(found)
    of_text = np.array(origin, np.int64)
    places = [str(SourceFile(files, name)) for name in names]
    return FileTexts(default_name(files), texts, of_text, places, classes, _given(of_split, kept, of_text), encoding)


def text_files(names: Sequence[str]) -> list[str]:
    """Return the files that hold texts: `*.pos` and `*.neg`, or `CLASS/*.txt`, or `CLASS.txt`."""
    lines = [name for name in names if name.lower().endswith(LINE_SUFFIXES)]
    plain = [name for name in names if name.lower().endswith(".txt")]
    in_folders = [name for name in plain if "/" in name]
    loose = [name for name in plain if not PurePosixPath(name).stem.lower().startswith(_NOTES)]
    return lines or (_of_depth(in_folders) if in_folders else loose)


def _of_depth(names: Sequence[str]) -> list[str]:
    """Leave out notes beside the folders of the classes, such as `train/urls.txt`."""
    deepest = max(name.count("/") for name in names)
    return [name for name in names if name.count("/") == deepest]


def _class_of(name: str, *, has_split: bool) -> str:
    path = PurePosixPath(name)
    if path.suffix.lower() in LINE_SUFFIXES:
        return path.suffix[1:].lower()
    return path.parent.name if len(path.parts) - has_split > 1 else path.stem


def _is_one_text(name: str) -> bool:
    """Whether a file is one text, and not one a line."""
    return "/" in name and name.lower().endswith(".txt")


def _texts_of(name: str, content: str, files: Files) -> list[str]:
    """Return the texts of one file."""
    texts = [content] if _is_one_text(name) else content.split("\n")
    texts = [text.strip() for text in texts if words(text)]
    if not texts:
        raise ConfigError(f"{SourceFile(files, name)} must hold a text, got no word in it. Remove it.")
    return texts


def _check_ignored(options: SourceOptions, classes: Sequence[str], source: str) -> None:
    if not classes:
        raise ConfigError(
            f"{source} must hold CLASS/*.txt, a CLASS.txt of lines each, or *.pos and *.neg, got none of them."
        )
    unknown = set(options.ignore or ()) - set(classes)
    if unknown:
        raise ConfigError(
            f"ignore must name classes of {source}, got {min(unknown)!r}; there are {', '.join(sorted(set(classes)))}."
        )


def _given(of_split: Sequence[str] | None, kept: Sequence[bool], of_text: Ints) -> dict[str, Ints] | None:
    if of_split is None:
        return None
    found = np.array(list(compress(of_split, kept)))[of_text]
    return {split: np.flatnonzero(found == split) for split in ("train", "validation", "test") if split in of_split}


def read_files(files: Sequence[SourceFile]) -> tuple[list[str], str]:
    """Return the text of every file, and the encoding of all; see `decoded` for the errors."""
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        contents = list(pool.map(whole, files))
    return decoded(contents, files)
