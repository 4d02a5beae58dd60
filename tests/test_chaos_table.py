"""The table of kills in the documentation is what the last recorded run measured, and shows no loss."""

import json
from typing import Any

import pytest

from tests.chaos import STEPS, CaseResult
from tests.chaos_run import BEGIN, END, PAGE, RESULTS, ROUND, plan_cases, record, render, row, with_table


@pytest.fixture
def recorded() -> Any:
    if not RESULTS.exists():
        pytest.skip("no long run is recorded yet: make chaos")
    return json.loads(RESULTS.read_text())


def test_the_documentation_shows_the_recorded_run(recorded: Any) -> None:
    page = PAGE.read_text()
    assert page == with_table(page, recorded), "run `make chaos`, or put back the table that it wrote"


def test_the_recorded_run_lost_nothing_in_a_hundred_kills(recorded: Any) -> None:
    rows = recorded["rows"]
    assert sum(row["kills"] for row in rows) >= 100
    assert [row for row in rows if row["mismatches"] or row["not_recovered"]] == []


def test_the_recorded_run_is_the_one_that_is_planned_now(recorded: Any) -> None:
    planned = plan_cases(seed=recorded["seed"], kills=100)
    runs = {row["fault"]: row["runs"] for row in recorded["rows"]}
    assert runs == {fault: sum(c.fault == fault for c in planned) for fault in {c.fault for c in planned}}


def test_a_page_has_one_table() -> None:
    page = PAGE.read_text()
    assert (page.count(BEGIN), page.count(END)) == (1, 1)


# ---- what is planned


def test_a_seed_gives_the_same_cases_and_more_kills_only_add_some() -> None:
    assert plan_cases(seed=1, kills=50) == plan_cases(seed=1, kills=100)[: len(plan_cases(seed=1, kills=50))]
    assert plan_cases(seed=1, kills=50) != plan_cases(seed=2, kills=50)


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_has_every_fault_and_every_strike_within_the_run(seed: int) -> None:
    cases = plan_cases(seed=seed, kills=100)
    assert 100 <= sum(case.kills for case in cases) < 103
    assert len({case.name for case in cases}) == len(cases)
    assert {case.name.split("-")[1] for case in cases} == {kind for kind, _ in ROUND}
    for case in cases:
        steps = [strike.step for strike in case.strikes]
        assert steps == sorted(steps)
        assert all(0 < step < STEPS for step in steps)
        assert not case.strikes or len(steps) == case.kills


# ---- what is recorded


def result(fault: str = "driver", **fields: Any) -> CaseResult:
    values: dict[str, Any] = {"ends": ["driver_lost", "finished"], "workers": [2, 2]}
    return CaseResult("000-driver-cnn", fault, **(values | fields))


def test_a_row_adds_up_runs() -> None:
    found = row(
        "driver",
        [
            result(kills=1, steps_lost=[2], seconds=[4.0]),
            result(kills=2, steps_lost=[9, 3], seconds=[5.0, 30.04], mismatches=["samples"], problems=["missing"]),
            result(kills=1, problems=["hung"]),
            result(finished=False, problems=["RunFailedError"]),
        ],
    )
    assert found == {
        "fault": "driver",
        "runs": 4,
        "faults": 4,
        "kills": 4,
        "mismatches": 1,
        "not_recovered": 1,
        "unexpected": 1,
        "steps_lost": [3, 9],
        "seconds": [5.0, 30.0],
    }


def test_a_failed_case_is_kept_with_what_repeats_it() -> None:
    case = plan_cases(seed=0, kills=1)[0]
    bad = result(fault=case.fault, mismatches=["weights"])
    bad.case = case.name
    found = json.loads(json.dumps(record([case], [bad], seed=0, seconds=1.0)))
    (kept,) = found["failed"]
    assert kept["case"]["name"] == case.name
    assert kept["result"]["mismatches"] == ["weights"]


def test_a_table_is_written_between_its_markers_and_can_be_written_again() -> None:
    found = {
        "date": "2026-11-23",
        "seed": 0,
        "processors": "2 × x86_64",
        "versions": {"python": "3.11.9", "ray": "2.60.0"},
        "rows": [row("driver", [result(kills=1, steps_lost=[2], seconds=[4.25])]), row("none", [result("none")])],
    }
    page = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", found)
    assert page.splitlines() == [
        "before",
        BEGIN,
        "2026-11-23, seed 0, 2 × x86_64, python 3.11.9, ray 2.60.0: 1 kills in 2 runs, 0 mismatches. "
        "Steps and seconds: median (most).",
        "",
        "| fault | runs | kills | other bits or samples | not recovered | unexpected | steps lost "
        "| seconds to the next step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        "| driver | 1 | 1 | 0 | 0 | 0 | 2 (2) | 4.2 (4.2) |",
        "| none | 1 | 0 | 0 | 0 | 0 | — | — |",
        END,
        "after",
    ]
    assert with_table(page, found) == page
    assert render(found) in page
