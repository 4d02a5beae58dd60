"""Large text files are read block by block and wait on disk, and become what they become when read at once."""

import csv
import gzip
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_store import MemoryStore
from hypothesis import HealthCheck, assume, given, settings
from test_data_sources_dialects import Dialect, by_csv, dialects, rows

from cluster.errors import ConfigError
from cluster.machine.state import RayState
from cluster.s3.store import Store
from orchestrator.data import columns
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import push
from orchestrator.data.pushing import pieces
from orchestrator.data.sources.delimited import blocks, parsing, shelf
from orchestrator.data.sources.delimited.blocks import Content
from orchestrator.data.sources.delimited.plain import plain_fields
from orchestrator.data.sources.delimited.shelf import Shelf, Shelved
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.located import split_files
from orchestrator.data.sources.options import SourceOptions, parse_options
from orchestrator.data.sources.prepared import Prepared
from orchestrator.data.sources.rows import read_delimited

BLOCK = 256  # bytes


def in_blocks(patch: pytest.MonkeyPatch) -> None:
    """Let every file count as a large one, of many blocks and pieces."""
    patch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    patch.setattr(parsing, "BLOCK_BYTES", BLOCK)
    patch.setattr(shelf, "LARGE_BYTES", 0)
    for module in ("table", "shelf"):
        patch.setattr(f"orchestrator.data.sources.delimited.{module}.PIECE_BYTES", BLOCK)
    patch.setattr(columns, "_BLOCK_NUMBERS", 16)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch)


def read(source: str, *, is_large: bool, **options: object) -> Prepared:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_BLOCK_NUMBERS", 16)  # sums are made of the same blocks
        if is_large:
            in_blocks(patch)
        return prepare(source, options=parse_options(options))


def assert_same(one: Prepared, other: Prepared) -> None:
    assert replace(one, splits={}) == replace(other, splits={})
    assert one.splits.keys() == other.splits.keys()
    for split, part in one.splits.items():
        for name, column in part.columns.items():
            np.testing.assert_array_equal(column, other.splits[split].columns[name])


def people(rows: int = 200) -> str:
    """A table with what columns have: fractions, gaps, dates, large numbers, notations and categories."""
    draw = random.Random(0)
    lines = ["age,height,born,seen,pay,job,town,label"]
    for row in range(rows):
        job = draw.choice(["cook", "smith", '"tinker, tailor"', ""])
        age = draw.choice(["", str(draw.randrange(90))])
        born = f"{draw.randrange(1930, 2010)}-{draw.randrange(1, 13):02}-11"
        town = draw.choice(["Ulm", "Bonn", "NA"])
        numbers = f"{draw.random() * 2:.2f},{born},{1_700_000_000 + 37 * row},${draw.randrange(10**6)}.00"
        lines.append(f"{age},{numbers},{job},{town},{draw.choice('yn')}")
    return "\n".join(lines) + "\n"


POLICIES = ({"missing": "mean", "indicators": True}, {"missing": "drop"}, {"missing": "category"})


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


# ---- the same as at once


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_table_becomes_what_it_becomes_at_once(tmp_path: Path, policy: dict[str, object]) -> None:
    source = written(tmp_path / "people.csv", people())
    options = policy | {"dates": ["year", "month"]}
    found = read(source, is_large=True, **options)
    assert_same(found, read(source, is_large=False, **options))
    assert all(isinstance(piece, Shelved) for part in found.splits.values() for piece in part.pieces)
    assert len(found.splits["train"].pieces) > 5


def test_files_of_splits_gzipped_ones_and_other_encodings_are_the_same(tmp_path: Path) -> None:
    text = people().replace("Bonn", "Köln")
    for split, content in {"train": text, "test": text[: len(text) // 2].rpartition("\n")[0]}.items():
        written(tmp_path / "plain" / f"{split}.csv", content)
        packed = gzip.compress(content[:3000].encode("latin-1")) + gzip.compress(content[3000:].encode("latin-1"))
        written(tmp_path / "packed" / f"{split}.csv.gz", packed)
    options: dict[str, object] = {"missing": "drop", "ignore": ["born"]}
    expected = read(str(tmp_path / "plain"), is_large=False, **options)
    assert_same(read(str(tmp_path / "plain"), is_large=True, **options), expected)
    found = read(str(tmp_path / "packed"), is_large=True, **options)
    assert found.source.format == "table (latin-1)"
    assert_same(replace(found, name=expected.name, source=expected.source), expected)


@pytest.mark.parametrize("copies", ["last", "mean"])
@pytest.mark.parametrize("delimiter", [",", "::"])
def test_large_ratings_become_what_they_become_at_once(tmp_path: Path, copies: str, delimiter: str) -> None:
    draw = random.Random(1)
    rated = [f"{draw.randrange(40)},i{draw.randrange(30)} ,{draw.randrange(1, 6)},{n}" for n in range(400)]
    header = "user_id,book_id,rating,time\n" if delimiter == "," else ""
    source = written(tmp_path / "r.dat", (header + "\n".join(rated)).replace(",", delimiter))
    options: dict[str, object] = {"copies": copies}
    found = read(source, is_large=True, **options)
    assert_same(found, read(source, is_large=False, **options))
    assert len(found.splits["train"].pieces) > 5
    assert sum(part.rows for part in found.splits.values()) == len({tuple(line.split(",")[:2]) for line in rated})


def test_large_sparse_rows_become_what_they_become_at_once(tmp_path: Path) -> None:
    draw = random.Random(2)
    lines = [f"{n % 2} {draw.randrange(1, 5)}:{n} {draw.randrange(5, 99)}:0.5 # row {n}" for n in range(200)]
    source = written(tmp_path / "rows.svm", "# made\n\n" + "\n".join(lines) + "\n")
    one, other = read(source, is_large=True), read(source, is_large=False)
    assert one.features == other.features
    for split, part in one.splits.items():
        for name, column in part.columns.items():
            expected = other.splits[split].columns[name]
            assert [*map(np.ndarray.tolist, map(np.asarray, column))] == [
                *map(np.ndarray.tolist, map(np.asarray, expected))
            ]
    written(tmp_path / "rows.svm", "\n".join([*lines, "1 5:x"]))
    with pytest.raises(ConfigError, match=r"column:value in field 2, got '5:x' in row 201"):
        read(source, is_large=True)


def test_what_is_written_in_any_dialect_is_the_same(tmp_path: Path) -> None:
    outcomes = []

    @given(table=rows, dialect=dialects)
    @settings(
        max_examples=400,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    def check(table: list[tuple[float | None, str]], dialect: Dialect) -> None:
        try:
            content = by_csv(table * 4, dialect)
        except csv.Error:
            assume(False)
        (tmp_path / "t.csv").write_text(content, newline="")
        outcomes.append(same_outcome(str(tmp_path / "t.csv")))

    check()
    assert sum(outcomes) > 100, "most are read"


def same_outcome(source: str) -> bool:
    """Whether a table is read, in blocks as at once; ``False`` if both refuse it with the same words."""
    options: dict[str, object] = {"missing": "mean", "categories": ["word"]}
    found: list[Prepared | str] = []
    for is_large in (False, True):
        try:
            found.append(read(source, is_large=is_large, **options))
        except ConfigError as error:
            found.append(str(error))
    whole, in_parts = found
    if isinstance(whole, str) or isinstance(in_parts, str):
        assert whole == in_parts
        return False
    assert_same(whole, in_parts)
    return True


# ---- what is wrong is named where it is


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1,2,3", r"must have 2 fields, separated by commas, got 3 in row 151"),
        (b"1,\0", r"got a NUL byte in row 151"),
        (b"1,\xff\xc3\xa4", r"must be a text file in UTF-8, got invalid start byte in row 151, beside others"),
        (b"1,\x81\x80", r"in UTF-8 or Latin-1, got byte 0x81 in row 151"),
        (b'1,"x', r"must end with one, got unexpected end of data in row 151"),
        (b"1," + b"x" * 600, r"must have rows of at most 256 bytes, got a longer one"),
    ],
)
@pytest.mark.usefixtures("large")
def test_a_fault_in_a_later_block_is_named_with_its_row(tmp_path: Path, line: bytes, message: str) -> None:
    lines = [b"x,label", *(b"%d,%d" % (row, row % 2) for row in range(149)), line, b"1,0"]
    with pytest.raises(ConfigError, match=message):
        prepare(written(tmp_path / "t.csv", b"\n".join(lines)), options=SourceOptions(), format="table")


@pytest.mark.usefixtures("large")
def test_blocks_end_where_lines_do(tmp_path: Path) -> None:
    class Pieces:
        def head(self) -> bytes:
            return b"a"

        def pieces(self, num_bytes: int) -> Iterator[bytes]:
            yield from (content[start : start + num_bytes] for start in range(0, len(content), num_bytes))

    for end in (b"\n", b"\r\n", b"\r"):
        content = b"\xef\xbb\xbf" + end.join(b"line %d" % row for row in range(300))
        found = list(Content(Pieces()).blocks())
        assert b"".join(found) == content[3:]
        assert len(found) > 5
        assert all(block.endswith(end) for block in found[:-1])


# ---- where it waits


def test_what_waits_on_disk_is_gone_with_the_last_who_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "waiting"))
    (tmp_path / "waiting").mkdir()
    found = read(written(tmp_path / "people.csv", people()), is_large=True, missing="drop", ignore=["born"])
    assert len(list((tmp_path / "waiting").iterdir())) == 1
    del found
    assert list((tmp_path / "waiting").iterdir()) == []
    place = Shelf().path
    assert not place.exists()


def test_a_large_table_is_pushed_as_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_BLOCK_NUMBERS", 16)
    source = written(tmp_path / "people.csv", people())
    options = parse_options({"missing": "drop", "ignore": ["born"]})
    small = push(MemoryStore(), source, options=options).manifest
    in_blocks(monkeypatch)
    large = push(MemoryStore(), source, options=options).manifest
    assert large.splits == small.splits
    assert large.features == small.features


@pytest.mark.ray
@pytest.mark.store
@pytest.mark.usefixtures("large")
def test_a_large_table_is_pushed_as_the_same_version_by_ray_data(
    store: Store, ray_cluster: RayState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "people.csv", people(60))
    options = parse_options({"missing": "drop", "ignore": ["born"]})
    alone = push(MemoryStore(), source, options=options).manifest
    spread = push(store, source, options=options, on_cluster="always", address=ray_cluster.address).manifest
    assert spread.model_copy(update={"created": alone.created}) == alone
    assert open_dataset(store, "people").manifest == spread
    monkeypatch.setattr(pieces, "_has_cluster", lambda _address: False)
    with pytest.raises(ConfigError, match=r"--cluster must be auto or never for a large source of text"):
        push(store, source, options=options, name="other", on_cluster="always", address=ray_cluster.address)


@pytest.mark.store
@pytest.mark.usefixtures("large")
def test_a_large_object_is_read_range_by_range_and_must_stay_as_it_is(store: Store, tmp_path: Path) -> None:
    text = people()
    store.write("raw/people.csv", text.encode())
    url = f"{store.settings.url}/raw/"
    options: dict[str, object] = {"missing": "drop", "ignore": ["born"]}
    expected = read(written(tmp_path / "people.csv", text), is_large=False, **options)
    found = read(url, is_large=True, **options)
    assert_same(replace(found, name="people", source=expected.source), expected)

    def changed(_block: bytes) -> bool:
        store.write("raw/people.csv", text.replace("cook", "king").encode())
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_end_of_lines", lambda data: (changed(data), data.rfind(b"\n") + 1)[1])
        with pytest.raises(ConfigError, match=r"people.csv must stay as it is while it is read, got another one"):
            read(url, is_large=True, **options)


# ---- many columns


def wide(columns: int) -> str:
    """A table of numbers, among which are codes, identifiers, gaps, categories and numbers of many digits."""
    draw = random.Random(3)
    odd = {
        "code": lambda row: f"{row % 7:03}",
        "user_id": lambda row: str(row % 9),
        "gap": lambda row: "" if row == 3 else str(row),
        "town": lambda row: "Ulm" if row % 2 else "Bonn",
        "exact": lambda row: str(2**53 + 2 * row),
        "time": lambda row: str(1_700_000_000 + 37 * row),
        "even": lambda row: f"0.{row + 100}",
    }
    plain = {f"x{n}": lambda _row, n=n: f"{draw.normalvariate():.{n % 5}f}" for n in range(columns)}
    every = list((plain | odd).items())
    draw.shuffle(every)
    lines = [",".join([name for name, _ in every] + ["label"])]
    lines += [",".join([value(row) for _, value in every] + ["yn"[row % 2]]) for row in range(40)]
    return "\n".join(lines) + "\n"


def test_columns_of_plain_numbers_are_read_at_once_as_they_are_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "wide.csv", wide(60))
    options: dict[str, object] = {"missing": "mean", "categories": ["code"], "numbers": ["user_id"]}
    at_once = read(source, is_large=False, **options)
    found: list[str] = []
    monkeypatch.setattr("orchestrator.data.sources.delimited.table.plain_fields", lambda *_: found.append("") or {})
    assert_same(at_once, read(source, is_large=False, **options))
    assert found
    with pytest.raises(ConfigError, match=r"code: '000' and the like, codes that begin with 0"):
        read(source, is_large=False, missing="mean")


def test_only_columns_of_plain_numbers_are_read_at_once(tmp_path: Path) -> None:
    rows = read_delimited(split_files(written(tmp_path / "wide.csv", wide(60)), suffixes=(".csv",)))
    names = [name for name in rows.names if name != "label"]
    found = plain_fields(rows, names, SourceOptions())
    assert not found.keys() & {"code", "user_id", "gap", "town", "exact", "time"}
    assert len(found) > 40, "those beside a gap or a word are read one by one"
