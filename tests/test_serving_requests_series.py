"""The window of a series at serving: dates, gaps and missing values become what they became in training."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError
from models.features import Clock, ForecastTarget, SeriesFeature, Signature
from models.preparing.steps import TimeStep
from orchestrator.data.sources.formats import prepare
from orchestrator.data.sources.options import SourceOptions
from serving.requests.inputs import parse_samples
from serving.requests.series import parse_series
from serving.requests.values import InputError

HOUR = TimeStep(size=3600 * 10**6)


def feature(missing: Any = "refuse", **clock: Any) -> SeriesFeature:
    found = Clock(**{"dates": ("date",), "step": HOUR, **clock}) if clock else None
    return SeriesFeature(channels=("a", "b"), mean=(0, 0), std=(1, 1), missing=missing, clock=found)


def hourly(hours: Any, head: str = "date,b,a", sep: str = ",") -> str:
    return "\n".join(
        [head.replace(",", sep), *(sep.join([f"2024-01-01 {h:02}:00", str(h * 2), str(h)]) for h in hours)]
    )


def test_a_gap_is_refused_kept_or_filled_as_in_training() -> None:
    text = hourly([0, 1, 2, 5, 6])
    with pytest.raises(
        ConfigError, match=r"last 3 rows of the series must be 1 hour apart, as in training, got a gap before row 5"
    ):
        parse_series(text, feature(gaps="split"), lookback=3)
    assert parse_series(text, feature(gaps="split"), lookback=2) == [[5, 10], [6, 12]]
    assert parse_series(text, feature(gaps="keep"), lookback=3) == [[2, 4], [5, 10], [6, 12]]
    assert parse_series(text, feature(gaps="interpolate"), lookback=4) == [[3, 6], [4, 8], [5, 10], [6, 12]]
    assert parse_series(text, feature(), lookback=3) == [[2, 4], [5, 10], [6, 12]], "nothing is known of the dates"
    without = "\n".join(line.partition(",")[2] for line in text.splitlines())
    assert parse_series(without, feature(gaps="split"), lookback=3) == [[2, 4], [5, 10], [6, 12]]


def test_rows_that_are_counted_have_gaps_too() -> None:
    counts = {"dates": ("t",), "step": TimeStep(size=5, unit="counts")}
    text = "t,b,a\n1990,0,0\n1995,2,1\n2000,4,2\n2010,8,4\n2015,10,5\n"  # no years, as training had others
    with pytest.raises(ConfigError, match=r"must be 5 counts apart, as in training, got a gap before row 5"):
        parse_series(text, feature(gaps="split", **counts), lookback=3)
    assert parse_series(text, feature(gaps="interpolate", **counts), lookback=4) == [[2, 4], [3, 6], [4, 8], [5, 10]]
    with pytest.raises(ConfigError, match=r"t in row 3 of the series must be a whole number as in other rows, got 'x'"):
        parse_series(text.replace("1995", "x"), feature(gaps="split", **counts), lookback=3)


@pytest.mark.parametrize("sep", [";", "\t", "|"])
def test_delimiters_are_those_of_training(sep: str) -> None:
    assert parse_series(hourly(range(4), sep=sep), feature(gaps="refuse"), lookback=2) == [[2, 4], [3, 6]]


def test_decimal_commas_are_those_of_training() -> None:
    text = "date;b;a\n2024-01-01 00:00;1,5;2,5\n2024-01-01 01:00;3;4,25\n"
    assert parse_series(text, feature(decimal="comma"), lookback=2) == [[2.5, 1.5], [4.25, 3]]
    with pytest.raises(ConfigError, match=r"row 2 of the series must hold 2 numbers, got '2024-01-01 00:00,1,5,2,5'"):
        parse_series(text, feature(decimal="point"), lookback=2)


def test_numbers_for_people_are_read_as_in_the_training_file() -> None:
    step = TimeStep(size=24 * 3600 * 10**6)
    clock = Clock(dates=("",), step=step, decimal="comma", thousands=".")
    priced = SeriesFeature(channels=("preis", "anteil"), mean=(0, 0), std=(1, 1), clock=clock)
    text = ";preis;anteil\n2024-01-01;1.234,5 €;-37%\n2024-01-02;2;0,5 %\n"
    assert parse_series(text, priced, lookback=2) == [[1234.5, -37.0], [2.0, 0.5]]
    assert parse_series("1.234,5;3\n7;8,5\n", priced, lookback=2) == [[1234.5, 3.0], [7.0, 8.5]]
    with pytest.raises(ConfigError, match="got a gap before row 3"):
        parse_series(text.replace("01-02", "01-03"), priced, lookback=2)
    with pytest.raises(ConfigError, match=r"row 3 of the series must hold 2 numbers, got '2024-01-02,2\.0,red'"):
        parse_series(text.replace("0,5 %", "red"), priced, lookback=2)


def test_missing_values_are_refused_left_out_or_filled_as_in_training() -> None:
    text = "a,b\n1,1\nNA,2\n3,?\n4,4\n"
    with pytest.raises(ConfigError, match=r"row 3 of the series must hold 2 numbers, got 'NA,2'"):
        parse_series(text, feature(), lookback=3)
    assert parse_series(text, feature("interpolate"), lookback=3) == [[2, 2], [3, 3], [4, 4]]
    assert parse_series(text, feature("drop"), lookback=2) == [[1, 1], [4, 4]]
    with pytest.raises(ConfigError, match="the series must have 3 rows or more, got 2"):
        parse_series(text, feature("drop"), lookback=3)
    with pytest.raises(ConfigError, match="the series must have a value of b, got none"):
        parse_series("a,b\n1,NA\n2,NA\n", feature("interpolate"), lookback=2)


def test_null_in_a_request_is_filled_where_training_was() -> None:
    target = ForecastTarget(lookback=3, horizon=1)
    body = {"series": [[1, 10], {"a": None, "b": 20}, [3, None]]}
    signature = Signature(features={"series": feature("interpolate")}, target=target)
    assert parse_samples(body, signature)["series"].tolist() == [[[1, 10], [2, 20], [3, 20]]]
    with pytest.raises(InputError, match=r"series: the series must have a value of a, got none"):
        parse_samples({"series": [[None, 1]] * 3}, signature)
    for wrong in (
        [[1, None], [2, "x"], [3, 4]],
        [[None, 1], [2, 3]],
        [[None], [1, 2], [3, 4]],
        [[None, True], [1, 2], [3, 4]],
    ):
        with pytest.raises(InputError):
            parse_samples({"series": wrong}, signature)
    with pytest.raises(InputError, match=r"series\[1\]\[0\] must be a number, got null"):
        parse_samples(body, Signature(features={"series": feature()}, target=target))


@pytest.mark.parametrize(
    ("text", "clock", "message"),
    [
        (hourly([0, 2, 1]), {}, r"the dates of the series must increase, got '2024-01-01 01:00' in row 4"),
        ("date,b,a\nsoon,1,1\nlater,1,1\n", {}, r"the date in row 2 .* must be a date such as .*, got 'soon'"),
        ("date,b,a,city\n2024-01-01,1,1,x\n2024-01-02,1,1,y\n", {"item": "city"}, "must be one, got 2 in column city"),
        (hourly([0, 1]) + "\n2024-05-01,1,1", {"gaps": "interpolate"}, r"must lack fewer rows than it has, got 2,902"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_such_series_is_refused(text: str, clock: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_series(text, feature(**{"gaps": "split", **clock}), lookback=2)


def test_the_end_of_the_training_file_is_the_window_that_training_had(tmp_path: Path) -> None:
    rows = [
        f"{1 + h // 24}/2/2024;{h % 24}:00;{'NA' if h % 7 == 2 else h};{h * 2}" for h in range(60) if h not in (50, 51)
    ]
    source = tmp_path / "s.csv"
    source.write_text("Date;Time;a;b\n" + "\n".join(rows))
    options = SourceOptions(date_order="day-first", gaps="interpolate", missing="interpolate")
    prepared = prepare(str(source), options=options)
    found: Any = prepared.features["series"]
    window = parse_series(source.read_text(), found, lookback=12)
    stored: Any = prepared.splits["test"].columns["series"][-12:]
    assert window == stored.tolist() == [[float(h), 2.0 * h] for h in range(48, 60)]
    assert json.loads(found.model_dump_json())["clock"]["dates"] == ["Date", "Time"]
