"""Files with many rows: tables and pairs by the columns of the model's source, texts in a column, sparse rows."""

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np

from cluster.errors import ConfigError, NotFoundError
from cluster.s3.store import Store
from models.features import Feature, SparseFeature, TextFeature
from models.preparing.rows import RowSchema, TextColumn
from orchestrator.data.appending.sparse import first_column_of
from orchestrator.data.appending.tables import check_columns, features_of_rows
from orchestrator.data.columns import Array, Columns, Ragged
from orchestrator.data.dataset import read_manifest
from orchestrator.data.sources.delimited.dialect import DELIMITERS
from orchestrator.data.sources.delimited.table import SUFFIXES as TABLES
from orchestrator.data.sources.located import SourceFile
from orchestrator.data.sources.rows import Delimited, first_rows, read_delimited, sniff
from orchestrator.data.sources.svmlight import SUFFIXES as SPARSE
from orchestrator.data.sources.svmlight import parse_rows
from orchestrator.predicting.files import is_one_file, located, stamps_of, token_rows
from orchestrator.predicting.parts import FILLED, BatchSource, SourcePart, in_memory
from serving.version import Version

RATINGS = ("user", "item", "rating", "timestamp")
"""Columns of a file of pairs or ratings without a header."""

_UNLABELLED = re.compile(rb"(?m)^(?=[ \t]*\d+:)")


@dataclass(frozen=True)
class _ModelRules:
    """How the rows of a model's source become features."""

    version: Version
    schema: RowSchema
    cure: str = "Mend the file."

    @property
    def features(self) -> Mapping[str, Feature]:
        """What the model reads."""
        return self.version.signature.features

    def __str__(self) -> str:
        return f"{self.version.name} {self.version.version}"


@dataclass(frozen=True)
class _Labelled:
    """A file of sparse rows in which those without a label have the label 0."""

    file: SourceFile

    def __str__(self) -> str:
        return str(self.file)

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        """Yield the content, so many bytes at a time."""
        content = _UNLABELLED.sub(b"0 ", self.file.read())
        yield from (content[start : start + num_bytes] for start in range(0, len(content), num_bytes))

    def head(self) -> bytes:
        """Return the beginning of the content."""
        return self.file.head()


def table_source(source: str, version: Version) -> BatchSource:
    """Return rows with the columns that the model's source had; the target may be there, and is not read.

    Every field is read here, so that one which does not fit is found before anything is predicted.

    Raises:
        ConfigError: if a column is missing or unknown, or a value does not fit its column; names the row.
    """
    schema = version.signature.rows
    if schema is None:
        raise ConfigError(
            f"{version.name} {version.version} must know the columns of its source to read {source}, got a version "
            "without them. Push the rows as a dataset and name that."
        )
    rules = _ModelRules(version, schema)
    files, names = located(source, (*TABLES, ".data"), what="rows", model=str(rules))
    parts: list[SourcePart] = []
    for name in names:
        rows = _read(SourceFile(files, name), rules)
        check_columns(rows, rules)
        parts += in_memory(_columns(rows, rules), file=None if is_one_file(source) else name)
    return BatchSource(source, tuple(parts), stamps_of(files, names), filled=_fillable(schema))


def _read(file: SourceFile, rules: _ModelRules) -> Delimited:
    names = None
    columns, head = rules.schema.columns, file.head()
    delimiter = _delimiter(head, file, columns.keys())
    if {getattr(column, "feature", None) for column in columns.values()} == {"user", "item"}:
        first = first_rows(head, delimiter=delimiter)[0]
        own = {column.feature: name for name, column in columns.items() if column.kind == "category"}
        if not set(columns) & set(first):  # pairs without a header
            names = [own.get(name, name) for name in RATINGS[: len(first)]]
    return read_delimited({"all": file}, delimiter=delimiter, names=names, may_lack_names=names is None)


def _delimiter(head: bytes, file: SourceFile, columns: Set[str]) -> str:
    """Return what cuts the header into the most of the columns; it may be a single one, as nothing else is needed."""
    found = {mark: len(columns & set(first_rows(head, delimiter=mark)[0])) for mark in DELIMITERS}
    best = max(found, key=lambda mark: found[mark])
    return best if found[best] else sniff(head, file)


def _columns(rows: Delimited, rules: _ModelRules) -> Columns:
    """Return the features of all rows, and which columns have no value."""
    texts = {n: column for n, column in rules.schema.columns.items() if isinstance(column, TextColumn)}
    if texts:
        found: Columns = {}
        for name, column in texts.items():
            feature = rules.features[column.feature]
            assert isinstance(feature, TextFeature)
            found[column.feature] = token_rows(rows.trimmed(name).to_pylist(), feature)
        return found
    columns, gone = features_of_rows(rows, np.arange(len(rows)), rules)
    fillable = _fillable(rules.schema)
    if fillable:
        none = np.zeros(len(rows), bool)
        columns[FILLED] = np.stack([gone.get(name, none) for name in fillable], axis=1)
    return columns


def _fillable(schema: RowSchema) -> tuple[str, ...]:
    """Return the columns of which a row may have no value."""
    fills = {"number": "fill", "date": "fills", "category": "missing"}
    return tuple(
        name
        for name, column in schema.columns.items()
        if column.kind in fills and getattr(column, fills[column.kind]) is not None
    )


def sparse_source(source: str, version: Version, store: Store) -> BatchSource:
    """Return sparse rows, with a label or without.

    Raises:
        ConfigError: if a column is beyond those of the model, or nobody knows from where columns count.
    """
    ((name, feature),) = version.signature.features.items()
    assert isinstance(feature, SparseFeature)
    model = f"{version.name} {version.version}"
    first_column = _first_column(version, store, model)
    files, names = located(source, SPARSE, what="sparse rows", model=model)
    parts: list[SourcePart] = []
    for file in names:
        rows = parse_rows(_Labelled(SourceFile(files, file)))[1]
        values: Array = rows.values
        values["column"] -= first_column
        wrong = (values["column"] < 0) | (values["column"] >= feature.columns)
        if wrong.any():
            raise ConfigError(
                f"{SourceFile(files, file)} must have columns {first_column} to {feature.columns - 1 + first_column}, "
                f"as {model} reads, got column {values['column'][int(wrong.argmax())] + first_column}. Mend the file."
            )
        parts += in_memory({name: Ragged(values, rows.offsets)}, file=None if is_one_file(source) else file)
    return BatchSource(source, tuple(parts), stamps_of(files, names))


def _first_column(version: Version, store: Store, model: str) -> int:
    dataset = version.lineage.dataset
    try:
        found = first_column_of(read_manifest(store, dataset.name, dataset.version))
    except NotFoundError:
        found = None
    if found is None:
        raise ConfigError(
            f"the dataset of {model}, {dataset.name}@{dataset.version}, must say whether columns count from 0 or 1, to "
            "read sparse rows, got none that does. Push the rows as a dataset and name that."
        )
    return found
