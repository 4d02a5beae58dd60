"""The table of kills under load in the documentation is what the last recorded soak measured."""

import json
from typing import Any

import pytest

from tests.chaos_soak import BEGIN, END, KILLS, PAGE, RESULTS, Request, as_read, record, render, tally, with_table

ANSWERS = {"answers": {"200": 97, "503": 3}, "again_s": 1.5, "longest_s": 2.0, "median_s": 0.02}
GCS: dict[str, Any] = {
    "killed": "GCS",
    "recovered": True,
    "plain": ANSWERS,
    "retrying": {"answers": {"200": 100}, "again_s": 0.0, "longest_s": 2.25, "median_s": 0.02},
    "training": ["error: the local Ray head must live"],
    "exit_code": 101,
    "told_s": 3.5,
    "pause_s": 20.0,
    "typed": [{"command": "orchestrator up --redeploy", "exit_code": 0, "seconds": 12.5}],
}
STORE = {**GCS, "killed": "store", "training": [], "exit_code": None, "told_s": None, "pause_s": 1.25, "typed": []}


@pytest.fixture
def recorded() -> Any:
    if not RESULTS.exists():
        pytest.skip("no soak is recorded yet: python -m tests.chaos_soak")
    return json.loads(RESULTS.read_text())


def test_the_documentation_shows_the_recorded_soak(recorded: Any) -> None:
    page = PAGE.read_text()
    assert page == with_table(page, recorded), "run `python -m tests.chaos_soak`, or put back the table that it wrote"


def test_the_recorded_soak_killed_everything_and_all_of_it_recovered(recorded: Any) -> None:
    assert [row["killed"] for row in recorded["rows"]] == [kill.what for kill in KILLS]
    assert [row for row in recorded["rows"] if not row["recovered"]] == []


def test_the_recorded_death_of_the_head_was_told_within_fifteen_seconds(recorded: Any) -> None:
    (row,) = [row for row in recorded["rows"] if row["killed"] == "GCS"]
    assert row["exit_code"] == 101
    assert row["told_s"] < 15
    assert row["training"][-1].endswith("Start it again: orchestrator up. Then continue: orchestrator resume soak.")


def test_answers_are_counted_and_the_last_bad_one_says_when_it_was_over() -> None:
    found = tally(
        [
            Request("plain", 10.0, 10.5, "200"),
            Request("plain", 10.1, 12.1, "503"),
            Request("plain", 10.2, 11.0, "503"),
            Request("plain", 13.0, 13.1, "200"),
        ],
        10.0,
    )
    assert (found["answers"], found["again_s"], found["longest_s"]) == ({"200": 2, "503": 2}, 2.1, 2.0)
    assert tally([], 10.0) == {"answers": {}, "again_s": 0.0, "longest_s": 0.0, "median_s": None}


def test_a_line_is_shown_as_it_is_read_with_nothing_that_differs_from_run_to_run() -> None:
    line = "\x1b[33merror:\x1b[0m the head at 127.0.0.1:24720 died at 20:17:43"
    assert as_read(line) == "error: the head at 127.0.0.1:PORT died at HH:MM:SS"
    assert as_read("x" * 500) == "x" * 160 + " …"
    assert as_read("error: " + "x" * 500) == "error: " + "x" * 500


def test_a_row_says_what_each_client_and_the_training_read() -> None:
    text = render(record([STORE, GCS], load=0.5))
    assert "| store | 97 × 200, 3 × 503 | 2 s | 1.5 s | 100 × 200 | 2.25 s | goes on | 1.25 s |" in text
    assert "| GCS | 97 × 200, 3 × 503 | 2 s | 1.5 s | 100 × 200 | 2.25 s | exit code 101 after 3.5 s | 20 s |" in text
    assert "```text\nerror: the local Ray head must live\n```" in text
    assert text.endswith("Typed then: `orchestrator up --redeploy` (12.5 s).")
    page = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", record([GCS], load=0.5))
    assert page.startswith(f"before\n{BEGIN}\n2")
    assert page.endswith(f"\n{END}\nafter\n")
