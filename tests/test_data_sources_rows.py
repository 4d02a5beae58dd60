"""Tables, ratings and sparse rows: what they become, how they are split, and how malformed ones are named."""

import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.errors import ConfigError
from models.features import TARGET, CategoricalFeature, ClassTarget, NumberTarget, SparseFeature
from orchestrator.data.row_hashes import equal_rows
from orchestrator.data.sources.delimited import parsing
from orchestrator.data.sources.delimited.blocks import Content
from orchestrator.data.sources.delimited.dialect import Quoting
from orchestrator.data.sources.formats import detect, prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.splitting import stratified, together

PEOPLE = "age;job;label\n" + "".join(
    f"{i}.5;{'cook' if i % 2 else 'smith'};{'yes' if i % 4 else 'no'}\n" for i in range(40)
)


def written(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(source: str, **options):
    return prepare(source, options=SourceOptions(**options))


def all_rows(prepared, name):
    return np.concatenate([part.columns[name] for part in prepared.splits.values()])


def test_a_table_becomes_numbers_categories_and_classes(tmp_path):
    prepared = read(written(tmp_path / "people.csv", PEOPLE))
    assert prepared.name == "people"
    assert prepared.target == ClassTarget(classes=("no", "yes"))
    assert prepared.features["numbers"].names == ("age",)
    assert prepared.features["job"] == CategoricalFeature(vocabulary=("cook", "smith"))
    train, test = prepared.splits["train"].columns, prepared.splits["test"].columns
    assert np.bincount(train[TARGET]).tolist() == [8, 24]
    assert np.bincount(test[TARGET]).tolist() == [2, 6]
    assert prepared.features["numbers"].mean == pytest.approx((train["numbers"].mean(),))
    for part in (train, test):
        for (age,), job, label in zip(part["numbers"], part["job"], part[TARGET], strict=True):
            assert ("smith", "cook")[int(age) % 2] == ("?", "cook", "smith")[job]
            assert (int(age) % 4 > 0) == label


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_delimiters_line_ends_and_byte_order_marks_make_no_difference(tmp_path, delimiter, line_end, mark):
    expected = read(written(tmp_path / "a.csv", PEOPLE))
    source = written(tmp_path / "b.csv", mark + PEOPLE.replace(";", delimiter).replace("\n", line_end))
    found = read(source)
    assert found.features == expected.features
    assert np.array_equal(all_rows(found, "numbers"), all_rows(expected, "numbers"))


def test_quoted_fields_may_hold_delimiters_and_line_ends(tmp_path):
    rows = (f'{i},"Bonn, Rhein",a\n{-i},"Ulm\nDonau",b\n' for i in range(1, 20))
    text = "x,place,label\n" + "".join(rows)
    prepared = read(written(tmp_path / "t.csv", text))
    assert prepared.features["place"].vocabulary == ("Bonn, Rhein", "Ulm\nDonau")
    source = written(tmp_path / "t.csv", text + 'x,"Ulm\nDonau",b\n')
    with pytest.raises(ConfigError, match=r"x in .* got 'x' in row 40"):
        read(source)


def test_whole_numbers_are_classes_while_there_are_few_and_the_task_may_be_named(tmp_path):
    def target(values, **options):
        text = "x,target\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values))
        return read(written(tmp_path / "t.csv", text), **options).target

    assert target([-1, 1] * 30) == ClassTarget(classes=("-1", "1"))
    assert target(list(range(20)) * 5) == ClassTarget(classes=tuple(map(str, range(20))))
    assert isinstance(target(list(range(21)) * 5), NumberTarget)
    assert isinstance(target([1.5, 2] * 30), NumberTarget)
    assert isinstance(target([1, 2] * 30, task="number"), NumberTarget)
    assert len(target(list(range(21)) * 5, task="class").classes) == 21
    with pytest.raises(ConfigError, match=r"must be text or whole numbers for classes, got 1\.5"):
        target([1.5, 2] * 30, task="class")
    with pytest.raises(ConfigError, match="must be a finite number in 32 bits, got 'a' in row 2"):
        target(["a", "b"] * 30, task="number")


def test_train_and_test_files_are_the_split(tmp_path):
    written(tmp_path / "d" / "train.csv", "x,c,label\n1,a,u\n2,b,v\n3,a,v\n")
    written(tmp_path / "d" / "test.csv", "label,c,x\nv,new,5\n")  # columns are found by name
    prepared = read(str(tmp_path / "d"))
    assert prepared.name == "d"
    assert {name: part.rows for name, part in prepared.splits.items()} == {"train": 3, "test": 1}
    test = prepared.splits["test"].columns
    assert (test["numbers"].tolist(), test["c"].tolist(), test[TARGET].tolist()) == ([[5.0]], [0], [1])
    with pytest.raises(ConfigError, match=r"seed must be left out for .*, which says itself what tests, got 1"):
        read(str(tmp_path / "d"), seed=1)


def test_equal_rows_stay_on_one_side(tmp_path):
    text = "a,b,label\n" + "".join(f"{i % 7},{'xyz'[i % 3]},{i % 2}\n" for i in range(420))
    for seed in range(5):
        prepared = read(written(tmp_path / "t.csv", text), seed=seed)
        sides = []
        for part in prepared.splits.values():
            words = ("?", *prepared.features["b"].vocabulary)
            sides.append({(a, words[b]) for (a,), b in zip(part.columns["numbers"], part.columns["b"], strict=True)})
        assert not sides[0] & sides[1]
        assert sides[1]


def test_a_stratified_draw_keeps_groups_and_shares():
    labels = np.repeat([0, 1], [300, 100])
    groups = np.arange(400) // 2
    train, test = stratified(labels, test_share=0.25, seed=3, groups=groups)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(400))
    assert not set(groups[train]) & set(groups[test])
    assert np.bincount(labels[test]) == pytest.approx([75, 25], abs=1)


def test_large_groups_do_not_keep_the_test_split_small():
    groups = np.concatenate([np.arange(120), np.repeat([120, 121, 122], [30, 35, 39])])
    for seed in range(20):
        train, test = stratified(np.zeros(len(groups)), test_share=0.2, seed=seed, groups=groups)
        assert len(test) == round(0.2 * len(groups))
        assert not set(groups[train]) & set(groups[test])


def test_groups_of_two_kinds_are_joined():
    one, other = np.array([0, 0, 1, 2, 3, 4]), np.array([0, 1, 1, 2, 2, 3])
    assert together(one, other).tolist() == [0, 0, 0, 1, 1, 2]
    assert together(other, one).tolist() == [0, 0, 0, 1, 1, 2]
    chain = np.arange(60) // 2
    assert together(chain, np.append(0, chain[:-1] + 1)).tolist() == [0] * 60


def test_rows_are_equal_when_all_their_columns_are():
    groups = equal_rows([np.array([1, 1, 2, 1]), np.array([[0.0], [1.0], [0.0], [0.0]])])
    assert groups.tolist() == [0, 1, 2, 0]


@pytest.mark.store
def test_files_under_an_s3_prefix_are_found_and_read(store):
    train, test = "x,c,label\n1,a,u\n2,b,v\n3,a,v\n", "x,c,label\n5,a,v\n"
    for name, text in {"t/train.csv": train, "t/test.csv": test, "s/a.svm": SPARSE, "t/.DS_Store": "\0"}.items():
        store.write(name, text.encode())
    table = prepare(f"{store.settings.url}/t")
    assert (table.name, table.source.format) == ("t", "table")
    assert {name: part.rows for name, part in table.splits.items()} == {"train": 3, "test": 1}
    assert prepare(f"{store.settings.url}/s").features == {"sparse": SparseFeature(columns=39)}
    store.write("t/test.csv", b"x,c,label\n5,a,v\n6,a\n")
    with pytest.raises(ConfigError, match=r"s3://.*/t/test\.csv must have 3 fields, .*, got 2 in row 3"):
        prepare(f"{store.settings.url}/t")


TABLES = [
    ("", "must hold at least 1 row, got an empty file"),
    ("a,label\n", "must hold at least 1 row, got 0"),
    ("alone\n1\n2\n", "must have two columns or more, separated by commas, .*, got 'alone'"),
    ("1,2\n3,4\n", "must begin with a header, .* with the number 1. Add a header"),
    (
        "a,,label\n1,2,x\n",
        "must name its columns, got no name for column 2, which holds '2', … Leave",
    ),
    ("a,b\x1b[2J,label\n1,2,x\n", r"must begin with a name for each column, got 'b\\x1b\[2J' for column 2"),
    ("a,a,label\n1,2,x\n", "must name each column once, got 'a' 2 times"),
    ("a,label\n1,x\n2\n", "must have 2 fields, separated by commas, got 1 in row 3"),
    (
        "a,label\n1,x\n\n2,y,z\n",
        "must have 2 fields, separated by commas, got 3 in row 4. Enclose .*, as R writes them,",
    ),
    ("a,label\n1,x\n2,y,z,w\n", "separated by commas, got 4 in row 3. Enclose fields that hold commas in quotes.$"),
    (
        "a,label\n1,x\n,y\n",
        "got none in . rows of these columns: a in 1; the first is a in row 3",
    ),
    (
        "a,label\nred,x\n,y\nblue,x\n",
        "got none in . rows of these columns: a in 1; the first is a in row 3",
    ),
    ("a,label\n1,x\n2,\n", "columns: label in 1; .* row 3. Leave their rows out with --option 'missing={label: drop}'"),
    ("a,label\n1,x\nNA,y\n3,x\n", "got none in 3 rows of these columns: a in 1; the first is a in row 3"),
    (
        "a,label\n1,x\ninf,y\n3,x\n",
        "a in .* must be numbers or few .* 'inf' in row 3 of .* between numbers. Correct",
    ),
    (
        "a,label\n1,x\n1e39,y\n3,x\n",
        "a in .* must be numbers .* got '1e39', which does not fit 32 bits",
    ),
    ("a,label\n1,1.5\n2,nan\n", "these columns: label in 1; the first is label in row 3"),
    ("a,label\n1,1.5\n2,-inf\n", "label in .* must be a finite number in 32 bits, got '-inf' in row 3"),
    ("a,label\n1,1\n2,two\n3,3\n", "label in .* must be a finite number in 32 bits, got 'two' in row 3"),
    ("a,b\n1,2\n3,4\n", r"must have one column to predict, called label or target or class, got a, b"),
    ("a,label,Target\n1,2,3\n", r"must have one column to predict, .* got a, label, Target. Name it"),
    ("label,x\n1,1\n1,2\n1,3\n1,4\n1,5\n1,6\n", "must hold two classes or more, got 1 only"),
    (
        "day,label\n2020-01-01,x\n2020-01-02,y\n",
        "day in .* must be numbers or .* got dates. Make numbers of dates with",
    ),
    (
        "user_id,label\n7,x\n3,y\n",
        "user_id in .* got an identifier, which is different in every row. Leave it",
    ),
    (
        "note,label\n" + "".join(f"t{i},{i % 2}\n" for i in range(30)),
        "note in .* must be numbers or few categories, got 30 different texts in 30 rows",
    ),
    (
        "a,label\n" + "".join(f"{i},t{i}\n" for i in range(30)),
        "label in .* must take few different values to be a class, got 30 in 30 rows",
    ),
    ("a,label\n1,x\n2,y\n", "must hold enough different rows for a test split of 20%, got 2 rows, 2 of them different"),
    ("a,label\n" + "1,x\n1,y\n" * 50, "must hold enough different rows .* got 100 rows, 1 of them different"),
    ("numbers,label\n1,x\n2,y\n", "must not call a column 'numbers', a name that is taken"),
    (
        "label,\n1,2\n",
        "must name its columns, got no name for column 2, which holds '2', … Leave",
    ),
    (
        b"a,label\n1,\xc3\xa9\n2,\xe9\n",
        "must be a text file in UTF-8, got .* in row 3, beside others in UTF-8. Convert it",
    ),
    (b"a,label\n1,x\n2,\x93\x81\n", "must be a text file in UTF-8 or Latin-1, got byte 0x81 in row 3. Convert it"),
    (b"a,label\n1,x\n2,y\0\n", "must be a text file in UTF-8, got a NUL byte in row 3"),
    ("a,label\n1,x\n".encode("utf-16"), "must be a text file in UTF-8, got a NUL byte in row 1"),
]


@pytest.mark.parametrize(("content", "message"), TABLES)
def test_a_malformed_table_is_named_with_file_and_row(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as raised:
        prepare(written(tmp_path / "t.csv", content), format="table")
    assert "t.csv" in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "age2"}, "must have one column to predict, called age2, got age, job, label"),
        ({"ignore": ("size",)}, "ignore must name columns of .*, got 'size'; there are age, job, label"),
        ({"ignore": ("label",)}, "ignore must name columns of .* that are not predicted, got 'label'"),
        ({"ignore": ("age", "job")}, "must have a column besides label, got none"),
        ({"side": 32}, "side must be left out for table, which has no such option, got 32"),
    ],
)
def test_options_that_do_not_fit_a_table_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        read(written(tmp_path / "t.csv", PEOPLE), **options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("x,label\n1,a\n2,b\n", "x\n1\n", "must have two columns|must have the columns of"),
        ("x,label\n1,a\n2,b\n", "x,y\n1,a\n", r"test\.csv must have the columns of .*train\.csv, 'x,label', got 'x,y'"),
        ("x,label\n1,a\n2,b\n", "x,label\n3,c\n", "the training split of .* must hold every class, got no row of 'c'"),
        (
            "x,label\n1,a\n2,b\n",
            "x,label\n3,a\nq,b\n",
            r"x in .* must be numbers .*, got 'q' in row 3 of .*test\.csv between",
        ),
        ("x,label\n1,a\n2,b\n", "x,label\n", r"test\.csv must hold at least 1 row, got 0"),
        ("x,label\n1,a\n2,b\n", "", r"test\.csv must hold at least 1 row, got an empty file"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, train, test, message):
    written(tmp_path / "train.csv", train)
    written(tmp_path / "test.csv", test)
    with pytest.raises(ConfigError, match=message):
        prepare(str(tmp_path), format="table")


@pytest.mark.parametrize(
    "names", [["a.csv", "b.csv"], ["train.csv", "extra.csv"], ["train.csv", "test.csv", "c.csv"], []]
)
def test_a_folder_of_other_files_is_refused(tmp_path, names):
    for name in names:
        written(tmp_path / name, PEOPLE)
    with pytest.raises(ConfigError, match=r"must hold one \.csv or \.tsv file, or train\.csv and test\.csv, got"):
        prepare(str(tmp_path), format="table")


def test_ratings_of_every_movielens_release_are_the_same(tmp_path):
    rows = [(u, i, (u * i) % 9 / 2 + 0.5, 100 + u) for u in range(1, 30) for i in range(1, 12)]
    files = {
        "u.data": "\n".join("\t".join(map(str, row)) for row in rows),
        "ratings.dat": "\n".join("::".join(map(str, row)) for row in rows),
        "ratings.csv": "userId,movieId,rating,timestamp\n" + "\n".join(",".join(map(str, row)) for row in rows),
    }
    found = []
    for number, (name, text) in enumerate(files.items()):
        written(tmp_path / f"ml-{number}" / name, text)
        written(tmp_path / f"ml-{number}" / "README.txt", "About the files.")
        found.append(read(str(tmp_path / f"ml-{number}")))
        assert found[-1].name == f"ml-{number}"
    for other in found[1:]:
        assert (other.features, other.target) == (found[0].features, found[0].target)
        for split, part in other.splits.items():
            assert all(np.array_equal(part.columns[k], v) for k, v in found[0].splits[split].columns.items())


def test_a_copy_in_ratings_names_the_first_two_rows_that_are_equal(tmp_path):
    text = "user_id,item_id,rating\n5,5,1\n\n7,7,2\n6,6,1\n7,7,3\n5,5,1\n"
    with pytest.raises(ConfigError, match="got user 7 and item 7 in rows 4 and 6"):
        read(written(tmp_path / "r.csv", text))


SPARSE = (
    "+1 1:0.5 7:2 # a comment\n-1 3:1e-3\n" * 10
    + "# only a comment\n\n"
    + "".join(f"-1 {i}:1\n+1 5:{i}\n" for i in range(2, 40))
)


def test_sparse_rows_count_columns_from_1_unless_there_is_a_column_0(tmp_path):
    prepared = read(written(tmp_path / "a.svm", SPARSE))
    assert prepared.features == {"sparse": SparseFeature(columns=39)}
    assert prepared.target == ClassTarget(classes=("-1", "1"))
    row = prepared.splits["train"].columns["sparse"][0] if 0 in _first_rows(prepared) else None
    assert row is None or (row["column"].tolist(), row["value"].tolist()) == ([0, 6], [0.5, 2.0])
    from_zero = read(written(tmp_path / "b.libfm", SPARSE.replace("1:0.5", "0:0.5")))
    assert from_zero.features == {"sparse": SparseFeature(columns=40)}


def _first_rows(prepared) -> set[int]:
    return {0} if len(prepared.splits["train"].columns["sparse"][0]) == 2 else set()


def test_sparse_rows_come_out_as_they_went_in(tmp_path):
    random = np.random.default_rng(0)
    rows = [sorted(random.choice(50, 3, replace=False).tolist()) for _ in range(60)]
    text = "".join(f"{i % 2} " + " ".join(f"{c}:{c + i}" for c in reversed(row)) + "\n" for i, row in enumerate(rows))
    prepared = read(written(tmp_path / "a.svm", text))
    found = set()
    for part in prepared.splits.values():
        for number in range(part.rows):
            row = part.columns["sparse"][number]
            first = int(row["value"][0] - row["column"][0])
            assert (row["value"] - row["column"]).tolist() == [first] * 3
            assert row["column"].tolist() == rows[first]
            assert part.columns[TARGET][number] == first % 2
            found.add(first)
    assert found == set(range(60))


def test_the_splits_of_sparse_files_share_their_columns(tmp_path):
    written(tmp_path / "train.libsvm", "1.5 1:1\n2 2:1\n")
    written(tmp_path / "test.libsvm", "3 9:4\n")
    prepared = read(str(tmp_path))
    assert prepared.features["sparse"].columns == 9
    assert isinstance(prepared.target, NumberTarget)
    assert prepared.splits["test"].columns["sparse"][0].tolist() == [(8, 4.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least 1 row, got an empty file"),
        ("# nothing\n", "must hold at least 1 row, got comments only"),
        ("1\n2\n", "must hold a number in some column, got rows of labels only"),
        ("1 1:2\nx 1:2\n", "must have a number as label in field 1, got 'x' in row 2"),
        ("1 1:2\nnan 1:2\n", "label in .* must be a finite number in 32 bits, got nan in row 2"),
        ("1 1:2\n1,2 1:2\n", "must have a number as label in field 1, got '1,2' in row 2"),
        ("1 1:2\n\n1 2\n", "must have column:value in field 2, got '2' in row 3"),
        ("1 1:2\n1 2:x\n", "must have column:value in field 2, got '2:x' in row 2"),
        ("1 1:2\n1 2: 3\n", "must have column:value in field 2, got '2:' in row 2"),
        ("1 1:2\n1 2:3:4\n", "must have column:value in field 2, got '2:3:4' in row 2"),
        ("1 1:2\n1 qid:3 2:3\n", "must have no query ids, got 'qid:3' in row 2"),
        ("1 1:2\n1 2:inf\n", "a value in .* must be a finite number in 32 bits, got inf in row 2"),
        ("1 1:2\n1 2:1e99\n", r"a value in .* must be a finite number in 32 bits, got 1e\+99 in row 2"),
        ("1 1:2\n1 -2:1\n", "a column in .* must be a whole number from 0 to .*, got -2 in row 2"),
        ("1 1:2\n1 2.5:1\n", "a column in .* must be a whole number from 0 to .*, got 2.5 in row 2"),
        ("1 1:2\n1 9999999999:1\n", "a column in .* must be a whole number from 0 to .*, got 9999999999 in row 2"),
        ("1 1:2\n# c\n1 2:1 2:3\n", "must name each column once per row, got column 2 twice in row 3"),
        ("1 1:1700000000\n2 1:1700000001\n", "a value in .* that 32 bits can tell from others, got 1700000000 and"),
        ("1 1:2\n1 1:3\n1 1:4\n1 1:5\n1 1:6\n", "must hold two classes or more, got 1 only"),
        (b"1 1:2\n1 1:\xe9\n", "must have column:value in field 2, got '1:.*' in row 2"),
        (b"1 1:2\n1 \0:2\n", "must be a text file in UTF-8, got a NUL byte in row 2"),
    ],
)
def test_malformed_sparse_rows_are_named_with_file_and_row(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        prepare(written(tmp_path / "s.svm", text), format="svmlight")
    assert "s.svm" in str(raised.value)


@pytest.mark.parametrize(
    ("files", "format"),
    [
        ({"a.csv": PEOPLE}, "table"),
        ({"a.txt": PEOPLE}, "table"),
        ({"a.csv": "date,x\n2020-01-01,1\n"}, "series"),
        ({"a.csv": "when,x\n2020-01-01,1\n"}, "series"),
        ({"a.csv": "text,label\ngood,1\n"}, "text"),
        ({"a.csv": "userId,movieId,rating,timestamp\n1,2,3,4\n"}, "ratings"),
        ({"a.dat": "1::2::3::4\n"}, "ratings"),
        ({"u.data": "1\t2\t3\t4\n"}, "ratings"),
        ({"a9a": "-1 3:1 11:1\n"}, "svmlight"),
        ({"ratings.dat": "1::2::3::4\n", "movies.dat": "1::Heat::Drama\n"}, "ratings"),
        ({"train.csv": PEOPLE, "test.csv": PEOPLE}, "table"),
        ({"train.svm": "1 1:2\n", "test.svm": "1 1:2\n"}, "svmlight"),
        ({"a/1.wav": b"", "b/1.wav": b"", "README.txt": "About."}, "wav"),
        ({"a/1.wav": b"", "b/1.wav": b"", "testing_list.txt": "a/1.wav", "about.txt": "a, b"}, "wav"),
        ({"a/1.txt": "good", "b/1.txt": "bad"}, "text"),
        ({"x.pos": "good", "x.neg": "bad"}, "text"),
        ({"good.txt": "good", "bad.txt": "bad"}, "text"),
        ({"JPEGImages/1.jpg": b"", "Annotations/1.xml": "", "ImageSets/Main/train.txt": "1"}, "voc"),
        ({"train-images-idx3-ubyte.gz": b"", "train-labels-idx1-ubyte.gz": b""}, "idx"),
        ({"data_batch_1.bin": b"", "test_batch.bin": b"", "batches.meta.txt": "cat"}, "cifar"),
        ({"train-0.parquet": b"", "test-0.parquet": b""}, "huggingface-images"),
        ({"cat/1.png": b"", "dog/1.jpg": b""}, "image-folder"),
    ],
)
def test_the_format_of_a_source_is_found(tmp_path, files, format):
    for name, content in files.items():
        written(tmp_path / "source" / name, content)
    source = tmp_path / "source" / next(iter(files)) if len(files) == 1 else tmp_path / "source"
    assert detect(str(source), SourceOptions()) == format


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ({"a/1.wav": b"", "b/1.png": b""}, "image-folder and wav"),
        ({"a/1.png": b"", "b/1.png": b"", "labels.csv": "a,label\n1,2\n"}, "image-folder and table"),
        ({"a.csv": "date,x,label\n2020-01-01,1,2\n"}, "series and table"),
        ({"a.csv": "user,item,rating,label\n1,2,3,4\n"}, "ratings and table"),
        ({"notes": "only words here"}, "none"),
        ({"a.bin": b"\x7fELF\x01\x02\x00"}, "none"),
        ({}, "none"),
    ],
)
def test_a_source_that_fits_several_formats_or_none_is_refused(tmp_path, files, fits):
    for name, content in files.items():
        written(tmp_path / "source" / name, content)
    (tmp_path / "source").mkdir(exist_ok=True)
    ways = fits.replace("none", ", one of huggingface").replace(" and ", " or --format ")
    cure = f"Name it with --format {ways}".replace(" ,", ",")
    with pytest.raises(ConfigError, match=f"must fit one format, got .*, which fits {fits}. {cure}"):
        prepare(str(tmp_path / "source"))


def test_what_the_person_says_helps_to_find_the_format(tmp_path):
    dated = written(tmp_path / "b.csv", "date,x,label\n2020-01-01,1,2\n")
    assert detect(dated, SourceOptions(target="label")) == "table"
    assert detect(dated, SourceOptions(gaps="split")) == "series"
    source = written(tmp_path / "a.csv", "comment,stars\n" + "very good,5\nbad,1\nmeh,3\n" * 20)
    assert detect(source, SourceOptions()) == "table"
    assert detect(source, SourceOptions(text="comment", target="stars")) == "text"


FORM = parsing.Form(",", Quoting("fields", spans_lines=False), "utf-8", None, False)


class Kept:
    """A file in memory."""

    def __init__(self, content):
        self.content = content

    def __str__(self):
        return "kept.csv"

    def pieces(self, num_bytes):
        yield from (self.content[start : start + num_bytes] for start in range(0, len(self.content), num_bytes))

    def head(self):
        return self.content[:1000]


def rows_of(text):
    return list(parsing.parsed(Content(Kept(text)), FORM, types={}, only=None))


def test_no_thread_holds_what_was_read_once_it_is_refused(monkeypatch):
    monkeypatch.setattr(parsing, "_ROW_BYTES", 2**16)  # so that many are worked on at a time
    text = b"a,b\n1,2\n1\n" + b"1.25,2.5\n" * 300_000
    before = sys.getrefcount(text)
    for _ in range(5):
        with pytest.raises(ConfigError, match=r"kept\.csv must have 2 fields, separated by commas, got 1 in row 3"):
            rows_of(text)
        assert sys.getrefcount(text) == before


def test_what_a_thread_still_holds_is_waited_for(monkeypatch):
    text = b"a,b\n1,2\n1\n" + b"1.25,2.5\n" * 10
    holder = []
    timer = threading.Timer(0.05, holder.clear)

    def read_csv(*_args, **_options):
        holder.append(text)
        timer.start()
        raise pa.ArrowInvalid("in row 3")

    monkeypatch.setattr(parsing.arrow_csv, "read_csv", read_csv)
    with pytest.raises(ConfigError, match="got 1 in row 3"):
        rows_of(text)
    assert holder == []
    timer.join()
