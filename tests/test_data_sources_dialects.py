"""Whatever Python's `csv` and pandas write, in any of their dialects, is read back as it was or refused."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from models.features import VectorFeature
from models.preparing.rows import CategoryColumn, NumberColumn, is_missing
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Prepared

CASES = 1000  # of each writer
QUOTINGS = (csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE)

texts = st.text(alphabet="ab ,;|\"\t\n\r'é.-", max_size=5)
words = st.sampled_from(["cook", "smith", "NA", "", "a b", '"', '"x', 'x"', '"x"', "d;e", "f,g", "None", "ü"])
numbers = st.one_of(
    st.none(), st.integers(-9999, 99999), st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([0.1, 1e-7])
)
rows = st.lists(st.tuples(numbers, st.one_of(texts, words)), min_size=8, max_size=14)


@dataclass(frozen=True)
class Dialect:
    """How a file is written."""

    delimiter: str
    quoting: int
    decimal: str
    line_end: str
    missing: str
    has_mark: bool
    has_index: bool


dialects = st.builds(
    Dialect,
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from(QUOTINGS),
    decimal=st.sampled_from([".", ".", ","]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    missing=st.sampled_from(["", "NA", "?", "NaN", "null"]),
    has_mark=st.booleans(),
    has_index=st.booleans(),
)


def by_csv(table: list[tuple[float | None, str]], dialect: Dialect) -> str:
    def as_text(value: float | None) -> str | float:
        if value is None:
            return dialect.missing
        return value if dialect.decimal == "." else repr(value).replace(".", ",")

    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=dialect.delimiter, quoting=dialect.quoting, lineterminator=dialect.line_end)  # type: ignore[arg-type]
    writer.writerow(["n", "x", "word", "label"])
    for number, (x, word) in enumerate(table):
        writer.writerow([as_text(number + 0.5), as_text(x), word, "yn"[number % 2]])
    return file.getvalue()


def by_pandas(table: list[tuple[float | None, str]], dialect: Dialect) -> str:
    frame = pd.DataFrame(
        {
            "n": [number + 0.5 for number in range(len(table))],
            "x": pd.array([math.nan if x is None else x for x, _ in table], dtype="float64"),
            "word": [word for _, word in table],
            "label": ["yn"[number % 2] for number in range(len(table))],
        }
    )
    return frame.to_csv(
        sep=dialect.delimiter,
        quoting=dialect.quoting,  # type: ignore[arg-type]
        decimal=dialect.decimal,
        lineterminator=dialect.line_end,
        na_rep=dialect.missing,
        index=dialect.has_index,
    )


WRITERS = {"csv": by_csv, "pandas": by_pandas}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_read_back_or_refused_and_most_of_it_is_read(tmp_path: Path, writer: str) -> None:
    read_back = []

    @given(table=rows, dialect=dialects, names_decimal=st.sampled_from([True, True, True, False]))
    @settings(
        max_examples=CASES,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    def check(table: list[tuple[float | None, str]], dialect: Dialect, names_decimal: bool) -> None:
        read_back.append(is_read_back(tmp_path / "t.csv", writer, table, dialect, names_decimal=names_decimal))

    check()
    assert sum(read_back) > 0.6 * CASES


def is_read_back(
    path: Path, writer: str, table: list[tuple[float | None, str]], dialect: Dialect, *, names_decimal: bool
) -> bool:
    """Whether a table is read, and then as it was; ``False`` if it is refused."""
    assume(dialect.quoting != csv.QUOTE_NONE or not any(is_enclosed(word) for _, word in table))
    try:
        content = WRITERS[writer](table, dialect)
    except csv.Error:  # without quotes, this text cannot be written
        assume(False)
    path.write_bytes(("\ufeff" * dialect.has_mark + content).encode())
    options = SourceOptions(
        missing="mean",
        decimal="," if dialect.decimal == "," and names_decimal else None,
        ignore=(1,) if writer == "pandas" and dialect.has_index else None,
    )
    try:
        prepared = prepare(str(path), format="table", options=options)
    except ConfigError:
        return False
    assert_equal(prepared, table)
    return True


def is_enclosed(word: str) -> bool:
    """Whether a text looks like a quoted field: without quotes around texts, no reader can tell."""
    return word.startswith('"') and word.endswith('"')


def assert_equal(prepared: Prepared, table: list[tuple[float | None, str]]) -> None:
    assert prepared.rows is not None
    column = prepared.rows.columns["x"]
    names = [name for name in prepared.rows.columns if isinstance(prepared.rows.columns[name], NumberColumn)]
    feature = prepared.features["numbers"]
    assert isinstance(feature, VectorFeature)
    offset = feature.offsets[names.index("x")] if "x" in names else 0.0
    seen = []
    for part in prepared.splits.values():
        for row in range(part.rows):
            values = dict(zip(names, np.asarray(part.columns["numbers"])[row].tolist(), strict=True))
            number = int(values["n"] - 0.5)
            seen.append(number)
            x, word = table[number]
            if isinstance(column, NumberColumn):
                assert values["x"] == np.float32((column.fill if x is None else x) - offset)
            assert_word(prepared, part.columns, row, word)
    assert sorted(seen) == list(range(len(table)))


def assert_word(prepared: Prepared, columns, row: int, word: str) -> None:
    assert prepared.rows is not None
    rule = prepared.rows.columns["word"]
    assert isinstance(rule, CategoryColumn)
    vocabulary = prepared.features["word"].vocabulary  # type: ignore[union-attr]
    index = int(columns["word"][row])
    expected = rule.missing if is_missing(word, prepared.rows.missing_words) else word.strip()
    assert vocabulary[index - 1] == expected if index else expected not in vocabulary
