"""Sources: what comes out of each format, and that every malformed input is named with its file and row."""

import re
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError
from models.features import TARGET, NumberTarget
from orchestrator.data.manifest import SeriesTarget
from orchestrator.data.sources.bundles import pixel_fields
from orchestrator.data.sources.formats import FORMATS, prepare
from orchestrator.data.sources.options import SourceOptions, parse_options

SHARED = Path(__file__).parents[2] / "shared" / "data"


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"shared/data/{name} is not here")


def written(path: Path, text: str, *, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def test_ratings_are_split_at_random_with_a_vocabulary_of_the_training_split(tmp_path):
    lines = [f"{user}\t{item}\t{(user * item) % 5 + 1}\t0" for user in range(1, 12) for item in range(1, 11)]
    lines.append("100\t200\t3\t0")
    source = written(tmp_path / "r.tsv", "\n".join(lines) + "\n")
    parts = [prepare(source, options=SourceOptions(seed=seed)) for seed in range(12)]
    for prepared in parts:
        train, test = prepared.splits["train"], prepared.splits["test"]
        assert (train.rows, test.rows) == (100, 11)
        assert train.columns["user"].min() >= 1  # 0 is for values that training never saw
        assert len(prepared.features["user"].vocabulary) == len(np.unique(train.columns["user"]))
        assert ("100" in prepared.features["user"].vocabulary) != (0 in test.columns["user"])
        assert isinstance(prepared.target, NumberTarget)
        assert prepared.target.mean == pytest.approx(train.columns[TARGET].mean())
    assert any(0 in prepared.splits["test"].columns["user"] for prepared in parts)
    again = prepare(source, options=SourceOptions(seed=3)).splits["test"].columns
    assert np.array_equal(again["item"], parts[3].splits["test"].columns["item"])


def test_the_rows_of_both_splits_are_the_file(tmp_path):
    lines = {(f"u{u}", f"i{i}", float(u % 5)) for u in range(15) for i in range(4)}
    source = written(tmp_path / "r.tsv", "\n".join("\t".join(map(str, line)) for line in lines))
    prepared = prepare(source, options=SourceOptions(seed=1))
    words = {name: ["?", *prepared.features[name].vocabulary] for name in ("user", "item")}
    found = [
        (words["user"][u], words["item"][i], float(r))
        for part in prepared.splits.values()
        for u, i, r in zip(*(part.columns[name] for name in ("user", "item", TARGET)), strict=True)
    ]
    assert len(found) == 60
    assert set(found) == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least 1 row, got an empty file"),
        ("\n\n", "must hold at least 1 row, got an empty file"),
        ("1\t2\t3\t4\n", "must hold at least 2 rows, got 1"),
        ("user_id\titem_id\trating\n", "must hold at least 1 row, got 0"),
        ("1\t2\t3\t4\n1,3,3,4\n", "must have 4 fields, separated by tabs, got 1 in row 2"),
        ("1\t2\t3\t4\n\n1\t3\t3\n", "must have 4 fields, separated by tabs, got 3 in row 3"),
        ("1\t2\t3\t4\n1\t\t3\t4\n", "item in .* must be given, got nothing in row 2"),
        ("1\t2\t3\t4\n1\t3\t1e999\t4\n", "rating in .* must be a finite number in 32 bits, got '1e999' in row 2"),
        ("1::2::3::4\n1::3::x::4\n", "rating in .* must be a finite number .*, got 'x' in row 2"),
        ("1::2::3::4\n1::a:b::3::4\n", "must be a table with double colons between its fields"),
        ("1::2::3::4\n1::3::4\n", "must have 4 fields, separated by double colons, got 3 in row 2"),
        ("userId,rating\n1,2\n", "must have user, item, rating and timestamp, or a header .* got 'userId,rating'"),
        ("1\t2\t3\t4\n1\t3\0\t3\t4\n", "must be a text file in UTF-8, got a NUL byte in row 2"),
        ("1\t2\t3\t4\n1\t3\tgood\t4\n", "rating in .* must be a finite number .*, got 'good' in row 2"),
        ("1\t2\t3\t4\n1\t3\tnan\t4\n", "rating in .* must be a finite number .*, got 'nan' in row 2"),
        (
            "1\t2\t3\t4\n2\t2\t3\t4\n1\t2\t5\t9\n",
            "once per user, got user 1 and item 2 in rows 1 and 3. Take one with --option copies=last",
        ),
    ],
)
def test_malformed_ratings_are_named_with_file_and_row(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        prepare(written(tmp_path / "r.tsv", text), format="ratings")
    assert "r.tsv" in str(raised.value)


def test_ratings_in_latin_1_are_read_and_the_source_says_so(tmp_path):
    text = "".join(f"{name}\t{i}\t3\t4\n" for name in ("Ann", "Éva") for i in range(9))
    prepared = prepare(written(tmp_path / "r.tsv", text, encoding="latin-1"))
    assert prepared.features["user"].vocabulary == ("Ann", "Éva")
    assert prepared.source.format == "ratings (latin-1)"


def hourly(rows: int, *, start: int = 0) -> str:
    return "date,load,heat\n" + "".join(
        f"2020-01-{1 + hour // 24:02} {hour % 24:02}:00:00,{hour}.5,{-hour}\n" for hour in range(start, start + rows)
    )


def test_a_series_is_cut_by_time_with_rows_to_look_back_on(tmp_path):
    prepared = prepare(written(tmp_path / "s.csv", hourly(100)))
    parts = {name: (p.rows, p.context_rows) for name, p in prepared.splits.items()}
    assert parts == {"train": (70, 0), "validation": (80, 70), "test": (100, 80)}
    assert prepared.splits["test"].columns["series"][80].tolist() == [80.5, -80.0]
    feature = prepared.features["series"]
    assert feature.channels == ("load", "heat")
    assert feature.mean == pytest.approx((35.0, -34.5))  # of the training split alone
    assert prepared.target == SeriesTarget()


def test_the_sizes_of_a_series_splits_may_be_given(tmp_path):
    source = written(tmp_path / "s.csv", hourly(100))
    prepared = prepare(source, options=SourceOptions(split_sizes=(40, 20, 30)))
    assert [p.rows - p.context_rows for p in prepared.splits.values()] == [40, 20, 30]
    for sizes in ((50, 30, 30), (50, 30)):
        with pytest.raises(ConfigError, match=r"must be three numbers that sum to at most the 100 rows .* got 50, 30"):
            prepare(source, options=SourceOptions(split_sizes=sizes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least 1 row, got an empty file"),
        ("date,a\n", "must hold at least 1 row, got 0"),
        ("date,a\n2020-01-01,1\n", "must hold at least 10 rows, got 1"),
        ("date\n2020-01-01\n", "must have two columns or more"),
        ("2020-01-01,5\n2020-01-02,6\n", "must begin with a header, .* got '2020-01-01,5'"),
        ("date,a,a\n", "must name each column once, got 'a' 2 times"),
        ("date,a\n2020-01-01,1\n2020-01-02\n", "must have 2 fields, separated by commas, got 1 in row 3"),
        (
            "date,a\n2020-01-01,1\nsoon,1\n",
            "date in .* must be a date such as 2016-07-01 .*, got 'soon' in row 3",
        ),
        ("date,a\n2020-01-01,1\n2020-01-01,1\n", "date in .* must increase, got 2020-01-01 in row 3"),
        ("date,a\n2020-01-01,1\n2020-01-02T00:00Z,1\n", "date in .* must have a time zone as all others, or none"),
        ("date,a\n2020-01-01,\n", "a in .* must have a value in every row, got '' in row 2, the first of 1 of 1"),
        ("date,a\n2020-01-01,nan\n", "a in .* must have a value in every row, got 'nan' in row 2, .* missing=drop"),
        ("date,a\n2020-01-01,1;5\n", "a in .* must be a finite number .*, got '1;5' in row 2"),
        ("date,a\n2020-01-01,1e39\n", "a in .* must be a finite number in 32 bits, got '1e39' in row 2"),
    ],
)
def test_a_malformed_series_is_named_with_file_and_row(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        prepare(written(tmp_path / "s.csv", text), format="series")
    assert "s.csv" in str(raised.value)


def test_digits_are_stratified_and_span_all_intensities():
    prepared = prepare("sklearn:digits")
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert train.rows + test.rows == 1797
    assert np.bincount(test.columns[TARGET]) == pytest.approx(np.bincount(train.columns[TARGET]) / 4, abs=1)
    images = np.concatenate([train.columns["image"], test.columns["image"]])
    assert images.shape == (1797, 1, 8, 8)
    assert np.unique(images).tolist() == [
        0,
        16,
        32,
        48,
        64,
        80,
        96,
        112,
        128,
        143,
        159,
        175,
        191,
        207,
        223,
        239,
        255,
    ]
    other = prepare("sklearn:digits", options=SourceOptions(seed=1)).splits["test"]
    assert not np.array_equal(other.columns["image"], test.columns["image"])


def test_half_of_the_photos_pixels_are_missing_with_all_their_channels():
    prepared = prepare("sklearn:china", options=SourceOptions(side=32))
    train, test = prepared.splits["train"], prepared.splits["test"]
    assert train.rows == test.rows == 32 * 32 // 2 * 3
    assert set(prepared.features) == set(pixel_fields(32))
    assert np.bincount(test.columns["channel"]).tolist() == [0, 512, 512, 512]
    assert all(train.columns[name].min() >= 1 for name in prepared.features)


def test_the_surroundings_of_missing_pixels_say_more_than_the_mean_colour():
    prepared = prepare("sklearn:china")
    train, test = prepared.splits["train"].columns, prepared.splits["test"].columns
    guesses = []
    for name in (name for name in prepared.features if name != "channel"):
        place = {split: part[name] * 4 + part["channel"] for split, part in (("train", train), ("test", test))}
        counts = np.bincount(place["train"], minlength=place["test"].max() + 1)
        sums = np.bincount(place["train"], train[TARGET], minlength=len(counts))
        guesses.append(
            np.where(
                counts[place["test"]] > 0,
                sums[place["test"]] / np.maximum(counts[place["test"]], 1),
                prepared.target.mean,
            )
        )
    psnr = 10 * np.log10(255**2 / np.mean((np.mean(guesses, 0) - test[TARGET]) ** 2))
    assert psnr > 19  # the mean colour: 9.7


def test_el_nino_is_a_monthly_series():
    prepared = prepare("statsmodels:elnino")
    series = prepared.splits["test"].columns["series"]
    assert series.shape == (732, 1)
    assert series[:3, 0].tolist() == pytest.approx([23.11, 24.2, 25.37])


@pytest.mark.parametrize(
    ("source", "format", "options", "error", "message"),
    [
        ("nowhere.csv", None, {}, ConfigError, "got 'nowhere.csv', which does not exist"),
        ("x", "xml", {}, ConfigError, "format must be one of huggingface-images, .*, bundle, got 'xml'"),
        ("x", "bundle", {}, ConfigError, "must be one of sklearn:digits, .* for format bundle, got 'x'"),
        ("sklearn:digits", None, {"side": 32}, ConfigError, "side must be left out for sklearn:digits, .* got 32"),
        ("statsmodels:elnino", None, {"seed": 0}, ConfigError, "seed must be left out for statsmodels:elnino"),
    ],
)
def test_what_cannot_be_read_is_refused(source, format, options, error, message):
    with pytest.raises(error, match=message):
        prepare(source, format=format, options=SourceOptions(**options))


def test_typed_options_are_checked():
    options = parse_options({"classes": "cifar10", "split_sizes": [3, 2, 1], "side": 32})
    assert options == SourceOptions(classes=("cifar10",), split_sizes=(3, 2, 1), side=32)
    with pytest.raises(ConfigError, match=r"option must be one of classes, split_sizes, .*, side, .*, got 'size'"):
        parse_options({"size": 32})
    with pytest.raises(ConfigError, match=r"option side must fit: Input should be greater than .* 16, got 3"):
        parse_options({"side": 3})


@needs("ml-100k/u.data")
def test_movielens_is_read_whole():
    prepared = prepare(str(SHARED / "ml-100k" / "u.data"))
    assert prepared.name == "ml-100k"
    assert [part.rows for part in prepared.splits.values()] == [90_000, 10_000]
    assert len(prepared.features["user"].vocabulary) == 943
    assert 1600 < len(prepared.features["item"].vocabulary) <= 1682
    assert (prepared.target.minimum, prepared.target.maximum) == (1, 5)


@needs("etth1/ETTh1.csv")
def test_etth1_is_cut_as_published():
    prepared = prepare(str(SHARED / "etth1" / "ETTh1.csv"), options=SourceOptions(split_sizes=(8640, 2880, 2880)))
    assert {n: (p.rows, p.context_rows) for n, p in prepared.splits.items()} == {
        "train": (8640, 0),
        "validation": (3600, 720),
        "test": (3600, 720),
    }
    assert prepared.features["series"].channels == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")


@pytest.mark.parametrize("format", [format for format in FORMATS if format != "bundle"])
def test_the_documentation_lists_the_options_that_a_format_has(format, tmp_path):
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{format}` |"))
    listed = set(re.findall(r"`([a-z_]+)", row.split("|")[4]))
    found: set[str] = set()
    (tmp_path / "folder").mkdir()
    for source in ("x.csv", str(tmp_path / "folder")):
        with pytest.raises(ConfigError, match="option must be one of those of") as raised:
            FORMATS[format](source, SourceOptions(unknown=("nothing",)))
        found |= set(str(raised.value).partition(", got ")[0].split(", ")[1:])
    assert listed | {"leakage", "order"} == found
