"""Reads texts by the rules of a version: its vocabulary, its longest text, and its classes or a number."""

import numpy as np

from cluster.errors import ConfigError
from models.features import TARGET, TextFeature
from models.preparing.rows import TextColumn
from models.text import tokens
from orchestrator.data.appending.rules import CURE, Rules
from orchestrator.data.appending.tables import check_columns
from orchestrator.data.appending.targets import class_labels, named_target, read_targets
from orchestrator.data.columns import Array, Ragged
from orchestrator.data.manifest import Source
from orchestrator.data.order import Ints
from orchestrator.data.sources.delimited.encoding import in_encoding
from orchestrator.data.sources.located import ALL, split_files
from orchestrator.data.sources.prepared import Part, Prepared
from orchestrator.data.sources.rows import read_delimited
from orchestrator.data.sources.text import TABLE_SUFFIXES, is_table, texts_in_files


def read_more_text(source: str, rules: Rules) -> Prepared:
    """Read texts by the rules of a version; a table if the version is of one, otherwise files.

    Raises:
        ConfigError: if the source is of the other kind, or a class is unknown.
    """
    if is_table(source) is not (rules.manifest.rows is not None):
        kinds = ("a table with a column of texts", "files of texts in folders or lines")
        wanted, got = kinds if rules.manifest.rows is not None else kinds[::-1]
        raise ConfigError(f"{source} must be {wanted}, as the source of {rules} was, got {got}. {CURE}")
    return _from_table(source, rules) if is_table(source) else _from_files(source, rules)


def _from_table(source: str, rules: Rules) -> Prepared:
    rows = read_delimited(split_files(source, suffixes=TABLE_SUFFIXES), options=rules.options)
    target = named_target(rows.names, rules, rows.place)
    check_columns(rows, rules)
    ((name, column),) = rules.schema.columns.items()
    assert isinstance(column, TextColumn)
    texts = rows.column(name).to_pylist()
    labels = read_targets(rows, target, rules, np.arange(len(rows)))
    return rules.read(
        _parts(texts, labels, rows.rows, rules), Source(format=in_encoding("text", rows.encoding), uri=source)
    )


def _from_files(source: str, rules: Rules) -> Prepared:
    found = texts_in_files(source, rules.options)
    of_file = class_labels(found.classes, rules, found.files.__getitem__)
    rows_of = found.splits or {ALL: np.arange(len(found.texts))}
    return rules.read(
        _parts(found.texts, of_file[found.origin], rows_of, rules),
        Source(format=in_encoding("text", found.encoding), uri=source),
    )


def _parts(texts: list[str], labels: Array, rows_of: dict[str, Ints], rules: Rules) -> dict[str, Part]:
    feature = rules.features["text"]
    assert isinstance(feature, TextFeature)
    tokens_of = [np.array(tokens(text, feature), np.int32) for text in texts]
    return {
        split: Part.of(
            {"text": Ragged.of([tokens_of[row] for row in rows.tolist()], dtype=np.int32), TARGET: labels[rows]}
        )
        for split, rows in rows_of.items()
    }
