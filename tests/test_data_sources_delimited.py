"""Delimited text as people write it: encodings, delimiters, quotes, and files that are no data."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_store import MemoryStore
from PIL import Image

from cluster.errors import ConfigError
from models.features import TARGET
from orchestrator.data.push import push
from orchestrator.data.sources.delimited.blocks import Content
from orchestrator.data.sources.delimited.dialect import find_delimiter, quoting_of
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.rows import read_delimited


class Text(str):
    """A file in memory."""

    def head(self) -> bytes:
        return self.encode()

    def pieces(self, num_bytes: int) -> Iterator[bytes]:
        content = self.encode()
        yield from (content[start : start + num_bytes] for start in range(0, len(content), num_bytes))


def fields_of(text: str, **options: object) -> list[list[str]]:
    rows = read_delimited({"all": Text(text)}, options=SourceOptions.model_validate(options))
    return [[row[name] for name in rows.names] for row in rows.columns.table().to_pylist()]


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(source: str, **options: object):
    return prepare(source, options=SourceOptions.model_validate(options))


# ---- quotes


def test_a_quote_in_a_tab_separated_file_is_a_letter_unless_all_are_closed() -> None:
    assert fields_of('label\ttext\npos\t"good start\nneg\tbad\npos\t"fine\n') == [
        ["pos", '"good start'],
        ["neg", "bad"],
        ["pos", '"fine'],
    ]
    assert fields_of('label\ttext\npos\t"good"\nneg\t"so ""bad"""\n') == [["pos", "good"], ["neg", 'so "bad"']]
    assert fields_of('label\ttext\npos\t"good"\nneg\t"bad\n') == [["pos", '"good"'], ["neg", '"bad']]
    assert fields_of('a\tb\n"x\ty"\n1\t2\n') == [['"x', 'y"'], ["1", "2"]]
    assert fields_of('a\tb\n"x\ty"\tz\n1\t2\n') == [["x\ty", "z"], ["1", "2"]]
    assert fields_of('a\tb\n"x\ny"\tz\n1\t2\n') == [["x\ny", "z"], ["1", "2"]]
    assert fields_of('a\tb\n5" pipe\tz "\n1\t2\n') == [['5" pipe', 'z "'], ["1", "2"]]


def test_texts_that_begin_with_a_quote_keep_all_their_rows(tmp_path: Path) -> None:
    lines = [f"{'pos' if i % 2 else 'neg'}\t{chr(34) * (i % 2)}a{i // 20} b{i % 20} c{i % 7}\n" for i in range(400)]
    prepared = read(written(tmp_path / "t.tsv", "label\ttext\n" + "".join(lines)))
    assert sum(part.rows for part in prepared.splits.values()) == 400
    assert sum(part.columns[TARGET].sum() for part in prepared.splits.values()) == 200


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_lone_quote_that_explains_fewer_rows_than_lines_is_refused(delimiter: str) -> None:
    text = 'label,text\npos,"good\nneg,bad"\npos,x\n'.replace(",", delimiter)
    expected = r"row 2 and goes over the end of the line: 3 rows if quotes enclose fields, 4 if they are letters"
    with pytest.raises(ConfigError, match=expected):
        fields_of(text)
    assert fields_of(text, quotes="letters") == [["pos", '"good'], ["neg", 'bad"'], ["pos", "x"]]
    assert fields_of(text, quotes="fields") == [["pos", f"good\nneg{delimiter}bad"], ["pos", "x"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n"x,1\ny,2\n', r"must end with one, got unexpected end of data in row 2. Read quotes as letters with"),
        ('a,b\n1,"Great" film\n2,x\n', r"got .* in row 2. Read quotes as letters with --option quotes=letters, or"),
        ('a,b\n1,"a ""good, film\n2,x\n', r"got unexpected end of data in row 2. Double it, or close it"),
    ],
)
def test_a_quote_that_is_not_closed_is_refused_where_it_stands(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fields_of(text)


def test_quoted_fields_on_one_line_need_no_second_look() -> None:
    assert quoting_of(Content(Text('a,b\n"x","y, z"\n"",1\n')), ",", None) == ("fields", False)
    assert quoting_of(Content(Text("a,b\nx,y\n")), ",", None) == ("letters", False)
    assert quoting_of(Content(Text('a,b\n"x\ny",2\n')), ",", None) == ("fields", True)


# ---- delimiters and encodings


def test_the_delimiter_is_the_one_that_cuts_all_rows_alike() -> None:
    assert find_delimiter(b"a,b;c,d\n1;2\n3;4\n", "f") == ";"
    assert find_delimiter(b"a|b\tc\nx\ty\n", "f") == "\t"
    assert find_delimiter(b"1::2::3\n", "f") == "::"
    with pytest.raises(ConfigError, match=r"cut into fields in one way, got commas and semicolons.*'delimiter=\";\"'"):
        find_delimiter(b"x,y;z\n1,5;2\n2,5;3\n", "f")
    assert fields_of("x,y;z\n1,5;2\n2,5;3\n", delimiter=";") == [["1,5", "2"], ["2,5", "3"]]
    assert fields_of("x,y\tz\n1,5\t2\n", delimiter="tab") == [["1,5", "2"]]


@pytest.mark.parametrize(("encoding", "town"), [("latin-1", "Zürich"), ("cp1252", "“Zürich”")])
def test_a_table_that_is_not_utf_8_is_read_as_what_it_is_and_says_so(tmp_path: Path, encoding: str, town: str) -> None:
    text = "town,x,label\n" + "".join(f"{town if i % 2 else 'Ulm'},{i},{i % 2}\n" for i in range(40))
    prepared = read(written(tmp_path / "t.csv", text.encode(encoding)))
    assert set(prepared.features["town"].vocabulary) == {town, "Ulm"}
    assert prepared.source.format == f"table ({encoding})"
    lines = "".join(f"{town} number {i} or {i % 37},{i % 2}\n" for i in range(40))
    reviews = written(tmp_path / "r.csv", f"text,label\n{lines}".encode(encoding))
    assert read(reviews).source.format == f"text ({encoding})"


TABLE = "x,label\n" + "".join(f"{i},{'yes' if i % 3 else 'no'}\n" for i in range(60))


def test_gzipped_tables_are_read_in_folders_too(tmp_path: Path) -> None:
    alone = read(written(tmp_path / "t.csv", TABLE))
    zipped = gzip.compress(TABLE[:200].encode()) + gzip.compress(TABLE[200:].encode())
    written(tmp_path / "folder" / "People.csv.gz", zipped)
    found = read(str(tmp_path / "folder"))
    assert found.name == "people"
    assert np.array_equal(found.splits["train"].columns["numbers"], alone.splits["train"].columns["numbers"])
    for split in ("train", "test"):
        written(tmp_path / "splits" / f"{split}.csv.gz", gzip.compress(TABLE.encode()))
    assert {split: part.rows for split, part in read(str(tmp_path / "splits")).splits.items()} == {
        "train": 60,
        "test": 60,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(TABLE.encode())[:-20], "t.csv.gz must be a whole gzipped file, got one that ends early"),
        (b"x,label\n1,2\n", "t.csv.gz must be a whole gzipped file, got"),
        (gzip.compress(b"x,label\n" + b"1,2\n" * 50_000_000), "got more than it should unpack to"),
    ],
    ids=["cut", "not gzipped", "bomb"],
)
def test_damaged_gzipped_tables_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    written(tmp_path / "f" / "t.csv.gz", content)
    with pytest.raises(ConfigError, match=message):
        read(str(tmp_path / "f"))


# ---- what is no data


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def test_names_that_begin_with_an_underscore_are_data(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "cat" / f"_MG_{1000 + i}.PNG", i)
        picture(tmp_path / "_other" / f"{i}.png", 100 + i)
    prepared = read(str(tmp_path))
    assert prepared.target.classes == ("_other", "cat")
    assert sum(part.rows for part in prepared.splits.values()) == 40
    assert prepared.notes == ()


def test_what_is_no_data_is_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(20):
        picture(tmp_path / "cat" / f"{i}.png", i)
        picture(tmp_path / "dog" / f"{i}.png", 100 + i)
    for name in ("cat/Thumbs.db", "dog/desktop.ini", "README.md", "LICENSE", "__MACOSX/cat/._1.png", ".DS_Store"):
        written(tmp_path / name, "x")
    manifest = push(MemoryStore(), str(tmp_path)).manifest  # type: ignore[arg-type]
    assert sum(split.rows for split in manifest.splits.values()) == 40
    assert tuple(change.text for change in manifest.source.changes) == (
        "left out 6 files: .DS_Store, LICENSE, README.md, __MACOSX/cat/._1.png, cat/Thumbs.db, …",
    )


def test_an_underscore_hides_no_table(tmp_path: Path) -> None:
    written(tmp_path / "_data.csv", TABLE)
    written(tmp_path / "_SUCCESS", "")
    prepared = read(str(tmp_path))
    assert sum(part.rows for part in prepared.splits.values()) == 60
    assert prepared.notes == ("left out 1 file: _SUCCESS",)


def test_files_beside_a_table_are_counted_too(tmp_path: Path) -> None:
    for name in ("data.csv", "README.md", "notes/old.csv"):
        written(tmp_path / name, TABLE)
    assert read(str(tmp_path)).notes == ("left out 2 files: README.md, notes/old.csv",)
