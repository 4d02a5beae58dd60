"""Series as people have them: dates, delimiters, gaps, missing values, many in one file; down to the windows."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import ConfigError
from models.features import TARGET
from models.preparing.steps import TimeStep
from orchestrator.data.dataset import open_dataset
from orchestrator.data.push import ls, push
from orchestrator.data.reading.reader import Reader
from orchestrator.data.sources.formats import detect, prepare
from orchestrator.data.sources.options import SourceOptions
from orchestrator.data.sources.prepared import Prepared
from orchestrator.reporting.dataset.page import render_page
from tests.fake_store import MemoryStore

HOUR = 3600 * 10**6


def written(folder: Path, text: str, name: str = "s.csv") -> str:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text(text)
    return str(folder / name)


def hourly(hours: Any, *, value: str = "{h}", head: str = "date,load") -> str:
    rows = [f"2024-01-{1 + h // 24:02} {h % 24:02}:00,{value.format(h=h)}" for h in hours]
    return "\n".join([head, *rows]) + "\n"


def values_of(prepared: Prepared) -> list[list[float]]:
    """The rows of all splits, each once."""
    parts = [part.columns["series"][part.context_rows :] for part in prepared.splits.values()]
    return np.concatenate(parts).tolist()  # type: ignore[arg-type, no-any-return]


def read(source: str, **options: Any) -> Prepared:
    return prepare(source, options=SourceOptions(**options))


# ---- dates and columns

DAY_FIRST, MONTH_FIRST = {"date_order": "day-first"}, {"date_order": "month-first"}
TEN = range(10)
SHAPES = {
    "a year": ([f"year,x\n{2000 + i},{i}\n" for i in TEN], {}, TimeStep(size=12, unit="months")),
    "a month": ([f"month,x\n2000-{i + 1:02},{i}\n" for i in TEN], {}, TimeStep(size=1, unit="months")),
    "day first": ([f"date,x\n{i + 1}/2/2024,{i}\n" for i in TEN], DAY_FIRST, TimeStep(size=24 * HOUR)),
    "month first": ([f"date,x\n2/{i + 1}/2024,{i}\n" for i in TEN], MONTH_FIRST, TimeStep(size=24 * HOUR)),
    "Unix seconds": ([f"timestamp,x\n{1704067200 + 3600 * i},{i}\n" for i in TEN], {}, TimeStep(size=HOUR)),
    "a date at the end": ([f"x,date\n{i},2024-01-{i + 1:02}\n" for i in TEN], {}, TimeStep(size=24 * HOUR)),
    "a date by its looks": ([f"x,when\n{i},2024-01-{i + 1:02}\n" for i in TEN], {}, TimeStep(size=24 * HOUR)),
    "a named date": ([f"x;wann\n{i};2024010{i}\n" for i in range(1, 10)] + ["x;wann\n10;20240110\n"],
                     {"date": "wann"}, TimeStep(size=24 * HOUR)),
    "date and time": ([f"Date;Time;x\n16/12/2006;{i:02}:24:00;{i}\n" for i in TEN], DAY_FIRST,
                      TimeStep(size=HOUR)),
    "year and month": ([f"year,month,x\n1949,{i + 1},{i}\n" for i in TEN], {"date": ["year", "month"]},
                       TimeStep(size=1, unit="months")),
    "year, month, day, hour": ([f"year,month,day,hour,x\n2010,1,2,{i},{i}\n" for i in TEN],
                               {"date": ["year", "month", "day", "hour"]}, TimeStep(size=HOUR)),
    "year and month by themselves": ([f"Year,Month,x\n1949,{i + 1},{i}\n" for i in TEN], {},
                                     TimeStep(size=1, unit="months")),
    "decimal commas": ([f"date;x\n2024-01-{i + 1:02};{i},0\n" for i in TEN], {"decimal": "comma"},
                       TimeStep(size=24 * HOUR)),
    "tabs": ([f"date\tx\n2024-01-{i + 1:02}\t{i}\n" for i in TEN], {}, TimeStep(size=24 * HOUR)),
    "a date without a name": ([f",x\n2024-01-{i + 1:02},{i}\n" for i in TEN], {}, TimeStep(size=24 * HOUR)),
    "rows that end with delimiters": ([f"date;x;;\n2024-01-{i + 1:02};{i};;\n" for i in TEN], {},
                                      TimeStep(size=24 * HOUR)),
    "numbers of rows": ([f",date,x\n{i},2024-01-{i + 1:02},{i}\n" for i in TEN], {"ignore": 1},
                        TimeStep(size=24 * HOUR)),
    "year and quarter": ([f"year,quarter,x\n{2000 + i // 4}.0,{i % 4 + 1}.0,{i}\n" for i in TEN], {},
                         TimeStep(size=3, unit="months")),
    "a time with points": ([f"Date;Time;x\n10/03/2004;{i + 8:02}.00.00;{i}\n" for i in TEN], DAY_FIRST,
                           TimeStep(size=HOUR)),
    "thousands": ([f'date;x\n2024-01-{i + 1:02};"{i + 1}.000"\n' for i in TEN], {"thousands": "."},
                  TimeStep(size=24 * HOUR)),
    "money": ([f"date,x\n2024-01-{i + 1:02},${i}.00\n" for i in TEN], {}, TimeStep(size=24 * HOUR)),
    "bars and text": ([f"date|x|note\n2024-01-{i + 1:02}|{i}|fine\n" for i in TEN], {"ignore": "note"},
                      TimeStep(size=24 * HOUR)),
}  # fmt: skip

NOTES = {
    "rows that end with delimiters": tuple(
        f"left out column {i}, which has neither a name nor a value" for i in (3, 4)
    ),
    "numbers of rows": ("left out column 1",),
    "decimal commas": ("read the numbers of x, written like 1234,5",),
    "thousands": ("read the numbers of x, written like 1.234,5",),
    "money": ("read the numbers of x, written like $1234.5",),
    "bars and text": ("left out column note",),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_dates_and_columns_are_read_as_people_write_them(tmp_path: Path, shape: str) -> None:
    lines, options, step = SHAPES[shape]
    text = lines[0].split("\n")[0] + "\n" + "".join(line.split("\n", 1)[1] for line in lines)
    source = written(tmp_path, text)
    assert detect(source, SourceOptions(**options)) == "series"
    prepared = read(source, **options)
    feature = prepared.features["series"]
    assert feature.channels == ("x",) and feature.clock.step == step
    first, times = 1 if shape in ("a named date", "thousands") else 0, 1000 if shape == "thousands" else 1
    assert values_of(prepared) == [[float(i * times)] for i in range(first, first + 10)]
    assert prepared.notes == NOTES.get(shape, ())
    assert prepared.target.runs is None and prepared.source.changes == ()


@pytest.mark.parametrize(("encoding", "unit"), [("utf-8", "°"), ("latin-1", "°"), ("cp1252", "…°")])
def test_a_series_that_is_not_utf_8_is_read_as_what_it_is_and_says_so(tmp_path: Path, encoding: str, unit: str) -> None:
    (tmp_path / "s.csv").write_bytes(hourly(range(48), head=f"date,{unit}C").encode(encoding))
    prepared = read(str(tmp_path / "s.csv"))
    assert prepared.features["series"].channels == (f"{unit}C",)  # type: ignore[union-attr]
    assert prepared.source.format == ("series" if encoding == "utf-8" else f"series ({encoding})")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("date,x\n1/2/2024,1\n", {}, r"must say whether the day or the month .* in row 2\..*date_order="),
        ("date,x\n31/2/2024,1\n", DAY_FIRST, r"must be a date such as .*, got '31/2/2024' in row 2"),
        ("date,x\n1/2/24,1\n", {}, r"must have a year of four digits, got '1/2/24' in row 2"),
        ("date,x\n2024-01-01,1\n", {"date": "when"}, r"when must be a column of .*, got none of .* among date, x"),
        ("date,x\n2024-01-01,1\n", {"ignore": "y"}, r"y must be a column of .*, got none of that name among date, x"),
        ("date,x\n2024-01-01,1\n", {"ignore": "x"}, r"must have a date column and .* numeric one, got date, x"),
        ("a,x\nb,1\n", {}, r"must have a column of dates, called date or .*, got a, x\. .*date=\[year, month\]"),
        (hourly(TEN, value="red"), {}, r"load .* got 'red' in row 2\. Leave the column out with .*'ignore=load', or"),
        (hourly(TEN, value="1,red", head="date,load,city"), {}, r"city .* got 'red' in row 2.* --option 'item=city'"),
        ("date,x\n" + "2024-01-01,1\n" * 4, {}, r"must increase, got 2024-01-01 in row 3 after .* --option item=NAME"),
        ("date;x\n2024-01-01;5,8\n", {}, r"x .* got '5,8' in row 2\. Read its numbers.*'decimal=,', or leave"),
        (",x\n1,2\n", {}, r"got no name for column 1, which holds '1', … Leave it out with .* ignore=1, or"),
        ("date,my x\n2024-01-01,5 apples\n", {}, r"my x .* got '5 apples' in row 2.*--option 'ignore=\"my x\"', or"),
        (hourly(TEN), {"side": 32}, r"side must be left out for series, .* Its options are date, date_order, "),
    ],
)  # fmt: skip
def test_what_is_no_series_is_told_with_the_option_that_helps(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(written(tmp_path, text), format="series", options=SourceOptions(**options))


@pytest.mark.parametrize(
    ("text", "format"),
    [
        ("item_id,date,value\na,2024-01-01,1\n", "series"),
        ("price,sold,label\n1,2024-01-01,2\n", "table"),
        ("userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n", "ratings"),
        ("text,date,label\ngood,2024-01-01,1\n", "text"),
        ("year,x\n2001,5\n", "series"),
    ],
)
def test_a_date_somewhere_makes_a_series_unless_something_is_to_be_predicted(
    tmp_path: Path, text: str, format: str
) -> None:
    assert detect(written(tmp_path, text), SourceOptions()) == format


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.txt", "s.tsv.gz"])
def test_the_one_file_of_a_folder_is_read_and_not_said_to_be_left_out(tmp_path: Path, name: str) -> None:
    text = hourly(range(48)).replace(",", "\t").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    prepared = prepare(str(tmp_path), format="series")
    assert len(values_of(prepared)) == 48
    assert prepared.notes == ("left out 1 file: notes.pdf",)


# ---- rows that are counted


def counted(numbers: Any, *, head: str = "t,load", row: str = "{t},{t}") -> str:
    return "\n".join([head, *(row.format(t=t) for t in numbers)]) + "\n"


COUNTED = {
    "from 0": ("t", range(20), "{t},{t}", 1),
    "from 1, with a zero behind the point": ("step", range(1, 21), "{t}.0,{t}", 1),
    "in steps of five": ("time", range(-10, 90, 5), "{t},{t}", 5),
    "more than any year has": ("t", range(9990, 10010), "{t},{t}", 1),
}


@pytest.mark.parametrize("kind", COUNTED)
def test_a_column_that_counts_the_rows_is_as_good_as_dates(tmp_path: Path, kind: str) -> None:
    name, numbers, row, step = COUNTED[kind]
    source = written(tmp_path, counted(numbers, head=f"{name},load", row=row))
    assert detect(source, SourceOptions(date=(name,))) == "series"
    prepared = read(source, date=name)
    clock = prepared.features["series"].clock
    assert clock.dates == (name,) and clock.step == TimeStep(size=step, unit="counts")
    assert values_of(prepared) == [[float(t)] for t in numbers]
    assert prepared.source.changes == ()


def test_whole_numbers_that_can_all_be_dates_are_dates(tmp_path: Path) -> None:
    prepared = read(written(tmp_path, counted(range(1990, 2010))), date="t")
    assert prepared.features["series"].clock.step == TimeStep(size=12, unit="months")


def test_gaps_between_counted_rows_are_found_as_those_between_dates(tmp_path: Path) -> None:
    numbers = [*range(0, 200, 5), *range(225, 300, 5), *range(305, 500, 5)]
    source = written(tmp_path, counted(numbers))
    rule = r"must have a row every 5 counts, its usual step, got 2 gaps .*, the largest of 30 counts from 195 to 225\."
    with pytest.raises(ConfigError, match=rule):
        read(source, date="t")
    assert values_of(read(source, date="t", gaps="interpolate")) == [[float(t)] for t in range(0, 500, 5)]
    split = read(source, date="t", gaps="split")
    assert [run.rows for run in split.target.runs["train"]] == [40, 15, 10]
    kept = read(source, date="t", gaps="keep")
    assert values_of(kept) == [[float(t)] for t in numbers]
    assert "The usual step is 5 counts, the largest distance 30 counts" in kept.source.changes[0].text
    store = MemoryStore()
    push(store, source, options=SourceOptions(date=("t",), gaps="split"))
    dataset = open_dataset(store, "s")
    reader = Reader(dataset, dataset.signature(lookback=6, horizon=2))
    assert reader.num_samples("train") == 33 + 8 + 3
    assert "a row every 5 counts" in render_page(dataset)


def test_many_series_may_count_their_rows_each_from_0(tmp_path: Path) -> None:
    rows = [f"{item},{t},{t}" for item in "ab" for t in range(20)]
    prepared = read(written(tmp_path, "\n".join(["item_id,t,x", *rows])), date="t")
    assert prepared.features["series"].clock.step == TimeStep(size=1, unit="counts")
    assert len(prepared.target.runs["train"]) == 2


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (counted([0, 1, 2, "x", 4], row="{t},1"), {"date": "t"}, r"t in .* a whole number .*, got 'x' in row 5"),
        (counted([0, 1, 2.5, 3]), {"date": "t"}, r"t in .* must be a whole number .*, got '2\.5' in row 4"),
        (counted([0, 1, 1, 2]), {"date": "t"}, r"t in .* must increase, got 1 in row 4 after 1\."),
        (counted([*range(0, 60, 5), 62, 67]), {"date": "t"}, r"t of .* must count in equal steps, of 5 .* 62 after 55"),
        (counted(range(20), head="time,load"), {}, r"time in .* must be a date .*, got '0' .* --option date=time\."),
    ],
)  # fmt: skip
def test_a_column_that_does_not_count_in_equal_steps_is_refused(
    tmp_path: Path, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(written(tmp_path, text), format="series", options=SourceOptions(**options))


# ---- gaps

GAPPY = [*range(40), *range(45, 60), *range(61, 100)]  # 5 hours are missing, then 1


def test_gaps_are_refused_with_what_is_usual_largest_and_missing(tmp_path: Path) -> None:
    rule = r"must have a row every 1 hour, its usual step, got 2 gaps in which 6.00% of .* are missing, the largest"
    with pytest.raises(ConfigError, match=rule + r" of 6 hours from 2024-01-02 15:00 to 2024-01-02 21:00\. .*gaps=…"):
        read(written(tmp_path, hourly(GAPPY)))
    with pytest.raises(ConfigError, match=rule):
        read(written(tmp_path, hourly(GAPPY)), gaps="refuse")


def test_gaps_may_be_filled_with_straight_lines(tmp_path: Path) -> None:
    prepared = read(written(tmp_path, hourly(GAPPY)), gaps="interpolate")
    assert values_of(prepared) == [[float(hour)] for hour in range(100)]
    assert {name: part.rows - part.context_rows for name, part in prepared.splits.items()} == {
        "train": 70, "validation": 10, "test": 20,
    }  # fmt: skip
    (change,) = prepared.source.changes
    assert change.option == "gaps=interpolate"
    assert change.text == (
        "The usual step is 1 hour, the largest distance 6 hours; 6 % of the steps are missing (6 in 2 places): they "
        "were filled with straight lines."
    )
    assert change.numbers == {"missing": 6, "gaps": 2, "missing_share": 0.06}


def test_training_is_never_filled_from_what_comes_after_it(tmp_path: Path) -> None:
    prepared = read(written(tmp_path, hourly([*range(65), *range(75, 100)], value="{h}")), gaps="interpolate")
    train = prepared.splits["train"].columns["series"]
    assert isinstance(train, np.ndarray)
    assert train[-6:, 0].tolist() == [64.0] * 6, "the value before is repeated up to the end of training"
    test = prepared.splits["validation"]
    rows = test.columns["series"]
    assert isinstance(rows, np.ndarray)
    assert rows[test.context_rows : test.context_rows + 6, 0].tolist() == [70.0, 71.0, 72.0, 73.0, 74.0, 75.0]
    assert prepared.features["series"].mean == pytest.approx((train.mean(),))


def test_rows_may_be_kept_as_if_nothing_were_missing(tmp_path: Path) -> None:
    prepared = read(written(tmp_path, hourly(GAPPY)), gaps="keep")
    assert values_of(prepared) == [[float(hour)] for hour in GAPPY]
    assert prepared.target.runs is None
    assert prepared.source.changes[0].text.endswith("(6 in 2 places): they were left as they are.")


def windows(store: MemoryStore, name: str, split: str, *, lookback: int, horizon: int) -> list[list[float]]:
    """Lookback and horizon of every window of a split, of its first channel."""
    dataset = open_dataset(store, name)  # type: ignore[arg-type]
    reader = Reader(dataset, dataset.signature(lookback=lookback, horizon=horizon), cache="memory")
    found = []
    for _, batch in reader.evaluate_batches(split, worker=0, workers=1, batch_size=7):
        for window, target in zip(batch.tensors["series"], batch.tensors[TARGET], strict=True):
            found.append([*window[:, 0].tolist(), *target[:, 0].tolist()])
    assert len(found) == reader.num_samples(split)
    return found


def trained_on(store: MemoryStore, name: str, *, lookback: int, horizon: int) -> list[list[float]]:
    """Every window of an epoch of training."""
    dataset = open_dataset(store, name)  # type: ignore[arg-type]
    reader = Reader(dataset, dataset.signature(lookback=lookback, horizon=horizon))
    plan = reader.plan(seed=3, epoch=1, logical_workers=2, batch_size=6, drop_last=False)
    return [
        [*window[:, 0].tolist(), *target[:, 0].tolist()]
        for step in reader.train_batches(plan, logical_workers=(0, 1))
        for batch in step
        for window, target in zip(batch.tensors["series"], batch.tensors[TARGET], strict=True)
    ]


def test_no_window_crosses_a_gap_that_splits(tmp_path: Path) -> None:
    store: Any = MemoryStore()
    push(store, written(tmp_path, hourly(GAPPY)), name="gappy", options=SourceOptions(gaps="split"))
    present = set(GAPPY)
    for split, start, stop in (("train", 0, 65), ("validation", 65, 76), ("test", 76, 94)):
        own = {float(GAPPY[row]) for row in range(start, stop)}
        expected = [
            [float(h + i) for i in range(7)]
            for h in GAPPY[:stop]
            if all(h + i in present for i in range(7)) and all(float(h + i) in own for i in (5, 6))
        ]
        assert windows(store, "gappy", split, lookback=5, horizon=2) == expected
        if split == "train":
            assert sorted(trained_on(store, "gappy", lookback=5, horizon=2)) == sorted(expected)
    (summary,) = ls(store).found
    assert summary.rows == {"train": 65, "validation": 11, "test": 18}
    page = render_page(open_dataset(store, "gappy"))
    assert "no window crosses them" in page and "a row every 1 hour" in page
    with pytest.raises(ConfigError, match=r"at most the 40 rows between gaps that split train has at most,"):
        open_dataset(store, "gappy").signature(lookback=40, horizon=1)


def test_more_is_not_filled_in_than_there_is(tmp_path: Path) -> None:
    source = written(tmp_path, hourly(range(20)) + "9999-01-01 00:00,1\n")
    with pytest.raises(ConfigError, match=r"gaps must be fewer steps than there are rows to be interpolated, got 69,9"):
        read(source, gaps="interpolate")


# ---- missing values

WORDS = ["", "<NA>", "?", "-", "null", "None", "NaN", " n/a "]


def test_missing_values_are_refused_left_out_or_interpolated(tmp_path: Path) -> None:
    text = "date,a,b\n" + "".join(
        f"2024-01-01 {h:02}:00,{WORDS[h - 4] if 4 <= h < 12 else h},{h * 2}\n" for h in range(24)
    )
    source = written(tmp_path, text)
    with pytest.raises(ConfigError, match=r"a in .* must have a value .*, got '' in row 6, the first of 8 of 24"):
        read(source)
    prepared = read(source, missing="interpolate")
    assert values_of(prepared) == [[float(h), 2.0 * h] for h in range(24)]
    assert prepared.features["series"].missing == "interpolate"
    (change,) = prepared.source.changes
    assert change.text == "Fields without a value were filled with straight lines, in 24 rows: 8 of a."
    assert change.numbers == {"a": 8}
    with pytest.raises(ConfigError, match=r"got 1 gap .* largest of 9 hours from 2024-01-01 03:00 to 2024-01-01 12"):
        read(source, missing="drop")
    prepared = read(source, missing="drop", gaps="keep")
    assert values_of(prepared) == [[float(h), 2.0 * h] for h in range(24) if not 4 <= h < 12]
    assert prepared.source.changes[0].text == "8 of 24 rows had a field without a value and were left out."


def test_a_column_without_a_value_in_training_is_refused(tmp_path: Path) -> None:
    text = "date,a,b\n" + "".join(f"2024-01-01 {h:02}:00,{h},{h if h > 20 else 'NA'}\n" for h in range(24))
    with pytest.raises(ConfigError, match=r"b in .* must have a value in training to be interpolated"):
        read(written(tmp_path, text), missing="interpolate")


# ---- many series


def panel(hours: int, items: dict[str, int], *, head: str = "item_id,date,value") -> str:
    rows = [
        f"{name},2024-01-{1 + h // 24:02} {h % 24:02}:00,{base + h}"
        for h in range(hours)
        for name, base in items.items()
    ]
    return "\n".join([head, *rows]) + "\n"


def test_many_series_of_one_file_are_cut_each_and_no_window_mixes_them(tmp_path: Path) -> None:
    store: Any = MemoryStore()
    source = written(tmp_path, panel(50, {"north": 1000, "south": 2000, "west": 3000}))
    result = push(store, source, name="panel")
    assert result.manifest.features["series"].clock.item == "item_id"
    assert result.manifest.target.runs["train"] == ((35, 0), (35, 0), (35, 0))
    assert result.manifest.target.runs["test"] == ((50, 40), (50, 40), (50, 40))
    spans = {"train": (0, 35), "validation": (35, 40), "test": (40, 50)}
    for split, (start, stop) in spans.items():
        expected = [
            [float(base + h + i) for i in range(6)]
            for base in (1000, 2000, 3000)
            for h in range(max(0, start - 4), stop - 5)
        ]
        assert windows(store, "panel", split, lookback=4, horizon=2) == expected
    assert [change.text for change in result.manifest.source.changes] == ["3 series of 50 rows; each is cut by time."]
    assert ls(store).found[0].rows == {"train": 105, "validation": 15, "test": 30}
    feature = result.manifest.features["series"]
    assert feature.mean == pytest.approx((2000 + 17,))  # of the training rows of all
    render_page(open_dataset(store, "panel"))


def test_any_column_may_say_which_series_a_row_belongs_to(tmp_path: Path) -> None:
    text = panel(20, {"1": 0, "2": 100}, head="shop,day,sales")
    prepared = read(written(tmp_path, text), item="shop", date="day")
    assert prepared.features["series"].channels == ("sales",)
    assert len(prepared.target.runs["train"]) == 2


def test_a_series_of_many_that_is_malformed_is_named(tmp_path: Path) -> None:
    text = panel(20, {"a": 0, "b": 0})
    with pytest.raises(
        ConfigError, match=r"date in .* must increase, got 2024-01-01 00:00 in row 42 after 2024-01-01 19"
    ):
        read(written(tmp_path, text + "a,2024-01-01 00:00,1\n"))
    with pytest.raises(ConfigError, match=r"item_id 'c' in .*s.csv must hold at least 10 rows, got 1"):
        read(written(tmp_path, text + "c,2024-01-01 00:00,1\n"))
    with pytest.raises(ConfigError, match=r"item_id 'b' in .* must have a row every 1 hour, .* got 1 gap "):
        read(written(tmp_path, text + "b,2024-01-02 00:00,1\n"))


def test_household_power_as_published_is_read_with_four_options(tmp_path: Path) -> None:
    rows = [f"16/12/2006;{17 + i // 60}:{i % 60:02}:00;{'?' if i == 7 else 4 + i}.0;0.418" for i in range(120)]
    rows = [row.replace("?.0", "?") for row in rows]
    text = "\n".join(["Date;Time;Global_active_power;Global_reactive_power", *rows])
    prepared = read(written(tmp_path, text, "power.txt"), date_order="day-first", missing="interpolate")
    feature = prepared.features["series"]
    assert feature.clock.dates == ("Date", "Time") and str(feature.clock.step) == "1 minute"
    assert values_of(prepared)[:9] == [[4.0 + i, pytest.approx(0.418)] for i in range(9)]
