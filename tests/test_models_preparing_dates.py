"""Dates as people write them, and the steps between them."""

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.preparing.dates import DateError, is_date, joined, parse_dates
from models.preparing.gaps import fill, find_gaps, spread_out
from models.preparing.steps import TimeStep, described


def one(text: str, **order: str) -> str:
    return str(parse_dates([text], **order).view("datetime64[us]").astype("datetime64[s]")[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2016", "2016-01-01T00:00:00"),
        ("2016-07", "2016-07-01T00:00:00"),
        ("2016/7", "2016-07-01T00:00:00"),
        ("201607", "2016-07-01T00:00:00"),
        ("2016M07", "2016-07-01T00:00:00"),
        ("2016Q3", "2016-07-01T00:00:00"),
        ("2016-q4", "2016-10-01T00:00:00"),
        ("Jul 2016", "2016-07-01T00:00:00"),
        ("2016 July", "2016-07-01T00:00:00"),
        ("1-Jul-2016", "2016-07-01T00:00:00"),
        ("01 July 2016 13:05", "2016-07-01T13:05:00"),
        ("20160701", "2016-07-01T00:00:00"),
        ("2016/7/1", "2016-07-01T00:00:00"),
        ("2016.7.1 1:05 PM", "2016-07-01T13:05:00"),
        ("2016-07-01 12:05 am", "2016-07-01T00:05:00"),
        ("2016-7-1 24:00", "2016-07-02T00:00:00"),
        ("2016-07-01T13:00:00Z", "2016-07-01T13:00:00"),
        ("2016-07-01 13:00:00+02:00", "2016-07-01T11:00:00"),
        ("2016-07-01 13:00:05.250", "2016-07-01T13:00:05"),
        ("1467378000", "2016-07-01T13:00:00"),
        ("1467378000000", "2016-07-01T13:00:00"),
        ("1467378000000000", "2016-07-01T13:00:00"),
        ("1467378000000000000", "2016-07-01T13:00:00"),
        (" 2016-07-01 ", "2016-07-01T00:00:00"),
    ],
)
def test_a_date_is_read_as_it_is_meant(text: str, expected: str) -> None:
    assert one(text) == expected


def test_fractions_of_seconds_are_kept() -> None:
    assert np.diff(parse_dates(["1467378000.25", "1467378000.5"])).tolist() == [250_000]
    assert np.diff(parse_dates(["2016-07-01 13:00:05", "2016-07-01 13:00:05.001"])).tolist() == [1000]


def test_the_order_of_day_and_month_is_said_by_a_person() -> None:
    assert one("1/2/2016 13:00", order="day-first") == "2016-02-01T13:00:00"
    assert one("1/2/2016 13:00", order="month-first") == "2016-01-02T13:00:00"
    assert one("2016/1/2", order="day-first") == "2016-01-02T00:00:00"
    assert one("10/03/2004 18.00.05", order="day-first") == "2004-03-10T18:00:05"
    assert one("10.03.2004 18.30", order="day-first") == "2004-03-10T18:30:00"
    with pytest.raises(DateError, match="say whether the day or the month comes first") as raised:
        parse_dates(["2016-01-01", "31.12.2016"])
    assert (raised.value.index, raised.value.is_ambiguous) == (1, True)


@pytest.mark.parametrize(
    "text", ["hello", "", "2016-13", "2016-02-30", "12:30", "2016-07-01 25:00", "99", "Foo 2016", "1e9"]
)
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(DateError, match="be a date such as 2016-07-01 13:00, 2016-07, 2016, or Unix time in seconds"):
        parse_dates([text], "day-first")


def test_a_year_has_four_digits_and_a_time_zone_all_or_none_have() -> None:
    with pytest.raises(DateError, match="have a year of four digits"):
        parse_dates(["1/2/16"], "day-first")
    with pytest.raises(DateError, match="have a time zone as all others, or none as all others") as raised:
        parse_dates(["2016-01-01T00:00Z", "2016-01-02T00:00"])
    assert raised.value.index == 1


@given(st.datetimes(min_value=datetime(1800, 1, 1), max_value=datetime(2200, 1, 1)))
def test_every_date_in_iso_8601_is_read_to_the_microsecond(date: datetime) -> None:
    assert parse_dates([date.isoformat()]).view("datetime64[us]")[0] == np.datetime64(date, "us")
    assert parse_dates([date.isoformat(" ")])[0] == parse_dates([date.isoformat()])[0]


@given(st.text(max_size=30))
def test_any_text_is_a_date_or_refused(text: str) -> None:
    try:
        parse_dates([text], "day-first")
    except DateError as error:
        assert error.index == 0
    is_date(text)


def test_numbers_do_not_look_like_dates() -> None:
    assert [is_date(text) for text in ("2016", "20160701", "5.5", "1467378000", "red", "")] == [False] * 6
    assert [is_date(text) for text in ("2016-07", "1/2/2016", "01.02.2016", "Jul 2016")] == [True] * 4


def test_fields_of_several_columns_are_one_date() -> None:
    assert joined(["16/12/2006", "17:24:00"]) == "16/12/2006 17:24:00"
    assert one(joined(["1949", "Jan"])) == "1949-01-01T00:00:00"
    assert one(joined(["2010", "1", "31", "5"])) == "2010-01-31T05:00:00"
    assert one(joined(["2010", " 1 "])) == "2010-01-01T00:00:00"
    assert one(joined(["1959.0", "4.0"], ("year", "Quarter"))) == "1959-10-01T00:00:00"
    assert one(joined(["1959", "Q2"], ("year", "quarter"))) == "1959-04-01T00:00:00"
    assert one(joined(["1959", "4"], ("year", "month"))) == "1959-04-01T00:00:00"
    with pytest.raises(DateError):
        parse_dates([joined(["1959", "5"], ("year", "quarter"))])


# ---- steps


@pytest.mark.parametrize(
    ("texts", "step", "missing", "largest"),
    [
        (["2000-01", "2000-02", "2000-03", "2000-06"], "1 month", [0, 0, 2], "3 months"),
        (["2024-01-31", "2024-02-29", "2024-03-31", "2024-06-30"], "1 month", [0, 0, 2], "3 months"),
        (["2001", "2002", "2003", "2005"], "1 year", [0, 0, 1], "2 years"),
        (["2024-01-01 00:00", "2024-01-01 00:15", "2024-01-01 00:30", "2024-01-01 01:30"],
         "15 minutes", [0, 0, 3], "1 hour"),
        (["2024-01-05", "2024-01-08", "2024-01-09", "2024-01-10"], "1 day", [2, 0, 0], "3 days"),
        (["2024-01-01", "2024-01-08", "2024-01-15", "2024-01-29"], "7 days", [0, 0, 1], "14 days"),
        (["2024-01-01 00:00:00", "2024-01-01 00:00:59", "2024-01-01 00:02:01"], "59 seconds", [0, 0], "59 seconds"),
    ],
)  # fmt: skip
def test_the_usual_step_and_what_lacks_are_found(texts: list[str], step: str, missing: list[int], largest: str) -> None:
    found = find_gaps(parse_dates(texts))
    assert (str(found.step), found.missing.tolist(), found.largest) == (step, missing, largest)
    assert found.share == pytest.approx(sum(missing) / (sum(missing) + len(texts)))


def test_a_distance_is_said_in_words() -> None:
    sizes = [(12, "months"), (24, "months"), (7, "months"), (500_000, "microseconds"), (5_400_000_000, "microseconds")]
    assert [described(*size) for size in sizes] == ["1 year", "2 years", "7 months", "0.5 seconds", "1 hour 30 minutes"]
    assert str(TimeStep(size=86_400 * 10**6)) == "1 day"


NAN = np.nan


def test_missing_values_become_straight_lines() -> None:
    rows_TC = np.array([[NAN, 1], [2, NAN], [NAN, NAN], [4, 4], [NAN, NAN]])
    assert fill(rows_TC).tolist() == [[2, 1], [2, 2], [3, 3], [4, 4], [4, 4]]
    wide_TC, places = spread_out(np.array([[1.0], [5.0]]), np.array([3]))
    assert (fill(wide_TC)[:, 0].tolist(), places.tolist()) == ([1, 2, 3, 4, 5], [0, 4])
    assert np.isnan(rows_TC[0, 0]), "what was given stays as it is"


def test_nothing_is_filled_from_behind_an_edge() -> None:
    rows_TC = np.array([[0.0], [NAN], [NAN], [NAN], [4.0], [NAN]])
    assert fill(rows_TC, [2, 6])[:, 0].tolist() == [0, 0, 2, 3, 4, 4]
    with pytest.raises(ValueError, match="0"):
        fill(np.array([[NAN], [NAN], [3.0]]), [1])


@given(st.lists(st.one_of(st.none(), st.integers(-100, 100)), min_size=1, max_size=12), st.integers(0, 12))
def test_rows_before_an_edge_do_not_depend_on_those_after_it(values: list[int | None], edge: int) -> None:
    edge = min(edge, len(values))
    rows_TC = np.array([[NAN if value is None else float(value)] for value in values])
    changed_TC = rows_TC.copy()
    changed_TC[edge:] = 7.0
    try:
        before, after = fill(rows_TC, [edge]), fill(changed_TC, [edge])
    except ValueError:
        return
    assert before[:edge].tolist() == after[:edge].tolist()
    assert not np.isnan(before[:edge]).any()
